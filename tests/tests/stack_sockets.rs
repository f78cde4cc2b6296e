//! TCP sockets of the stack in the process, beside the kernel's: one program, one peer on an ordinary
//! kernel, and what each call returned has to be the same.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use kcm_tests::netlab::{self, GUEST, Lab, PEER};
use kcm_tests::program;

/// A program that serves until this is dropped.
struct Peer {
    child: Child,
    _stdin: Option<ChildStdin>,
}

impl Peer {
    fn start(lab: &Lab, program: &std::path::Path) -> Self {
        let mut command = lab.on_peer(program);
        command.args(["peer", PEER]);
        Self::listening(command)
    }

    /// A server of either side.
    fn listening(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the peer starts");
        // It says so when all its ports listen.
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        assert!(read.is_ok_and(|n| n > 0), "the peer listens");
        let stdin = child.stdin.take();
        Self {
            child,
            _stdin: stdin,
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self._stdin = None;
        let _ = self.child.wait();
    }
}

#[test]
fn calls_return_what_the_kernel_returns() {
    if let Some(why) = netlab::missing() {
        let _ = writeln!(io::stderr(), "not run: {why}");
        return;
    }
    let program = program::build("stack_calls", &[]);
    let trace = |on_stack: bool| {
        let lab = Lab::new(!on_stack);
        let _peer = Peer::start(&lab, &program);
        let mut guest = match on_stack {
            true => lab.on_stack(&program),
            false => lab.on_guest(&program),
        };
        guest.args(["guest", PEER, GUEST]);
        let output = program::run(&mut guest);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (kernel, ours) = (trace(false), trace(true));
    let differ: Vec<String> = kernel
        .lines()
        .zip(ours.lines())
        .enumerate()
        .filter(|(_, (k, o))| k != o)
        .map(|(at, (k, o))| format!("line {}: kernel {k:?}, stack {o:?}", at + 1))
        .collect();
    assert!(differ.is_empty(), "{}\n{ours}", differ.join("\n"));
    assert_eq!(kernel.lines().count(), ours.lines().count());
    assert!(kernel.lines().count() > 200, "the program came to its end");
}

/// Children accept on the listener they inherit; one after the other is killed with a connection open.
#[test]
fn children_accept_on_an_inherited_listener() {
    if let Some(why) = netlab::missing() {
        let _ = writeln!(io::stderr(), "not run: {why}");
        return;
    }
    let program = program::build("stack_prefork", &[]);
    let cases = ["server", "wildcard"].map(|role| [false, true].map(|on_stack| (role, on_stack)));
    for (role, on_stack) in cases.into_iter().flatten() {
        let lab = Lab::new(!on_stack);
        let mut server = match on_stack {
            true => lab.on_stack(&program),
            false => lab.on_guest(&program),
        };
        server.args([role, GUEST]);
        let _server = Peer::listening(server);
        program::run(lab.on_peer(&program).args(["client", GUEST]));
    }
}

/// Attached to a mux, a connection of the stack is to the program what the kernel's is.
#[test]
fn a_stack_connection_is_attached_as_the_kernels() {
    if let Some(why) = netlab::missing() {
        let _ = writeln!(io::stderr(), "not run: {why}");
        return;
    }
    let program = program::build("stack_attach", &[]);
    for role in ["guest", "left"] {
        let trace = |on_stack: bool| {
            let lab = Lab::new(!on_stack);
            let _peer = Peer::start(&lab, &program);
            let mut guest = match on_stack {
                true => lab.on_stack(&program),
                false => lab.on_shim(&program),
            };
            let output = program::run(guest.args([role, PEER]));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let (kernel, ours) = (trace(false), trace(true));
        assert!(kernel.contains("done"), "{kernel}");
        let of = |trace: &str| trace.lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(of(&kernel), of(&ours), "{role}");
    }
}
