//! The engine's errors as errno, each where its documentation says.

use kcm_stack::{Cause, RecvError, SendError, SocketError};

use crate::errno::{Errno, Exit};

/// Why a connection ended.
pub(crate) fn cause(cause: Cause) -> Errno {
    match cause {
        Cause::Refused => Errno::ECONNREFUSED,
        Cause::Reset => Errno::ECONNRESET,
        Cause::TimedOut => Errno::ETIMEDOUT,
        Cause::HostUnreachable | Cause::Prohibited => Errno::EHOSTUNREACH,
        Cause::NetUnreachable => Errno::ENETUNREACH,
        Cause::ProtocolUnreachable => Errno::ENOPROTOOPT,
        Cause::MessageTooBig => Errno::EMSGSIZE,
        Cause::BrokenPipe => Errno::EPIPE,
        Cause::BroadcastDenied => Errno::EACCES,
        Cause::SourceNotOurs => Errno::EADDRNOTAVAIL,
        _ => Errno::ECONNABORTED,
    }
}

/// Why bind or listen was not carried out.
pub(crate) fn socket(why: SocketError) -> Errno {
    match why {
        SocketError::AddressInUse => Errno::EADDRINUSE,
        SocketError::AddressNotAvailable | SocketError::PortsExhausted => Errno::EADDRNOTAVAIL,
        SocketError::NoRoute => Errno::ENETUNREACH,
        SocketError::NoInterface => Errno::ENODEV,
        SocketError::LimitReached => Errno::ENOBUFS,
        SocketError::BadHandle => Errno::EBADF,
        _ => Errno::EINVAL,
    }
}

/// Why connect was not carried out: a taken four-tuple is EADDRNOTAVAIL there (tcp_v4_connect), and an
/// address that nobody can be connected to has no route.
pub(crate) fn connect(why: SocketError) -> Errno {
    match why {
        SocketError::AddressInUse => Errno::EADDRNOTAVAIL,
        SocketError::InvalidAddress => Errno::ENETUNREACH,
        other => socket(other),
    }
}

/// Why a receive found nothing.
pub(crate) fn recv(why: RecvError) -> Exit {
    Exit::Failed(match why {
        RecvError::WouldBlock => Errno::EAGAIN,
        RecvError::NotConnected => Errno::ENOTCONN,
        RecvError::NoUrgent => Errno::EINVAL,
        RecvError::Failed(why) => cause(why),
        RecvError::BadHandle => Errno::EBADF,
    })
}

/// Why a send took nothing.
pub(crate) fn send(why: SendError) -> Errno {
    match why {
        SendError::WouldBlock => Errno::EAGAIN,
        SendError::Closed => Errno::EPIPE,
        SendError::Failed(why) => cause(why),
        SendError::TooBig => Errno::EMSGSIZE,
        SendError::NoDestination => Errno::EDESTADDRREQ,
        SendError::BadHandle => Errno::EBADF,
    }
}
