//! Streams and formatted output on files of ours.
//!
//! stdio reads, writes and closes inside libc, where nothing can be interposed. So a stream on a
//! socket of ours is a cookie stream over the same functions that the program itself would call,
//! and `dprintf` formats first and then writes once. A stream that was put on a TCP socket before it
//! was attached is an ordinary one: it reads the kernel's socket, beside the mux, as on a kernel
//! with KCM; only its close is taken note of.

use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr;
use std::collections::BTreeSet;

use libc::{FILE, c_char, c_int, off_t, off64_t, size_t, ssize_t};

use super::{fd, io};
use crate::descriptor;
use crate::errno::Errno;
use crate::fd::{File, Kind, lookup, place};
use crate::net::inherited;
use crate::real::hooks;
use crate::sync::Mutex;
use crate::variadic::{VaList, variadic};

/// Addresses of the cookie streams in being.
static COOKIE_STREAMS: Mutex<BTreeSet<usize>> = Mutex::new(BTreeSet::new());

/// `cookie_io_functions_t` of stdio.h.
#[repr(C)]
struct CookieIo {
    read: extern "C" fn(*mut c_void, *mut c_char, size_t) -> ssize_t,
    write: extern "C" fn(*mut c_void, *const c_char, size_t) -> ssize_t,
    seek: extern "C" fn(*mut c_void, *mut off64_t, c_int) -> c_int,
    close: extern "C" fn(*mut c_void) -> c_int,
}

unsafe extern "C" {
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, io: CookieIo) -> *mut FILE;
    fn vasprintf(text: *mut *mut c_char, format: *const c_char, list: VaList) -> c_int;
    fn __vasprintf_chk(
        text: *mut *mut c_char,
        flag: c_int,
        format: *const c_char,
        list: VaList,
    ) -> c_int;
}

/// The cookie of a stream is its descriptor.
fn number(cookie: *mut c_void) -> c_int {
    cookie.addr() as c_int
}

extern "C" fn cookie_read(cookie: *mut c_void, buf: *mut c_char, len: size_t) -> ssize_t {
    // SAFETY: stdio passes a buffer of its own.
    unsafe { io::read(number(cookie), buf.cast(), len) }
}

/// stdio takes 0 for a failure, with errno set.
extern "C" fn cookie_write(cookie: *mut c_void, buf: *const c_char, len: size_t) -> ssize_t {
    // SAFETY: stdio passes a buffer of its own.
    unsafe { io::write(number(cookie), buf.cast(), len) }.max(0)
}

extern "C" fn cookie_seek(_: *mut c_void, _: *mut off64_t, _: c_int) -> c_int {
    Errno::ESPIPE.set();
    -1
}

extern "C" fn cookie_close(cookie: *mut c_void) -> c_int {
    // SAFETY: close(2) takes any number.
    unsafe { fd::close(number(cookie)) }
}

/// The first fields of glibc's `struct _IO_FILE` (bits/types/struct_FILE.h), which is part of its
/// ABI: programs of old have macros that reach into it compiled in.
#[repr(C)]
struct StreamHead {
    flags: c_int,
    pointers: [*mut c_char; 11],
    markers: *mut c_void,
    chain: *mut c_void,
    fileno: c_int,
    flags2: c_int,
    old_offset: off_t,
    column: u16,
    vtable_offset: i8,
    shortbuf: [c_char; 1],
    lock: *mut c_void,
    offset: off64_t,
    codecvt: *mut c_void,
    wide_data: *mut c_void,
}

const _: () = assert!(offset_of!(StreamHead, fileno) == 112);
const _: () = assert!(offset_of!(StreamHead, wide_data) == 160);

/// A stream on a socket of ours; `fileno` answers its descriptor.
fn open_stream(fd: c_int, mode: *const c_char) -> *mut FILE {
    let io = CookieIo {
        read: cookie_read,
        write: cookie_write,
        seek: cookie_seek,
        close: cookie_close,
    };
    // SAFETY: the mode is the program's; the functions take what stdio passes them.
    let stream = unsafe { fopencookie(ptr::without_provenance_mut(fd as usize), mode, io) };
    if !stream.is_null() {
        // SAFETY: a stream that was just made starts with these fields, and no other thread knows
        // it yet. glibc itself puts −2 here, which says no more than that the stream is open.
        unsafe { (*stream.cast::<StreamHead>()).fileno = fd };
        if let Ok(mut streams) = COOKIE_STREAMS.lock() {
            streams.insert(stream.addr());
        }
    }
    stream
}

/// The descriptor of a stream, if it is a file of ours.
fn ours(stream: *mut FILE) -> Option<(c_int, &'static File)> {
    let saved = Errno::current();
    // SAFETY: the program passes an open stream to the function that was called.
    let fd = unsafe { libc::fileno(stream) };
    if fd < 0 {
        saved.set(); // a stream over no descriptor
        return None;
    }
    lookup(fd)
        .filter(|f| f.kind() != Kind::Own)
        .map(|f| (fd, f))
}

/// Whether a stream, which is about to end, is a cookie stream.
fn forget_cookie(stream: *mut FILE) -> bool {
    let streams = COOKIE_STREAMS.lock();
    streams.is_ok_and(|mut streams| streams.remove(&stream.addr()))
}

/// What stands behind `fd` is closed inside libc by what comes next.
fn before_unseen_close(fd: c_int, file: &'static File) {
    if crate::process::is_foreign() {
        return;
    }
    descriptor::before_close(file, fd);
    if place::leave(fd, file) {
        file.release();
    }
}

/// freopen(3): libc closes what the stream was on, or puts another file at its number.
fn reopen(stream: *mut FILE, native: impl FnOnce() -> *mut FILE) -> *mut FILE {
    if let Some((fd, file)) = ours(stream) {
        let saved = Errno::current();
        // SAFETY: the program's stream. What it holds has to leave while its socket is ours.
        unsafe { libc::fflush(stream) };
        saved.set();
        if forget_cookie(stream) {
            // SAFETY: a stream starts with these fields. A cookie stream is for bytes only and has
            // −1 here, which freopen(3) would follow; from null it keeps away.
            unsafe { (*stream.cast::<StreamHead>()).wide_data = ptr::null_mut() };
        }
        before_unseen_close(fd, file);
    }
    native()
}

/// Formats by `format`, then writes once: one message on a KCM socket.
fn print(fd: c_int, format: impl FnOnce(&mut *mut c_char) -> c_int) -> c_int {
    let mut text = ptr::null_mut();
    let Ok(length) = usize::try_from(format(&mut text)) else {
        return -1;
    };
    // SAFETY: vasprintf(3) made the text, of this length, with malloc; nobody else frees it.
    unsafe {
        let sent = io::write(fd, text.cast_const().cast(), length);
        libc::free(text.cast());
        if sent < 0 { -1 } else { length as c_int }
    }
}

hooks! {
    /// fdopen(3).
    fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE {
        match lookup(fd).map(File::kind) {
            Some(Kind::Kcm | Kind::Tcp | Kind::Stack) => open_stream(fd, mode),
            Some(Kind::Inherited) if lookup(fd).is_some_and(File::was_attached) => open_stream(fd, mode),
            _ => {
                inherited::hold_at(fd); // libc reads and writes it by itself
                // SAFETY: forwards the caller's own arguments.
                unsafe { next::fdopen(fd, mode) }
            }
        }
    }

    /// fclose(3).
    fn fclose(stream: *mut FILE) -> c_int {
        if let Some((fd, file)) = ours(stream)
            && !forget_cookie(stream)
        {
            before_unseen_close(fd, file);
        }
        // SAFETY: forwards the caller's own argument.
        unsafe { next::fclose(stream) }
    }

    /// freopen(3).
    fn freopen(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE {
        // SAFETY: forwards the caller's own arguments.
        reopen(stream, || unsafe { next::freopen(path, mode, stream) })
    }

    /// freopen(3) of programs compiled for 64-bit offsets.
    fn freopen64(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE {
        // SAFETY: forwards the caller's own arguments.
        reopen(stream, || unsafe { next::freopen64(path, mode, stream) })
    }

    /// vdprintf(3).
    fn vdprintf(fd: c_int, format: *const c_char, list: VaList) -> c_int {
        match lookup(fd) {
            // SAFETY: forwards the caller's own arguments.
            None => unsafe { next::vdprintf(fd, format, list) },
            // SAFETY: the caller's own format and list.
            Some(_) => print(fd, |text| unsafe { vasprintf(text, format, list) }),
        }
    }

    /// vdprintf(3) as compiled with _FORTIFY_SOURCE.
    fn __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, list: VaList) -> c_int {
        match lookup(fd) {
            // SAFETY: forwards the caller's own arguments.
            None => unsafe { next::__vdprintf_chk(fd, flag, format, list) },
            // SAFETY: the caller's own format and list.
            Some(_) => print(fd, |text| unsafe { __vasprintf_chk(text, flag, format, list) }),
        }
    }
}

variadic! {
    /// dprintf(3).
    fn dprintf(2 named) => vdprintf, list in "rdx" or "x2"
}

variadic! {
    /// dprintf(3) as compiled with _FORTIFY_SOURCE.
    fn __dprintf_chk(3 named) => __vdprintf_chk, list in "rcx" or "x3"
}
