//! bpf(2) under the library, whatever the kernel thinks of it.

use std::path::PathBuf;
use std::sync::OnceLock;

use kcm_tests::program;

fn calls() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| program::build("bpf_calls", &[]))
}

#[test]
fn with_the_rights_of_the_caller() {
    program::run(program::under_shim(calls()).arg("as-is"));
}

#[test]
fn as_an_ordinary_user() {
    program::run(program::under_shim(calls()).arg("ordinary"));
}

#[test]
fn where_a_filter_answers_eperm() {
    program::run(program::under_shim(calls()).arg("EPERM"));
}

#[test]
fn where_a_filter_answers_enosys() {
    program::run(program::under_shim(calls()).arg("ENOSYS"));
}

/// libbpf probes, loads and asks as it does on any machine.
#[test]
fn by_libbpf() {
    let loader = program::build("bpf_libbpf", &["-lbpf"]);
    program::run(&mut program::under_shim(&loader));
    program::run(program::under_shim(&loader).arg("65534"));
}
