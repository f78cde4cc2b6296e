//! What ends a wait or a descriptor badly: threads cancelled and sockets closed while others block,
//! limits reached, memory refused, peers that misbehave. The programs check themselves; those that
//! need no shim say the same on a kernel with KCM.

use std::io::{self, Write};
use std::process::Command;

use kcm_tests::program;

/// Runs one part of a program of its own.
fn part(name: &str, part: &str) {
    let program = program::build(name, &[]);
    program::run(program::under_shim(program).arg(part));
}

macro_rules! parts {
    ($($program:ident: $($part:ident)+;)*) => {
        $(mod $program {
            $(#[test]
            fn $part() {
                super::part(stringify!($program), stringify!($part));
            })+
        })*
    };
}

parts! {
    fault_cancel: cancellation cancelled_sender jumps closed_while_blocked joined_while_waiting
        registered_before_attach;
    fault_limits: no_files_to_make attached_without_files closed_without_files epoll_without_files
        attach_cycles socket_cycles connection_cycles no_memory nothing_left;
}

/// Threads, clones, sets and attaches in one process; `ci/soak` does the same for ten minutes.
#[test]
fn threads_receive_each_message_once() {
    let program = program::build("fault_threads", &[]);
    program::run(&mut program::under_shim(program));
}

/// Connections are closed and unattached while other threads read them.
#[test]
fn a_connection_taken_away_during_a_read_loses_nothing() {
    let program = program::build("fault_taken", &[]);
    program::run(&mut program::under_shim(program));
}

/// Libraries that others preload too. What this machine does not have is said and left out.
#[test]
fn other_preloaded_libraries_do_no_harm() {
    let program = program::build("fault_cancel", &[]);
    for other in ["libeatmydata.so.1", "libjemalloc.so.2"] {
        let path = format!("/usr/lib/{}-linux-gnu/{other}", std::env::consts::ARCH);
        if !std::path::Path::new(&path).exists() {
            let _ = writeln!(io::stderr(), "not run with {other}: it is not installed");
            continue;
        }
        let library = kcm_tests::guest::library().display().to_string();
        for both in [format!("{library}:{path}"), format!("{path}:{library}")] {
            program::run(Command::new(&program).env("LD_PRELOAD", both));
        }
    }
}
