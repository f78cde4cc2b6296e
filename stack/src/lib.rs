//! TCP/IP engine as a sans-I/O state machine.
//!
//! [`Stack`] takes frames and the time, and gives frames, events and the next deadline. It reads
//! no clock, opens no descriptor, starts no thread, and its only unsafe code is a call for wider
//! registers in the checksum; `device` moves frames and knows no protocol.
//!
//! # Inputs
//! [`Stack::handle_frame`], [`Stack::handle_timeout`], and the socket calls `tcp_*` and `udp_*`.
//!
//! # Outputs
//! [`Stack::poll_transmit`] (frames, written straight into the caller's buffer),
//! [`Stack::poll_event`] (readiness edges), [`Stack::next_deadline`]. Levels can be queried at any
//! time (`tcp_ready`, `tcp_can_send`, …).
//!
//! # Interfaces
//! A stack is made with one and takes more ([`Stack::add_interface`]). Routes, addresses and
//! neighbours name theirs; Linux's weak host model decides who answers for what.
//!
//! # Not done
//! No router advertisements. No TCP Fast Open.

#![deny(unsafe_code)]

mod addr;
mod checksum;
pub mod device;
mod dhcp;
mod error;
mod events;
mod ip;
pub mod limits;
mod rate;
mod secret;
mod slab;
mod stack;
mod tcp;
mod time;
mod udp;

pub use dhcp::DhcpLease;
pub use error::{Cause, RecvError, SendError, SocketError};
pub use events::{Event, Ready};
pub use ip::Addressing;
pub use ip::filter::{FilterMode, SourceChange, SourceFilter, Stays};
pub use ip::iface::IfaceId;
pub use secret::Key;
pub use stack::{
    Belongs, Checksums, Config, EcnMode, Gso, InterfaceConfig, LinkStats, ListenerId,
    PartialChecksum, Received, Shard, Stack, Strangers, TcpConfig, TcpId, Transmit, UdpId,
    shard_of, shard_of_flow, shard_of_udp,
};
pub use tcp::{
    CongestionControl, ConnectOptions, ListenOptions, Seq, SockFlag, SockOpts, State, TcpInfo,
    TcpStats, defer_repeats, defer_seconds,
};
pub use time::Instant;
pub use udp::{
    Datagram, PmtuDiscovery, Reuse, SharedPorts, UdpBindOptions, UdpBinding, UdpOpts,
    UdpSendOptions, UdpStats,
};
