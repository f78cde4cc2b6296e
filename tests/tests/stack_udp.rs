//! Sockets of the in-process stack against the kernel's: the same program, once with all its addresses
//! the kernel's and once with some of them the stack's, prints the same.

use kcm_tests::lab::{self, Side};
use kcm_tests::program;

/// What a program printed, line by line; with so many engines on the stack.
fn trace(side: Side, queues: u8, program: &std::path::Path) -> Vec<String> {
    let mut command = lab::command(side, program);
    if side == Side::Stack {
        command.env("KCMSHIM_STACK", format!("{} queues={queues}", lab::LINE));
    }
    let output = program::run(&mut command);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said, "", "{side:?}: nothing is said unasked");
    text.lines().map(str::to_owned).collect()
}

#[track_caller]
fn assert_same(name: &str) {
    let program = program::build(name, &["-pthread"]);
    let kernel = trace(Side::Kernel, 1, &program);
    for queues in [1, 4] {
        let stack = trace(Side::Stack, queues, &program);
        for (at, (kernel_line, line)) in kernel.iter().zip(&stack).enumerate() {
            let before = kernel[at.saturating_sub(5)..at].join("\n");
            assert_eq!(
                line,
                kernel_line,
                "{queues} queues, line {}, after\n{before}",
                at + 1
            );
        }
        assert_eq!(stack.len(), kernel.len(), "{queues} queues");
    }
}

#[test]
fn udp_calls_return_what_the_kernels_return() {
    assert_same("stack_udp");
}

/// Whom members of a group hear: IP_ADD_SOURCE_MEMBERSHIP and its kin.
#[test]
fn sources_of_groups_are_chosen_as_in_the_kernel() {
    assert_same("stack_sources");
}

#[test]
fn threads_that_wait_on_kernel_and_stack_miss_nothing() {
    assert_same("stack_udp_threads");
}
