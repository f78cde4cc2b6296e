//! Typed errors. Each cause a program can tell apart by errno has a variant of its own.

use core::fmt;

/// Why a connection ended or a pending error is posted (SO_ERROR); reading it clears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// A RST answered our SYN: ECONNREFUSED.
    Refused,
    /// A RST ended a synchronized connection: ECONNRESET.
    Reset,
    /// Retransmissions, keepalive probes or the user timeout ran out: ETIMEDOUT.
    TimedOut,
    /// ICMP host unreachable, or the neighbour did not answer: EHOSTUNREACH.
    HostUnreachable,
    /// ICMP net unreachable, or no route: ENETUNREACH.
    NetUnreachable,
    /// ICMP administratively prohibited: EHOSTUNREACH (IPv4), EACCES (IPv6).
    Prohibited,
    /// ICMP protocol unreachable: ENOPROTOOPT.
    ProtocolUnreachable,
    /// ICMP fragmentation needed while probing is off, or a datagram over the path MTU: EMSGSIZE.
    MessageTooBig,
    /// The peer reset a connection we had closed for reading with data unread, or we wrote after
    /// its RST: EPIPE.
    BrokenPipe,
    /// Aborted locally: ECONNABORTED.
    Aborted,
    /// A broadcast address without SO_BROADCAST: EACCES.
    BroadcastDenied,
    /// The source address asked for is not ours, or we have none that fits: EADDRNOTAVAIL.
    SourceNotOurs,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "connection refused",
            Self::Reset => "connection reset by peer",
            Self::TimedOut => "connection timed out",
            Self::HostUnreachable => "no route to host",
            Self::NetUnreachable => "network is unreachable",
            Self::Prohibited => "communication administratively prohibited",
            Self::ProtocolUnreachable => "protocol not available",
            Self::MessageTooBig => "message too long",
            Self::BrokenPipe => "broken pipe",
            Self::Aborted => "software caused connection abort",
            Self::BroadcastDenied => "permission denied",
            Self::SourceNotOurs => "cannot assign requested address",
        })
    }
}

impl std::error::Error for Cause {}

/// Why bind, listen or connect was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SocketError {
    /// The local address or four-tuple is taken: EADDRINUSE.
    AddressInUse,
    /// The local address is not one of ours: EADDRNOTAVAIL.
    AddressNotAvailable,
    /// Every ephemeral port towards this peer is taken: EADDRNOTAVAIL.
    PortsExhausted,
    /// The remote address is unspecified, multicast, of the other family, or port 0: EINVAL.
    InvalidAddress,
    /// No route leads to the destination: ENETUNREACH.
    NoRoute,
    /// No such interface: ENODEV.
    NoInterface,
    /// A configured limit is reached: ENOBUFS.
    LimitReached,
    /// The handle is stale: EBADF.
    BadHandle,
    /// Not possible in the socket's state: EINVAL, EISCONN or ENOTCONN by call.
    InvalidState,
}

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AddressInUse => "address already in use",
            Self::AddressNotAvailable => "cannot assign requested address",
            Self::PortsExhausted => "no free ephemeral port",
            Self::InvalidAddress => "invalid address",
            Self::NoRoute => "network is unreachable",
            Self::NoInterface => "no such device",
            Self::LimitReached => "no buffer space available",
            Self::BadHandle => "stale socket handle",
            Self::InvalidState => "operation not possible in this state",
        })
    }
}

impl std::error::Error for SocketError {}

/// Why send took no bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SendError {
    /// Send buffer or pool is full; a WRITABLE event follows: EAGAIN.
    WouldBlock,
    /// The send side is shut down or the connection is gone: EPIPE.
    Closed,
    /// A latched error, reported once: its errno.
    Failed(Cause),
    /// The datagram exceeds what the protocol can carry: EMSGSIZE.
    TooBig,
    /// No destination given and none connected: EDESTADDRREQ.
    NoDestination,
    /// The handle is stale: EBADF.
    BadHandle,
}

/// Why recv returned no bytes. End of stream is `Ok(0)`, not an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecvError {
    /// Nothing to read yet; a READABLE event follows: EAGAIN.
    WouldBlock,
    /// Never connected: ENOTCONN.
    NotConnected,
    /// No urgent byte is waiting (MSG_OOB): EINVAL.
    NoUrgent,
    /// A latched error, reported once: its errno.
    Failed(Cause),
    /// The handle is stale: EBADF.
    BadHandle,
}

macro_rules! display_debug {
    ($($t:ty),*) => {$(
        impl fmt::Display for $t {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
        impl std::error::Error for $t {}
    )*};
}
display_debug!(SendError, RecvError);
