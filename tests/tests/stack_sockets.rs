//! TCP sockets of the stack in the process, beside the kernel's: one program, one peer on an ordinary
//! kernel, and what each call returned has to be the same.

use std::path::Path;

use kcm_tests::netlab::{GUEST, Lab, PEER, is_runnable};
use kcm_tests::program;
use kcm_tests::server::Server;

/// What `PROGRAM peer` is, on the other side.
fn peer(lab: &Lab, program: &Path) -> Server {
    Server::start(lab.on_peer(program).args(["peer", PEER]))
}

#[test]
fn calls_return_what_the_kernel_returns() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_calls", &[]);
    let trace = |on_stack: bool| {
        let lab = Lab::new(!on_stack);
        let _peer = peer(&lab, &program);
        let mut guest = lab.on(on_stack, &program);
        guest.args(["guest", PEER, GUEST]);
        let output = program::run(&mut guest);
        [output.stdout, output.stderr].map(|out| String::from_utf8_lossy(&out).into_owned())
    };
    let ([kernel, _], [ours, errors]) = (trace(false), trace(true));
    let differ: Vec<String> = kernel
        .lines()
        .zip(ours.lines())
        .enumerate()
        .filter(|(_, (k, o))| k != o)
        .map(|(at, (k, o))| format!("line {}: kernel {k:?}, stack {o:?}", at + 1))
        .collect();
    assert!(differ.is_empty(), "{}\n{ours}{errors}", differ.join("\n"));
    assert_eq!(kernel.lines().count(), ours.lines().count());
    assert!(kernel.lines().count() > 200, "the program came to its end");
}

/// Children accept on the listener they inherit; one after the other is killed with a connection open.
#[test]
fn children_accept_on_an_inherited_listener() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_prefork", &[]);
    let cases = ["server", "wildcard"].map(|role| [false, true].map(|on_stack| (role, on_stack)));
    for (role, on_stack) in cases.into_iter().flatten() {
        let lab = Lab::new(!on_stack);
        let _server = Server::start(lab.on(on_stack, &program).args([role, GUEST]));
        program::run(lab.on_peer(&program).args(["client", GUEST]));
    }
}

/// Attached to a mux, a connection of the stack is to the program what the kernel's is.
#[test]
fn a_stack_connection_is_attached_as_the_kernels() {
    if !is_runnable() {
        return;
    }
    let program = program::build("stack_attach", &[]);
    for role in ["guest", "left", "ends"] {
        let trace = |on_stack: bool| {
            let lab = Lab::new(!on_stack);
            let _peer = peer(&lab, &program);
            let mut guest = match on_stack {
                true => lab.on_stack(&program),
                false => lab.on_shim(&program),
            };
            let output = program::run(guest.args([role, PEER]));
            [output.stdout, output.stderr].map(|out| String::from_utf8_lossy(&out).into_owned())
        };
        let ([kernel, _], [ours, errors]) = (trace(false), trace(true));
        assert!(kernel.contains("done"), "{kernel}");
        let of = |trace: &str| trace.lines().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(of(&kernel), of(&ours), "{role}: {errors}");
    }
}
