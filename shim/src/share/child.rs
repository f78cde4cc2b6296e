//! What a forked child does with the files it inherits: their muxes stay with the parent, the copy
//! of them in the child's memory is never looked at again.

use core::sync::atomic::Ordering;
use std::collections::BTreeMap;

use super::remote::{self, Remote};
use super::{ledger, name, owner};
use crate::fd::file::Link;
use crate::fd::{File, Kind, lookup, table};
use crate::kcm::MuxCell;
use crate::net::{inherited, revive};
use crate::{epoll, housekeeper, sys};

/// Gives up what belongs to the parent; KCM sockets become sockets of another owner.
pub(crate) fn inherit() {
    owner::reset_in_child();
    remote::reset_in_child();
    ledger::reset_in_child();
    revive::reset_in_child();
    MuxCell::reset_in_child();
    let mut made: BTreeMap<usize, &'static File> = BTreeMap::new();
    let mut sets: Vec<(&'static File, i32)> = Vec::new();
    let mut attached = Vec::new();
    for fd in table::ours_in(0, u32::MAX) {
        let Some(file) = lookup(fd) else { continue };
        match file.kind() {
            Kind::Own => {
                table::remove(fd);
                let _ = sys::close(fd);
            }
            Kind::Kcm if file.link() == Link::Remote => remote::ask_again(file),
            Kind::Kcm => {
                let key = core::ptr::from_ref(file).addr();
                match made.get(&key) {
                    Some(known) if known.retain() => table::put(fd, known),
                    _ => {
                        if let Some(new) = renew(file, fd) {
                            made.insert(key, new);
                            table::put(fd, new);
                        }
                    }
                }
            }
            // The kernel's socket, and nothing of ours: the bytes are the parent's to parse.
            Kind::Tcp if file.cell.get().is_some() => drop(table::remove(fd)),
            // Likewise; the number goes on as the copy that it is.
            Kind::Inherited if file.cell.get().is_some() => attached.push(file),
            // Its engine stays with the parent.
            Kind::Stack => drop(table::remove(fd)),
            Kind::Epoll if sets.iter().all(|(set, _)| !core::ptr::eq(*set, file)) => {
                sets.push((file, fd))
            }
            Kind::Epoll => {}
            Kind::Inherited => inherited::reset_in_child(file),
            Kind::Tcp | Kind::Bpf | Kind::Free => {}
        }
    }
    let renewed = |old: &'static File| made.get(&core::ptr::from_ref(old).addr()).copied();
    for (set, fd) in sets {
        epoll::renew_in_child(set, fd, renewed);
    }
    for file in attached {
        file.cell.swap(None);
    }
}

/// Goes on with the muxes of the parent, which ends.
pub(crate) fn take_over() {
    if !MuxCell::any() && !owner::has_lines() {
        return;
    }
    if housekeeper::start().is_err() {
        crate::log::warn("KCM sockets have no housekeeper in this process");
    }
    owner::watch_again();
    MuxCell::revive();
}

/// The file of an inherited socket.
fn renew(old: &'static File, fd: i32) -> Option<&'static File> {
    let owner = name::owner_of(sys::borrow(fd)).unwrap_or_default();
    let new = remote::adopt(sys::borrow(fd), Remote::new(owner, 0)).ok()?;
    new.set_socket_type(old.socket_type());
    for (to, from) in [
        (&new.rcvtimeo, &old.rcvtimeo),
        (&new.sndtimeo, &old.sndtimeo),
    ] {
        to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
    }
    new.taken.swap(old.taken.get());
    Some(new)
}
