//! A network that fails under a program on the stack: it sees what the kernel's stack would have shown
//! it, what arrives is whole, and nobody waits for ever.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use kcm_tests::netlab::{GUEST, Lab, PEER, is_runnable};
use kcm_tests::program;

/// Bytes each way: some thousand segments after the first 2 MiB, which say that the transfer is under way.
const BYTES: &str = "24000000";
/// TCP_USER_TIMEOUT where the link comes back, in ms: longer than it is away.
const PATIENT: &str = "30000";
/// The same where it does not.
const IMPATIENT: &str = "1500";

/// A program whose lines are read one by one; it is killed at the end.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(command: &mut Command, arguments: &[&str]) -> Self {
        let command = command.args(arguments).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        Self {
            child,
            lines: BufReader::new(stdout).lines(),
        }
    }

    /// A server that listens.
    fn server(command: &mut Command, arguments: &[&str]) -> Self {
        let mut server = Self::start(command, arguments);
        assert_eq!(server.line(), "listening");
        server
    }

    fn line(&mut self) -> String {
        let line = self.lines.next().and_then(Result::ok);
        line.map(|line| line.trim().to_owned()).unwrap_or_default()
    }

    fn rest(mut self) -> Vec<String> {
        let rest: Vec<_> = self.lines.by_ref().map_while(Result::ok).collect();
        rest.iter().map(|line| line.trim().to_owned()).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ip(command: Command, arguments: &[&str]) {
    let mut command = command;
    assert!(command.args(arguments).status().is_ok_and(|s| s.success()));
}

/// Devices that a stack can have here.
const DEVICES: [&str; 3] = ["packet:eth0", "xdp:eth0", "tap:kcm0"];

/// A program on the stack over one kind of device, and its peer at the other end.
struct Wire {
    lab: Lab,
    device: &'static str,
}

impl Wire {
    fn new(device: &'static str) -> Self {
        let lab = Lab::new(false);
        if let Some(name) = device.strip_prefix("tap:") {
            lab.add_tap(name);
        }
        Self { lab, device }
    }

    /// What the device's name says behind the colon.
    fn interface(&self) -> &'static str {
        self.device.split(':').nth(1).unwrap_or_default()
    }

    /// A command at the other end: of a TAP that is the kernel of the same namespace.
    fn at_peer(&self, program: impl AsRef<OsStr>) -> Command {
        match self.device.starts_with("tap:") {
            true => self.lab.on_guest(program),
            false => self.lab.on_peer(program),
        }
    }

    /// A transfer to the peer and back during which `fault` happens. `server` are the words for the peer.
    fn transfer(
        &self,
        program: &Path,
        server: [&str; 3],
        timeout: &str,
        fault: impl FnOnce(&Self),
    ) -> Vec<String> {
        let _server = Running::server(&mut self.at_peer(program), &server);
        let mut guest = self.lab.on_device(self.device, "", program);
        let mut guest = Running::start(&mut guest, &["transfer", PEER, BYTES, timeout]);
        assert_eq!(guest.line(), "under way", "{}", self.device);
        fault(self);
        guest.rest()
    }
}

/// One frame of a hundred is lost, one comes twice and one out of order, both ways.
#[test]
fn a_transfer_is_whole_over_a_bad_link() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_faults", &[]);
    for device in DEVICES {
        let wire = Wire::new(device);
        let _server = Running::server(&mut wire.at_peer(&program), &["serve", PEER, BYTES]);
        let mut guest = wire.lab.on_device(device, "faults=1", &program);
        let guest = Running::start(&mut guest, &["transfer", PEER, BYTES, PATIENT]);
        let wanted = ["under way", "gave all", "took all"];
        assert_eq!(guest.rest(), wanted, "{device}");
    }
}

/// Longer than a few retransmissions, and than the pause the library makes before it tries a device again.
const AWAY: Duration = Duration::from_millis(400);

#[test]
fn a_transfer_survives_the_link_going_down_on_either_side() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_faults", &[]);
    let own: fn(&Wire) -> Command = |wire| wire.lab.on_guest("ip");
    let other: fn(&Wire) -> Command = |wire| wire.at_peer("ip");
    for device in DEVICES {
        // A TAP is one interface.
        let sides = if device.starts_with("tap:") {
            &[own][..]
        } else {
            &[own, other][..]
        };
        for side in sides {
            let wire = Wire::new(device);
            let seen = wire.transfer(&program, ["serve", PEER, BYTES], PATIENT, |wire| {
                let interface = wire.interface();
                ip(side(wire), &["link", "set", interface, "down"]);
                thread::sleep(AWAY);
                ip(side(wire), &["link", "set", interface, "up"]);
            });
            assert_eq!(seen, ["gave all", "took all"], "{device}");
        }
    }
}

/// No thread of the program looks at the device: whoever opened the listener has ended, and a child serves.
#[test]
fn a_link_that_was_down_is_listened_to_again() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_share", &[]);
    for words in ["", "queues=2"] {
        let lab = Lab::new(false);
        program::run(lab.on_stack_with(words, &program).args(["daemon", GUEST]));
        ip(lab.on_guest("ip"), &["link", "set", "eth0", "down"]);
        thread::sleep(AWAY);
        ip(lab.on_guest("ip"), &["link", "set", "eth0", "up"]);
        lab.await_carrier();
        program::run(lab.on_peer(&program).args(["client", GUEST]));
    }
}

/// A program ends with what its peer cannot take now. When the peer can, it asks where the address is first, and
/// nobody has it but what the program has left.
#[test]
fn what_is_left_arrives_once_the_peer_is_back() {
    if !is_runnable() {
        return;
    }
    const LEFT: &str = "10000";
    let program = program::build("stack_faults", &[]);
    for words in ["", "queues=2"] {
        let lab = Lab::new(false);
        let mut server = Running::server(&mut lab.on_peer(&program), &["stall", PEER, LEFT]);
        let mut leaves = lab.on_stack_with(words, &program);
        let mut leaves = Running::start(leaves.stdin(Stdio::piped()), &["leave", PEER, LEFT]);
        assert_eq!(leaves.line(), "connected");
        let address = |what| {
            ip(
                lab.on_peer("ip"),
                &["address", what, "10.9.0.1/24", "dev", "eth0"],
            )
        };
        address("del");
        drop(leaves.child.stdin.take());
        assert_eq!(leaves.rest(), [""; 0]);
        address("add");
        ip(lab.on_peer("ip"), &["neigh", "flush", "dev", "eth0"]);
        assert_eq!(server.line(), "took all");
    }
}

/// The peer takes so many bytes, and no more: however slowly the fault comes, the transfer is not over before.
const STALLS: [&str; 3] = ["stall", PEER, "3000000"];

#[test]
fn a_peer_that_vanishes_ends_in_etimedout() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_faults", &[]);
    let wire = Wire::new("packet:eth0");
    // Nobody has the address any more, and nobody says so.
    let seen = wire.transfer(&program, STALLS, IMPATIENT, |wire| {
        let gone = ["address", "del", "10.9.0.1/24", "dev", "eth0"];
        ip(wire.at_peer("ip"), &gone);
    });
    assert_eq!(seen, ["gave ETIMEDOUT"]);
}

#[test]
fn a_device_that_is_removed_ends_in_etimedout() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_faults", &[]);
    for device in DEVICES {
        let wire = Wire::new(device);
        let seen = wire.transfer(&program, STALLS, IMPATIENT, |wire| {
            ip(wire.lab.on_guest("ip"), &["link", "del", wire.interface()]);
        });
        assert_eq!(seen, ["gave ETIMEDOUT"], "{device}");
    }
}

/// Runs a program on the kernel's stack and on ours, and expects the same lines.
fn same(arguments: &[&str], beside: impl Fn(&Lab, &Path) -> Option<Running>) {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_faults", &[]);
    let trace = |on_stack: bool| {
        let lab = Lab::new(!on_stack);
        let mut command = lab.on(on_stack, &program);
        let mut guest = Running::start(&mut command, arguments);
        let first = match arguments {
            ["unreachable", ..] => None,
            _ => Some(guest.line()),
        };
        let _beside = beside(&lab, &program);
        first.into_iter().chain(guest.rest()).collect::<Vec<_>>()
    };
    let (kernel, ours) = (trace(false), trace(true));
    assert!(kernel.len() > 1, "{kernel:?}");
    assert_eq!(kernel, ours);
}

#[test]
fn an_address_that_nobody_answers_for_is_ehostunreach() {
    same(&["unreachable", "10.9.0.77"], |_, _| None);
}

/// A peer that asked for the address while nobody had it asks again a second later; here, not within the test.
#[test]
fn who_asked_too_early_is_answered() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_faults", &[]);
    let lab = Lab::new(false);
    let slow = ["ntable", "change", "name", "arp_cache", "dev", "eth0"];
    let slow = [&slow[..], &["retrans", "1000000"]].concat();
    ip(lab.on_peer("ip"), &slow);
    let mut early = Running::start(&mut lab.on_peer(&program), &["unreachable", GUEST]);
    let asked = || {
        let known = lab.on_peer("ip").args(["neigh", "show", GUEST]).output();
        String::from_utf8_lossy(&known.expect("ip runs").stdout).contains("INCOMPLETE")
    };
    while !asked() {
        thread::sleep(Duration::from_millis(5));
    }
    let _server = Running::server(&mut lab.on_stack(&program), &["serve", GUEST, BYTES]);
    assert_eq!(
        early.line(),
        "connect(fd, (void *)&a, sizeof a) = ECONNREFUSED"
    );
}

#[test]
fn a_connection_stays_queued_while_descriptors_are_short() {
    same(&["full", GUEST], |lab, program| {
        Some(Running::start(&mut lab.on_peer(program), &["dial", GUEST]))
    });
}

#[test]
fn a_reader_that_stops_bounds_what_is_kept() {
    same(&["swallow", GUEST], |lab, program| {
        Some(Running::start(&mut lab.on_peer(program), &["flood", GUEST]))
    });
}
