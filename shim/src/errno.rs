//! `Errno`, and the one place that writes the host program's errno.

#![allow(unsafe_code)]

use core::fmt;

/// An error number as the kernel would return it, 1..=4095 for kernel errors; a parser program may
/// post any integer on an attached TCP socket (kcm-semantics §9.2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

macro_rules! errnos {
    ($($name:ident)*) => {
        impl Errno {
            $(pub(crate) const $name: Self = Self(libc::$name);)*
        }
        impl fmt::Debug for Errno {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.0 {
                    $(libc::$name => f.write_str(stringify!($name)),)*
                    other => write!(f, "errno {other}"),
                }
            }
        }
    };
}

errnos! {
    EACCES EADDRINUSE EADDRNOTAVAIL EAFNOSUPPORT EAGAIN EALREADY EBADF EBUSY ECONNABORTED ECONNREFUSED
    ECONNRESET EDESTADDRREQ EEXIST EFAULT EHOSTUNREACH EINPROGRESS EINTR EINVAL EIO EISCONN ELOOP EMFILE
    EMSGSIZE ENETUNREACH ENOBUFS ENODEV ENOENT ENOMEM ENOPROTOOPT ENOSYS ENOTCONN ENOTTY EOPNOTSUPP EPERM EPIPE
    EPROTO EPROTONOSUPPORT ESOCKTNOSUPPORT ESPIPE ETIMEDOUT
}

impl From<rustix::io::Errno> for Errno {
    fn from(err: rustix::io::Errno) -> Self {
        Self(err.raw_os_error())
    }
}

impl Errno {
    /// Stores the number where the host program looks for it. Last thing before a failed return.
    #[cold]
    pub(crate) fn set(self) {
        // SAFETY: __errno_location returns this thread's errno, valid while the thread lives.
        unsafe { *libc::__errno_location() = self.0 }
    }
}

impl Errno {
    /// The number as it stands, to be put back by [`Errno::set`] after a call that may change it.
    pub(crate) fn current() -> Self {
        // SAFETY: __errno_location returns this thread's errno, valid while the thread lives.
        Self(unsafe { *libc::__errno_location() })
    }
}

/// Why an operation on a descriptor of ours did not produce a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    /// The call fails with this number.
    Failed(Errno),
    /// The real call answers: what lies beneath the descriptor gives the right answer itself.
    Native,
}

impl From<Errno> for Exit {
    fn from(err: Errno) -> Self {
        Self::Failed(err)
    }
}

impl From<rustix::io::Errno> for Exit {
    fn from(err: rustix::io::Errno) -> Self {
        Self::Failed(err.into())
    }
}

/// A signal handler came in while its own thread holds the lock: the call it makes cannot wait for
/// that, and finds nothing to do.
impl From<crate::sync::Reentered> for Exit {
    fn from(_: crate::sync::Reentered) -> Self {
        Self::Failed(Errno::EAGAIN)
    }
}

/// What an operation on a descriptor of ours returns.
pub(crate) type Outcome<T> = Result<T, Exit>;
