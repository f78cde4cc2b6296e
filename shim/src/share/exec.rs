//! A new program in this process: it inherits KCM sockets without FD_CLOEXEC, and none of our memory.

use rustix::fs::Access;

use super::{broker, owner, rights};
use crate::fd::{File, Kind, lookup, table};
use crate::{process, sys};

/// A program is about to be executed; `found` says whether it is there. Inherited sockets become
/// shared, since it may know nothing of us, and a broker goes on as their owner.
pub(crate) fn before(found: impl FnOnce() -> bool) {
    if !table::is_used() || process::is_foreign() {
        return;
    }
    let inherited: Vec<_> = table::ours_in(0, u32::MAX).filter_map(inherits).collect();
    if inherited.is_empty() && !owner::has_lines() || !found() {
        return;
    }
    for (fd, file) in &inherited {
        if rights::publish(file, *fd).is_err() {
            crate::log::warn("a KCM socket will be silent in the program that inherits it");
        }
    }
    broker::at_exec();
}

/// The KCM socket at a number that the next program inherits.
fn inherits(fd: i32) -> Option<(i32, &'static File)> {
    let file = lookup(fd).filter(|file| file.kind() == Kind::Kcm)?;
    let flags = rustix::io::fcntl_getfd(sys::borrow(fd)).ok()?;
    (!flags.contains(rustix::io::FdFlags::CLOEXEC)).then_some((fd, file))
}

/// Whether a file that may be executed is at this path.
pub(crate) fn is_there(path: &[u8]) -> bool {
    rustix::fs::access(path, Access::EXEC_OK).is_ok()
}
