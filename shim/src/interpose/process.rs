//! fork(2) and its kin, and the end of a process.

#![allow(non_snake_case, reason = "the names are libc's")]

use libc::{c_int, pid_t};

use crate::process;
use crate::real::hooks;
use crate::share::broker;

/// fork(2) without handlers, twice: the child is nobody's to wait for. The first child's process id
/// in the parent, 0 in the second child.
pub(crate) fn fork_apart() -> pid_t {
    // SAFETY: the children call nothing that needs other threads or handlers.
    unsafe {
        let first = next::_Fork();
        if first == 0 && next::_Fork() != 0 {
            next::_exit(0);
        }
        if first > 0 {
            libc::waitpid(first, core::ptr::null_mut(), 0);
        }
        first
    }
}

/// Ends this process, of whose program nothing is left.
pub(crate) fn end() {
    // SAFETY: ends the process.
    unsafe { next::_exit(0) }
}

hooks! {
    /// fork(2).
    fn fork() -> pid_t {
        // SAFETY: forwards the call.
        process::fork(|| unsafe { next::fork() })
    }

    /// _Fork(3): fork without handlers.
    fn _Fork() -> pid_t {
        // SAFETY: forwards the call.
        process::fork(|| unsafe { next::_Fork() })
    }

    /// daemon(3), whose fork inside libc is not interposed.
    fn daemon(nochdir: c_int, noclose: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments. Only the child returns with success.
        process::succeed(|| unsafe { next::daemon(nochdir, noclose) }, || {})
    }

    /// _exit(2).
    fn _exit(status: c_int) -> () {
        broker::at_exit();
        // SAFETY: forwards the caller's own argument.
        unsafe { next::_exit(status) }
    }

    /// _Exit(3).
    fn _Exit(status: c_int) -> () {
        broker::at_exit();
        // SAFETY: forwards the caller's own argument.
        unsafe { next::_Exit(status) }
    }
}
