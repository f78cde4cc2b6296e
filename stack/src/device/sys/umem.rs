//! The UMEM of an XDP socket: equal chunks, each of which is ours or the kernel's.

use super::mmap::Mapping;
use rustix::io::Errno;

/// Who has a chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Owner {
    Ours,
    Kernel,
}

/// A chunk that is ours. Each exists once, so lending its bytes is exclusive.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::device) struct Chunk(u32);

pub(in crate::device) struct Umem {
    map: Mapping,
    owners: Vec<Owner>,
    chunk_bytes: usize,
}

impl Umem {
    /// `chunk_count` chunks of `chunk_bytes`, a power of two, and all of the chunks.
    pub(in crate::device) fn new(
        chunk_count: u32,
        chunk_bytes: usize,
    ) -> Result<(Self, Vec<Chunk>), Errno> {
        let map = Mapping::anonymous(chunk_count as usize * chunk_bytes)?;
        let owners = vec![Owner::Ours; chunk_count as usize];
        Ok((
            Self {
                map,
                owners,
                chunk_bytes,
            },
            (0..chunk_count).map(Chunk).collect(),
        ))
    }

    /// Address and length in bytes, for registration.
    pub(in crate::device) fn range(&self) -> (u64, u64) {
        (self.map.address(), self.map.len() as u64)
    }

    /// Hands a chunk to the kernel: its UMEM address, for the fill or transmit ring.
    pub(in crate::device) fn give(&mut self, chunk: Chunk) -> u64 {
        if let Some(owner) = self.owners.get_mut(chunk.0 as usize) {
            *owner = Owner::Kernel;
        }
        u64::from(chunk.0) * self.chunk_bytes as u64
    }

    /// Takes back the chunk around a UMEM address the kernel returned. `None` when the address is
    /// outside, or the chunk was not the kernel's to return.
    pub(in crate::device) fn take(&mut self, addr: u64) -> Option<Chunk> {
        let index = u32::try_from(addr / self.chunk_bytes as u64).ok()?;
        let owner = self.owners.get_mut(index as usize)?;
        if *owner == Owner::Ours {
            return None;
        }
        *owner = Owner::Ours;
        Some(Chunk(index))
    }

    /// The bytes of a frame in a chunk that is ours. `None` when they are not all inside it.
    pub(in crate::device) fn frame(&self, chunk: &Chunk, addr: u64, len: u32) -> Option<&[u8]> {
        let at = (addr % self.chunk_bytes as u64) as usize;
        if at + len as usize > self.chunk_bytes {
            return None;
        }
        // SAFETY: the chunk is ours until `give` consumes it; by the XDP protocol the kernel writes
        // only to chunks that are its own. Others get `&[u8]` of it at most: `fill` needs `&mut self`.
        unsafe {
            self.map
                .payload(chunk.0 as usize * self.chunk_bytes + at, len as usize)
        }
    }

    /// All bytes of a chunk that is ours, to write.
    pub(in crate::device) fn fill(&mut self, chunk: &Chunk) -> &mut [u8] {
        let at = chunk.0 as usize * self.chunk_bytes;
        // SAFETY: as in `frame`; the borrow of `self` excludes every other slice.
        unsafe { self.map.payload_mut(at, self.chunk_bytes) }.unwrap_or_default()
    }

    /// Length of a chunk.
    pub(in crate::device) fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK_BYTES: usize = 2048;

    #[test]
    fn chunks_come_back_once_and_only_from_the_kernel() {
        let (mut umem, mut chunks) = Umem::new(4, CHUNK_BYTES).unwrap();
        assert_eq!(umem.take(0), None, "ours already");
        let addr = umem.give(chunks.remove(2));
        assert_eq!(addr, 2 * CHUNK_BYTES as u64);
        assert_eq!(umem.take(addr + 256), Some(Chunk(2)));
        assert_eq!(umem.take(addr + 256), None, "returned twice");
        for addr in [4 * CHUNK_BYTES as u64, u64::MAX, 1 << 43] {
            assert_eq!(umem.take(addr), None, "outside");
        }
    }

    #[test]
    fn frames_stay_inside_their_chunk() {
        let (mut umem, chunks) = Umem::new(2, CHUNK_BYTES).unwrap();
        umem.fill(&chunks[1])[..5].copy_from_slice(b"hello");
        assert_eq!(
            umem.frame(&chunks[1], CHUNK_BYTES as u64 + 1, 4),
            Some(&b"ello"[..])
        );
        assert_eq!(
            umem.frame(&chunks[0], 256, 1792).map(<[u8]>::len),
            Some(1792)
        );
        assert_eq!(umem.frame(&chunks[0], 256, 1793), None);
        assert_eq!(umem.frame(&chunks[0], 0, u32::MAX), None);
        assert_eq!(umem.fill(&chunks[0]).len(), CHUNK_BYTES);
    }
}
