//! What a signal, a cancellation or a thread's end means for a thread inside the shim. Nothing
//! here changes a disposition or a mask.

#![allow(unsafe_code)]

use core::ffi::CStr;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use libc::{c_int, c_void};

use crate::errno::{Errno, Outcome};
use crate::real;

/// Signals a handler can be installed for: 1..=64, without SIGKILL and SIGSTOP.
const SIGNALS: c_int = 64;

/// Whether a call that a handler has just interrupted starts again.
///
/// The kernel does not say which handler ran. When all that are installed agree on SA_RESTART, the
/// answer is exact; when they differ, the call ends with EINTR, which every caller without
/// SA_RESTART everywhere has to expect.
pub(crate) fn handlers_restart() -> bool {
    (1..=SIGNALS)
        .filter(|&n| n != libc::SIGKILL && n != libc::SIGSTOP)
        .all(|number| {
            // SAFETY: an all-zero sigaction is a valid value.
            let mut old: libc::sigaction = unsafe { core::mem::zeroed() };
            // SAFETY: asks without setting; numbers reserved by libc are refused.
            let asked = unsafe { libc::sigaction(number, ptr::null(), &mut old) };
            let caught = old.sa_sigaction != libc::SIG_DFL && old.sa_sigaction != libc::SIG_IGN;
            asked != 0 || !caught || old.sa_flags & libc::SA_RESTART != 0
        })
}

/// pthread_key_t + 1, or 0 while there is none.
static KEY: AtomicU32 = AtomicU32::new(0);

/// Makes the key whose destructor tidies up behind cancelled threads. Once, at start.
pub(crate) fn init() {
    let mut key = 0;
    // SAFETY: `key` outlives the call; the destructor is an ordinary C function.
    if unsafe { libc::pthread_key_create(&mut key, Some(at_thread_exit)) } == 0 {
        KEY.store(key + 1, Ordering::Relaxed);
    }
}

unsafe extern "C" fn at_thread_exit(_: *mut c_void) {
    crate::wait::abandon();
}

/// This thread is about to sleep: should it be cancelled there, its exit tidies up.
pub(crate) fn mind_thread_exit() {
    let key = KEY.load(Ordering::Relaxed);
    if key != 0 {
        // SAFETY: the key exists for the life of the process; the value is a mere non-null mark.
        unsafe { libc::pthread_setspecific(key - 1, ptr::without_provenance(1)) };
    }
}

/// Raises a signal on this thread, as the kernel does for a call it makes.
pub(crate) fn raise(signal: c_int) {
    // SAFETY: an ordinary C function.
    unsafe { libc::raise(signal) };
}

/// From now on no signal is delivered to this thread.
pub(crate) fn block_all() {
    // SAFETY: an all-zero sigset_t is a valid value.
    let mut all: libc::sigset_t = unsafe { core::mem::zeroed() };
    // SAFETY: the set is ours.
    unsafe {
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, ptr::null_mut());
    }
}

/// What a thread runs.
type Run = Box<dyn FnOnce() + Send>;

/// Starts a detached thread that no signal is delivered to. Not by std, whose threads register
/// destructors with glibc, which ends the process when it finds no memory for one.
///
/// # Errors
/// EAGAIN.
pub(crate) fn spawn_quiet(name: &'static CStr, run: impl FnOnce() + Send + 'static) -> Outcome<()> {
    // SAFETY: an all-zero sigset_t is a valid value.
    let mut all: libc::sigset_t = unsafe { core::mem::zeroed() };
    let mut before = all;
    // SAFETY: both sets are ours.
    unsafe {
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
    }
    let named: Run = Box::new(move || {
        let _ = rustix::thread::set_name(name);
        run();
    });
    let started = create_thread(Box::into_raw(Box::new(named)));
    // SAFETY: the set that was in force.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, ptr::null_mut()) };
    started
}

fn create_thread(run: *mut Run) -> Outcome<()> {
    /// The housekeeper's calls are shallow. What the thread needs besides comes on top.
    const STACK_BYTES: usize = 128 << 10;
    // SAFETY: all zero is what pthread_attr_init overwrites.
    let (mut thread, mut attr) = unsafe { (core::mem::zeroed(), core::mem::zeroed()) };
    // SAFETY: the attributes are initialised before use and destroyed once. The thread takes the box,
    // which is taken back if there is none.
    unsafe {
        if libc::pthread_attr_init(&mut attr) != 0 {
            drop(Box::from_raw(run));
            return Err(Errno::EAGAIN.into());
        }
        libc::pthread_attr_setdetachstate(&mut attr, libc::PTHREAD_CREATE_DETACHED);
        let bytes = STACK_BYTES + real::min_stack(&attr);
        libc::pthread_attr_setstacksize(&mut attr, bytes.next_multiple_of(STACK_BYTES));
        let failed = libc::pthread_create(&mut thread, &attr, thread_main, run.cast());
        libc::pthread_attr_destroy(&mut attr);
        if failed != 0 {
            drop(Box::from_raw(run));
            return Err(Errno::EAGAIN.into());
        }
    }
    Ok(())
}

extern "C" fn thread_main(run: *mut c_void) -> *mut c_void {
    // SAFETY: the box that the creator let go of.
    let run = unsafe { Box::from_raw(run.cast::<Run>()) };
    // A panic is a fault of ours, which the program survives.
    let _ = std::panic::catch_unwind(core::panic::AssertUnwindSafe(run));
    ptr::null_mut()
}
