//! Header prediction below TCP: the frames of a batch go to the same address, mostly, and differ from
//! one that was accepted in sender, length, identification and checksum only. What was found out about
//! that one (that it is for us, and whole) holds for all.

use core::net::Ipv4Addr;

use crate::addr::Ip;
use crate::checksum::Sum;
use crate::ip::ETHERNET;
use crate::ip::iface::IfaceId;

/// Ethernet and an IPv4 header without options, up to where words are read.
const HEAD: usize = 38;
const IPV4: usize = 20;

/// Where in a frame words are compared; the last two overlap.
const WORDS_AT: [usize; 5] = [0, 8, 16, 24, 30];
/// Of them: the station; type, version and header length; fragment and protocol; the address.
const FIXED: [u64; 5] = [
    0xffff_ffff_ffff_0000,
    0x0000_0000_ffff_ff00,
    0x0000_0000_ffff_00ff,
    0x0000_0000_0000_ffff,
    0xffff_ffff_0000_0000,
];

/// The head of a TCP frame that was accepted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prediction {
    iface: IfaceId,
    words: [u64; 5],
    /// From whom frames may come: so did the last one.
    pub(super) src: Ip,
}

/// A frame that is as predicted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Predicted<'a> {
    /// Not looked at, unless it is that of the prediction.
    pub(super) src: Ip,
    pub(super) dst: Ip,
    pub(super) transport: &'a [u8],
    /// Congestion was experienced.
    pub(super) ce: bool,
}

impl Prediction {
    /// What comes after `frame`, a TCP frame that was delivered; `None` if it is not a plain IPv4
    /// frame.
    pub(super) fn behind(iface: IfaceId, frame: &[u8]) -> Option<Self> {
        let words = words(frame)?;
        // IPv4, no options, TCP, and not the fragment that completed a packet.
        let is_plain = words[1] as u32 >> 8 == 0x08_0045 && words[2] as u32 & 0x3fff_00ff == 6;
        is_plain.then_some(Self {
            iface,
            words: core::array::from_fn(|i| words[i] & FIXED[i]),
            src: src(&words),
        })
    }

    /// A frame whose head is as predicted and which is sound otherwise.
    #[inline]
    pub(super) fn predicts<'a>(&self, iface: IfaceId, frame: &'a [u8]) -> Option<Predicted<'a>> {
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
        Some(Predicted {
            src: src(&words),
            dst: Ip::v4(Ipv4Addr::from_bits((words[4] >> 32) as u32)),
            transport: frame.get(ETHERNET + IPV4..ETHERNET + len)?,
            ce: words[1] & 3 == 3,
        })
    }
}

fn src(words: &[u64; 5]) -> Ip {
    Ip::v4(Ipv4Addr::from_bits((words[3] >> 16) as u32))
}

#[inline]
fn words(frame: &[u8]) -> Option<[u64; 5]> {
    let head: &[u8; HEAD] = frame.first_chunk()?;
    Some(WORDS_AT.map(|at| u64::from_be_bytes(core::array::from_fn(|i| head[at + i]))))
}
