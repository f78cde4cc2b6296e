//! Programs with threads on a stack that has an engine for each queue: whichever thread accepts, reads,
//! writes or waits, every connection is served, and the peer, an ordinary kernel, sees one host.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kcm_tests::netlab::{self, GUEST, Lab, PEER};
use kcm_tests::program;

const THREADS: usize = 4;
/// Connections of each calling thread.
const CALLS: usize = 15;

/// A server, until it is told to end.
struct Server {
    child: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Server {
    fn start(mut command: Command, shape: &str, address: &str) -> Self {
        command.args([shape, address, &THREADS.to_string()]);
        Self::started(command)
    }

    fn started(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let mut said = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut line = String::new();
        said.read_line(&mut line).expect("it says when it is ready");
        assert_eq!(line, "ready\n");
        Self { child, said }
    }

    /// How many peers each of its threads had.
    fn end(mut self) -> Vec<usize> {
        drop(self.child.stdin.take());
        let mut text = String::new();
        self.said.read_to_string(&mut text).expect("it tells");
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}: {text}");
        let counts = text.lines().map(str::parse);
        counts.collect::<Result<_, _>>().expect("numbers")
    }
}

fn exchange(mut command: Command, what: &str, address: &str, each: usize) {
    command.args([what, address, &THREADS.to_string(), &each.to_string()]);
    program::run(&mut command);
}

/// Runs `with` for one engine and for several.
fn for_each_count(with: impl Fn(&Lab, &Path, &str)) {
    if let Some(why) = netlab::missing() {
        let _ = writeln!(io::stderr(), "not run: {why}");
        return;
    }
    let program = program::build("stack_queues", &[]);
    for queues in [1, 2, 4] {
        let lab = Lab::new(false);
        with(&lab, &program, &format!("queues={queues}"));
    }
}

/// A server of this shape answers the kernel's calls.
fn serves(shape: &str, what: &str, each: usize, check: impl Fn(&[usize])) {
    for_each_count(|lab, program, words| {
        let server = Server::start(lab.on_stack_with(words, program), shape, GUEST);
        exchange(lab.on_peer(program), what, GUEST, each);
        let peers = server.end();
        let sum = peers.iter().sum::<usize>();
        // A datagram that was lost is asked again.
        assert!(sum >= THREADS * each, "{words}: {peers:?}");
        check(&peers);
    });
}

#[test]
fn listeners_that_share_a_port_share_the_work() {
    serves("reuse", "call", CALLS, |peers| {
        assert!(peers.iter().all(|n| *n > 0), "{peers:?}");
    });
}

#[test]
fn threads_share_a_listener_in_their_epoll_sets() {
    serves("shared", "call", CALLS, |_| {});
}

#[test]
fn connections_are_handed_to_other_threads() {
    serves("handed", "call", CALLS, |peers| {
        assert!(peers.iter().all(|n| *n == CALLS), "{peers:?}");
    });
}

#[test]
fn threads_block_in_accept_and_recv() {
    serves("blocking", "call", CALLS, |_| {});
}

#[test]
fn one_thread_polls_the_connections_of_all_engines() {
    for_each_count(|lab, program, words| {
        let mut command = lab.on_stack_with(words, program);
        command.args(["polled", GUEST, "1"]);
        let server = Server::started(command);
        exchange(lab.on_peer(program), "call", GUEST, CALLS);
        assert_eq!(server.end(), [THREADS * CALLS]);
    });
}

#[test]
fn datagrams_come_to_the_socket_of_their_port() {
    serves("datagrams", "ask", 200, |peers| {
        assert!(peers.iter().all(|n| *n >= 200), "{peers:?}");
    });
}

/// Sockets that share a port have their share of the flows, and each flow stays with one of them.
#[test]
fn flows_to_a_shared_port_are_spread() {
    let each = |peers: &[usize]| assert!(peers.iter().all(|n| *n > 0), "{peers:?}");
    serves("grouped", "flows", 40, each);
    for_each_count(|lab, program, words| {
        let server = Server::start(lab.on_peer(program), "grouped", PEER);
        exchange(lab.on_stack_with(words, program), "flows", PEER, 40);
        each(&server.end());
    });
}

#[test]
fn threads_call_a_server_on_the_kernel() {
    for_each_count(|lab, program, words| {
        let server = Server::start(lab.on_peer(program), "blocking", PEER);
        exchange(lab.on_stack_with(words, program), "call", PEER, CALLS);
        assert_eq!(server.end().iter().sum::<usize>(), THREADS * CALLS);
        let server = Server::start(lab.on_peer(program), "datagrams", PEER);
        exchange(lab.on_stack_with(words, program), "ask", PEER, 200);
        server.end();
    });
}
