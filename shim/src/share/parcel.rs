//! Data too long for a message between processes: a file in memory that travels as a descriptor.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::errno::{Errno, Outcome};

/// Bytes of a file at most: no process makes another allocate more.
const BYTES_MAX: u64 = 1 << 30;

/// A file with these contents.
pub(super) fn post(bytes: &[u8]) -> Outcome<OwnedFd> {
    post_parts(core::iter::once(bytes))
}

/// A file with these contents, one part after the other.
pub(super) fn post_parts<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Outcome<OwnedFd> {
    let file = memfd_create("kcm message", MemfdFlags::CLOEXEC)?;
    for mut rest in parts {
        while !rest.is_empty() {
            let n = rustix::io::write(&file, rest)?;
            rest = rest.get(n..).unwrap_or(&[]);
        }
    }
    Ok(file)
}

/// As much of the contents of such a file as `into` has room for, and how long it is.
///
/// # Errors
/// As [`open`].
pub(super) fn open_into(file: impl AsFd, into: &mut Vec<u8>) -> Outcome<usize> {
    let length = length(&file)?;
    let count = length.min(into.capacity());
    into.resize(count, 0);
    fill(file, into)?;
    Ok(length)
}

/// The contents of such a file.
///
/// # Errors
/// EMSGSIZE for a file that is too long, EINVAL for one that shrinks meanwhile.
pub(super) fn open(file: impl AsFd) -> Outcome<Vec<u8>> {
    let mut bytes = vec![0; length(&file)?];
    fill(file, &mut bytes)?;
    Ok(bytes)
}

fn length(file: impl AsFd) -> Outcome<usize> {
    let length = rustix::fs::fstat(file)?.st_size as u64;
    match length {
        0..=BYTES_MAX => Ok(length as usize),
        _ => Err(Errno::EMSGSIZE.into()),
    }
}

fn fill(file: impl AsFd, bytes: &mut [u8]) -> Outcome<()> {
    let mut at = 0;
    while let Some(room) = bytes.get_mut(at..).filter(|room| !room.is_empty()) {
        match rustix::io::pread(&file, room, at as u64)? {
            0 => return Err(Errno::EINVAL.into()),
            n => at += n,
        }
    }
    Ok(())
}
