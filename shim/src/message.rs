//! The message headers of sendmsg(2) and recvmsg(2), one or many.

use core::mem::offset_of;

use libc::{mmsghdr, msghdr};

use crate::errno::{Errno, Exit, Outcome};
use crate::fd::{File, Kind};
use crate::interpose::message::native_sendmsg;
use crate::kcm::recv::Received;
use crate::kcm::send::MSG_BATCH;
use crate::user_mem::{self, InPlace, Iovecs, Pod, UserPtr, Writable};
use crate::{kcm, net, ops};

/// Entries one sendmmsg or recvmmsg may have: UIO_MAXIOV, as the kernel caps it.
const COUNT_MAX: u32 = 1024;
/// Largest address the kernel copies: sizeof(struct sockaddr_storage).
const ADDRESS_MAX: i32 = 128;

/// Whether messages have addresses here: a stack socket, or a UDP socket that processes share.
fn has_datagrams(file: &File) -> bool {
    match file.kind() {
        Kind::Stack => true,
        Kind::Inherited => !file.is_stream(),
        _ => false,
    }
}

/// An address is copied in and looked at no further (kcm-semantics §5.4).
pub(crate) fn check_address(addr: UserPtr, length: u32) -> Outcome<()> {
    match length as i32 {
        0 => Ok(()),
        n @ 1..=ADDRESS_MAX => Ok(user_mem::check_read(addr, n as usize)?),
        _ => Err(Errno::EINVAL.into()),
    }
}

pub(crate) fn sendto(
    file: &'static File,
    fd: i32,
    src: Iovecs<'_>,
    flags: i32,
    addr: UserPtr,
    length: u32,
) -> Outcome<isize> {
    match file.kind() {
        Kind::Kcm => {}
        Kind::Stack => return net::message::sendto(file, fd, src, flags, addr, length),
        Kind::Inherited if !file.is_stream() => {
            return net::message::sendto(file, fd, src, flags, addr, length);
        }
        // An address is of no use to a connection, and no harm.
        Kind::Inherited if addr.is_null() => {}
        Kind::Inherited => return Err(Errno::EISCONN.into()),
        _ => return Err(Exit::Native),
    }
    if !addr.is_null() {
        check_address(addr, length)?;
    }
    ops::send(file, fd, src, flags).map(|n| n as isize)
}

pub(crate) fn sendmsg(file: &'static File, fd: i32, msg: UserPtr, flags: i32) -> Outcome<usize> {
    let header = match file.kind() {
        Kind::Kcm => user_mem::copy_in::<msghdr>(msg)?,
        _ if has_datagrams(file) => {
            let header = user_mem::copy_in::<msghdr>(msg)?;
            let src = checked_source(&header)?;
            return net::message::sendmsg(file, fd, &header, src, flags);
        }
        Kind::Inherited => return net::inherited::send(file, fd, flags),
        _ => return Err(Exit::Native),
    };
    kcm::send::Sending::start(file, fd)?.send(&checked_source(&header)?, flags)
}

/// What a header wants sent, after the kernel's checks of all that is ignored.
fn checked_source<'a>(header: &msghdr) -> Outcome<Iovecs<'a>> {
    let name = UserPtr::new(header.msg_name);
    if !name.is_null() {
        // The kernel cuts an overlong msg_namelen instead of refusing it (copy_msghdr_from_user).
        let length = header.msg_namelen as i32;
        if length < 0 {
            return Err(Errno::EINVAL.into());
        }
        check_address(name, length.min(ADDRESS_MAX) as u32)?;
    }
    let src = Iovecs::read_for_msg(UserPtr::new(header.msg_iov.cast()), header.msg_iovlen)?;
    if header.msg_controllen > i32::MAX as usize {
        return Err(Errno::ENOBUFS.into());
    }
    if header.msg_controllen > 0 {
        user_mem::check_read(UserPtr::new(header.msg_control), header.msg_controllen)?;
    }
    Ok(src)
}

/// sendmmsg(2): every entry but the last is batched; all go out together.
pub(crate) fn sendmmsg(
    file: &'static File,
    fd: i32,
    msgs: UserPtr,
    count: u32,
    flags: i32,
) -> Outcome<i32> {
    if file.kind() == Kind::Inherited {
        net::inherited::hold(file, fd);
    }
    if file.kind() != Kind::Kcm && !has_datagrams(file) {
        return Err(Exit::Native);
    }
    let count = count.min(COUNT_MAX) as usize;
    if has_datagrams(file) {
        return send_each(file, fd, msgs, count, flags);
    }
    let mut sending = kcm::send::Sending::start(file, fd)?;
    for index in 0..count {
        let batch = if index + 1 < count { MSG_BATCH } else { 0 };
        let mut send = || {
            let msg = InPlace::<mmsghdr>::new(msgs.element::<mmsghdr>(index));
            let header = msg.read()?.msg_hdr;
            let eor = header.msg_flags & libc::MSG_EOR; // counts here, unlike in sendmsg
            let sent = sending.send(&checked_source(&header)?, flags | eor | batch)?;
            msg.writable()?
                .set(offset_of!(mmsghdr, msg_len), sent as u32);
            Ok::<(), Exit>(())
        };
        if let Err(err) = send() {
            sending.flush();
            return if index > 0 {
                Ok(index as i32)
            } else {
                Err(err)
            };
        }
    }
    Ok(count as i32)
}

/// sendmmsg(2) on a stack socket: one after the other.
fn send_each(
    file: &'static File,
    fd: i32,
    msgs: UserPtr,
    count: usize,
    flags: i32,
) -> Outcome<i32> {
    for index in 0..count {
        let send = || {
            let msg = InPlace::<mmsghdr>::new(msgs.element::<mmsghdr>(index));
            let header = msg.read()?.msg_hdr;
            let sent =
                match net::message::sendmsg(file, fd, &header, checked_source(&header)?, flags) {
                    // This one is the kernel's; the next may not be.
                    Err(Exit::Native) => native_sendmsg(fd, msgs.element::<mmsghdr>(index), flags)?,
                    sent => sent?,
                };
            msg.writable()?
                .set(offset_of!(mmsghdr, msg_len), sent as u32);
            Ok::<(), Exit>(())
        };
        match send() {
            Ok(()) => {}
            Err(_) if index > 0 => return Ok(index as i32),
            Err(err) => return Err(err),
        }
    }
    Ok(count as i32)
}

pub(crate) fn recvfrom(
    file: &'static File,
    fd: i32,
    dst: Iovecs<'_>,
    flags: i32,
    addr: UserPtr,
    length: UserPtr,
) -> Outcome<isize> {
    if has_datagrams(file) {
        return net::message::recvfrom(file, fd, dst, flags, addr, length);
    }
    let got = match file.kind() {
        Kind::Inherited if !addr.is_null() => net::inherited::recv_unnamed(file, fd, dst, flags)?,
        _ => ops::recv(file, fd, dst, flags)?,
    };
    if !addr.is_null() && !length.is_null() {
        if user_mem::copy_in::<i32>(length)? < 0 {
            return Err(Errno::EINVAL.into());
        }
        user_mem::copy_out(length, &0i32)?;
    }
    Ok(got.bytes as isize)
}

#[inline(always)]
pub(crate) fn recvmsg(file: &'static File, fd: i32, msg: UserPtr, flags: i32) -> Outcome<usize> {
    let msg = InPlace::<msghdr>::new(msg);
    let header = msg.read()?;
    if has_datagrams(file) {
        return recv_stack(file, fd, msg, &header, flags);
    }
    let got = match file.kind() {
        Kind::Inherited if is_named(&header) => {
            net::inherited::recv_unnamed(file, fd, destination(&header)?, flags)?
        }
        _ => ops::recv(file, fd, destination(&header)?, flags)?,
    };
    finish(file, &msg.writable()?, is_named(&header), got, flags);
    Ok(got.bytes)
}

/// Where a header wants the bytes, after the kernel's checks of the rest of it.
#[inline(always)]
fn destination<'a>(header: &msghdr) -> Outcome<Iovecs<'a>> {
    if is_named(header) && (header.msg_namelen as i32) < 0 {
        return Err(Errno::EINVAL.into());
    }
    Iovecs::read_for_msg(UserPtr::new(header.msg_iov.cast()), header.msg_iovlen)
}

/// Whether there is room for an address.
#[inline(always)]
fn is_named(header: &msghdr) -> bool {
    !header.msg_name.is_null()
}

/// Stores what came with a message: no address, no control data, the flags. `T` starts with the
/// header.
#[inline(always)]
fn finish<T: Pod>(file: &File, msg: &Writable<T>, named: bool, got: Received, flags: i32) {
    let mut stored = got.flags;
    if file.kind() == Kind::Kcm {
        stored |= flags & libc::MSG_CMSG_CLOEXEC;
    }
    if named {
        msg.set(offset_of!(msghdr, msg_namelen), 0u32);
    }
    msg.set(offset_of!(msghdr, msg_flags), stored);
    msg.set(offset_of!(msghdr, msg_controllen), 0usize);
}

/// One receive on a stack socket into the header at `index`.
fn recv_stack<T: Pod>(
    file: &'static File,
    fd: i32,
    msg: InPlace<T>,
    header: &msghdr,
    flags: i32,
) -> Outcome<usize> {
    let room = match header.msg_control.is_null() {
        true => 0,
        false => header.msg_controllen,
    };
    let from = net::message::recv(file, fd, destination(header)?, flags, room)?;
    let mut length = 0;
    if let Some(sender) = from.sender.filter(|_| !header.msg_name.is_null()) {
        let (bytes, full) = net::address::encode(sender);
        let room = full.min(header.msg_namelen as usize);
        let name = bytes.get(..room).unwrap_or_default();
        user_mem::write_bytes(UserPtr::new(header.msg_name), name)?;
        length = full as u32;
    }
    let mut stored = from.got;
    stored.flags |= flags & libc::MSG_CMSG_CLOEXEC;
    let mut control = 0;
    if let Some(told) = from.told {
        let (used, cut) = told.store(header)?;
        control = used;
        stored.flags |= cut;
    }
    let msg = msg.writable()?;
    finish(file, &msg, is_named(header), stored, flags);
    msg.set(offset_of!(msghdr, msg_controllen), control);
    if length != 0 {
        msg.set(offset_of!(msghdr, msg_namelen), length);
    }
    Ok(from.got.bytes)
}

/// recvmmsg(2) on a stack socket.
fn recv_each(
    file: &'static File,
    fd: i32,
    msgs: UserPtr,
    count: usize,
    mut flags: i32,
    until: Option<u64>,
) -> Outcome<i32> {
    for index in 0..count {
        let receive = || {
            let msg = InPlace::<mmsghdr>::new(msgs.element::<mmsghdr>(index));
            let header = msg.read()?.msg_hdr;
            let bytes = recv_stack(file, fd, msg, &header, flags)?;
            msg.writable()?
                .set(offset_of!(mmsghdr, msg_len), bytes as u32);
            Ok::<(), Exit>(())
        };
        match receive() {
            Ok(()) => {}
            Err(_) if index > 0 => return Ok(index as i32),
            Err(err) => return Err(err),
        }
        if flags & libc::MSG_WAITFORONE != 0 {
            flags |= libc::MSG_DONTWAIT;
        }
        if until.is_some_and(|at| at <= crate::sys::now()) {
            return Ok(index as i32 + 1);
        }
    }
    Ok(count as i32)
}

/// recvmmsg(2).
pub(crate) fn recvmmsg(
    file: &'static File,
    fd: i32,
    msgs: UserPtr,
    count: u32,
    flags: i32,
    until: Option<u64>,
) -> Outcome<i32> {
    if file.kind() == Kind::Inherited {
        net::inherited::hold(file, fd);
    }
    if file.kind() != Kind::Kcm && !has_datagrams(file) {
        return Err(Exit::Native);
    }
    let count = count.min(COUNT_MAX) as usize;
    if has_datagrams(file) {
        return recv_each(file, fd, msgs, count, flags, until);
    }
    let headers = Headers { file, msgs, flags };
    kcm::recv::recv_many(file, fd, count, flags, until, headers).map(|n| n as i32)
}

/// The array of recvmmsg(2).
struct Headers {
    file: &'static File,
    msgs: UserPtr,
    flags: i32,
}

impl kcm::recv::Destinations for Headers {
    #[inline(always)]
    fn get<'a>(&self, index: usize) -> Outcome<(bool, Iovecs<'a>)> {
        let header = user_mem::copy_in::<msghdr>(self.msgs.element::<mmsghdr>(index))?;
        Ok((is_named(&header), destination(&header)?))
    }

    #[inline(always)]
    fn finish(&self, index: usize, named: bool, got: Received) -> Outcome<()> {
        let msg = InPlace::<mmsghdr>::new(self.msgs.element::<mmsghdr>(index)).writable()?;
        finish(self.file, &msg, named, got, self.flags);
        msg.set(offset_of!(mmsghdr, msg_len), got.bytes as u32);
        Ok(())
    }
}

const _: () = assert!(offset_of!(mmsghdr, msg_hdr) == 0);
