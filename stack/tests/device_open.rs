//! Every way a device can fail to open gives one sentence that says what to do.

mod device_support;

use device_support::*;
use kcm_stack::device::{OpenError, OpenOptions, open};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

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
        "mem:a/b",
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

/// A name nobody else uses, in this run of this test.
fn unique(test: &str) -> String {
    format!("mem:{test}{}", std::process::id())
}

fn files_of(name: &str) -> usize {
    let stem = name.replace("mem:", "kcm-");
    let entries = std::fs::read_dir("/dev/shm").unwrap().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&stem))
        .count()
}

#[test]
fn shared_memory_has_two_ends_and_leaves_no_files() {
    let name = unique("two");
    let options = OpenOptions::default();
    let (mut a, mut b) = (open_one(&name, &options), open_one(&name, &options));
    assert_ne!(a.capabilities().mac, b.capabilities().mac);
    assert!(matches!(refusal(&name, &options), OpenError::Busy { .. }));
    let frames: Vec<Kept> = (0..900).map(|n| raw(n, 60 + n as usize)).collect();
    for _ in 0..5 {
        send(&mut a, &frames);
        assert_all_same(&expect(&mut b, frames.len()), &frames);
        send(&mut b, &frames);
        assert_all_same(&expect(&mut a, frames.len()), &frames);
    }
    drop(a);
    assert_eq!(files_of(&name), 3);
    drop(b);
    assert_eq!(files_of(&name), 0);
}

/// A program that is being started has copies of all descriptors for a moment.
#[test]
fn shared_memory_leaves_no_files_to_programs_that_start() {
    let name = unique("started");
    let options = OpenOptions::default();
    let starting = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..30 {
                Command::new("true").status().unwrap();
            }
            starting.store(false, Ordering::Relaxed);
        });
        while starting.load(Ordering::Relaxed) {
            let (a, b) = (open_one(&name, &options), open_one(&name, &options));
            drop((a, b));
            assert_eq!(files_of(&name), 0);
        }
    });
}

#[test]
fn shared_memory_goes_on_when_one_end_is_replaced() {
    let name = unique("one");
    let options = OpenOptions::default();
    let (mut a, mut b) = (open_one(&name, &options), open_one(&name, &options));
    for round in 0..5 {
        send(&mut a, &[raw(round, 60), raw(round, 70)]);
        assert_all_same(&expect(&mut b, 2), &[raw(round, 60), raw(round, 70)]);
        send(&mut a, &[raw(round, 80)]);
        drop(b);
        b = open_one(&name, &options);
        assert_all_same(&expect(&mut b, 1), &[raw(round, 80)]);
        send(&mut b, &[raw(round, 90)]);
        assert_all_same(&expect(&mut a, 1), &[raw(round, 90)]);
    }
    let other = OpenOptions {
        mtu: Some(9000),
        ..OpenOptions::default()
    };
    drop(b);
    assert!(open(&name, &other).is_ok(), "the MTU is each end's own");
    let plain = OpenOptions {
        offloads: false,
        ..OpenOptions::default()
    };
    assert!(matches!(refusal(&name, &plain), OpenError::Busy { .. }));
}

/// The child echoes; it is killed once while frames wait, and the next one takes its place.
#[test]
fn shared_memory_joins_two_processes() {
    let variable = "KCM_DEVICE_TEST_SHARED_MEMORY";
    let options = OpenOptions::default();
    if let Some(name) = std::env::var_os(variable) {
        let mut device = open_one(name.to_str().unwrap(), &options);
        loop {
            let frames = expect(&mut device, 1);
            send(&mut device, &frames);
        }
    }
    let name = unique("p");
    let mut device = open_one(&name, &options);
    let frames: Vec<Kept> = (0..200).map(|n| raw(n, 60 + n as usize)).collect();
    for _ in 0..2 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "shared_memory_joins_two_processes",
                "--nocapture",
            ])
            .env(variable, &name)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..20 {
            send(&mut device, &frames);
            assert_all_same(&expect(&mut device, frames.len()), &frames);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    drop(device);
    assert_eq!(files_of(&name), 0);
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
        let inner = Command::new("setpriv")
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
