//! The Internet checksum (RFC 1071), as many bytes at a time as the processor has.
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
        let (words, rest) = data.as_chunks::<8>();
        self.0 += sum_halves(words);
        let (half, tail) = rest.as_chunks::<4>();
        for h in half {
            self.0 += u64::from(u32::from_le_bytes(*h));
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

/// Bytes from which on asking the processor and calling a function pays.
#[cfg(target_arch = "x86_64")]
const WIDE_MIN: usize = 256;

/// The sum of the 32-bit halves of words.
fn sum_halves(words: &[[u8; 8]]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if words.len() >= WIDE_MIN / 8 && std::is_x86_feature_detected!("avx2") {
        #[allow(unsafe_code, reason = "named in ARCHITECTURE.md")]
        // SAFETY: the processor has what the function was compiled for.
        return unsafe { sum_halves_avx2(words) };
    }
    sum_words(words)
}

/// The same for registers twice as wide.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_halves_avx2(words: &[[u8; 8]]) -> u64 {
    sum_words(words)
}

/// Adds whole words and, apart, their high halves: what overflowed is known from the halves, so that no
/// addition waits for a carry and the compiler makes lanes of the loop.
#[inline(always)]
fn sum_words(words: &[[u8; 8]]) -> u64 {
    let (mut whole, mut high) = (0u64, 0u64);
    for w in words {
        let w = u64::from_le_bytes(*w);
        whole = whole.wrapping_add(w);
        high += w >> 32;
    }
    whole.wrapping_sub(high << 32) + high
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
        let ones = vec![0xff; 65_535];
        let want = checksum::data(&ones).to_be_bytes();
        assert_eq!(Sum::default().bytes(&ones).partial(), want);
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
