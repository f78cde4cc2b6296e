//! Second names of interposed functions. glibc exports them for old objects and for its own other
//! libraries, with the very code of the first name; so do we.

use libc::{
    c_char, c_int, c_uint, c_ulong, c_void, fd_set, nfds_t, pollfd, size_t, sockaddr, socklen_t,
    ssize_t, timeval,
};

use super::{fd, files, io, message, numbers, poll, socket};

macro_rules! twins {
    ($($(#[$meta:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = $path:path;)*) => {
        $(
            $(#[$meta])*
            ///
            /// # Safety
            /// The duties of the C function of this name.
            #[cfg_attr(not(test), unsafe(no_mangle))]
            #[allow(unreachable_pub, reason = "the symbol is what is reached")]
            pub unsafe extern "C" fn $name($($arg: $ty),*) -> $ret {
                // SAFETY: forwards the caller's own arguments.
                unsafe { $path($($arg),*) }
            }
        )*
    };
}

twins! {
    /// close(2).
    fn __close(fd: c_int) -> c_int = fd::close;
    /// dup2(2).
    fn __dup2(old: c_int, new: c_int) -> c_int = fd::dup2;
    /// fcntl(2).
    fn __fcntl(fd: c_int, cmd: c_int, arg: c_ulong) -> c_int = fd::fcntl;
    /// open(2).
    fn __open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int = files::open;
    /// open(2) of programs compiled for 64-bit offsets.
    fn __open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int = files::open64;
    /// pipe(2).
    fn __pipe(pair: *mut c_int) -> c_int = numbers::pipe;
    /// poll(2).
    fn __poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int = poll::poll;
    /// select(2).
    fn __select(
        count: c_int, read: *mut fd_set, write: *mut fd_set, except: *mut fd_set, timeout: *mut timeval
    ) -> c_int = poll::select;
    /// read(2).
    fn __read(fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t = io::read;
    /// write(2).
    fn __write(fd: c_int, buf: *const c_void, len: size_t) -> ssize_t = io::write;
    /// send(2).
    fn __send(fd: c_int, buf: *const c_void, len: size_t, flags: c_int) -> ssize_t = message::send;
    /// connect(2).
    fn __connect(fd: c_int, addr: *const sockaddr, len: socklen_t) -> c_int = socket::connect;
}
