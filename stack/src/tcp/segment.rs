//! One TCP segment: as received, and as planned for sending.

use smoltcp::wire::{TCP_HEADER_LEN, TcpPacket};

use super::options::{OptionBytes, TIMESTAMPS_ALIGNED_BYTES, Timestamps};
use super::seq::Seq;

/// The header's control bits, in wire order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Control(pub(crate) u8);

impl Control {
    pub(crate) const FIN: Self = Self(1);
    pub(crate) const SYN: Self = Self(2);
    pub(crate) const RST: Self = Self(4);
    pub(crate) const PSH: Self = Self(8);
    pub(crate) const ACK: Self = Self(16);
    pub(crate) const URG: Self = Self(32);
    pub(crate) const ECE: Self = Self(64);
    pub(crate) const CWR: Self = Self(128);

    pub(crate) const fn has(self, c: Self) -> bool {
        self.0 & c.0 != 0
    }

    pub(crate) const fn with(self, c: Self) -> Self {
        Self(self.0 | c.0)
    }

    pub(crate) const fn with_if(self, c: Self, on: bool) -> Self {
        if on { self.with(c) } else { self }
    }
}

/// A segment that arrived: header fields in host order, the rest borrowed from the frame.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub(crate) src_port: u16,
    pub(crate) dst_port: u16,
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    pub(crate) control: Control,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) options: &'a [u8],
    pub(crate) payload: &'a [u8],
    /// The IP header said Congestion Experienced.
    pub(crate) ce: bool,
}

impl<'a> Segment<'a> {
    /// Reads a segment whose checksum the caller has judged. `None`: too short, or the data
    /// offset points outside.
    pub(crate) fn parse(bytes: &'a [u8], ce: bool) -> Option<Self> {
        let p = TcpPacket::new_checked(bytes).ok()?;
        let control = Control(*bytes.get(13)?);
        let header = usize::from(p.header_len());
        Some(Self {
            src_port: p.src_port(),
            dst_port: p.dst_port(),
            seq: Seq(p.seq_number().0 as u32),
            ack: Seq(p.ack_number().0 as u32),
            control,
            window: p.window_len(),
            urgent: p.urgent_at(),
            options: bytes.get(TCP_HEADER_LEN..header)?,
            payload: bytes.get(header..)?,
            ce,
        })
    }

    pub(crate) const fn has(&self, c: Control) -> bool {
        self.control.has(c)
    }

    /// Length in sequence space: SYN and FIN count one each.
    pub(crate) fn seq_len(&self) -> u32 {
        self.payload.len() as u32
            + u32::from(self.has(Control::SYN))
            + u32::from(self.has(Control::FIN))
    }

    pub(crate) fn end(&self) -> Seq {
        self.seq + self.seq_len()
    }
}

/// A segment to send, everything but addresses and payload bytes. Filled in place and never moved on
/// the fast path: a move right after the fields were written waits for each of those writes.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    pub(crate) control: Control,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    /// Timestamps in their aligned form, in front of `options`.
    pub(crate) timestamps: Option<Timestamps>,
    pub(crate) options: OptionBytes,
    /// Offset into the send queue.
    pub(crate) data_offset: usize,
    pub(crate) data_len: usize,
    /// ECN codepoint of the IP header.
    pub(crate) ecn: u8,
}

impl Plan {
    /// Nothing yet.
    pub(crate) const fn new() -> Self {
        Self {
            seq: Seq(0),
            ack: Seq(0),
            control: Control(0),
            window: 0,
            urgent: 0,
            timestamps: None,
            options: OptionBytes::new(),
            data_offset: 0,
            data_len: 0,
            ecn: 0,
        }
    }

    /// A segment without payload, window or options.
    pub(crate) const fn bare(seq: Seq, ack: Seq, control: Control) -> Self {
        Self {
            seq,
            ack,
            control,
            ..Self::new()
        }
    }

    pub(crate) fn header_len(&self) -> usize {
        let timestamps = if self.timestamps.is_some() {
            TIMESTAMPS_ALIGNED_BYTES
        } else {
            0
        };
        TCP_HEADER_LEN + timestamps + self.options.as_slice().len()
    }

    pub(crate) fn len(&self) -> usize {
        self.header_len() + self.data_len
    }

    /// Writes the header with a zero checksum; `out` is the whole TCP part of the packet.
    pub(crate) fn write_header(&self, src_port: u16, dst_port: u16, out: &mut [u8]) {
        let (header, options) = out[..self.header_len()].split_at_mut(TCP_HEADER_LEN);
        // Words of eight bytes: whoever sums the header next reads what was written whole.
        let ports_and_seq =
            u64::from(src_port) << 48 | u64::from(dst_port) << 32 | u64::from(self.seq.0);
        let data_offset = (TCP_HEADER_LEN + options.len()) as u64 / 4;
        let ack_and_window = u64::from(self.ack.0) << 32
            | data_offset << 28
            | u64::from(self.control.0) << 16
            | u64::from(self.window);
        header[..8].copy_from_slice(&ports_and_seq.to_be_bytes());
        header[8..16].copy_from_slice(&ack_and_window.to_be_bytes());
        header[16..].copy_from_slice(&u32::from(self.urgent).to_be_bytes());
        let at = match self.timestamps {
            Some(ts) => {
                options[..TIMESTAMPS_ALIGNED_BYTES].copy_from_slice(&ts.aligned());
                TIMESTAMPS_ALIGNED_BYTES
            }
            None => 0,
        };
        options[at..].copy_from_slice(self.options.as_slice());
    }
}
