//! ioctl(2) on a KCM socket.

use super::socket;
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::fd::file::Link;
use crate::publish;
use crate::share::remote;
use crate::user_mem::{self, UserPtr};

const SIOCKCMATTACH: u32 = 0x89e0;
const SIOCKCMUNATTACH: u32 = 0x89e1;
const SIOCKCMCLONE: u32 = 0x89e2;

/// The three KCM requests. Others go to the socket beneath, but for those that it would answer as
/// the AF_UNIX socket it is.
pub(crate) fn ioctl(file: &'static File, fd: i32, request: u32, arg: UserPtr) -> Outcome<i32> {
    let remote = file.link() == Link::Remote;
    match request {
        SIOCKCMATTACH if remote => {
            let [tcp_fd, bpf_fd] = user_mem::copy_in::<[i32; 2]>(arg)?;
            remote::attach(file, fd, tcp_fd, bpf_fd)
        }
        SIOCKCMUNATTACH if remote => remote::unattach(file, fd, user_mem::copy_in::<i32>(arg)?),
        SIOCKCMCLONE if remote => remote::clone(file, fd, |new| Ok(user_mem::copy_out(arg, &new)?)),
        SIOCKCMATTACH => {
            let [tcp_fd, bpf_fd] = user_mem::copy_in::<[i32; 2]>(arg)?;
            publish::attached(socket::attach(file, tcp_fd, bpf_fd), tcp_fd)
        }
        SIOCKCMUNATTACH => {
            let tcp_fd = user_mem::copy_in::<i32>(arg)?;
            publish::unattached(socket::unattach(file, tcp_fd), file, tcp_fd)
        }
        SIOCKCMCLONE => {
            let mut made = -1;
            let cloned = socket::clone(file, |fd| {
                made = fd;
                Ok(user_mem::copy_out(arg, &fd)?)
            });
            publish::cloned(cloned, made)
        }
        FIONREAD => Err(publish::unsupported(file, "FIONREAD", Errno::ENOTTY).into()),
        TIOCOUTQ => Err(publish::unsupported(file, "TIOCOUTQ", Errno::ENOTTY).into()),
        SIOCATMARK => Err(publish::unsupported(file, "SIOCATMARK", Errno::ENOTTY).into()),
        _ => Err(Exit::Native),
    }
}

const FIONREAD: u32 = libc::FIONREAD as u32;
const TIOCOUTQ: u32 = libc::TIOCOUTQ as u32;
const SIOCATMARK: u32 = 0x8905;
