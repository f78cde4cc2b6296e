//! What can be told of a program before it is executed: whether it will load this library, and hence
//! knows what to do with the KCM sockets that it inherits. In doubt it will not.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};

use crate::init;
use crate::user_mem::{self, UserPtr};

/// Scripts whose interpreters are scripts, as deep as the kernel goes.
const SCRIPTS_MAX: usize = 4;
/// Variables looked at: more than any process is started with.
const VARIABLES_MAX: usize = 1 << 16;

/// Whether the program at `path`, executed with the environment at `env`, will load this library.
pub(super) fn loads_us(path: &[u8], env: UserPtr) -> bool {
    init::library_name().is_some_and(|ours| names_us(env, ours)) && is_dynamic(path)
}

/// Whether LD_PRELOAD names the library.
fn names_us(env: UserPtr, ours: &[u8]) -> bool {
    const PRELOAD: &[u8] = b"LD_PRELOAD=";
    let mut room = [0; libc::PATH_MAX as usize];
    for index in 0..VARIABLES_MAX {
        let Ok(at @ 1..) = user_mem::copy_in::<usize>(env.element::<usize>(index)) else {
            return false;
        };
        let at = UserPtr::new(core::ptr::with_exposed_provenance_mut(at));
        let is_preload = |(n, byte): (usize, &u8)| user_mem::copy_in(at.offset(n)) == Ok(*byte);
        if PRELOAD.iter().enumerate().all(is_preload) {
            let list = user_mem::read_str(at.offset(PRELOAD.len()), &mut room);
            return list.is_some_and(|list| entries(list).any(|entry| is_called(entry, ours)));
        }
    }
    false
}

/// The libraries of an LD_PRELOAD.
pub(crate) fn entries(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| matches!(b, b':' | b' '))
}

/// Whether an entry of LD_PRELOAD names the file called `name`, in whatever directory.
pub(crate) fn is_called(entry: &[u8], name: &[u8]) -> bool {
    entry.rsplit(|b| *b == b'/').next() == Some(name)
}

/// Whether the file, or the interpreter of the script that it is, asks for a dynamic loader that
/// obeys LD_PRELOAD.
fn is_dynamic(path: &[u8]) -> bool {
    let mut path = path.to_vec();
    for _ in 0..=SCRIPTS_MAX {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let Ok(file) = rustix::fs::open(path.as_slice(), flags, Mode::empty()) else {
            return false;
        };
        let mut head = [0; 256];
        let length = rustix::io::pread(&file, &mut head, 0).unwrap_or(0);
        let head = head.get(..length).unwrap_or(&[]);
        match interpreter(head) {
            Some(next) => path = next.to_vec(),
            None => return !raises_rights(&file) && has_loader(&file, head),
        }
    }
    false
}

/// The program that a script names in its first line.
fn interpreter(head: &[u8]) -> Option<&[u8]> {
    let line = head.strip_prefix(b"#!")?.split(|b| *b == b'\n').next()?;
    line.split(u8::is_ascii_whitespace).find(|w| !w.is_empty())
}

/// Whether the program gets rights that its caller need not have: its loader ignores LD_PRELOAD.
fn raises_rights(file: &OwnedFd) -> bool {
    let set_id = rustix::fs::fstat(file).map_or(0, |stat| stat.st_mode) & 0o6000;
    set_id != 0 || rustix::fs::fgetxattr(file, "security.capability", &mut [0u8; 0]).is_ok()
}

/// Whether an ELF file of this machine names a loader (PT_INTERP).
fn has_loader(file: impl AsFd, head: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    /// Bytes of `Elf64_Phdr`.
    const ENTRY_BYTES: usize = 56;
    /// More program headers than linkers write.
    const ENTRIES_MAX: usize = 64;
    let machine: u16 = if cfg!(target_arch = "x86_64") {
        62
    } else {
        183
    };
    let half = |at| Some(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?));
    let long = |at| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
    if !head.starts_with(b"\x7fELF\x02\x01") || half(18) != Some(machine) {
        return false;
    }
    let (Some(table), Some(size), Some(count)) = (long(32), half(54), half(56)) else {
        return false;
    };
    let mut room = [0; ENTRY_BYTES * ENTRIES_MAX];
    let length = (count as usize).min(ENTRIES_MAX) * ENTRY_BYTES;
    let room = room.get_mut(..length).unwrap_or(&mut []);
    let got = rustix::io::pread(file, &mut *room, table).unwrap_or(0);
    let read = room.get(..got).unwrap_or(&[]);
    size as usize == ENTRY_BYTES
        && read
            .chunks_exact(ENTRY_BYTES)
            .any(|entry| entry.starts_with(&PT_INTERP.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_what_interprets_it() {
        assert_eq!(interpreter(b"#! /bin/sh -e\ntrue"), Some(&b"/bin/sh"[..]));
        assert_eq!(
            interpreter(b"#!/usr/bin/env python3"),
            Some(&b"/usr/bin/env"[..])
        );
        assert_eq!(interpreter(b"#!\n"), None);
        assert_eq!(interpreter(b"\x7fELF"), None);
    }

    #[test]
    fn this_test_has_a_loader_and_text_has_none() {
        assert!(is_dynamic(b"/proc/self/exe"));
        assert!(!is_dynamic(b"/proc/self/status"));
        assert!(!is_dynamic(b"/nonexistent"));
    }

    #[test]
    fn a_library_is_known_by_its_file_name() {
        let list = b"/usr/lib/libeatmydata.so:libkcmshim.so";
        assert!(entries(list).any(|entry| is_called(entry, b"libkcmshim.so")));
        assert!(!entries(b"/x/libkcmshim.so.1 other").any(|e| is_called(e, b"libkcmshim.so")));
    }
}
