//! Keyed hashing and the seeded generator: everything unpredictable derives from one key.

/// A 128-bit key the caller draws from the system's generator, or fixes in a test.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(pub [u8; 16]);

impl core::fmt::Debug for Key {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    fn words(self) -> [u64; 2] {
        let (w, _) = self.0.as_chunks::<8>();
        [u64::from_le_bytes(w[0]), u64::from_le_bytes(w[1])]
    }

    /// SipHash-2-4 (Aumasson, Bernstein 2012) over whole words, the PRF of ISN and cookies.
    pub(crate) fn siphash(self, words: &[u64]) -> u64 {
        let [k0, k1] = self.words();
        let mut v = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        for &m in words {
            v[3] ^= m;
            rounds(&mut v, 2);
            v[0] ^= m;
        }
        let last = (words.len() as u64 * 8) << 56;
        v[3] ^= last;
        rounds(&mut v, 2);
        v[0] ^= last;
        v[2] ^= 0xff;
        rounds(&mut v, 4);
        v[0] ^ v[1] ^ v[2] ^ v[3]
    }

    /// A key for one purpose, so that no two uses share a hash value.
    pub(crate) fn derive(self, purpose: u64) -> Self {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.siphash(&[purpose, 1]).to_le_bytes());
        out[8..].copy_from_slice(&self.siphash(&[purpose, 2]).to_le_bytes());
        Self(out)
    }
}

fn rounds(v: &mut [u64; 4], n: usize) {
    for _ in 0..n {
        v[0] = v[0].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[2] = v[2].rotate_left(32);
    }
}

/// A counter under the key: unpredictable without it, reproducible with it.
#[derive(Debug, Clone)]
pub(crate) struct Rng {
    key: Key,
    counter: u64,
}

impl Rng {
    pub(crate) fn new(key: Key) -> Self {
        Self { key, counter: 0 }
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.counter += 1;
        self.key.siphash(&[self.counter])
    }

    /// Uniform in `0..n`, up to a bias of n / 2^64; zero for `n == 0`.
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siphash_matches_the_reference_vectors() {
        // Key 00..0f; inputs of 0, 8 and 16 bytes 00 01 02 …, from the authors' vectors.h.
        let key = Key(core::array::from_fn(|i| i as u8));
        assert_eq!(key.siphash(&[]), 0x726f_db47_dd0e_0e31);
        assert_eq!(key.siphash(&[0x0706_0504_0302_0100]), 0x93f5_f579_9a93_2462);
        assert_eq!(
            key.siphash(&[0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908]),
            0x3f2a_cc7f_57c2_9bdb
        );
    }
}
