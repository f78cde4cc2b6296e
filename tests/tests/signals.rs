//! Signal handlers that come in while their thread is inside the library.

use kcm_tests::program;

/// Fails by a hang, which the program's own alarm ends, when a handler waits for a lock that its own
/// thread keeps from being freed.
#[test]
fn handlers_call_what_they_interrupt() {
    let program = program::build("signal_handlers", &[]);
    program::run(&mut program::under_shim(program));
}

/// Fails by a hang when the handlers of two threads wait for each other's locks.
#[test]
fn handlers_look_into_each_others_sockets() {
    let program = program::build("signal_cross", &[]);
    program::run(&mut program::under_shim(program));
}
