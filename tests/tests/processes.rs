//! KCM sockets in more than one process. Each check is a function of `programs/proc_family.c`,
//! which says what it proves.

use kcm_tests::program;

fn family(check: &str) {
    let program = program::build("proc_family", &[]);
    program::run(program::under_shim(program).arg(check));
}

/// A check that executes a program which knows nothing of KCM, with a socket it inherits.
fn family_and_reader(check: &str) {
    let program = program::build("proc_family", &[]);
    for linked in ["-static", "-pie"] {
        let reader = program::build("proc_reader", &[linked]);
        program::run(program::under_shim(&program).arg(check).arg(reader));
    }
}

#[test]
fn exec_reader() {
    family_and_reader("exec_reader");
}

#[test]
fn owner_becomes_reader() {
    family_and_reader("owner_becomes_reader");
}

macro_rules! checks {
    ($($check:ident)*) => {
        $(#[test]
        fn $check() {
            family(stringify!($check));
        })*
    };
}

checks! {
    prefork_receives
    prefork_sends
    killed_children
    messages_of_the_dead
    daemon_serves
    child_of_exited_serves
    child_of_ended_serves
    rights_to_another_process
    helpers
    child_attaches
    child_of_quick_exited_serves
    child_of_raw_ended_serves
    long_messages
    disabled_gives_back
    owner_is_killed
}

/// A program inherits a socket by every way that libc has to start one.
fn started(program: &str, arguments: &[&str], environment: &str) {
    let parent = program::build("proc_exec", &["-lutil"]);
    let heir = program::build(program, arguments);
    let mut command = program::under_shim(parent);
    program::run(command.arg(heir).arg(environment));
}

#[test]
fn programs_that_load_the_library_find_all_of_kcm() {
    started("proc_heir", &[], "shimmed");
}

#[test]
fn programs_that_do_not_load_it_read_and_write() {
    started("proc_reader", &["-static"], "shimmed");
    started("proc_reader", &[], "bare");
}

/// Other threads close sockets and open others at the same numbers meanwhile, and fork too.
#[test]
fn a_fork_shares_every_socket_there_is() {
    let program = program::build("proc_forks", &[]);
    let output = program::run(&mut program::under_shim(program));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.stdout, b"  300 forks\n");
}
