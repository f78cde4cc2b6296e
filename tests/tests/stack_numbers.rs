//! Descriptors that the library holds for the stack are none of the program's: the numbers it gets are those
//! it would get from the kernel alone, no sweep of its own reaches the others, and nobody inherits them.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use kcm_tests::netlab::{GUEST, Lab, PEER, is_runnable};
use kcm_tests::program;
use kcm_tests::server::Server;

/// A device, and what its line in the settings says besides: nothing is left to the kernel, which could be at
/// the other end of the TAP too.
const DEVICES: [(&str, &str); 4] = [
    ("packet:eth0", "on_failure=ENETDOWN"),
    ("packet:eth0", "queues=2 on_failure=ENETDOWN"),
    ("xdp:eth0", "on_failure=ENETDOWN"),
    ("tap:kcm0", "on_failure=ENETDOWN"),
];

/// A link with a peer for a device of the stack.
fn lab_of(device: &str, program: &Path) -> (Lab, Server) {
    let lab = Lab::new(false);
    let is_tap = device.starts_with("tap:");
    let mut peer = match is_tap {
        true => {
            lab.add_tap("kcm0");
            lab.on_guest(program)
        }
        false => lab.on_peer(program),
    };
    let peer = Server::start(peer.args(["peer", PEER]));
    (lab, peer)
}

/// What a role prints.
fn run(mut command: Command, arguments: &[&str]) -> String {
    let output = program::run(command.args(arguments));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What every scenario prints on the kernel's sockets, the peer being `peer`.
fn expected(program: &Path, peer: &str) -> String {
    let lab = Lab::new(true);
    let _peer = Server::start(lab.on_peer(program).args(["peer", PEER]));
    let seen = run(lab.on_guest(program), &["all", peer, GUEST]);
    assert_eq!(seen.matches("ends with 0").count(), 14, "{seen}");
    seen
}

/// The first line that is not as on the kernel, and where.
fn same(expected: &str, seen: &str, device: &str) {
    let mut scenario = "";
    for (kernel, ours) in expected.lines().zip(seen.lines()) {
        if !kernel.starts_with(' ') {
            scenario = kernel;
        }
        assert_eq!(ours, kernel, "{device}, {scenario}\n{seen}");
    }
    assert_eq!(seen.lines().count(), expected.lines().count(), "{seen}");
}

#[test]
fn numbers_are_the_kernels_on_every_device() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_numbers", &[]);
    let with_peer = expected(&program, PEER);
    for (device, words) in DEVICES {
        let (lab, _peer) = lab_of(device, &program);
        let guest = lab.on_device(device, words, &program);
        let seen = run(guest, &["all", PEER, GUEST]);
        same(&with_peer, &seen, &format!("{device} {words}"));
    }
    // A memory device has nobody at its other end.
    let alone = expected(&program, "-");
    for device in ["mem:", "mem:numbers"] {
        let lab = Lab::new(false);
        let seen = run(lab.on_device(device, "", &program), &["all", "-", GUEST]);
        same(&alone, &seen, device);
    }
}

/// Waits until no packet socket and no program is left on the link: whoever sees last bytes arrive goes on for
/// a moment.
fn gone(lab: &Lab, device: &str) {
    const PATIENCE: Duration = Duration::from_secs(20);
    let end = Instant::now() + PATIENCE;
    loop {
        let sockets = run(lab.on_guest("cat"), &["/proc/net/packet"]);
        let links = run(lab.on_guest("ip"), &["-details", "link", "show"]);
        if sockets.lines().count() == 1 && !links.contains("xdp") {
            return;
        }
        assert!(Instant::now() < end, "{device}: {sockets}{links}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A forked child that has nothing to do with the stack keeps no device from the next process.
#[test]
fn a_sleeping_child_keeps_no_device() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_numbers", &[]);
    for (device, words) in DEVICES {
        let (lab, _peer) = lab_of(device, &program);
        let on = || lab.on_device(device, words, &program);
        // The parent ends; its child goes on, as its standard input does.
        let mut child =
            Server::start_until(on().args(["sleeper", PEER]), |line| line == "asleep").0;
        child.outlived();
        gone(&lab, &format!("{device} {words}"));
        for _ in 0..2 {
            let seen = run(on(), &["echo", PEER]);
            assert!(seen.contains("answered"), "{device} {words}: {seen}");
        }
        drop(child);
    }
}

/// A program that is executed has the descriptors that its parent left to it, and no others.
#[test]
fn an_executed_program_inherits_none() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_numbers", &[]);
    let lab = Lab::new(true);
    let peer = Server::start(lab.on_peer(&program).args(["peer", PEER]));
    let expected = run(lab.on_guest(&program), &["shows", PEER]);
    assert!(expected.contains("answered\n0\n1\n2\n"), "{expected}");
    drop(peer);
    for (device, words) in DEVICES {
        let (lab, _peer) = lab_of(device, &program);
        let seen = run(lab.on_device(device, words, &program), &["shows", PEER]);
        assert_eq!(seen, expected, "{device} {words}");
    }
}
