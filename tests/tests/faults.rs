//! What ends a wait or a descriptor badly: threads cancelled and sockets closed while others block,
//! limits reached, memory refused, peers that misbehave. The programs check themselves; those that
//! need no shim say the same on a kernel with KCM.

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
        attach_cycles socket_cycles connection_cycles no_memory;
}
