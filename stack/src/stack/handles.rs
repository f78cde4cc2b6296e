//! Names of sockets. A stale handle is recognised by its generation and refused.

/// Names a TCP connection. Stale handles are recognised and refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TcpId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Names a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Names a UDP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UdpId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl TcpId {
    /// Dense index of the slot, for tables beside the stack; reused after close.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}
