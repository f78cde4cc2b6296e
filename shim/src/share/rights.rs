//! KCM and stack sockets that travel as SCM_RIGHTS control data over other sockets.

use libc::{mmsghdr, msghdr};

use super::remote::{self, Remote};
use super::{name, owner};
use crate::errno::{Errno, Outcome};
use crate::fd::file::Link;
use crate::fd::{File, Kind, lookup, table};
use crate::net::{inherited, lend};
use crate::sys;
use crate::user_mem::{self, UserPtr};
use crate::values::{self, Control, Controls};

/// Control data looked at: more than SCM_MAX_FD descriptors, and whatever else comes along.
const CONTROL_MAX: usize = 64 << 10;

/// A message is about to leave by a socket that is not ours: KCM sockets it carries become shared,
/// since whoever gets them may know nothing of us.
pub(crate) fn sending(msg: UserPtr) {
    for fd in carried(msg).unwrap_or_default() {
        crate::net::spare::stays(fd);
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
    let rights = |c: &Control| (c.level, c.kind) == (libc::SOL_SOCKET, libc::SCM_RIGHTS);
    let whole = Controls(&control).map_while(Result::ok).filter(rights);
    Ok(whole
        .flat_map(|message| values::ints(message.data))
        .collect())
}
