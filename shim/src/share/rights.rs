//! KCM and stack sockets that travel as SCM_RIGHTS control data over other sockets.

use libc::{cmsghdr, mmsghdr, msghdr};

use super::remote::{self, Remote};
use super::{name, owner};
use crate::errno::{Errno, Outcome};
use crate::fd::file::Link;
use crate::fd::{File, Kind, lookup, table};
use crate::net::{inherited, lend};
use crate::sys;
use crate::user_mem::{self, UserPtr};

/// Control data looked at: more than SCM_MAX_FD descriptors, and whatever else comes along.
const CONTROL_MAX: usize = 64 << 10;

/// A message is about to leave by a socket that is not ours: KCM sockets it carries become shared,
/// since whoever gets them may know nothing of us.
pub(crate) fn sending(msg: UserPtr) {
    for fd in carried(msg).unwrap_or_default() {
        if let Some(socket) = lend::lendable(fd) {
            lend::before_program(&[socket], false);
        }
        if let Some(file) = lookup(fd).filter(|f| f.kind() == Kind::Kcm)
            && publish(file, fd).is_err()
        {
            crate::log::warn("a KCM socket passed to another process will be silent there");
        }
    }
}

/// Shares a socket with holders that may know nothing of us.
pub(crate) fn publish(file: &'static File, fd: i32) -> Outcome<()> {
    if file.link() == Link::Remote {
        remote::hold(file, fd);
        return remote::publish(file, fd);
    }
    owner::tie(file, sys::borrow(fd))?;
    owner::meet_strangers(file, 1)?;
    owner::share(file)
}

/// A message has come by a socket that is not ours, with control data.
pub(crate) fn received(msg: UserPtr) {
    for fd in carried(msg).unwrap_or_default() {
        crate::net::pristine::changed(fd);
        table::fresh(fd);
        if let Some(name) = name::owner_of(sys::borrow(fd)) {
            let _ = adopt(fd, name);
        } else {
            inherited::adopt(fd);
        }
    }
}

/// As [`sending`] and [`received`] for each of `count` headers.
pub(crate) fn each(msgs: UserPtr, count: usize, look: fn(UserPtr)) {
    for index in 0..count {
        look(msgs.element::<mmsghdr>(index));
    }
}

/// Puts a file behind a descriptor that is a tied KCM socket.
pub(crate) fn adopt(fd: i32, owner: Vec<u8>) -> Outcome<()> {
    if !table::in_range(fd) {
        return Err(Errno::EMFILE.into());
    }
    let file = match owner::own_socket(sys::borrow(fd), &owner) {
        Some(file) if file.retain() => {
            owner::meet_strangers(file, -1)?;
            file
        }
        _ => {
            let file = remote::adopt(sys::borrow(fd), Remote::new(owner, -1))?;
            remote::hold(file, fd);
            file
        }
    };
    table::install(fd, file);
    Ok(())
}

/// Descriptors in the control data of a message.
fn carried(msg: UserPtr) -> Outcome<Vec<i32>> {
    let header = user_mem::copy_in::<msghdr>(msg)?;
    let mut control = vec![0; header.msg_controllen.min(CONTROL_MAX)];
    user_mem::read_bytes(UserPtr::new(header.msg_control), &mut control)?;
    let mut fds = Vec::new();
    let mut rest = control.as_slice();
    while let Some((length, level, kind)) = head(rest) {
        let Some(data) = rest.get(size_of::<cmsghdr>()..length) else {
            break;
        };
        if (level, kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            fds.extend(
                data.chunks_exact(4)
                    .filter_map(|c| Some(i32::from_ne_bytes(c.try_into().ok()?))),
            );
        }
        let next = length.next_multiple_of(size_of::<usize>());
        rest = rest.get(next..).unwrap_or(&[]);
    }
    Ok(fds)
}

/// Length, level and type of the first control message.
fn head(control: &[u8]) -> Option<(usize, i32, i32)> {
    const WORD: usize = size_of::<usize>();
    let length = usize::from_ne_bytes(control.get(..WORD)?.try_into().ok()?);
    let int = |at: usize| {
        Some(i32::from_ne_bytes(
            control.get(at..at + 4)?.try_into().ok()?,
        ))
    };
    (length >= size_of::<cmsghdr>()).then_some((length, int(WORD)?, int(WORD + 4)?))
}
