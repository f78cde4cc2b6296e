//! fork(2) and its kin, and the end of a process.

#![allow(non_snake_case, reason = "the names are libc's")]

use std::os::unix::ffi::OsStrExt;

use libc::{c_char, c_int, pid_t};

use crate::process;
use crate::real::hooks;
use crate::share::{broker, exec};
use crate::user_mem::{self, UserPtr};

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

/// `argv` and `envp` as exec takes them.
type Words = *const *const c_char;

/// Whether a file that may be executed is at the path. Longer paths than any are not looked at.
fn is_there(path: *const c_char) -> bool {
    let mut room = [0; libc::PATH_MAX as usize];
    let path = user_mem::read_str(UserPtr::new(path.cast_mut().cast()), &mut room);
    path.is_some_and(exec::is_there)
}

/// As [`is_there`] for a name that is looked for in PATH unless it has a slash.
fn is_on_path(file: *const c_char) -> bool {
    let mut room = [0; libc::PATH_MAX as usize];
    let name = user_mem::read_str(UserPtr::new(file.cast_mut().cast()), &mut room);
    match name {
        Some(name) if name.contains(&b'/') => exec::is_there(name),
        Some(name) => {
            let path = std::env::var_os("PATH").unwrap_or_else(|| "/bin:/usr/bin".into());
            std::env::split_paths(&path).any(|folder| {
                let file = folder.join(std::ffi::OsStr::from_bytes(name));
                exec::is_there(file.as_os_str().as_bytes())
            })
        }
        None => false,
    }
}

hooks! {
    /// fork(2).
    fn fork() -> pid_t {
        // SAFETY: forwards the call.
        process::fork(|| unsafe { next::fork() })
    }

    /// fork(2) under the name glibc also exports.
    fn __fork() -> pid_t {
        // SAFETY: forwards the call.
        process::fork(|| unsafe { next::__fork() })
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

    /// execve(2).
    fn execve(path: *const c_char, argv: Words, envp: Words) -> c_int {
        exec::before(|| is_there(path));
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::execve(path, argv, envp) }
    }

    /// execv(3).
    fn execv(path: *const c_char, argv: Words) -> c_int {
        exec::before(|| is_there(path));
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::execv(path, argv) }
    }

    /// execvp(3), which looks for the program itself.
    fn execvp(file: *const c_char, argv: Words) -> c_int {
        exec::before(|| is_on_path(file));
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::execvp(file, argv) }
    }

    /// execvpe(3).
    fn execvpe(file: *const c_char, argv: Words, envp: Words) -> c_int {
        exec::before(|| is_on_path(file));
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::execvpe(file, argv, envp) }
    }

    /// fexecve(3).
    fn fexecve(fd: c_int, argv: Words, envp: Words) -> c_int {
        exec::before(|| true);
        // SAFETY: forwards the caller's own arguments.
        unsafe { next::fexecve(fd, argv, envp) }
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
