//! Every way a device can fail to open gives one sentence that says what to do.

mod device_support;

use device_support::*;
use kcm_stack::device::{OpenError, OpenOptions, open};

fn refusal(name: &str, options: &OpenOptions) -> OpenError {
    let error = open(name, options)
        .err()
        .unwrap_or_else(|| panic!("{name} opened"));
    let sentence = error.to_string();
    assert!(sentence.contains(name), "names the device: {sentence}");
    assert!(
        sentence.len() > 30 && !sentence.contains('\n'),
        "{sentence}"
    );
    assert!(!sentence.contains("  "), "{sentence}");
    error
}

#[test]
fn bad_name_is_refused_before_anything_is_opened() {
    for name in [
        "eth0",
        "pkt:eth0",
        "packet:",
        "netmap:p{",
        "vale0:",
        "mem:x",
    ] {
        assert!(matches!(
            refusal(name, &OpenOptions::default()),
            OpenError::Name { .. }
        ));
    }
}

#[test]
fn memory_device_hears_itself() {
    let mut device = open_one("mem:", &OpenOptions::default());
    send(&mut device, &[raw(1, 60), raw(2, 60)]);
    assert_eq!(expect(&mut device, 2), [raw(1, 60), raw(2, 60)]);
}

#[test]
fn missing_netmap_module_is_named() {
    if std::path::Path::new("/dev/netmap").exists() {
        return say("missing_netmap_module_is_named: needs a machine without /dev/netmap");
    }
    for name in [
        "netmap:eth0",
        "netmap:eth0-2",
        "netmap:eth0*",
        "netmap:p{1",
        "vale0:a",
    ] {
        let error = refusal(name, &OpenOptions::default());
        assert!(matches!(&error, OpenError::Missing { .. }), "{error}");
        assert!(error.to_string().contains("modprobe netmap"));
    }
}

#[test]
fn state_of_the_interface_is_explained() {
    in_namespace("state_of_the_interface_is_explained", Rights::User, || {
        let options = OpenOptions::default();
        for name in ["packet:nothere", "xdp:nothere"] {
            assert_eq!(
                refusal(name, &options),
                OpenError::NoInterface {
                    device: name.into()
                }
            );
        }
        veth(1);
        let other_mtu = OpenOptions {
            mtu: Some(9000),
            ..OpenOptions::default()
        };
        for name in ["packet:v0", "xdp:v0"] {
            let expected = OpenError::Mtu {
                device: name.into(),
                have: 1500,
                want: 9000,
            };
            assert_eq!(refusal(name, &other_mtu), expected);
        }
        ip("link set v0 down");
        for name in ["packet:v0", "xdp:v0"] {
            let error = refusal(name, &options);
            assert_eq!(
                error,
                OpenError::LinkDown {
                    device: name.into()
                }
            );
            assert!(error.to_string().contains("ip link set v0 up"));
        }
        assert!(matches!(
            refusal("tap:v0", &options),
            OpenError::Busy { .. }
        ));
        let held = open("tap:kcm0", &options).unwrap();
        assert!(matches!(
            refusal("tap:kcm0", &options),
            OpenError::Busy { .. }
        ));
        drop(held);
    });
}

/// Root of a user namespace has no rights over the system's interfaces, nor BPF.
#[test]
fn missing_rights_are_named() {
    in_namespace("missing_rights_are_named", Rights::User, || {
        veth(1);
        let error = refusal("xdp:v0", &OpenOptions::default());
        assert!(matches!(error, OpenError::Permission { .. }), "{error}");
        // The same user without the namespace's capabilities.
        let program = std::env::current_exe().unwrap();
        let inner = std::process::Command::new("setpriv")
            .args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"])
            .arg(program)
            .args(["--exact", "refused_without_capabilities", "--nocapture"])
            .env("KCM_DEVICE_TEST_NO_CAPABILITIES", "1")
            .output();
        let Ok(output) = inner else {
            return say("missing_rights_are_named: needs setpriv");
        };
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
}

#[test]
fn refused_without_capabilities() {
    if std::env::var_os("KCM_DEVICE_TEST_NO_CAPABILITIES").is_none() {
        return;
    }
    for name in ["packet:v0", "tap:kcm1"] {
        let error = refusal(name, &OpenOptions::default());
        assert!(matches!(error, OpenError::Permission { .. }), "{error}");
    }
}
