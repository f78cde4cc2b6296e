//! Reassembly of IPv4 and IPv6 fragments (RFC 791 §3.2, RFC 815, RFC 8200 §4.5) within bounds of
//! bytes, datagrams and time.
//!
//! A fragment that repeats bytes already here is ignored; one that overlaps in any other way ends
//! its datagram (RFC 5722, and Linux for IPv4 too): no honest sender does it, and whoever does wants
//! two readers of one datagram to see different bytes.

use std::collections::{BTreeMap, BTreeSet};

use super::icmp::Complaint;
use super::iface::IfaceId;
use super::output::IPV6;
use crate::addr::Ip;
use crate::checksum::Sum;
use crate::limits::{
    FRAGMENT_BYTES_MAX, FRAGMENT_DATAGRAMS_MAX, FRAGMENT_OVERHEAD_BYTES, FRAGMENTS_TIME_V4,
    FRAGMENTS_TIME_V6,
};
use crate::time::Instant;

/// Largest IPv4 packet, and largest payload of an IPv6 packet.
const PACKET_BYTES_MAX: usize = 65_535;
/// A fragment header of IPv6 (RFC 8200 §4.5).
pub(super) const FRAGMENT_HEADER: usize = 8;

/// Names a datagram under reassembly. IPv6 has no protocol in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) src: Ip,
    pub(crate) dst: Ip,
    pub(crate) ident: u32,
    pub(crate) protocol: u8,
}

/// One fragment as it arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fragment<'a> {
    pub(crate) key: Key,
    pub(crate) iface: IfaceId,
    /// Everything in front of the data; of IPv6 up to and including the fragment header.
    pub(crate) head: &'a [u8],
    /// Where in `head` an IPv6 header names the fragment header as the next.
    pub(crate) next_header_at: usize,
    /// Position of the data, in bytes.
    pub(crate) offset: usize,
    pub(crate) more: bool,
    pub(crate) ecn: u8,
    pub(crate) data: &'a [u8],
}

/// What a fragment led to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Waiting,
    /// The packet, as if it had never been cut.
    Whole(Vec<u8>),
    /// Dropped; IPv6 wants the sender told.
    Refused(Complaint),
}

/// A datagram whose time ran out, for the error to quote: its first fragment as far as it is here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expired {
    pub(crate) iface: IfaceId,
    pub(crate) key: Key,
    pub(crate) packet: Vec<u8>,
}

/// Counters of reassembly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) whole: u64,
    pub(crate) duplicates: u64,
    pub(crate) overlaps: u64,
    pub(crate) malformed: u64,
    pub(crate) timeouts: u64,
    pub(crate) evicted: u64,
}

#[derive(Debug)]
struct Head {
    bytes: Box<[u8]>,
    next_header_at: usize,
}

#[derive(Debug)]
struct Datagram {
    /// Data by offset; never overlapping.
    pieces: BTreeMap<usize, Box<[u8]>>,
    /// Of the fragment at offset zero.
    head: Option<Head>,
    /// Bytes of data here.
    bytes: usize,
    /// Length of the data, once the last fragment told.
    total: Option<usize>,
    /// End of the furthest piece.
    reach: usize,
    /// One bit for each ECN codepoint seen.
    ecn: u8,
    iface: IfaceId,
    expires: Instant,
    charge: usize,
}

/// All datagrams of which some fragments are here.
#[derive(Debug, Default)]
pub(crate) struct Reassembler {
    datagrams: BTreeMap<Key, Datagram>,
    by_age: BTreeSet<(Instant, Key)>,
    charge: usize,
    pub(crate) counts: Counts,
}

impl Reassembler {
    /// A fragment for one of our addresses.
    pub(crate) fn arrives(&mut self, f: &Fragment<'_>, now: Instant) -> Outcome {
        let v4 = f.key.src.is_v4();
        let mut data = f.data;
        if f.more && !data.len().is_multiple_of(8) {
            if !v4 {
                self.counts.malformed += 1;
                // The payload length is what is wrong.
                return Outcome::Refused(Complaint::BadField(4));
            }
            data = &data[..data.len() & !7];
        }
        let end = f.offset + data.len();
        // What stands in front of the data and stays there when it is joined.
        let ahead = if v4 {
            f.head.len()
        } else {
            f.head.len() - IPV6 - FRAGMENT_HEADER
        };
        let room = PACKET_BYTES_MAX - ahead;
        if end > room || data.is_empty() {
            self.counts.malformed += 1;
            if !v4 && end > room {
                let offset_field = f.head.len() - FRAGMENT_HEADER + 2;
                return Outcome::Refused(Complaint::BadField(offset_field as u32));
            }
            return Outcome::Waiting;
        }
        let charge = data.len() + FRAGMENT_OVERHEAD_BYTES;
        let is_new = !self.datagrams.contains_key(&f.key);
        self.make_room(charge, usize::from(is_new));
        let d = self.datagrams.entry(f.key).or_insert_with(|| {
            let time = if v4 {
                FRAGMENTS_TIME_V4
            } else {
                FRAGMENTS_TIME_V6
            };
            let expires = now + time;
            self.by_age.insert((expires, f.key));
            Datagram {
                pieces: BTreeMap::new(),
                head: None,
                bytes: 0,
                total: None,
                reach: 0,
                ecn: 0,
                iface: f.iface,
                expires,
                charge: 0,
            }
        });
        match d.place(f.offset, end, f.more) {
            Place::Free => {}
            Place::Taken => {
                self.counts.duplicates += 1;
                return Outcome::Waiting;
            }
            Place::Contradiction => {
                self.counts.overlaps += 1;
                self.remove(f.key);
                return Outcome::Waiting;
            }
        }
        d.pieces.insert(f.offset, data.into());
        d.bytes += data.len();
        d.reach = d.reach.max(end);
        d.ecn |= 1 << (f.ecn & 3);
        d.charge += charge;
        self.charge += charge;
        if !f.more {
            d.total = Some(end);
        }
        if f.offset == 0 {
            d.head = Some(Head {
                bytes: f.head.into(),
                next_header_at: f.next_header_at,
            });
        }
        if d.total != Some(d.bytes) || d.head.is_none() {
            return Outcome::Waiting;
        }
        match self.remove(f.key).and_then(|d| d.join(v4)) {
            Some(packet) => {
                self.counts.whole += 1;
                Outcome::Whole(packet)
            }
            None => {
                self.counts.malformed += 1;
                Outcome::Waiting
            }
        }
    }

    /// Ends what is nearest its end until `charge` more bytes and `more` datagrams fit.
    fn make_room(&mut self, charge: usize, more: usize) {
        while self.charge + charge > FRAGMENT_BYTES_MAX
            || self.datagrams.len() + more > FRAGMENT_DATAGRAMS_MAX
        {
            let Some(&(_, key)) = self.by_age.first() else {
                return;
            };
            self.counts.evicted += 1;
            self.remove(key);
        }
    }

    fn remove(&mut self, key: Key) -> Option<Datagram> {
        let d = self.datagrams.remove(&key)?;
        self.by_age.remove(&(d.expires, key));
        self.charge -= d.charge;
        Some(d)
    }

    pub(crate) fn next_deadline(&self) -> Instant {
        self.by_age
            .first()
            .map_or(Instant::FAR_FUTURE, |(at, _)| *at)
    }

    /// Ends a datagram whose time is over; call until `None`. The sender is told only if the first
    /// fragment came (RFC 792, RFC 8200 §4.5), so others end silently.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Expired> {
        while let Some(&(at, key)) = self.by_age.first()
            && at <= now
        {
            self.counts.timeouts += 1;
            let d = self.remove(key)?;
            if let (Some(head), Some(first)) = (&d.head, d.pieces.get(&0)) {
                return Some(Expired {
                    iface: d.iface,
                    key,
                    packet: [&head.bytes[..], first].concat(),
                });
            }
        }
        None
    }

    /// Bytes charged against the limit.
    #[cfg(test)]
    fn charge(&self) -> usize {
        self.charge
    }
}

/// Where a fragment would come to lie.
enum Place {
    Free,
    /// All of it is here already.
    Taken,
    /// Partly on top of others, or against what another said about the length.
    Contradiction,
}

impl Datagram {
    fn place(&self, start: usize, end: usize, more: bool) -> Place {
        let lies = match self.total {
            Some(total) if more => end > total,
            Some(total) => end != total,
            None => !more && end < self.reach,
        };
        if lies {
            return Place::Contradiction;
        }
        let end_of = |at: &usize, piece: &[u8]| at + piece.len();
        let before = self.pieces.range(..=start).next_back();
        let mut covered = before.map_or(0, |(at, p)| end_of(at, p)).max(start);
        if covered == start {
            let next = self.pieces.range(start..).next();
            return match next {
                Some((at, _)) if *at < end => Place::Contradiction,
                _ => Place::Free,
            };
        }
        while covered < end {
            match self.pieces.get_key_value(&covered) {
                Some((at, p)) => covered = end_of(at, p),
                None => return Place::Contradiction,
            }
        }
        Place::Taken
    }

    /// The packet that was cut; `None` if its fragments disagree about ECN or it is longer than a
    /// packet can be.
    fn join(self, v4: bool) -> Option<Vec<u8>> {
        let head = self.head?;
        let ecn = join_ecn(self.ecn)?;
        let keep = head.bytes.len() - if v4 { 0 } else { FRAGMENT_HEADER };
        // The head may be longer than those of the fragments that were measured before it came.
        if keep + self.bytes > PACKET_BYTES_MAX + if v4 { 0 } else { IPV6 } {
            return None;
        }
        let mut packet = Vec::with_capacity(keep + self.bytes);
        packet.extend_from_slice(&head.bytes[..keep]);
        for piece in self.pieces.values() {
            packet.extend_from_slice(piece);
        }
        if v4 {
            let total = (packet.len() as u16).to_be_bytes();
            packet[2..4].copy_from_slice(&total);
            packet[6..8].fill(0);
            packet[1] |= ecn;
            packet[10..12].fill(0);
            let sum = Sum::default().bytes(&packet[..keep]).finish();
            packet[10..12].copy_from_slice(&sum);
        } else {
            let payload = ((packet.len() - IPV6) as u16).to_be_bytes();
            packet[4..6].copy_from_slice(&payload);
            packet[head.next_header_at] = head.bytes[keep];
            packet[1] |= ecn << 4;
        }
        Some(packet)
    }
}

/// RFC 3168 §5.3: bits to set in the joined header. One CE marks the whole; fragments with and
/// without ECN do not belong together.
fn join_ecn(seen: u8) -> Option<u8> {
    const NOT_ECT: u8 = 1;
    const CE: u8 = 1 << 3;
    if seen & NOT_ECT != 0 && seen != NOT_ECT {
        return None;
    }
    Some(if seen & CE != 0 { 3 } else { 0 })
}

#[cfg(test)]
mod tests;
