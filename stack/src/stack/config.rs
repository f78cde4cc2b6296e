//! What stacks, interfaces and TCP are made with.

use super::Shard;
use crate::limits;
use crate::secret::Key;

/// Which checksums the device takes care of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checksums {
    /// The device finishes TCP and UDP checksums: frames carry the pseudo header's sum and
    /// [`Transmit::checksum`](crate::Transmit::checksum) says where.
    pub tx_offload: bool,
    /// Every received frame's transport checksum is already verified.
    pub rx_verified: bool,
}

/// Explicit congestion notification (tcp_ecn).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EcnMode {
    /// Never.
    Off,
    /// When the peer asks for it; Linux's default.
    #[default]
    Passive,
    /// Also asked for on connect.
    Active,
}

/// TCP's system-wide settings; defaults are Linux's.
#[derive(Debug, Clone)]
pub struct TcpConfig {
    /// tcp_timestamps.
    pub timestamps: bool,
    /// tcp_sack.
    pub sack: bool,
    /// tcp_window_scaling.
    pub window_scaling: bool,
    /// Shift of our windows when scaling is negotiated, at most 14.
    pub rcv_wscale: u8,
    /// tcp_ecn.
    pub ecn: EcnMode,
    /// tcp_syncookies.
    pub syn_cookies: bool,
    /// Initial receive buffer in bytes (tcp_rmem\[1\]).
    pub rcvbuf: u32,
    /// Bytes in stream buffers over all connections (tcp_mem).
    pub stream_bytes_max: usize,
    /// Connections the demultiplexing table is sized for at start; it grows beyond.
    pub expected_connections: usize,
    /// Holds the acknowledgements Linux sends at once although nothing depends on them (of a
    /// handshake, of the first small segments, of a FIN) until the program's next call, whose data,
    /// FIN or RST may carry them: who sets this calls
    /// [`tcp_release_acks`](crate::Stack::tcp_release_acks) before it next receives or sleeps.
    pub hold_acks: bool,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self {
            timestamps: true,
            sack: true,
            window_scaling: true,
            rcv_wscale: 7,
            ecn: EcnMode::Passive,
            syn_cookies: true,
            rcvbuf: limits::RCVBUF_BYTES,
            stream_bytes_max: limits::STREAM_BYTES_MAX,
            expected_connections: 0,
            hold_acks: false,
        }
    }
}

/// What an interface is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// Our Ethernet address.
    pub mac: [u8; 6],
    /// Largest IP packet the link carries, in bytes.
    pub mtu: u16,
    /// Checksum offload of the device.
    pub checksums: Checksums,
    /// Largest TCP payload the device segments by itself (TSO), in bytes; 0 without.
    pub tso_bytes: u32,
}

impl InterfaceConfig {
    /// Defaults for an Ethernet link of MTU 1500 without offloads.
    pub const fn new(mac: [u8; 6]) -> Self {
        Self {
            mac,
            mtu: 1500,
            checksums: Checksums {
                tx_offload: false,
                rx_verified: false,
            },
            tso_bytes: 0,
        }
    }
}

/// What a stack with its first interface is made with.
#[derive(Debug, Clone)]
pub struct Config {
    /// As [`InterfaceConfig::mac`].
    pub mac: [u8; 6],
    /// As [`InterfaceConfig::mtu`].
    pub mtu: u16,
    /// Secret from which everything unpredictable derives.
    pub key: Key,
    /// As [`InterfaceConfig::checksums`].
    pub checksums: Checksums,
    /// As [`InterfaceConfig::tso_bytes`].
    pub tso_bytes: u32,
    /// TCP settings.
    pub tcp: TcpConfig,
    /// Which of several stacks with the same addresses this one is.
    pub shard: Shard,
}

impl Config {
    /// Defaults for an Ethernet link of MTU 1500 without offloads.
    pub fn new(mac: [u8; 6], key: Key) -> Self {
        Self {
            mac,
            mtu: 1500,
            key,
            checksums: Checksums::default(),
            tso_bytes: 0,
            tcp: TcpConfig::default(),
            shard: Shard::ONLY,
        }
    }

    /// The first interface's part.
    pub(crate) const fn first_interface(&self) -> InterfaceConfig {
        InterfaceConfig {
            mac: self.mac,
            mtu: self.mtu,
            checksums: self.checksums,
            tso_bytes: self.tso_bytes,
        }
    }
}
