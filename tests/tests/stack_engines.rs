//! A stack of several engines, one for each queue of its device: servers and clients of many threads and
//! processes on it, with a peer on an ordinary kernel. The same with one.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use kcm_tests::ctl::{PATIENCE, Runtime};
use kcm_tests::netlab::{GUEST, Lab, PEER, is_runnable};
use kcm_tests::program;
use kcm_tests::server::Server;

fn build() -> std::path::PathBuf {
    program::build("stack_engines", &["-pthread"])
}

fn on_queues(lab: &Lab, queues: u8, program: &Path, arguments: &[&str]) -> Command {
    let mut command = lab.on_stack_with(&format!("queues={queues}"), program);
    command.args(arguments);
    command
}

fn on_peer(lab: &Lab, program: &Path, arguments: &[&str]) -> Command {
    let mut command = lab.on_peer(program);
    command.args(arguments).env("OWN", PEER);
    command
}

fn says(mut command: Command) -> String {
    String::from_utf8_lossy(&program::run(&mut command).stdout).into_owned()
}

/// A server on the stack, a client on the kernel.
fn serve(server: &[&str], client: &[&str], wanted: &str) {
    if !is_runnable() {
        return;
    }
    let program = build();
    for queues in [1, 2, 4] {
        let lab = Lab::new(false);
        let (kind, rest) = server.split_first().expect("a kind");
        let arguments = [&[*kind, GUEST][..], rest].concat();
        let _server = Server::start(on_queues(&lab, queues, &program, &arguments));
        let (kind, rest) = client.split_first().expect("a kind");
        let arguments = [&[*kind, GUEST][..], rest].concat();
        let said = says(on_peer(&lab, &program, &arguments));
        assert_eq!(said, wanted, "{queues} queues");
    }
}

#[test]
fn threads_with_a_listener_each() {
    serve(&["reuse", "4"], &["dial", "4", "16", "200000"], "64 good\n");
}

/// With fewer listeners than engines, some are in several.
#[test]
fn one_thread_with_a_shared_listener() {
    serve(&["reuse", "1"], &["dial", "2", "16", "60000"], "32 good\n");
}

#[test]
fn threads_with_one_listener() {
    serve(&["one", "4"], &["dial", "4", "16", "200000"], "64 good\n");
}

#[test]
fn processes_with_one_listener() {
    serve(&["fork", "2"], &["dial", "2", "16", "60000"], "32 good\n");
}

#[test]
fn datagrams() {
    serve(&["udp", "8"], &["tell", "8", "50"], "400 good\n");
}

/// Connections of several engines under one mux.
#[test]
fn messages() {
    serve(&["kcm", "8"], &["ask", "8", "100"], "800 good\n");
}

/// A client on the stack, a server on the kernel.
#[test]
fn clients() {
    if !is_runnable() {
        return;
    }
    let program = build();
    for queues in [1, 2, 4] {
        let lab = Lab::new(false);
        let server = Server::start(on_peer(&lab, &program, &["one", PEER, "2"]));
        for kind in ["dial", "fixed"] {
            let mut client = on_queues(&lab, queues, &program, &[kind, PEER, "4", "16", "200000"]);
            client.env("OWN", GUEST);
            assert_eq!(says(client), "64 good\n", "{kind}, {queues} queues");
        }
        drop(server);
        let _server = Server::start(on_peer(&lab, &program, &["udp", PEER, "8"]));
        let client = on_queues(&lab, queues, &program, &["tell", PEER, "8", "50"]);
        assert_eq!(says(client), "400 good\n", "{queues} queues");
    }
}

/// What each engine's program threads have done, as `kcmctl` has it.
fn rounds(runtime: &Runtime, pid: u32) -> Vec<u64> {
    let shown = runtime.says(&["stat", &pid.to_string()]);
    let of = |line: &str| {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        match words[..] {
            ["engine", _, "rounds", count] => count.parse().ok(),
            _ => None,
        }
    };
    shown.lines().filter_map(of).collect()
}

/// How many rounds the threads of a server with two engines have made in each while a client did `count`
/// exchanges, as soon as they are `enough`: the least and the most.
fn rounds_of(
    server: &[&str],
    client: &[&str],
    count: u64,
    enough: impl Fn(u64, u64) -> bool,
) -> (u64, u64) {
    let (program, runtime, lab) = (build(), Runtime::new(), Lab::new(false));
    let mut server = on_queues(&lab, 2, &program, server);
    server.env("XDG_RUNTIME_DIR", &runtime.0);
    let server = Server::start(server);
    let pid = server.id();
    let end = Instant::now() + PATIENCE;
    while !runtime.ctl(&["stat", &pid.to_string()]).status.success() && Instant::now() < end {}
    runtime.says_at_last(&["stat", &pid.to_string()], "engine 1 sockets");
    let before = rounds(&runtime, pid);
    let said = says(on_peer(&lab, &program, client));
    assert_eq!(said, format!("{count} good\n"));
    loop {
        let after = rounds(&runtime, pid);
        let made = after.iter().zip(&before).map(|(a, b)| a - b);
        let (least, most) = made.fold((u64::MAX, 0), |(l, m), n| (l.min(n), m.max(n)));
        // The page follows.
        if enough(least, most) || Instant::now() > end {
            return (least, most);
        }
    }
}

/// A thread looks at the engine its sockets are in, and leaves the other alone.
#[test]
fn each_thread_looks_at_its_own_engine() {
    if !is_runnable() {
        return;
    }
    let (server, client) = (["reuse", GUEST, "2"], ["ping", GUEST, "500"]);
    let (least, most) = rounds_of(&server, &client, 500, |_, most| most >= 500);
    assert!(most >= 500, "{most}");
    // The frames that concern everybody, and the end of the connection.
    assert!(least < 100, "{least}");
}

/// So do threads whose UDP sockets share a port, each with flows of its own.
#[test]
fn each_thread_with_datagrams_looks_at_its_own_engine() {
    if !is_runnable() {
        return;
    }
    let server = ["group", GUEST, "2"];
    let client = ["knock", GUEST, "1", "500"];
    let (least, most) = rounds_of(&server, &client, 500, |_, most| most >= 500);
    assert!(most >= 500, "{most}");
    assert!(least < 100, "{least}");
    // Of so many flows each has some.
    let client = ["knock", GUEST, "40", "20"];
    let (least, _) = rounds_of(&server, &client, 800, |least, _| least >= 100);
    assert!(least >= 100, "{least}");
}

/// kcmctl counts what waits for a listener in every engine.
#[test]
fn a_listener_shows_what_waits_in_all_engines() {
    if !is_runnable() {
        return;
    }
    let (program, runtime, lab) = (build(), Runtime::new(), Lab::new(false));
    let mut server = on_queues(&lab, 4, &program, &["hoard", GUEST, "0"]);
    server.env("XDG_RUNTIME_DIR", &runtime.0);
    let server = Server::start(server);
    let _crowd = Server::start(on_peer(&lab, &program, &["crowd", GUEST, "40"]));
    let pid = server.id().to_string();
    let end = Instant::now() + PATIENCE;
    while !runtime.ctl(&["ss", &pid]).status.success() && Instant::now() < end {}
    runtime.says_at_last(&["ss", &pid, "--json"], "\"recv_q\":40,");
}
