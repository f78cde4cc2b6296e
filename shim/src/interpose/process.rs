//! fork(2) and its kin.

use libc::{c_int, pid_t};

use crate::process;
use crate::real::hooks;

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
        process::fork(|| {
            // SAFETY: forwards the caller's own arguments. Only the child returns with success.
            match unsafe { next::daemon(nochdir, noclose) } {
                0 => 0,
                failed => failed,
            }
        })
    }
}
