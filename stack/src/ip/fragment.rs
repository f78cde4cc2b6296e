//! Datagrams larger than the path carries: whole if they fit, else in fragments.

use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv6FragmentHeader, Ipv6FragmentRepr};

use super::output::{ETHERNET, IPV4, fill_header_checksum};
use super::reassembly::FRAGMENT_HEADER;
use super::{IpLayer, IpMeta, NoWay};
use crate::addr::Ip;
use crate::secret::Key;
use crate::stack::Shard;
use crate::time::Instant;

/// Identification of fragmented datagrams. Nobody but the destination can tell what comes next, and
/// no value returns to a pair of hosts soon (RFC 7739 §5.3): a counter of the pair's bucket, from a
/// keyed start. Stacks that share their addresses share the numbers out.
#[derive(Debug)]
pub(super) struct Idents {
    key: Key,
    shard: Shard,
    counters: Box<[u32; BUCKETS]>,
}

/// Pairs of hosts share a counter with one in so many others.
const BUCKETS: usize = 256;

impl Idents {
    pub(super) fn new(key: Key, shard: Shard) -> Self {
        Self {
            key,
            shard,
            counters: Box::new([0; BUCKETS]),
        }
    }

    fn next(&mut self, src: Ip, dst: Ip) -> u32 {
        let ((sh, sl), (dh, dl)) = (src.words(), dst.words());
        let hash = self.key.siphash(&[sh, sl, dh, dl]);
        let counter = &mut self.counters[hash as usize % BUCKETS];
        *counter = counter.wrapping_add(1);
        let numbers: u64 = if src.is_v4() { 1 << 16 } else { 1 << 32 };
        let own = numbers / u64::from(self.shard.count());
        let first = own * u64::from(self.shard.index());
        (first + ((hash >> 32) + u64::from(*counter)) % own) as u32
    }
}

impl IpLayer {
    /// Composes and queues a datagram of `len` transport bytes, in fragments if it exceeds `mtu`. The
    /// checksum with its pseudo-header goes to `checksum_at`, if it has one. All of it is queued or nothing.
    pub(crate) fn send_datagram(
        &mut self,
        now: Instant,
        meta: &IpMeta,
        mtu: u16,
        len: usize,
        checksum_at: Option<usize>,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), NoWay> {
        if meta.header_len() + len <= usize::from(mtu) {
            self.way(meta, 1, now)?;
            self.send(now, meta, len, checksum_at, fill);
            return Ok(());
        }
        let v4 = meta.src.is_v4();
        let extra = if v4 { 0 } else { FRAGMENT_HEADER };
        let each = usize::from(mtu).saturating_sub(meta.header_len() + extra) & !7;
        // No link of either family is that narrow.
        let each = each.max(8);
        let way = self.way(meta, len.div_ceil(each), now)?;
        let mut whole = self.blank_frame(len);
        fill(&mut whole);
        if let Some(at) = checksum_at {
            self.fill_full_checksum(meta, &mut whole, at);
        }
        let ident = self.idents.next(meta.src, meta.dst);
        let inner = u8::from(meta.protocol);
        let meta = IpMeta {
            protocol: if v4 {
                meta.protocol
            } else {
                IpProtocol::Ipv6Frag
            },
            dont_fragment: false,
            ..*meta
        };
        for (n, data) in whole.chunks(each).enumerate() {
            let (offset, more) = (n * each, (n + 1) * each < len);
            let mut frame = self.blank_frame(meta.transport_offset() + extra + data.len());
            self.write_headers(&mut frame, &meta, way.iface, way.to, extra + data.len());
            let (headers, payload) = frame.split_at_mut(meta.transport_offset());
            payload[extra..].copy_from_slice(data);
            if v4 {
                let packet = &mut headers[ETHERNET..];
                let mut p = Ipv4Packet::new_unchecked(&mut packet[..IPV4]);
                p.set_ident(ident as u16);
                p.set_more_frags(more);
                p.set_frag_offset(offset as u16);
                fill_header_checksum(packet);
            } else {
                payload[..2].copy_from_slice(&[inner, 0]);
                let repr = Ipv6FragmentRepr {
                    frag_offset: (offset / 8) as u16,
                    more_frags: more,
                    ident,
                };
                let fields = &mut payload[2..FRAGMENT_HEADER];
                repr.emit(&mut Ipv6FragmentHeader::new_unchecked(fields));
            }
            self.fragments_out += 1;
            self.loop_group(&frame, &meta, way.iface);
            self.dispatch(frame, way, None);
        }
        self.recycle(whole);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::Ipv4Addr;
    use std::collections::BTreeSet;

    #[test]
    fn identifications_do_not_repeat_soon_and_differ_between_keys() {
        let ip = |n: u32| Ip::v4(Ipv4Addr::from_bits(n));
        let mut a = Idents::new(Key([1; 16]), Shard::ONLY);
        let seen: BTreeSet<u16> = (0..65_536).map(|_| a.next(ip(1), ip(2)) as u16).collect();
        assert_eq!(seen.len(), 65_536);
        let mut b = Idents::new(Key([2; 16]), Shard::ONLY);
        assert_ne!(a.next(ip(1), ip(2)), b.next(ip(1), ip(2)));
    }

    #[test]
    fn shards_never_use_the_same_identification() {
        let ip = |n: u32| Ip::v4(Ipv4Addr::from_bits(n));
        let own = 65_536 / 3;
        let shards = (0..3).map(|index| Shard::new(index, 3).unwrap());
        let mut all = shards.map(|s| Idents::new(Key([1; 16]), s));
        let seen: BTreeSet<u16> = all
            .by_ref()
            .flat_map(|mut i| (0..own).map(move |_| i.next(ip(1), ip(2)) as u16))
            .collect();
        assert_eq!(seen.len(), 3 * own);
    }
}
