//! Where settings come from: two variables, kept as they were at start, and the file one of them names.

use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, Ordering};
use std::ffi::CStr;
use std::sync::OnceLock;

use rustix::fs::{self, CWD, FileType, Mode, OFlags};
use rustix::io::{self, Errno};

use super::plan::{FILE_BYTES_MAX, Problem, VALUE_BYTES_MAX};

/// A variable's value. The program may overwrite its environment (setproctitle), and the constructor
/// has no heap to copy to: the copy lies in place. `None`: too long.
type Kept = Option<([u8; VALUE_BYTES_MAX], usize)>;

static CONFIG: OnceLock<Kept> = OnceLock::new();
static STACK: OnceLock<Kept> = OnceLock::new();
/// One of them is there.
static SET: AtomicBool = AtomicBool::new(false);

pub(crate) const CONFIG_VARIABLE: &str = "KCMSHIM_CONFIG";
pub(crate) const STACK_VARIABLE: &str = "KCMSHIM_STACK";

/// Whether settings are given at all.
#[inline]
pub(crate) fn is_set() -> bool {
    SET.load(Ordering::Relaxed)
}

/// Takes note of a variable if it is one of the two. Called by our constructor, where neither the heap
/// nor thread-local storage is to be touched. An empty value is as good as none.
pub(crate) fn note(name: &[u8], value: &[u8]) {
    let place = match name {
        b"KCMSHIM_CONFIG" => &CONFIG,
        b"KCMSHIM_STACK" => &STACK,
        _ => return,
    };
    if value.is_empty() {
        return;
    }
    let mut kept = [0; VALUE_BYTES_MAX];
    let mut len = 0;
    if name == CONFIG_VARIABLE.as_bytes() && value.first() != Some(&b'/') {
        // Programs that become daemons leave their directory before they open a socket.
        let mut room = [MaybeUninit::<u8>::uninit(); VALUE_BYTES_MAX];
        if let Ok((here, _)) = fs::readlinkat_raw(CWD, c"/proc/self/cwd", &mut room[..]) {
            append(&mut kept, &mut len, here);
            append(&mut kept, &mut len, b"/");
        }
    }
    append(&mut kept, &mut len, value);
    let kept = (len <= VALUE_BYTES_MAX).then_some((kept, len));
    if place.set(kept).is_ok() {
        SET.store(true, Ordering::Relaxed);
    }
}

/// Adds `bytes`; `len` grows even if there is no room.
fn append(to: &mut [u8; VALUE_BYTES_MAX], len: &mut usize, bytes: &[u8]) {
    if let Some(room) = to.get_mut(*len..*len + bytes.len()) {
        room.copy_from_slice(bytes);
    }
    *len += bytes.len();
}

fn kept(
    place: &'static OnceLock<Kept>,
    variable: &'static str,
) -> Result<Option<&'static [u8]>, Vec<Problem>> {
    match place.get() {
        None => Ok(None),
        Some(Some((bytes, len))) => Ok(bytes.get(..*len)),
        Some(None) => Err(vec![Problem {
            place: variable.to_owned(),
            what: format!("longer than {VALUE_BYTES_MAX} bytes"),
        }]),
    }
}

/// The value of KCMSHIM_STACK.
pub(super) fn line() -> Result<Option<&'static [u8]>, Vec<Problem>> {
    kept(&STACK, STACK_VARIABLE)
}

/// Path and contents of the file that KCMSHIM_CONFIG names.
pub(super) fn file() -> Result<Option<(String, Vec<u8>)>, Vec<Problem>> {
    let Some(path) = kept(&CONFIG, CONFIG_VARIABLE)? else {
        return Ok(None);
    };
    let name = String::from_utf8_lossy(path).into_owned();
    let mut terminated = path.to_vec();
    terminated.push(0);
    let path = CStr::from_bytes_until_nul(&terminated).unwrap_or_default();
    match contents(path) {
        Ok(text) => Ok(Some((name, text))),
        Err(errno) => Err(vec![Problem {
            place: name,
            what: unreadable(errno).to_owned(),
        }]),
    }
}

/// Why a file cannot be read; `Errno`'s own `Display` needs libc's locale.
fn unreadable(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT => "there is no such file",
        Errno::ACCESS | Errno::PERM => "no permission to read it",
        Errno::INVAL => "it is not a regular file",
        Errno::MFILE | Errno::NFILE => "too many open files to read it",
        _ => "it cannot be read",
    }
}

fn contents(path: &CStr) -> io::Result<Vec<u8>> {
    // A pipe that nobody writes to must not hold the program up.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let mut text = Vec::new();
    let mut block = [0; 4096];
    // One byte more than allowed is enough to be told so.
    while text.len() <= FILE_BYTES_MAX {
        match io::read(&file, &mut block) {
            Ok(0) => break,
            Ok(n) => text.extend_from_slice(block.get(..n).unwrap_or(&[])),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(text)
}
