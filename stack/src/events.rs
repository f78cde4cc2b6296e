//! Readiness: edges by `poll_event`, levels by query.

use crate::stack::{ListenerId, TcpId, UdpId};

/// A set of readiness bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Ready(u8);

impl Ready {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Bytes, a datagram or end of stream can be read (EPOLLIN).
    pub const READABLE: Self = Self(1);
    /// The send buffer has room again, or connect finished (EPOLLOUT).
    pub const WRITABLE: Self = Self(2);
    /// The peer sent FIN (EPOLLRDHUP).
    pub const READ_CLOSED: Self = Self(4);
    /// Both directions are finished (EPOLLHUP).
    pub const CLOSED: Self = Self(8);
    /// An error is latched (EPOLLERR).
    pub const ERROR: Self = Self(16);
    /// Urgent data arrived (EPOLLPRI).
    pub const URGENT: Self = Self(32);
    /// The three-way handshake of a connect completed.
    pub const CONNECTED: Self = Self(64);
    /// Everything written has been acknowledged, after `close` or `shutdown` (SO_LINGER waits).
    pub const FLUSHED: Self = Self(128);

    /// Whether all bits of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether no bit is set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl core::ops::BitOr for Ready {
    type Output = Self;
    fn bitor(self, o: Self) -> Self {
        Self(self.0 | o.0)
    }
}

/// A readiness change. At most one event per socket is queued; its bits accumulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// A connection became ready for something.
    Tcp(TcpId, Ready),
    /// A listener has a connection to accept.
    Accept(ListenerId),
    /// A UDP socket became ready for something.
    Udp(UdpId, Ready),
}
