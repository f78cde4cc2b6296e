use super::*;
use core::net::Ipv4Addr;
use core::time::Duration;
use proptest::prelude::*;

const NOW: Instant = Instant::from_millis(1_000);

fn key(ident: u32, v4: bool) -> Key {
    let ip = |n| {
        if v4 {
            Ip::v4(Ipv4Addr::new(10, 0, 0, n))
        } else {
            Ip::v6(core::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()))
        }
    };
    Key {
        src: ip(1),
        dst: ip(2),
        ident,
        protocol: if v4 { 17 } else { 0 },
    }
}

fn head(v4: bool) -> Vec<u8> {
    if v4 {
        let mut h = vec![0; 20];
        h[0] = 0x45;
        h[9] = 17;
        h
    } else {
        let mut h = vec![0; 48];
        h[0] = 0x60;
        h[6] = 44;
        h[40] = 17;
        h
    }
}

/// A fragment that carries bytes `start..end` of `data`.
struct Piece {
    v4: bool,
    ident: u32,
    start: usize,
    end: usize,
    ecn: u8,
}

impl Piece {
    fn give(&self, r: &mut Reassembler, data: &[u8]) -> Outcome {
        r.arrives(
            &Fragment {
                key: key(self.ident, self.v4),
                iface: IfaceId::FIRST,
                head: &head(self.v4),
                next_header_at: 6,
                offset: self.start,
                more: self.end < data.len(),
                ecn: self.ecn,
                data: &data[self.start..self.end],
            },
            NOW,
        )
    }
}

fn v4(start: usize, end: usize) -> Piece {
    Piece {
        v4: true,
        ident: 7,
        start,
        end,
        ecn: 0,
    }
}

fn data(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 / 3) as u8).collect()
}

proptest! {
    #[test]
    fn any_order_and_any_duplication_give_the_datagram(
        len in 9usize..9_000,
        cuts in proptest::collection::vec(1usize..200, 1..40),
        order in any::<u64>(),
        v4: bool,
    ) {
        let data = data(len);
        let mut pieces = Vec::new();
        let mut at = 0;
        let mut cuts = cuts.iter().cycle();
        while at < len {
            let end = (at + cuts.next().unwrap() * 8).min(len);
            pieces.push((at, end));
            at = end;
        }
        // Each twice, in an order of the seed's choice.
        let mut queue: Vec<_> = pieces.iter().chain(&pieces).copied().collect();
        let mut seed = order;
        for i in (1..queue.len()).rev() {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            queue.swap(i, (seed >> 33) as usize % (i + 1));
        }
        let mut r = Reassembler::default();
        let mut whole = None;
        for (start, end) in queue {
            let piece = Piece { v4, ident: 1, start, end, ecn: 0 };
            match piece.give(&mut r, &data) {
                // What comes after is the start of a datagram nobody will complete.
                Outcome::Whole(packet) if whole.is_none() => whole = Some(packet),
                Outcome::Waiting | Outcome::Whole(_) => {}
                Outcome::Refused(why) => prop_assert!(false, "{why:?}"),
            }
        }
        let whole = whole.expect("complete");
        let headers = if v4 { 20 } else { 40 };
        prop_assert_eq!(&whole[headers..], &data[..]);
        if v4 {
            prop_assert_eq!(&whole[2..4], &((len + 20) as u16).to_be_bytes());
            prop_assert!(Sum::default().bytes(&whole[..20]).is_valid());
        } else {
            prop_assert_eq!((&whole[4..6], whole[6]), (&(len as u16).to_be_bytes()[..], 17));
        }
        prop_assert_eq!(r.counts.overlaps, 0);
    }

    /// Every fragment in the middle of a datagram, judged by a bitmap of what is here.
    #[test]
    fn overlaps_and_repetitions_are_told_apart_as_by_a_bitmap(
        frags in proptest::collection::vec((0usize..40, 1usize..12), 1..60),
    ) {
        let d = data(8_000);
        let mut r = Reassembler::default();
        let mut here = [false; 64];
        let mut want = Counts::default();
        for (unit, units) in frags {
            let span = &mut here[unit..unit + units];
            let taken = span.iter().filter(|h| **h).count();
            if taken == 0 {
                span.fill(true);
            } else if taken == units {
                want.duplicates += 1;
            } else {
                want.overlaps += 1;
                here.fill(false);
            }
            let outcome = v4(unit * 8, (unit + units) * 8).give(&mut r, &d);
            prop_assert_eq!(outcome, Outcome::Waiting);
            prop_assert_eq!(r.counts, want);
        }
    }

    #[test]
    fn hostile_fragments_stay_within_bounds(
        frags in proptest::collection::vec((0u32..3_000, 0usize..9_000, 0usize..3_000, any::<bool>()), 1..2_000),
    ) {
        let data = data(3_000);
        let mut r = Reassembler::default();
        for (ident, unit, len, more) in frags {
            r.arrives(
                &Fragment {
                    key: key(ident, ident % 2 == 0),
                    iface: IfaceId::FIRST,
                    head: &head(ident % 2 == 0),
                    next_header_at: 6,
                    offset: unit * 8,
                    more,
                    ecn: ident as u8,
                    data: &data[..len],
                },
                NOW,
            );
            prop_assert!(r.charge() <= FRAGMENT_BYTES_MAX);
            prop_assert!(r.datagrams.len() <= FRAGMENT_DATAGRAMS_MAX);
            prop_assert_eq!(r.datagrams.len(), r.by_age.len());
        }
        prop_assert_eq!(r.charge(), r.datagrams.values().map(|d| d.charge).sum::<usize>());
        while r.expire(NOW + Duration::from_secs(61)).is_some() {}
        prop_assert_eq!((r.charge(), r.datagrams.len()), (0, 0));
    }
}

#[test]
fn an_overlap_ends_the_datagram_and_a_repetition_does_not() {
    let d = data(64);
    let mut r = Reassembler::default();
    for p in [v4(0, 16), v4(16, 32), v4(8, 24), v4(0, 32), v4(0, 8)] {
        assert_eq!(p.give(&mut r, &d), Outcome::Waiting);
    }
    assert_eq!((r.counts.duplicates, r.counts.overlaps), (3, 0));
    assert_eq!(v4(24, 40).give(&mut r, &d), Outcome::Waiting);
    assert_eq!((r.counts.overlaps, r.datagrams.len()), (1, 0));
    // The rest is not enough.
    assert_eq!(v4(32, 64).give(&mut r, &d), Outcome::Waiting);
    assert_eq!(r.counts.whole, 0);
}

#[test]
fn a_second_opinion_about_the_length_ends_the_datagram() {
    let d = data(64);
    for (first, second) in [
        ((32, 64), (0, 40)),
        ((32, 64), (64, 72)),
        ((0, 48), (16, 24)),
    ] {
        let mut r = Reassembler::default();
        let give = |r: &mut Reassembler, (start, end): (usize, usize), len: usize| {
            v4(start, end).give(r, &data(len))
        };
        give(&mut r, first, 64);
        // (0, 40) of 40 is the end of a shorter datagram, (64, 72) of 80 lies beyond the end, and
        // (16, 24) of 24 ends before what is here.
        give(&mut r, second, if second.1 == 72 { 80 } else { second.1 });
        assert_eq!((r.counts.overlaps, r.datagrams.len()), (1, 0), "{second:?}");
    }
    assert_eq!(d.len(), 64);
}

#[test]
fn time_ends_datagrams_and_only_the_first_fragment_is_answered() {
    let d = data(64);
    let mut r = Reassembler::default();
    v4(0, 16).give(&mut r, &d);
    let other = Piece {
        ident: 8,
        ..v4(16, 32)
    };
    other.give(&mut r, &d);
    assert_eq!(r.next_deadline(), NOW + FRAGMENTS_TIME_V4);
    assert_eq!(r.expire(NOW + Duration::from_secs(29)), None);
    let expired = r.expire(NOW + FRAGMENTS_TIME_V4).expect("the first");
    assert_eq!(expired.key, key(7, true));
    assert_eq!(expired.packet, [&head(true)[..], &d[..16]].concat());
    assert_eq!(r.expire(NOW + FRAGMENTS_TIME_V4), None);
    assert_eq!(
        (r.counts.timeouts, r.next_deadline()),
        (2, Instant::FAR_FUTURE)
    );
}

#[test]
fn ecn_of_the_fragments_is_joined() {
    let d = data(16);
    for (first, second, want) in [
        (0, 0, Some(0)),
        (2, 2, Some(0)),
        (2, 3, Some(3)),
        (1, 3, Some(3)),
        (0, 3, None),
        (0, 2, None),
    ] {
        let mut r = Reassembler::default();
        let piece = |start, ecn| Piece {
            ecn,
            ..v4(start, start + 8)
        };
        piece(0, first).give(&mut r, &d);
        let got = match piece(8, second).give(&mut r, &d) {
            Outcome::Whole(packet) => Some(packet[1] & 3),
            _ => None,
        };
        assert_eq!(got, want, "{first} {second}");
    }
}

#[test]
fn ipv6_is_told_about_bad_lengths_and_offsets() {
    let mut r = Reassembler::default();
    let mut give = |offset, more, len: usize, v4| {
        r.arrives(
            &Fragment {
                key: key(1, v4),
                iface: IfaceId::FIRST,
                head: &head(v4),
                next_header_at: 6,
                offset,
                more,
                ecn: 0,
                data: &data(len),
            },
            NOW,
        )
    };
    let bad = |at| Outcome::Refused(Complaint::BadField(at));
    assert_eq!(give(0, true, 13, false), bad(4));
    assert_eq!(give(65_528, false, 16, false), bad(42));
    assert_eq!(give(65_528, false, 16, true), Outcome::Waiting);
    assert_eq!(give(0, true, 7, true), Outcome::Waiting);
    assert_eq!(r.counts.malformed, 4);
}
