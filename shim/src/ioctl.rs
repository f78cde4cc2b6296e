//! ioctl(2) on files of ours.

use crate::errno::{Exit, Outcome};
use crate::fd::{File, Kind};
use crate::user_mem::{self, UserPtr};
use crate::{kcm, net, tcp};

/// One request. `native` asks what lies beneath.
pub(crate) fn ioctl(
    file: &'static File,
    fd: i32,
    request: u32,
    arg: UserPtr,
    native: impl FnOnce() -> i32,
) -> Outcome<i32> {
    if request == libc::FIONBIO as u32 {
        let done = native();
        file.flags_changed();
        return Ok(done);
    }
    match file.kind() {
        Kind::Kcm => kcm::ioctl(file, fd, request, arg),
        Kind::Tcp if request == libc::FIONREAD as u32 => add_unread(file, arg, native()),
        Kind::Inherited if request == libc::FIONREAD as u32 && file.was_attached() => {
            net::inherited::hold(file, fd);
            add_unread(file, arg, native())
        }
        Kind::Stack if request == libc::FIONREAD as u32 && file.was_attached() => {
            add_unread(file, arg, net::ioctl::ioctl(file, request, arg)?)
        }
        Kind::Stack => net::ioctl::ioctl(file, request, arg),
        Kind::Inherited => net::inherited::ioctl(file, fd, request, arg),
        _ => Err(Exit::Native),
    }
}

/// What FIONREAD, which has returned `done`, finds besides what the socket holds.
fn add_unread(file: &File, arg: UserPtr, done: i32) -> Outcome<i32> {
    let unread = tcp::unread(file);
    if done == 0 && unread != 0 {
        let beneath = user_mem::copy_in::<i32>(arg)?;
        user_mem::copy_out(arg, &beneath.saturating_add(unread as i32))?;
    }
    Ok(done)
}
