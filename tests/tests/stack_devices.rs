//! Every kind of device under a program, and what a program and its user see of one that cannot be used.

use std::path::Path;
use std::process::Command;

use kcm_tests::netlab::{GUEST, Lab, PEER, is_runnable};
use kcm_tests::server::Server;
use kcm_tests::{guest, program};

fn ip(lab: &Lab, arguments: &str) {
    let mut command = lab.on_guest("ip");
    let status = command.args(arguments.split(' ')).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "ip {arguments}"
    );
}

/// A command on the guest's side with the stack as `line` says.
fn under(lab: &Lab, line: &str, words: &[&str], program: &Path) -> Command {
    let mut command = lab.on_guest("env");
    command.arg(format!("KCMSHIM_STACK={line}")).args(words);
    command.arg(format!("LD_PRELOAD={}", guest::library().display()));
    command.arg(program);
    command
}

/// What the guest of attached connections prints, its peer being the command `peer`.
fn attached(mut peer: Command, mut guest: Command) -> String {
    let _peer = Server::start(peer.args(["peer", PEER]));
    let output = program::run(guest.args(["guest", PEER]));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The same program over the kernel's TCP, which every device has to equal.
fn expected(program: &Path) -> String {
    let lab = Lab::new(true);
    let seen = attached(lab.on_peer(program), lab.on_shim(program));
    assert!(seen.contains("done"), "{seen}");
    seen
}

#[test]
fn a_program_does_the_same_over_xdp_and_tap() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_attach", &[]);
    let expected = expected(&program);

    let lab = Lab::new(false);
    let guest = under(&lab, &format!("xdp:eth0 {GUEST}/24"), &[], &program);
    assert_eq!(attached(lab.on_peer(&program), guest), expected, "xdp");

    // The other end of a TAP is its interface, which the kernel has.
    let lab = Lab::new(false);
    lab.add_tap("kcm0");
    let guest = under(&lab, &format!("tap:kcm0 {GUEST}/24"), &[], &program);
    assert_eq!(attached(lab.on_guest(&program), guest), expected, "tap");
}

/// What stack_policy printed, and what the library said.
fn outcome(mut command: Command) -> (String, String) {
    let output = program::run(&mut command);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The kernel has neither the address nor a route to it.
const KERNEL: &str = "bind EADDRNOTAVAIL\nconnect ENETUNREACH\n";
const REFUSED: &str = "bind ENETDOWN\nconnect ENETDOWN\n";

#[test]
fn a_device_that_cannot_be_used_costs_one_sentence_and_follows_the_policy() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_policy", &[]);
    let lab = Lab::new(false);
    let as_nobody: &[&str] = &["setpriv", "--reuid=65534", "--clear-groups", "env"];
    let cases: [(&str, &str, &[&str], &str); 12] = [
        ("", "packet:eth9", &[], "no such interface"),
        (
            "",
            "bogus:eth0",
            &[],
            "there is no kind of device called `bogus`",
        ),
        (
            "",
            "packet:eth0 mtu=9000",
            &[],
            "`ip link set eth0 mtu 9000`",
        ),
        ("", "xdp:eth9", &[], "no such interface"),
        ("", "xdp:eth0 mtu=9000", &[], "`ip link set eth0 mtu 9000`"),
        ("", "xdp:eth0 queues=9", &[], "`ethtool -L`"),
        ("", "tap:eth0", &[], "delete it or name another"),
        ("", "packet:eth0", as_nobody, "permission denied"),
        ("", "xdp:eth0", as_nobody, "use `packet:` or `tap:`"),
        ("", "tap:kcm7", as_nobody, "permission denied"),
        (
            "link set eth0 down",
            "packet:eth0",
            &[],
            "`ip link set eth0 up` brings it up",
        ),
        ("", "xdp:eth0", &[], "`ip link set eth0 up` brings it up"),
    ];
    for (before, device, words, sentence) in cases {
        if !before.is_empty() {
            ip(&lab, before);
        }
        for (policy, did) in [("", KERNEL), (" on_failure=ENETDOWN", REFUSED)] {
            let line = format!("{device} {GUEST}/24{policy}");
            let (seen, said) = outcome(under(&lab, &line, words, &program));
            // Settings that make no sense are no settings: there is no policy in them either.
            let did = if device.starts_with("bogus") {
                KERNEL
            } else {
                did
            };
            assert_eq!(seen, did, "{line}: {said}");
            assert!(said.contains(sentence), "{line}: {said}");
            assert_eq!(said.lines().count(), 1, "{line}: {said}");
        }
    }
}

#[test]
fn netmap_without_its_module_says_what_to_load() {
    if !is_runnable() || Path::new("/dev/netmap").exists() {
        return;
    }
    let program = program::build("stack_policy", &[]);
    let lab = Lab::new(false);
    for device in ["netmap:eth0", "netmap:eth0-0", "vale0:a"] {
        let line = format!("{device} {GUEST}/24 on_failure=ENETDOWN");
        let (seen, said) = outcome(under(&lab, &line, &[], &program));
        assert_eq!(seen, REFUSED, "{said}");
        assert!(said.contains("`modprobe netmap` loads it"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}
