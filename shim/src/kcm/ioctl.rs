//! ioctl(2) on a KCM socket.

use super::socket;
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::fd::file::Link;
use crate::publish;
use crate::share::remote;
use crate::user_mem::{self, UserPtr};
use crate::values::KcmRequest;

/// The three KCM requests. Others go to the socket beneath, but for those that it would answer as
/// the AF_UNIX socket it is.
pub(crate) fn ioctl(file: &'static File, fd: i32, request: u32, arg: UserPtr) -> Outcome<i32> {
    let mut room = [0; KcmRequest::BYTES_MAX];
    let argument = { room.get_mut(..KcmRequest::length(request)) }.unwrap_or_default();
    user_mem::read_bytes(arg, argument)?;
    let remote = file.link() == Link::Remote;
    match KcmRequest::new(request, argument).ok_or(Errno::EINVAL)? {
        KcmRequest::Attach { tcp, program } if remote => remote::attach(file, fd, tcp, program),
        KcmRequest::Attach { tcp, program } => {
            publish::attached(socket::attach(file, tcp, program), tcp)
        }
        KcmRequest::Unattach { tcp } if remote => remote::unattach(file, fd, tcp),
        KcmRequest::Unattach { tcp } => publish::unattached(socket::unattach(file, tcp), file, tcp),
        KcmRequest::Clone if remote => {
            remote::clone(file, fd, |new| Ok(user_mem::copy_out(arg, &new)?))
        }
        KcmRequest::Clone => {
            let mut made = -1;
            let cloned = socket::clone(file, |fd| {
                made = fd;
                Ok(user_mem::copy_out(arg, &fd)?)
            });
            publish::cloned(cloned, made)
        }
        KcmRequest::Unsupported(name) => {
            Err(publish::unsupported(file, name, Errno::ENOTTY).into())
        }
        KcmRequest::Beneath => Err(Exit::Native),
    }
}
