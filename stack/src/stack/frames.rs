//! What travels beside frames: offload state, and counters of their fate.

use crate::ip::iface::IfaceId;

/// Where a device has to finish a checksum, as virtio's `csum_start` and `csum_offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartialChecksum {
    /// First byte covered, from the start of the frame.
    pub start: u16,
    /// Where the result goes, from `start`.
    pub offset: u16,
}

/// A frame for a device to segment, as virtio's `gso_size` and `hdr_len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// Payload bytes of each segment.
    pub segment_bytes: u16,
    /// Bytes of headers in front.
    pub header_bytes: u16,
    /// TCPv6 rather than TCPv4.
    pub ipv6: bool,
}

/// A frame written by [`Stack::poll_transmit`](crate::Stack::poll_transmit).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// The interface it leaves by.
    pub iface: IfaceId,
    /// Its length in bytes.
    pub len: usize,
    /// Set if the device has to finish the checksum.
    pub checksum: Option<PartialChecksum>,
    /// Set if the device has to segment it.
    pub gso: Option<Gso>,
}

/// What a device knows about a received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Received {
    /// The transport checksum was verified, or never computed because the frame did not leave the
    /// machine.
    pub checksum_ok: bool,
}

/// Counters of frames, by fate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LinkStats {
    /// Frames handed in.
    pub frames_in: u64,
    /// Frames written out.
    pub frames_out: u64,
    /// Not for our Ethernet or IP address.
    pub not_ours: u64,
    /// Truncated, inconsistent or of an unknown protocol.
    pub malformed: u64,
    /// Wrong IP or transport checksum.
    pub bad_checksum: u64,
    /// Source address no host may use.
    pub bad_source: u64,
    /// Fragments received (ReasmReqds).
    pub fragments: u64,
    /// Packets made from them (ReasmOKs).
    pub reassembled: u64,
    /// Fragments that repeated others.
    pub fragment_duplicates: u64,
    /// Datagrams given up because fragments contradicted each other (RFC 5722).
    pub fragment_overlaps: u64,
    /// Fragments of impossible length or position, or within reassembled packets.
    pub fragment_malformed: u64,
    /// Datagrams given up because the rest did not come in time (ReasmTimeout).
    pub fragment_timeouts: u64,
    /// Datagrams given up to make room for newer ones.
    pub fragment_evictions: u64,
    /// Fragments sent (FragCreates).
    pub fragments_out: u64,
    /// Control frames dropped for a full queue or want of a route.
    pub control_drops: u64,
}
