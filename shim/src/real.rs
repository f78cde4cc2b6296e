//! The next definition of each interposed symbol: the only `dlsym`.
//!
//! Every symbol is resolved by our constructor, before any other library's. A call that comes
//! earlier still (an IFUNC resolver, an auditor) resolves its own symbol on the spot.

#![allow(unsafe_code)]

use core::ffi::CStr;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::c_void;

/// One interposed symbol: its name and, once resolved, the definition behind ours.
pub(crate) struct Next {
    name: &'static CStr,
    addr: AtomicPtr<c_void>,
}

impl Next {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self {
            name,
            addr: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// Address of the next definition; null before it is resolved.
    #[inline(always)]
    pub(crate) fn known(&self) -> *mut c_void {
        self.addr.load(Ordering::Relaxed)
    }

    /// Finds the address; null when no other library defines the symbol.
    #[cold]
    pub(crate) fn resolve(&self) -> *mut c_void {
        // SAFETY: the name is NUL-terminated; RTLD_NEXT searches the libraries behind ours.
        let addr = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.addr.store(addr, Ordering::Relaxed);
        addr
    }
}

/// glibc's `__libc_single_threaded`; null where it has none (before 2.32).
static SINGLE_THREADED: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());

/// glibc's `__pthread_get_minstack`; null where it has none.
static MIN_STACK: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Finds what is used of glibc that it does not declare.
pub(crate) fn resolve_undeclared() {
    // SAFETY: the name is NUL-terminated; RTLD_DEFAULT finds the copy that glibc itself writes to.
    let at = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_single_threaded".as_ptr()) };
    SINGLE_THREADED.store(at.cast(), Ordering::Relaxed);
    // SAFETY: as above.
    let at = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__pthread_get_minstack".as_ptr()) };
    MIN_STACK.store(at, Ordering::Relaxed);
}

/// What a thread's stack holds besides the thread's calls, in bytes: the thread-local storage of the
/// program and its libraries lies in it.
pub(crate) fn min_stack(attr: &libc::pthread_attr_t) -> usize {
    type MinStack = unsafe extern "C" fn(*const libc::pthread_attr_t) -> usize;
    let at = MIN_STACK.load(Ordering::Relaxed);
    if at.is_null() {
        return libc::PTHREAD_STACK_MIN;
    }
    // SAFETY: the function has this signature in every glibc that has it.
    unsafe { core::mem::transmute::<*mut c_void, MinStack>(at)(attr) }
}

/// Whether the process surely has one thread only (`<sys/single_threaded.h>`).
#[inline(always)]
pub(crate) fn has_one_thread() -> bool {
    let at = SINGLE_THREADED.load(Ordering::Relaxed);
    // SAFETY: a char of glibc's, never unmapped; other threads may write to it, but then it is 0.
    !at.is_null() && unsafe { at.read_volatile() } != 0
}

/// Defines interposed functions, and beside each, in module `next`, the definition it stands
/// before. A symbol that this libc does not have answers ENOSYS through `next`.
macro_rules! hooks {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty $body:block)*) => {
        /// The definitions behind ours.
        pub(crate) mod next {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[inline(always)]
                pub(crate) unsafe fn $name($($arg: $ty),*) -> $ret {
                    let addr = slots::$name.known();
                    if addr.is_null() {
                        // SAFETY: as for this function.
                        return unsafe { late::$name($($arg),*) };
                    }
                    // SAFETY: the symbol has this signature in glibc (checked against its headers);
                    // the caller vouches for the arguments.
                    unsafe {
                        let real: unsafe extern "C" fn($($ty),*) -> $ret = core::mem::transmute(addr);
                        real($($arg),*)
                    }
                }
            )*
            /// Calls that come before their symbol is resolved. Apart, and left by a jump, so that the
            /// hooks need no frame for them.
            mod late {
                #[allow(unused_imports)]
                use super::super::*;
                $(
                    #[cold]
                    #[inline(never)]
                    pub(super) unsafe fn $name($($arg: $ty),*) -> $ret {
                        if super::slots::$name.resolve().is_null() {
                            $crate::errno::Errno::ENOSYS.set();
                            return <$ret as $crate::real::Failure>::FAILURE;
                        }
                        // SAFETY: as for this function.
                        unsafe { super::$name($($arg),*) }
                    }
                )*
            }
            mod slots {
                $(
                    #[allow(non_upper_case_globals)]
                    pub(super) static $name: $crate::real::Next = {
                        const NAME: &str = concat!(stringify!($name), "\0");
                        match core::ffi::CStr::from_bytes_with_nul(NAME.as_bytes()) {
                            Ok(name) => $crate::real::Next::new(name),
                            Err(_) => panic!("a symbol name holds no NUL"),
                        }
                    };
                )*
            }
            /// Resolves every symbol of this module.
            pub(crate) fn resolve() {
                $(slots::$name.resolve();)*
            }
        }
        $(
            $(#[$meta])*
            ///
            /// # Safety
            /// The duties of the C function of this name.
            #[cfg_attr(not(test), unsafe(no_mangle))]
            #[allow(unreachable_pub, reason = "the symbol is what is reached")]
            pub unsafe extern "C" fn $name($($arg: $ty),*) -> $ret $body
        )*
    };
}
pub(crate) use hooks;

/// What a C function returns when it fails with errno set.
pub(crate) trait Failure {
    /// −1, or NULL.
    const FAILURE: Self;
}

impl Failure for i32 {
    const FAILURE: Self = -1;
}

impl Failure for isize {
    const FAILURE: Self = -1;
}

impl Failure for i64 {
    const FAILURE: Self = -1;
}

impl<T> Failure for *mut T {
    const FAILURE: Self = ptr::null_mut();
}

impl Failure for () {
    const FAILURE: Self = ();
}
