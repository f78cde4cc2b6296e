//! Start-up, in order, from our constructor; until it has run, every call passes through.

#![allow(unsafe_code)]

use core::ffi::CStr;
use core::ptr::null_mut;
use core::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use libc::{c_char, c_int};

use crate::config::{self, Config};
use crate::environment::Environment;
use crate::share::inherit;
use crate::{interpose, process, publish, route, signal, sync};

/// AF_KCM sockets are ours to make.
static SERVES_KCM: AtomicBool = AtomicBool::new(false);
static REFUSES_IO_URING: AtomicBool = AtomicBool::new(false);

pub(crate) fn serves_kcm() -> bool {
    SERVES_KCM.load(Ordering::Relaxed)
}

/// io_uring would reach our descriptors past every hook.
pub(crate) fn refuses_io_uring() -> bool {
    REFUSES_IO_URING.load(Ordering::Relaxed)
}

/// Runs before every other library's constructor (`-z initfirst`).
#[cfg_attr(not(test), used, unsafe(link_section = ".init_array"))]
static INIT: unsafe extern "C" fn(c_int, *const *const c_char, *mut *const c_char) = start;

unsafe extern "C" fn start(_: c_int, _: *const *const c_char, envp: *mut *const c_char) {
    let saved = crate::errno::Errno::current();
    // 1. The definitions behind ours: from here on, calls pass through quickly.
    interpose::resolve();
    // 2. Locks that are free for the thread that keeps taking them.
    sync::init();
    // 3. Whose process this is.
    process::init();
    // 4. What a cancelled thread leaves behind is tidied up.
    signal::init();
    find_name();
    // SAFETY: an ordinary C function; there is room for the handlers of a few libraries.
    unsafe { at_quick_exit(finish) };
    // 5. What the person who starts the program wants, unless it has rights which that person lacks:
    // a set-user-ID program loads the library only where /etc/ld.so.preload names it.
    let heard = if is_privileged() { null_mut() } else { envp };
    // SAFETY: the loader passes the environment, NULL-terminated, to constructors.
    let environment = unsafe { Environment::new(heard) };
    let config = Config::read(environment.variables());
    config::apply(&config);
    for (name, value) in environment.variables() {
        publish::note_runtime_dir(name, value);
        route::note(name, value);
    }
    if config.strip_env {
        environment.strip();
    }
    REFUSES_IO_URING.store(config.refuse_io_uring, Ordering::Relaxed);
    // 6. Open for business.
    SERVES_KCM.store(config.serve_kcm, Ordering::Relaxed);
    // 7. What the program inherits.
    if config.serve_kcm {
        inherit::adopt_all();
    }
    saved.set();
}

/// The program got rights from its file.
fn is_privileged() -> bool {
    // SAFETY: a call without preconditions.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// File name of this library, without its directory; `None` before it is known.
pub(crate) fn library_name() -> Option<&'static [u8]> {
    let path = NAME.load(Ordering::Relaxed);
    if path.is_null() {
        return None;
    }
    // SAFETY: the loader's own string, which lives as long as this library.
    let path = unsafe { CStr::from_ptr(path) }.to_bytes();
    path.rsplit(|b| *b == b'/').next()
}

/// The path by which the loader found this library.
static NAME: AtomicPtr<c_char> = AtomicPtr::new(null_mut());

fn find_name() {
    // SAFETY: an all-zero Dl_info is a valid value.
    let mut info: libc::Dl_info = unsafe { core::mem::zeroed() };
    let here = core::ptr::from_ref(&NAME).cast();
    // SAFETY: the address is one of ours, and `info` outlives the call.
    if unsafe { libc::dladdr(here, &mut info) } != 0 {
        NAME.store(info.dli_fname.cast_mut(), Ordering::Relaxed);
    }
}

unsafe extern "C" {
    /// quick_exit(3) calls `handler` after those that were registered later.
    fn at_quick_exit(handler: unsafe extern "C" fn()) -> c_int;
}

/// Runs after every other library's destructor.
#[cfg_attr(not(test), used, unsafe(link_section = ".fini_array"))]
static FINI: unsafe extern "C" fn() = finish;

unsafe extern "C" fn finish() {
    crate::share::broker::at_exit();
    publish::remove();
}
