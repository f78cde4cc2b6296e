//! The start of a program that inherits KCM or stack sockets: each becomes a file again, by the address that it
//! is connected to. Its owner is asked when it is first used.

use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;

use rustix::fs::{Mode, OFlags, RawDir};

use super::{name, remote, remote::Remote};
use crate::fd::{File, lookup, table};
use crate::net::inherited;
use crate::{kcm, sys};

/// Adopts what was inherited.
pub(crate) fn adopt_all() {
    let mut made: Vec<&'static File> = Vec::new();
    for_each_open(|fd| {
        if lookup(fd).is_some() || !table::in_range(fd) {
            return;
        }
        match name::owner_of(sys::borrow(fd)) {
            Some(owner) => adopt(fd, owner, &mut made),
            None => drop(inherited::adopt(fd)),
        }
    });
}

/// `made` holds the files of earlier numbers, of which this one may be a duplicate.
fn adopt(fd: i32, owner: Vec<u8>, made: &mut Vec<&'static File>) {
    let inode = sys::inode(sys::borrow(fd));
    let same = |file: &&&File| file.ino.load(Ordering::Relaxed) == inode;
    match made.iter().find(same) {
        Some(known) if known.retain() => table::install(fd, known),
        _ => {
            // Whoever executed us has not counted us among those who may not count.
            let Ok(file) = remote::adopt(sys::borrow(fd), Remote::new(owner, 0)) else {
                return;
            };
            kcm::options::follow_timeouts(file, fd);
            made.push(file);
            table::install(fd, file);
        }
    }
}

/// Calls `f` with each number that is open. Nothing is known where /proc is not mounted.
pub(super) fn for_each_open(mut f: impl FnMut(i32)) {
    /// A screenful of entries at a time.
    const LISTING_BYTES: usize = 2048;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(folder) = rustix::fs::open(c"/proc/self/fd", flags, Mode::empty()) else {
        return;
    };
    let mut room = [MaybeUninit::<u8>::uninit(); LISTING_BYTES];
    let mut listing = RawDir::new(&folder, &mut room);
    while let Some(Ok(entry)) = listing.next() {
        if let Ok(text) = entry.file_name().to_str()
            && let Ok(fd) = text.parse()
            && fd != sys::number(&folder)
        {
            f(fd);
        }
    }
}
