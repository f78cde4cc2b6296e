//! Programs with threads on a stack that has an engine for each queue: whichever thread accepts, reads,
//! writes or waits, every connection is served, and the peer, an ordinary kernel, sees one host.

use std::path::Path;
use std::process::Command;

use kcm_tests::netlab::{GUEST, Lab, PEER, is_runnable};
use kcm_tests::program;
use kcm_tests::server::Server;

const THREADS: usize = 4;
/// Connections of each calling thread.
const CALLS: usize = 15;

fn server(mut command: Command, shape: &str, address: &str) -> Server {
    Server::start(command.args([shape, address, &THREADS.to_string()]))
}

/// How many peers each thread of a server had, which it tells when it ends.
fn peers(server: Server) -> Vec<usize> {
    let said = server.end();
    let counts = said.lines().map(str::parse);
    counts.collect::<Result<_, _>>().expect("numbers")
}

fn exchange(mut command: Command, what: &str, address: &str, each: usize) {
    command.args([what, address, &THREADS.to_string(), &each.to_string()]);
    program::run(&mut command);
}

/// Runs `with` for one engine and for several.
fn for_each_count(with: impl Fn(&Lab, &Path, &str)) {
    if !is_runnable() {
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
        let server = server(lab.on_stack_with(words, program), shape, GUEST);
        exchange(lab.on_peer(program), what, GUEST, each);
        let peers = peers(server);
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
        let server = Server::start(command);
        exchange(lab.on_peer(program), "call", GUEST, CALLS);
        assert_eq!(peers(server), [THREADS * CALLS]);
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
        let server = server(lab.on_peer(program), "grouped", PEER);
        exchange(lab.on_stack_with(words, program), "flows", PEER, 40);
        each(&peers(server));
    });
}

#[test]
fn threads_call_a_server_on_the_kernel() {
    for_each_count(|lab, program, words| {
        let blocking = server(lab.on_peer(program), "blocking", PEER);
        exchange(lab.on_stack_with(words, program), "call", PEER, CALLS);
        let count: usize = peers(blocking).iter().sum();
        assert_eq!(count, THREADS * CALLS);
        let datagrams = server(lab.on_peer(program), "datagrams", PEER);
        exchange(lab.on_stack_with(words, program), "ask", PEER, 200);
        let _ = datagrams.end();
    });
}
