//! TCP options (RFC 9293 §3.1, 7323, 2018). Parsing never fails as a whole: as Linux does, what is
//! understood before a malformed option counts, the rest is ignored.

use super::reassembly::Range;
use super::seq::Seq;

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
const SACK: u8 = 5;
const TIMESTAMPS: u8 = 8;

/// RFC 7323 §2.3: a larger shift is used as 14.
pub(crate) const WINDOW_SCALE_MAX: u8 = 14;
/// Options fit in 15 words of header less the fixed 5.
pub(crate) const OPTIONS_BYTES_MAX: usize = 40;
/// NOP NOP TS(10): the aligned form everyone sends.
pub(crate) const TIMESTAMPS_ALIGNED_BYTES: usize = 12;

/// A timestamps option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timestamps {
    pub(crate) val: u32,
    pub(crate) ecr: u32,
}

impl Timestamps {
    /// The aligned form, as everyone sends it.
    pub(crate) const fn aligned(self) -> [u8; TIMESTAMPS_ALIGNED_BYTES] {
        let head = u32::from_be_bytes([NOP, NOP, TIMESTAMPS, 10]);
        let bits = (head as u128) << 64 | (self.val as u128) << 32 | self.ecr as u128;
        let [_, _, _, _, bytes @ ..] = bits.to_be_bytes();
        bytes
    }
}

/// The options of one received segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) mss: Option<u16>,
    pub(crate) window_scale: Option<u8>,
    pub(crate) sack_permitted: bool,
    pub(crate) timestamps: Option<Timestamps>,
    pub(crate) sack: SackBlocks,
}

/// Up to four SACK blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SackBlocks {
    blocks: [(u32, u32); 4],
    len: u8,
}

impl SackBlocks {
    pub(crate) fn iter(&self) -> impl Iterator<Item = Range> + '_ {
        self.blocks[..usize::from(self.len)].iter().map(|b| Range {
            start: Seq(b.0),
            end: Seq(b.1),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Options {
    /// Parses the option bytes of a segment. MSS, window scale and SACK-permitted count only on a
    /// SYN.
    pub(crate) fn parse(mut b: &[u8], syn: bool) -> Self {
        let mut o = Self::default();
        // The common case: exactly the aligned timestamps.
        if let [NOP, NOP, TIMESTAMPS, 10, rest @ ..] = b
            && let Some((ts, &[])) = rest.split_first_chunk::<8>()
        {
            o.timestamps = Some(timestamps(ts));
            return o;
        }
        while let [kind, rest @ ..] = b {
            match *kind {
                END => break,
                NOP => {
                    b = rest;
                    continue;
                }
                _ => {}
            }
            let Some(&len) = rest.first() else { break };
            let len = usize::from(len);
            if len < 2 || len > b.len() {
                break;
            }
            let (option, after) = b.split_at(len);
            b = after;
            match (*kind, &option[2..]) {
                (MSS, &[hi, lo]) if syn => o.mss = Some(u16::from_be_bytes([hi, lo])),
                (WINDOW_SCALE, &[shift]) if syn => {
                    o.window_scale = Some(shift.min(WINDOW_SCALE_MAX))
                }
                (SACK_PERMITTED, &[]) if syn => o.sack_permitted = true,
                (TIMESTAMPS, body) => {
                    if let Some((ts, &[])) = body.split_first_chunk::<8>() {
                        o.timestamps = Some(timestamps(ts));
                    }
                }
                (SACK, body) if !syn => {
                    let (blocks, odd) = body.as_chunks::<8>();
                    if odd.is_empty() {
                        for (slot, block) in o.sack.blocks.iter_mut().zip(blocks) {
                            let t = timestamps(block); // the same two words
                            *slot = (t.val, t.ecr);
                        }
                        o.sack.len = blocks.len().min(4) as u8;
                    }
                }
                _ => {}
            }
        }
        o
    }
}

fn timestamps(b: &[u8; 8]) -> Timestamps {
    let [a0, a1, a2, a3, b0, b1, b2, b3] = *b;
    Timestamps {
        val: u32::from_be_bytes([a0, a1, a2, a3]),
        ecr: u32::from_be_bytes([b0, b1, b2, b3]),
    }
}

/// Option bytes being composed.
#[derive(Debug)]
pub(crate) struct OptionBytes {
    bytes: [u8; OPTIONS_BYTES_MAX],
    len: usize,
}

impl OptionBytes {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; OPTIONS_BYTES_MAX],
            len: 0,
        }
    }

    /// A SYN's options, in Linux's order.
    pub(crate) fn syn(mss: u16, scale: Option<u8>, sack: bool, ts: Option<Timestamps>) -> Self {
        let mut o = Self::new();
        let [hi, lo] = mss.to_be_bytes();
        o.put(&[MSS, 4, hi, lo]);
        match (sack, ts) {
            (true, Some(ts)) => {
                o.put(&[SACK_PERMITTED, 2, TIMESTAMPS, 10]);
                o.put_timestamps(ts);
            }
            (false, Some(ts)) => {
                o.put(&[NOP, NOP, TIMESTAMPS, 10]);
                o.put_timestamps(ts);
            }
            (true, None) => o.put(&[NOP, NOP, SACK_PERMITTED, 2]),
            (false, None) => {}
        }
        if let Some(shift) = scale {
            o.put(&[NOP, WINDOW_SCALE, 3, shift]);
        }
        o
    }

    /// SACK blocks that fit beside the timestamps or without them.
    pub(crate) const fn sack_room(timestamps: bool) -> usize {
        let used = if timestamps {
            TIMESTAMPS_ALIGNED_BYTES
        } else {
            0
        };
        (OPTIONS_BYTES_MAX - used - 4) / 8
    }

    /// Empties it in place.
    pub(crate) const fn clear(&mut self) {
        self.len = 0;
    }

    /// The caller has seen to it that `blocks` fit.
    pub(crate) fn add_sack(&mut self, blocks: &[Range]) {
        if blocks.is_empty() {
            return;
        }
        self.put(&[NOP, NOP, SACK, 2 + 8 * blocks.len() as u8]);
        for b in blocks {
            self.put(&b.start.0.to_be_bytes());
            self.put(&b.end.0.to_be_bytes());
        }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn put_timestamps(&mut self, ts: Timestamps) {
        self.put(&ts.val.to_be_bytes());
        self.put(&ts.ecr.to_be_bytes());
    }

    fn put(&mut self, b: &[u8]) {
        self.bytes[self.len..self.len + b.len()].copy_from_slice(b);
        self.len += b.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_composed_is_parsed_back() {
        let ts = Some(Timestamps {
            val: 0x0102_0304,
            ecr: 5,
        });
        for scale in [None, Some(7)] {
            for sack in [false, true] {
                for ts in [None, ts] {
                    let o = OptionBytes::syn(1460, scale, sack, ts);
                    assert_eq!(o.as_slice().len() % 4, 0);
                    let want = Options {
                        mss: Some(1460),
                        window_scale: scale,
                        sack_permitted: sack,
                        timestamps: ts,
                        sack: SackBlocks::default(),
                    };
                    assert_eq!(Options::parse(o.as_slice(), true), want);
                }
            }
        }
        let ts = Timestamps { val: 1, ecr: 2 };
        let parsed = Options::parse(&ts.aligned(), false);
        assert_eq!(parsed.timestamps, Some(ts));
        assert_eq!(
            (OptionBytes::sack_room(true), OptionBytes::sack_room(false)),
            (3, 4)
        );
        let mut o = OptionBytes::new();
        let blocks: Vec<Range> = (0..4)
            .map(|i| Range {
                start: Seq(i * 10),
                end: Seq(i * 10 + 5),
            })
            .collect();
        o.add_sack(&blocks);
        let parsed = Options::parse(o.as_slice(), false);
        assert_eq!(parsed.sack.iter().collect::<Vec<_>>(), blocks);
    }

    #[test]
    fn malformed_options_end_parsing_without_harm() {
        for bytes in [
            &[2u8, 4][..],
            &[2, 0, 5, 180],
            &[2, 1],
            &[8, 10, 1, 2],
            &[5, 9, 0, 0, 0, 0, 0, 0, 0],
            &[3],
            &[2, 255, 5, 180],
            &[5, 2],
        ] {
            assert_eq!(Options::parse(bytes, true), Options::default(), "{bytes:?}");
        }
        let o = Options::parse(&[2, 4, 5, 180, 3, 200, 7], true);
        assert_eq!(o.mss, Some(1460));
        assert_eq!(Options::parse(&[3, 3, 200], true).window_scale, Some(14));
        assert_eq!(Options::parse(&[2, 4, 5, 180], false).mss, None);
    }
}
