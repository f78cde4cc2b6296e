//! Stack sockets that several processes hold: over fork, exec and SCM_RIGHTS, and when the process that
//! opened them ends.

use std::path::{Path, PathBuf};
use std::process::Command;

use kcm_tests::netlab::{GUEST, Lab, PEER, is_runnable};
use kcm_tests::program;
use kcm_tests::server::Server;

/// What `stack_share peer` is, on the other side.
fn peer(lab: &Lab, program: &Path) -> Server {
    Server::start(lab.on_peer(program).args(["peer", PEER]))
}

#[test]
fn several_processes_use_one_connection_as_on_the_kernel() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_share", &[]);
    let trace = |kernel: bool, guest: fn(&Lab, &Path) -> Command| {
        let lab = Lab::new(kernel);
        let _peer = peer(&lab, &program);
        let output = program::run(guest(&lab, &program).args(["guest", PEER]));
        [output.stdout, output.stderr].map(|out| String::from_utf8_lossy(&out).into_owned())
    };
    let [kernel, errors] = trace(true, |lab, program| lab.on_guest(program));
    assert!(kernel.ends_with("done\n"), "{kernel}{errors}");
    let [ours, errors] = trace(false, |lab, program| lab.on_stack(program));
    assert_eq!(kernel, ours, "{errors}");
    // Frames are lost, doubled and late: what is read ends at holes, and a reset may overtake what was sent before it.
    let faulty = |lab: &Lab, program: &Path| lab.on_stack_with("faults=2", program);
    let [ours, errors] = trace(false, faulty);
    assert!(ours.ends_with("done\n"), "{ours}{errors}");
}

/// Children are killed while they work; the others, their parent and its descriptors are unharmed.
#[test]
fn a_killed_child_harms_nobody() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_share", &[]);
    for on_stack in [false, true] {
        let lab = Lab::new(!on_stack);
        let _peer = peer(&lab, &program);
        let output = program::run(lab.on(on_stack, &program).args(["kills", PEER]));
        assert_eq!(output.stdout, b"done\n");
    }
}

/// The engine ends with a killed owner. Whoever holds a connection of it hears of a reset, and the address is
/// free. (The kernel's connection would live on.)
#[test]
fn a_killed_owner_is_a_reset() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_share", &[]);
    let lab = Lab::new(false);
    let _peer = peer(&lab, &program);
    let output = program::run(lab.on_stack(&program).args(["orphan", PEER]));
    let expected = "its owner comes back\n\
        another process comes back\n\
        receive: -1  ECONNRESET\n\
        receive again: 0  -\n\
        send: -1 EPIPE\n\
        the owner: child ended with 9\n\
        whoever comes next comes back\n";
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
}

/// The process that opened the listener ends at once, and a child serves. When that ends too, nobody
/// listens any more.
#[test]
fn a_daemon_serves_after_its_parent_has_ended() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_share", &[]);
    for on_stack in [false, true] {
        let lab = Lab::new(!on_stack);
        program::run(lab.on(on_stack, &program).args(["daemon", GUEST]));
        program::run(lab.on_peer(&program).args(["client", GUEST]));
    }
}

/// What `stack_guests MODE` prints on the kernel, which is what it prints on the stack.
fn same_as_on_the_kernel(mode: &str) {
    same_on_devices(mode, &[("packet:eth0", ""), ("packet:eth0", "queues=2")]);
}

fn same_on_devices(mode: &str, devices: &[(&str, &str)]) {
    if !is_runnable() {
        return;
    }
    let (program, serves) = (
        program::build("stack_guests", &[]),
        program::build("stack_share", &[]),
    );
    let trace = |stack: Option<(&str, &str)>| {
        let lab = Lab::new(stack.is_none());
        let _peer = peer(&lab, &serves);
        let mut command = match stack {
            Some((device, words)) => lab.on_device(device, words, &program),
            None => lab.on_guest(&program),
        };
        let output = program::run(command.args([mode, PEER, GUEST]));
        [output.stdout, output.stderr].map(|out| String::from_utf8_lossy(&out).into_owned())
    };
    let [kernel, _] = trace(None);
    assert!(kernel.ends_with("done\n"), "{kernel}");
    for device in devices {
        let [stack, errors] = trace(Some(*device));
        assert_eq!(kernel, stack, "{device:?}: {errors}");
    }
}

/// Processes that find the address taken are served by the engine of the one that has it.
#[test]
fn a_child_opens_connections_as_on_the_kernel() {
    same_as_on_the_kernel("trace");
}

/// The workers of a server go on when the process that opened its listener is killed, and when the one that
/// has gone on with its engine is.
#[test]
fn a_listener_survives_a_killed_owner() {
    same_as_on_the_kernel("survives");
}

/// Who has a copy of a listener waits for nobody when its owner is killed or stopped, nor when who has the address
/// next is: other processes are served, calls that do not wait do not.
#[test]
fn a_listener_is_watched_without_waiting() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_revive", &[]);
    let said = |mode: &str, words: &str| {
        let lab = Lab::new(false);
        let mut command = lab.on_device("packet:eth0", words, &program);
        let output = program::run(command.args([mode, GUEST]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for words in ["", "queues=2"] {
        assert_eq!(
            said("stopped", words),
            "a child receives\na connection is answered\ndone\n"
        );
        assert_eq!(
            said("full", words),
            "a call that does not wait has not waited\na connection is answered\ndone\n"
        );
    }
}

/// The peer sees the end of a process that threads use connections of, by themselves or as KCM sockets, and the
/// threads see nothing.
#[test]
fn an_end_is_seen_though_threads_sleep() {
    if !is_runnable() {
        return;
    }
    let (program, serves) = (
        program::build("stack_ends", &[]),
        program::build("stack_share", &[]),
    );
    let said = |on_stack: bool, mode: &str| {
        let lab = Lab::new(!on_stack);
        let _peer = peer(&lab, &serves);
        let output = program::run(lab.on(on_stack, &program).args([mode, PEER]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let ended =
        |what: &str, of: &str, how: char| format!("{of}: child ended with 0\n{what}, {how}: e\n");
    let tcp: String = "_xe".chars().map(|how| ended("tcp", "tcp", how)).collect();
    assert_eq!(said(false, "tcp"), tcp);
    assert_eq!(said(true, "tcp"), tcp);
    let kcm = ["kcm", "kcm, asleep", "kcm", "kcm, asleep"];
    let each = |how| kcm.map(|what| ended(what, "kcm", how)).concat();
    assert_eq!(
        said(true, "kcm"),
        "_xe".chars().map(each).collect::<String>()
    );
}

/// What programs have sent arrives after their end, though others have the address since: with engines of
/// their own, or served by the one that is left where a device is one process's.
#[test]
fn what_is_left_arrives_while_others_begin() {
    same_as_on_the_kernel("leaves");
    same_on_devices("leaves", &[("xdp:eth0", "")]);
}

/// Whoever has the address next may have the port of what is left as far as the kernel lets it, and harms nothing.
#[test]
fn the_port_of_what_is_left_is_used_as_on_the_kernel() {
    same_as_on_the_kernel("ports");
}

/// Children and programs listen and connect with sockets that were only bound.
#[test]
fn bound_sockets_are_used_by_other_processes() {
    same_as_on_the_kernel("bound");
}

/// A process forks while its housekeeper hands connections over.
#[test]
fn forks_beside_connections_that_are_handed_over() {
    same_as_on_the_kernel("forks");
}

/// A process on the stack that has the address and a connection to the peer.
struct Held {
    holds: Server,
    _peer: Server,
    program: PathBuf,
    lab: Lab,
}

impl Held {
    fn new() -> Option<Self> {
        if !is_runnable() {
            return None;
        }
        let (program, serves) = (
            program::build("stack_guests", &[]),
            program::build("stack_share", &[]),
        );
        let lab = Lab::new(false);
        let _peer = peer(&lab, &serves);
        let holds = Server::start(lab.on_stack(&program).args(["hold", PEER]));
        Some(Self {
            holds,
            _peer,
            program,
            lab,
        })
    }
}

/// The address serves a process that has nothing to do with its owner.
#[test]
fn an_unrelated_process_uses_the_address_too() {
    let Some(Held {
        lab,
        program,
        _peer,
        holds,
    }) = Held::new()
    else {
        return;
    };
    let ask = || {
        let output = program::run(lab.on_stack(&program).args(["echo", PEER]));
        assert_eq!(output.stdout, b"hello comes back\n");
    };
    ask();
    ask();
    drop(holds);
    ask();
}

/// Who has the address and does not answer, or is somebody else's, is a failure for the rules to decide about
/// (the kernel has no route here), and nothing to wait for.
#[test]
fn an_owner_that_will_not_serve_is_a_failure() {
    let Some(Held {
        lab,
        program,
        _peer,
        holds,
    }) = Held::new()
    else {
        return;
    };
    let fails = |mut command: Command, why: &str| {
        let output = command.output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("connect: Network is unreachable"), "{said}");
        assert!(said.contains(why), "{said}");
    };
    let mut other = lab.on_guest("setpriv");
    other.args(["--reuid=65534", "--clear-groups", "env"]);
    for (name, value) in lab.on_stack(&program).get_args().filter_map(variable) {
        other.arg(format!("{name}={value}"));
    }
    other.arg(&program).args(["echo", PEER]);
    fails(other, "of another user");
    let ask = || {
        let mut command = lab.on_stack(&program);
        command.args(["echo", PEER]);
        command
    };
    holds.signal("STOP");
    fails(ask(), "does not answer");
    holds.signal("CONT");
    assert_eq!(program::run(&mut ask()).stdout, b"hello comes back\n");
}

/// NAME=VALUE among the arguments of env(1).
fn variable(argument: &std::ffi::OsStr) -> Option<(String, String)> {
    let (name, value) = argument.to_str()?.split_once('=')?;
    Some((name.to_owned(), value.to_owned()))
}

/// Children of a UDP server receive and answer on the socket they have inherited.
#[test]
fn children_serve_a_udp_socket_as_on_the_kernel() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_guests", &[]);
    let trace = |on_stack: bool| {
        let lab = Lab::new(!on_stack);
        let mut server = lab.on(on_stack, &program);
        server.args(["datagrams", PEER, GUEST]);
        let (server, said) = Server::start_until(server, |line| line == "ready");
        let heard = program::run(lab.on_peer(&program).args(["asks", PEER, GUEST]));
        said + &server.rest() + &String::from_utf8_lossy(&heard.stdout)
    };
    let (kernel, ours) = (trace(false), trace(true));
    assert!(kernel.contains("done\n40 of 40 are right\n"), "{kernel}");
    assert_eq!(kernel, ours);
}
