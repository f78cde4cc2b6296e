//! One TCP segment: as received, and as planned for sending.

use smoltcp::wire::{TcpPacket, TcpSeqNumber};

use super::options::OptionBytes;
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
            options: bytes.get(smoltcp::wire::TCP_HEADER_LEN..header)?,
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

/// A segment to send, everything but addresses and payload bytes.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    pub(crate) control: Control,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) options: OptionBytes,
    /// Offset into the send queue.
    pub(crate) data_offset: usize,
    pub(crate) data_len: usize,
    /// ECN codepoint of the IP header.
    pub(crate) ecn: u8,
}

impl Plan {
    pub(crate) fn header_len(&self) -> usize {
        smoltcp::wire::TCP_HEADER_LEN + self.options.as_slice().len()
    }

    pub(crate) fn len(&self) -> usize {
        self.header_len() + self.data_len
    }

    /// Writes the header with a zero checksum; `out` is the whole TCP part of the packet.
    pub(crate) fn write_header(&self, src_port: u16, dst_port: u16, out: &mut [u8]) {
        let header = self.header_len();
        out[smoltcp::wire::TCP_HEADER_LEN..header].copy_from_slice(self.options.as_slice());
        let mut p = TcpPacket::new_unchecked(&mut *out);
        p.set_src_port(src_port);
        p.set_dst_port(dst_port);
        p.set_seq_number(TcpSeqNumber(self.seq.0 as i32));
        p.set_ack_number(TcpSeqNumber(self.ack.0 as i32));
        p.set_header_len(header as u8);
        p.set_window_len(self.window);
        p.set_checksum(0);
        p.set_urgent_at(self.urgent);
        out[13] = self.control.0;
    }
}
