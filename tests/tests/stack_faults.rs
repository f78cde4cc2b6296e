//! A network that fails under a program on the stack: it sees what the kernel's stack would have shown
//! it, what arrives is whole, and nobody waits for ever.

use std::io::{self, BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use kcm_tests::netlab::{self, GUEST, Lab, PEER};
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

fn can_run() -> bool {
    let missing = netlab::missing();
    if let Some(why) = missing {
        let _ = writeln!(io::stderr(), "not run: {why}");
    }
    missing.is_none()
}

/// A transfer to the peer and back during which `fault` happens. `server` are the words for the peer.
fn transfer(
    program: &Path,
    lab: &Lab,
    server: [&str; 3],
    timeout: &str,
    fault: impl FnOnce(&Lab),
) -> Vec<String> {
    let _server = Running::server(&mut lab.on_peer(program), &server);
    let mut guest = Running::start(
        &mut lab.on_stack(program),
        &["transfer", PEER, BYTES, timeout],
    );
    assert_eq!(guest.line(), "under way");
    fault(lab);
    guest.rest()
}

/// One frame of a hundred is lost, one comes twice and one out of order, both ways.
#[test]
fn a_transfer_is_whole_over_a_bad_link() {
    if !can_run() {
        return;
    }
    let program = program::build("stack_faults", &[]);
    let lab = Lab::new(false);
    let _server = Running::server(&mut lab.on_peer(&program), &["serve", PEER, BYTES]);
    let mut guest = lab.on_stack_with("faults=1", &program);
    let guest = Running::start(&mut guest, &["transfer", PEER, BYTES, PATIENT]);
    assert_eq!(guest.rest(), ["under way", "gave all", "took all"]);
}

/// Longer than a few retransmissions, and than the pause the library makes before it tries a device again.
const AWAY: Duration = Duration::from_millis(400);

#[test]
fn a_transfer_survives_the_link_going_down_on_either_side() {
    if !can_run() {
        return;
    }
    let program = program::build("stack_faults", &[]);
    let own: fn(&Lab) -> Command = |lab| lab.on_guest("ip");
    let other: fn(&Lab) -> Command = |lab| lab.on_peer("ip");
    for side in [own, other] {
        let lab = Lab::new(false);
        let seen = transfer(&program, &lab, ["serve", PEER, BYTES], PATIENT, |lab| {
            ip(side(lab), &["link", "set", "eth0", "down"]);
            thread::sleep(AWAY);
            ip(side(lab), &["link", "set", "eth0", "up"]);
        });
        assert_eq!(seen, ["gave all", "took all"]);
    }
}

#[test]
fn a_peer_that_vanishes_and_a_device_that_is_removed_end_in_etimedout() {
    if !can_run() {
        return;
    }
    let program = program::build("stack_faults", &[]);
    let lab = Lab::new(false);
    // However slowly the fault comes, the transfer is not over before.
    let stalls = ["stall", PEER, "3000000"];
    // Nobody has the address any more, and nobody says so.
    let seen = transfer(&program, &lab, stalls, IMPATIENT, |lab| {
        ip(
            lab.on_peer("ip"),
            &["address", "del", "10.9.0.1/24", "dev", "eth0"],
        );
    });
    assert_eq!(seen, ["gave ETIMEDOUT"]);
    drop(lab);
    let lab = Lab::new(false);
    let seen = transfer(&program, &lab, stalls, IMPATIENT, |lab| {
        ip(lab.on_guest("ip"), &["link", "del", "eth0"]);
    });
    assert_eq!(seen, ["gave ETIMEDOUT"]);
}

/// Runs a program on the kernel's stack and on ours, and expects the same lines.
fn same(arguments: &[&str], beside: impl Fn(&Lab, &Path) -> Option<Running>) {
    if !can_run() {
        return;
    }
    let program = program::build("stack_faults", &[]);
    let trace = |on_stack: bool| {
        let lab = Lab::new(!on_stack);
        let mut command = match on_stack {
            true => lab.on_stack(&program),
            false => lab.on_guest(&program),
        };
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
