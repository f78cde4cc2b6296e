//! The connection states of RFC 9293 §3.3.2.

/// State of a connection. LISTEN belongs to listeners; TIME-WAIT to compact records, and a
/// connection whose record has gone there reports `Closed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// No connection.
    Closed,
    /// SYN sent, nothing heard.
    SynSent,
    /// SYN sent and received (simultaneous open).
    SynReceived,
    /// Open in both directions.
    Established,
    /// Our FIN is sent, not acknowledged.
    FinWait1,
    /// Our FIN is acknowledged; the peer may still send.
    FinWait2,
    /// The peer sent FIN; we may still send.
    CloseWait,
    /// Both FINs sent, ours not acknowledged.
    Closing,
    /// The peer closed first; our FIN is not acknowledged.
    LastAck,
    /// Both sides are done; old segments die out.
    TimeWait,
}

impl State {
    /// ESTABLISHED and later: both sides know each other's sequence numbers.
    pub const fn is_synchronized(self) -> bool {
        !matches!(self, Self::Closed | Self::SynSent | Self::SynReceived)
    }

    /// ESTABLISHED or CLOSE-WAIT: the application may add data to send.
    pub const fn may_send(self) -> bool {
        matches!(self, Self::Established | Self::CloseWait)
    }

    /// ESTABLISHED, FIN-WAIT-1 or FIN-WAIT-2: the peer may send more data.
    pub const fn may_recv(self) -> bool {
        matches!(self, Self::Established | Self::FinWait1 | Self::FinWait2)
    }

    /// States in which unsent data and the FIN still go out.
    pub(crate) const fn transmits(self) -> bool {
        matches!(
            self,
            Self::Established | Self::CloseWait | Self::FinWait1 | Self::Closing | Self::LastAck
        )
    }
}
