//! fork(2) and its kin, and the end of a process.

#![allow(non_snake_case, reason = "the names are libc's")]

use core::mem::ManuallyDrop;

use libc::{c_char, c_int, c_long, c_void, pid_t, termios, winsize};

use super::numbers::fresh_at;
use crate::process;
use crate::real::{Next, hooks};
use crate::share::broker;
use crate::user_mem::{self, UserPtr};
use crate::variadic::forwarded;

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

/// What a child of clone(3) begins with.
type Entry = unsafe extern "C" fn(*mut c_void) -> c_int;

/// In the memory of a child that is about to call `entry`.
struct Begin<H> {
    entry: Option<Entry>,
    arg: *mut c_void,
    held: ManuallyDrop<H>,
}

/// Where a child with memory of its own begins.
///
/// # Safety
/// `begin` is a copy of what its parent passed, which nobody else in this process uses.
unsafe extern "C" fn begin<H>(begin: *mut c_void) -> c_int {
    // SAFETY: by the contract; `held` is taken here and nowhere else.
    let (entry, arg, held) = unsafe {
        let begin = &mut *begin.cast::<Begin<H>>();
        (begin.entry, begin.arg, ManuallyDrop::take(&mut begin.held))
    };
    process::after_fork(held);
    // SAFETY: the program's function and argument.
    entry.map_or(0, |entry| unsafe { entry(arg) })
}

/// clone(3) by `real` of a child with memory of its own, which starts with the function and argument
/// that `real` gets.
fn clone_apart<H>(
    held: H,
    entry: Option<Entry>,
    arg: *mut c_void,
    real: impl FnOnce(Option<Entry>, *mut c_void) -> c_int,
) -> c_int {
    if entry.is_none() {
        return real(None, arg);
    }
    let held = ManuallyDrop::new(held);
    let mut child = Begin { entry, arg, held };
    let made = real(Some(begin::<H>), core::ptr::from_mut(&mut child).cast());
    drop(ManuallyDrop::into_inner(child.held));
    made
}

/// fork(2) and its kin by number: a child with memory of its own that goes on where its parent is.
pub(super) fn forked(number: c_long, args: [c_long; 6], native: impl FnOnce() -> c_long) -> c_long {
    let [a, b, ..] = args;
    let (flags, stack) = match number {
        libc::SYS_clone => (a as u64, b as u64),
        // struct clone_args: flags first, stack sixth.
        libc::SYS_clone3 => {
            let at = UserPtr::new(core::ptr::with_exposed_provenance_mut(a as usize));
            match user_mem::copy_in::<[u64; 6]>(at) {
                Ok([flags, _, _, _, _, stack]) => (flags, stack),
                Err(_) => return native(),
            }
        }
        #[cfg(target_arch = "x86_64")]
        libc::SYS_vfork => (libc::CLONE_VM as u64, 0),
        _ => (0, 0),
    };
    if flags & libc::CLONE_VM as u64 != 0 {
        process::before_borrowed();
        return native();
    }
    if stack != 0 {
        return native(); // a child that cannot return to where we are
    }
    process::fork(|| native() as pid_t).into()
}

static VFORK: Next = Next::new(c"vfork");

/// Resolves what `hooks!` does not.
pub(super) fn resolve() {
    VFORK.resolve();
}

/// Before vfork(2), which is at the address returned.
extern "C" fn before_vfork() -> *mut c_void {
    process::before_borrowed();
    match VFORK.known() {
        next if next.is_null() => VFORK.resolve(),
        next => next,
    }
}

forwarded! {
    /// vfork(2). The child runs in our memory, and returns into its caller's frame first.
    fn vfork() => before_vfork
}

forwarded! {
    /// vfork(2) under the name glibc also exports.
    fn __vfork() => before_vfork
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

    /// forkpty(3), whose fork inside libc is not interposed.
    fn forkpty(main: *mut c_int, name: *mut c_char, term: *const termios, size: *const winsize) -> pid_t {
        // SAFETY: forwards the caller's own arguments.
        fresh_at(process::fork(|| unsafe { next::forkpty(main, name, term, size) }), main)
    }

    /// clone(2). C passes as many of the last three arguments as the flags ask for; taking all is what
    /// the variadic ABI of x86-64 and aarch64 does.
    fn clone(
        entry: Option<Entry>, stack: *mut c_void, flags: c_int, arg: *mut c_void,
        parent: *mut c_void, tls: *mut c_void, child: *mut c_void,
    ) -> c_int {
        let native = |entry, arg| {
            // SAFETY: forwards the caller's own arguments, or a function of ours with its argument.
            unsafe { next::clone(entry, stack, flags, arg, parent, tls, child) }
        };
        if flags & libc::CLONE_VM == 0 {
            return clone_apart(process::before_fork(), entry, arg, native);
        }
        if flags & libc::CLONE_THREAD == 0 {
            process::before_borrowed();
        }
        native(entry, arg)
    }

    /// clone(2) under the name glibc also exports.
    fn __clone(
        entry: Option<Entry>, stack: *mut c_void, flags: c_int, arg: *mut c_void,
        parent: *mut c_void, tls: *mut c_void, child: *mut c_void,
    ) -> c_int {
        // SAFETY: the caller's own arguments.
        unsafe { clone(entry, stack, flags, arg, parent, tls, child) }
    }

    /// daemon(3), whose fork inside libc is not interposed.
    fn daemon(nochdir: c_int, noclose: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments. Only the child returns with success.
        let (child, ends) = process::succeed(move || unsafe { next::daemon(nochdir, noclose) }, || {});
        core::mem::forget(ends);
        child
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
