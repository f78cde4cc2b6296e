//! Data too long for a message between processes: a file in memory that travels as a descriptor.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::errno::{Errno, Outcome};

/// Bytes of a file at most: no process makes another allocate more.
const BYTES_MAX: u64 = 1 << 30;

/// A file with these contents.
pub(super) fn post(bytes: &[u8]) -> Outcome<OwnedFd> {
    let file = memfd_create("kcm message", MemfdFlags::CLOEXEC)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = rustix::io::write(&file, rest)?;
        rest = rest.get(n..).unwrap_or(&[]);
    }
    Ok(file)
}

/// The contents of such a file.
///
/// # Errors
/// EMSGSIZE for a file that is too long, EINVAL for one that shrinks meanwhile.
pub(super) fn open(file: impl AsFd) -> Outcome<Vec<u8>> {
    let length = rustix::fs::fstat(&file)?.st_size as u64;
    if length > BYTES_MAX {
        return Err(Errno::EMSGSIZE.into());
    }
    let mut bytes = vec![0; length as usize];
    let mut at = 0;
    while let Some(room) = bytes.get_mut(at..).filter(|room| !room.is_empty()) {
        match rustix::io::pread(&file, room, at as u64)? {
            0 => return Err(Errno::EINVAL.into()),
            n => at += n,
        }
    }
    Ok(bytes)
}
