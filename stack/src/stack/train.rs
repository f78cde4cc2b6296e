//! Header prediction below TCP: the frames of a flow that follow one another in a batch differ, up to
//! their ports, in length, identification and checksum only. What was found out about the first of
//! them (that it is for us, from whom it may come, that it is whole) holds for all.

use crate::addr::Ip;
use crate::checksum::Sum;
use crate::ip::ETHERNET;
use crate::ip::iface::IfaceId;

/// Ethernet, an IPv4 header without options, ports.
const HEAD: usize = 38;
const IPV4: usize = 20;

/// Where in a frame words are compared; the last two overlap.
const WORDS_AT: [usize; 5] = [0, 8, 16, 24, 30];
/// Of them, everything but the length, the identification and the header checksum.
const FIXED: [u64; 5] = [
    u64::MAX,
    u64::MAX,
    0x0000_0000_ffff_ffff,
    0x0000_ffff_ffff_ffff,
    u64::MAX,
];

/// The head of a TCP frame that was accepted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Train {
    iface: IfaceId,
    words: [u64; 5],
    pub(super) src: Ip,
    pub(super) dst: Ip,
}

impl Train {
    /// What follows `frame`, a TCP frame from `src` to `dst` that was delivered; `None` if it is not
    /// a plain IPv4 frame.
    pub(super) fn behind(iface: IfaceId, frame: &[u8], src: Ip, dst: Ip) -> Option<Self> {
        let words = words(frame)?;
        // IPv4, no options, TCP, and not the fragment that completed a packet.
        let is_plain = words[1] as u32 >> 8 == 0x08_0045 && words[2] as u32 & 0x3fff_00ff == 6;
        is_plain.then_some(Self {
            iface,
            words: core::array::from_fn(|i| words[i] & FIXED[i]),
            src,
            dst,
        })
    }

    /// The TCP part of a frame whose head is as predicted and which is sound otherwise.
    #[inline]
    pub(super) fn predicts<'a>(&self, iface: IfaceId, frame: &'a [u8]) -> Option<&'a [u8]> {
        let words = words(frame)?;
        let differs = (0..5).fold(0, |d, i| d | (words[i] & FIXED[i]) ^ self.words[i]);
        if differs != 0 || iface != self.iface {
            return None;
        }
        let len = usize::from((words[2] >> 48) as u16);
        let header: &[u8; IPV4] = frame.get(ETHERNET..)?.first_chunk()?;
        if !Sum::default().bytes(header).is_valid() {
            return None;
        }
        frame.get(ETHERNET + IPV4..ETHERNET + len)
    }

    /// Whether congestion was experienced.
    pub(super) const fn has_ce(&self) -> bool {
        self.words[1] & 3 == 3
    }
}

#[inline]
fn words(frame: &[u8]) -> Option<[u64; 5]> {
    let head: &[u8; HEAD] = frame.first_chunk()?;
    Some(WORDS_AT.map(|at| u64::from_be_bytes(core::array::from_fn(|i| head[at + i]))))
}
