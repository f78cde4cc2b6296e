//! Segments as frames: composing what the peer sends, reading what the stack sent.

use std::fmt::Write as _;

pub(crate) const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(crate) const OUR_IP: [u8; 4] = [10, 0, 0, 1];
pub(crate) const PEER_IP: [u8; 4] = [10, 0, 0, 2];

const FLAG_LETTERS: [char; 8] = ['F', 'S', 'R', 'P', '.', 'U', 'E', 'W'];

pub(crate) fn flags(letters: &str) -> Option<u8> {
    if letters == "-" {
        return Some(0);
    }
    letters.chars().try_fold(0, |f, c| {
        Some(f | 1 << FLAG_LETTERS.iter().position(|l| *l == c)?)
    })
}

pub(crate) fn letters(flags: u8) -> String {
    (0..8)
        .filter(|i| flags >> i & 1 == 1)
        .map(|i| FLAG_LETTERS[i])
        .collect()
}

/// A TCP segment with absolute numbers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Segment {
    pub(crate) src: u16,
    pub(crate) dst: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    pub(crate) urgent: u16,
    pub(crate) len: usize,
    pub(crate) ecn: u8,
    pub(crate) mss: Option<u16>,
    pub(crate) wscale: Option<u8>,
    pub(crate) sack_ok: bool,
    pub(crate) ts: Option<(u32, u32)>,
    pub(crate) sack: Vec<(u32, u32)>,
}

fn sum(parts: &[&[u8]]) -> u16 {
    let mut s = 0u32;
    for p in parts {
        for c in p.chunks(2) {
            s += u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0));
        }
    }
    while s > 0xffff {
        s = (s & 0xffff) + (s >> 16);
    }
    !(s as u16)
}

/// An IPv4 frame from the peer around `body`.
pub(crate) fn frame(protocol: u8, ecn: u8, body: &[u8]) -> Vec<u8> {
    let mut f = Vec::new();
    f.extend(OUR_MAC);
    f.extend(PEER_MAC);
    f.extend([8, 0]);
    let total = (20 + body.len()) as u16;
    let mut ip = vec![0x45, ecn];
    ip.extend(total.to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    ip.extend(PEER_IP);
    ip.extend(OUR_IP);
    let c = sum(&[&ip]);
    ip[10..12].copy_from_slice(&c.to_be_bytes());
    f.extend(ip);
    f.extend(body);
    f
}

impl Segment {
    pub(crate) fn to_frame(&self) -> Vec<u8> {
        let mut o = Vec::new();
        if let Some(m) = self.mss {
            o.extend([2, 4]);
            o.extend(m.to_be_bytes());
        }
        if self.sack_ok {
            o.extend([4, 2, 1, 1]);
        }
        if let Some((val, ecr)) = self.ts {
            o.extend([1, 1, 8, 10]);
            o.extend(val.to_be_bytes());
            o.extend(ecr.to_be_bytes());
        }
        if let Some(w) = self.wscale {
            o.extend([1, 3, 3, w]);
        }
        if !self.sack.is_empty() {
            o.extend([1, 1, 5, 2 + 8 * self.sack.len() as u8]);
            for (a, b) in &self.sack {
                o.extend(a.to_be_bytes());
                o.extend(b.to_be_bytes());
            }
        }
        let mut t = Vec::new();
        t.extend(self.src.to_be_bytes());
        t.extend(self.dst.to_be_bytes());
        t.extend(self.seq.to_be_bytes());
        t.extend(self.ack.to_be_bytes());
        t.extend([(((20 + o.len()) / 4) << 4) as u8, self.flags]);
        t.extend(self.window.to_be_bytes());
        t.extend([0, 0]);
        t.extend(self.urgent.to_be_bytes());
        t.extend(o);
        t.extend((0..self.len).map(|i| i as u8));
        let len = (t.len() as u16).to_be_bytes();
        let c = sum(&[&PEER_IP, &OUR_IP, &[0, 6], &len, &t]);
        t[16..18].copy_from_slice(&c.to_be_bytes());
        frame(6, self.ecn, &t)
    }

    /// Reads a frame of the stack; `None` if it is not TCP over IPv4. Checks both checksums.
    pub(crate) fn of_frame(f: &[u8]) -> Option<Self> {
        if f.get(12..14)? != [8, 0] || f[23] != 6 {
            return None;
        }
        let total = usize::from(u16::from_be_bytes([f[16], f[17]]));
        assert_eq!(total + 14, f.len(), "IP length and frame length agree");
        assert_eq!(sum(&[&f[14..34]]), 0, "IP checksum");
        let t = &f[34..];
        let len = (t.len() as u16).to_be_bytes();
        assert_eq!(sum(&[&f[26..34], &[0, 6], &len, t]), 0, "TCP checksum");
        let word = |at: usize| u32::from_be_bytes([t[at], t[at + 1], t[at + 2], t[at + 3]]);
        let half = |at: usize| u16::from_be_bytes([t[at], t[at + 1]]);
        let header = usize::from(t[12] >> 4) * 4;
        let mut s = Self {
            src: half(0),
            dst: half(2),
            seq: word(4),
            ack: word(8),
            flags: t[13],
            window: half(14),
            urgent: half(18),
            len: t.len() - header,
            ecn: f[15] & 3,
            ..Self::default()
        };
        let mut at = 20;
        while at < header {
            match t[at] {
                0 => break,
                1 => {
                    at += 1;
                    continue;
                }
                2 => s.mss = Some(half(at + 2)),
                3 => s.wscale = Some(t[at + 2]),
                4 => s.sack_ok = true,
                5 => {
                    s.sack = (0..usize::from(t[at + 1]) / 8)
                        .map(|i| (word(at + 2 + i * 8), word(at + 6 + i * 8)))
                        .collect()
                }
                8 => s.ts = Some((word(at + 2), word(at + 6))),
                k => panic!("option {k}"),
            }
            at += usize::from(t[at + 1]);
        }
        Some(s)
    }

    /// For messages: numbers relative to the initial ones.
    pub(crate) fn describe(&self, ours: u32, peers: u32) -> String {
        let mut s = String::new();
        let seq = self.seq.wrapping_sub(ours);
        let _ = write!(
            s,
            "{} {}:{}({}) ack {} win {}",
            letters(self.flags),
            seq,
            seq.wrapping_add(self.len as u32),
            self.len,
            self.ack.wrapping_sub(peers),
            self.window
        );
        if self.flags & 32 != 0 {
            let _ = write!(s, " urg {}", self.urgent);
        }
        if self.ecn == 2 {
            s.push_str(" ect");
        }
        let _ = write!(s, " <");
        if let Some(m) = self.mss {
            let _ = write!(s, "mss {m} ");
        }
        if self.sack_ok {
            s.push_str("sackOK ");
        }
        if let Some(w) = self.wscale {
            let _ = write!(s, "wscale {w} ");
        }
        if let Some((v, e)) = self.ts {
            let _ = write!(s, "ts {v} {e} ");
        }
        for (a, b) in &self.sack {
            let _ = write!(
                s,
                "sack {}:{} ",
                a.wrapping_sub(peers),
                b.wrapping_sub(peers)
            );
        }
        s.trim_end().to_owned() + ">"
    }
}
