//! What travels beside a frame's bytes: the checksum's state and how to segment, as
//! `struct virtio_net_hdr` carries them on `AF_PACKET`, TAP and some VALE ports.

use crate::checksum::Sum;

/// Length of `struct virtio_net_hdr` in bytes (linux/virtio_net.h, without mergeable buffers).
pub(super) const VNET_HDR_LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// Offload state of one frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FrameMeta {
    /// State of the transport checksum.
    pub csum: Checksum,
    /// How the frame is, or was, cut into segments; `None` for a frame that stands for itself.
    pub gso: Option<Gso>,
}

/// State of a frame's transport checksum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Stands in the frame; nobody has verified it.
    #[default]
    Complete,
    /// Was verified below; the receiver need not look.
    Verified,
    /// The field holds the pseudo header's sum alone: sum the bytes from `start` to the end and write
    /// the complement at `start + offset`. On receive this means a sender on this machine, so the
    /// frame is as good as verified.
    Partial {
        /// First summed byte, from the start of the frame.
        start: u16,
        /// Where the checksum stands, from `start`.
        offset: u16,
    },
}

/// How to cut a frame into segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gso {
    /// Which protocol's segments.
    pub kind: GsoKind,
    /// Payload bytes of each segment but the last: the MSS.
    pub size: u16,
    /// Bytes of Ethernet, IP and transport header. Only a hint in received frames.
    pub hdr_len: u16,
    /// TCP: the first segment alone carries CWR (RFC 3168 §6.1.2).
    pub ecn: bool,
}

/// Protocols whose segments the devices know to cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP: datagrams of equal size.
    Udp,
}

impl FrameMeta {
    /// A frame that stands for itself, with its checksum in it.
    pub const NONE: Self = Self {
        csum: Checksum::Complete,
        gso: None,
    };

    /// The header as the kernel reads it: host byte order, as `PACKET_VNET_HDR` and a TAP without
    /// `TUNSETVNETLE` want it.
    pub(super) fn to_vnet_hdr(self) -> [u8; VNET_HDR_LEN] {
        let (flags, start, offset) = match self.csum {
            Checksum::Complete => (0, 0, 0),
            Checksum::Verified => (DATA_VALID, 0, 0),
            Checksum::Partial { start, offset } => (NEEDS_CSUM, start, offset),
        };
        let (kind, hdr_len, size) = self.gso.map_or((GSO_NONE, 0, 0), |gso| {
            let kind = match gso.kind {
                GsoKind::TcpV4 => GSO_TCPV4,
                GsoKind::TcpV6 => GSO_TCPV6,
                GsoKind::Udp => GSO_UDP_L4,
            };
            (
                kind | if gso.ecn { GSO_ECN } else { 0 },
                gso.hdr_len,
                gso.size,
            )
        });
        let mut hdr = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0];
        for (field, value) in hdr[2..]
            .chunks_exact_mut(2)
            .zip([hdr_len, size, start, offset])
        {
            field.copy_from_slice(&value.to_ne_bytes());
        }
        hdr
    }

    /// Reads a header that came with a frame of `frame_len` bytes. `None` when a field points outside
    /// the frame or names a kind of segmentation that was never asked for.
    pub(super) fn from_vnet_hdr(hdr: [u8; VNET_HDR_LEN], frame_len: usize) -> Option<Self> {
        let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1] = hdr;
        let word = |a, b| u16::from_ne_bytes([a, b]);
        let csum = if flags & NEEDS_CSUM != 0 {
            let (start, offset) = (word(s0, s1), word(o0, o1));
            if usize::from(start) + usize::from(offset) + 2 > frame_len {
                return None;
            }
            Checksum::Partial { start, offset }
        } else if flags & DATA_VALID != 0 {
            Checksum::Verified
        } else {
            Checksum::Complete
        };
        let kind = match gso_type & !GSO_ECN {
            GSO_NONE => return Some(Self { csum, gso: None }),
            GSO_TCPV4 => GsoKind::TcpV4,
            GSO_TCPV6 => GsoKind::TcpV6,
            GSO_UDP_L4 => GsoKind::Udp,
            _ => return None,
        };
        let (hdr_len, size) = (word(h0, h1), word(g0, g1));
        if size == 0 || usize::from(hdr_len) > frame_len {
            return None;
        }
        Some(Self {
            csum,
            gso: Some(Gso {
                kind,
                size,
                hdr_len,
                ecn: gso_type & GSO_ECN != 0,
            }),
        })
    }

    /// Does in software what [`Checksum::Partial`] asks for. Offsets outside the frame leave it as it
    /// is; the receiver will find the sum wrong.
    pub(super) fn finish_checksum(self, frame: &mut [u8]) {
        let Checksum::Partial { start, offset } = self.csum else {
            return;
        };
        let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
        let Some(summed) = frame.get(start..) else {
            return;
        };
        let mut sum = Sum::default().bytes(summed).finish();
        // UDP over IPv4 reads zero as "no checksum" (RFC 768), and both zeros are equal to the rest.
        if sum == [0, 0] {
            sum = [0xff, 0xff];
        }
        if let Some(field) = frame.get_mut(at..at + 2) {
            field.copy_from_slice(&sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vnet_hdr_round_trips_every_combination() {
        let csums = [
            Checksum::Complete,
            Checksum::Verified,
            Checksum::Partial {
                start: 34,
                offset: 16,
            },
        ];
        for csum in csums {
            assert_round_trip(FrameMeta { csum, gso: None });
            for kind in [GsoKind::TcpV4, GsoKind::TcpV6, GsoKind::Udp] {
                for ecn in [false, true] {
                    let gso = Some(Gso {
                        kind,
                        size: 1448,
                        hdr_len: 66,
                        ecn,
                    });
                    assert_round_trip(FrameMeta { csum, gso });
                }
            }
        }
    }

    fn assert_round_trip(meta: FrameMeta) {
        assert_eq!(FrameMeta::from_vnet_hdr(meta.to_vnet_hdr(), 66), Some(meta));
    }

    #[test]
    fn vnet_hdr_that_points_outside_the_frame_is_refused() {
        let partial = |start, offset| FrameMeta {
            csum: Checksum::Partial { start, offset },
            gso: None,
        };
        let read = |meta: FrameMeta, len| FrameMeta::from_vnet_hdr(meta.to_vnet_hdr(), len);
        assert_eq!(read(partial(34, 16), 52), Some(partial(34, 16)));
        assert_eq!(read(partial(34, 16), 51), None);
        assert_eq!(read(partial(u16::MAX, u16::MAX), 65_535), None);
        let gso = |size, hdr_len| FrameMeta {
            csum: Checksum::Complete,
            gso: Some(Gso {
                kind: GsoKind::TcpV4,
                size,
                hdr_len,
                ecn: false,
            }),
        };
        assert_eq!(read(gso(0, 54), 100), None);
        assert_eq!(read(gso(1448, 101), 100), None);
        // VIRTIO_NET_HDR_GSO_UDP: fragments, never asked for.
        assert_eq!(
            FrameMeta::from_vnet_hdr([0, 3, 0, 0, 1, 1, 0, 0, 0, 0], 100),
            None
        );
    }

    #[test]
    fn finished_checksum_is_the_complement_of_the_sum() {
        // Four words from offset 2; the field at 2 + 4 holds the pseudo header's share, 0x0001.
        let mut frame = [9, 9, 0x12, 0x34, 0xf0, 0x00, 0x00, 0x01, 0x80, 0x00];
        FrameMeta {
            csum: Checksum::Partial {
                start: 2,
                offset: 4,
            },
            gso: None,
        }
        .finish_checksum(&mut frame);
        let sum = 0x1234 + 0xf000 + 0x0001 + 0x8000u32;
        let folded = (sum & 0xffff) + (sum >> 16);
        assert_eq!(frame[6..8], (!(folded as u16)).to_be_bytes());
        let untouched = frame;
        for (start, offset) in [(11, 0), (8, 1), (u16::MAX, u16::MAX)] {
            FrameMeta {
                csum: Checksum::Partial { start, offset },
                gso: None,
            }
            .finish_checksum(&mut frame);
            assert_eq!(frame, untouched);
        }
    }
}
