//! The Internet checksum (RFC 1071), eight bytes at a time.
//!
//! smoltcp's own sums two bytes at a time; on the bulk path the checksum is half of the cost, so
//! this file trades its generality for width. Equal results are proven against smoltcp below.

use crate::addr::Ip;

/// Running one's-complement sum, not yet folded. Parts must start at even offsets.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes that start at an even offset of the checksummed data.
    pub(crate) fn bytes(mut self, data: &[u8]) -> Self {
        // Four lanes add whole words and, apart, their high halves: what overflowed is known from
        // the halves, so that no addition waits for a carry.
        let (chunks, rest) = data.as_chunks::<32>();
        let (mut whole, mut high) = ([0u64; 4], [0u64; 4]);
        for c in chunks {
            let (words, _) = c.as_chunks::<8>();
            for i in 0..4 {
                let w = u64::from_le_bytes(words[i]);
                whole[i] = whole[i].wrapping_add(w);
                high[i] += w >> 32;
            }
        }
        for (w, h) in whole.into_iter().zip(high) {
            let low = w.wrapping_sub(h << 32);
            self.0 += low + h;
        }
        let (words, tail) = rest.as_chunks::<4>();
        for w in words {
            self.0 += u64::from(u32::from_le_bytes(*w));
        }
        let mut last = [0u8; 4];
        last[..tail.len()].copy_from_slice(tail);
        self.0 += u64::from(u32::from_le_bytes(last));
        self
    }

    /// Adds the pseudo header of TCP, UDP or ICMPv6 (RFC 9293 §3.1, RFC 8200 §8.1).
    pub(crate) fn pseudo(mut self, src: Ip, dst: Ip, protocol: u8, len: usize) -> Self {
        // Of an IPv4 address only the last four bytes count, which the compact form ends with.
        for ip in [src, dst] {
            let (hi, lo) = ip.words();
            self.0 += u64::from((lo as u32).swap_bytes());
            if !ip.is_v4() {
                let (hi, mid) = (hi.swap_bytes(), ((lo >> 32) as u32).swap_bytes());
                self.0 += (hi & 0xffff_ffff) + (hi >> 32) + u64::from(mid);
            }
        }
        self.0 += u64::from((len as u32).swap_bytes());
        self.0 += u64::from(u16::from(protocol).swap_bytes());
        self
    }

    /// The folded sum, in network byte order of the host's choice: write it with `to_ne_bytes`.
    fn fold(self) -> u16 {
        let mut s = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        s = (s & 0xffff) + (s >> 16 & 0xffff) + (s >> 32);
        s = (s & 0xffff) + (s >> 16);
        s = (s & 0xffff) + (s >> 16);
        s as u16
    }

    /// The two checksum bytes as they stand in the packet.
    pub(crate) fn finish(self) -> [u8; 2] {
        (!self.fold()).to_le_bytes()
    }

    /// The folded but not inverted sum: what a device that finishes the checksum wants to find.
    pub(crate) fn partial(self) -> [u8; 2] {
        self.fold().to_le_bytes()
    }

    /// Whether data that includes its checksum field sums to "correct".
    pub(crate) fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;
    use smoltcp::wire::checksum;

    #[test]
    fn equals_smoltcp_on_every_length_and_family() {
        let data: Vec<u8> = (0..2000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect();
        for len in 0..data.len() {
            let want = checksum::data(&data[..len]);
            assert_eq!(
                Sum::default().bytes(&data[..len]).partial(),
                want.to_be_bytes(),
                "{len}"
            );
        }
        for (a, b) in [("10.0.0.1", "192.168.3.9"), ("fd00::1", "2001:db8::77:1")] {
            let (a, b): (IpAddr, IpAddr) = (a.parse().unwrap(), b.parse().unwrap());
            let (a, b) = (Ip::from(a), Ip::from(b));
            let want = checksum::combine(&[
                checksum::pseudo_header(
                    &a.to_wire(),
                    &b.to_wire(),
                    smoltcp::wire::IpProtocol::Tcp,
                    777,
                ),
                checksum::data(&data[..777]),
            ]);
            let got = Sum::default()
                .pseudo(a, b, 6, 777)
                .bytes(&data[..777])
                .partial();
            assert_eq!(got, want.to_be_bytes());
        }
    }
}
