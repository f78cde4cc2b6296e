//! The hooks by their C names: every way libc offers to reach a call, and what the calls that take
//! memory away do to it.

use kcm_tests::program;

#[test]
fn every_name_of_a_call_reaches_the_library() {
    program::run(&mut program::under_shim(program::build("hooks_calls", &[])));
}

#[test]
fn fortified_programs_reach_the_library() {
    let program = program::build("hooks_calls", &["-D_FORTIFY_SOURCE=2"]);
    program::run(&mut program::under_shim(program));
}
