//! Frames that come in parts: copied together, or left to the kernel to gather.

use super::meta::VNET_HDR_LEN;
use rustix::io::IoSlice;

/// Most parts of a frame the kernel is asked to gather; frames of more are copied.
pub(super) const PARTS_MAX: usize = 15;

/// A `virtio_net_hdr` and the parts behind it, as one scatter list.
pub(super) struct ScatterList<'a> {
    slices: [IoSlice<'a>; PARTS_MAX + 1],
    len: usize,
}

impl<'a> ScatterList<'a> {
    /// `None` for more than [`PARTS_MAX`] parts.
    pub(super) fn new(hdr: &'a [u8; VNET_HDR_LEN], parts: &[&'a [u8]]) -> Option<Self> {
        if parts.len() > PARTS_MAX {
            return None;
        }
        let mut slices = [IoSlice::new(hdr); PARTS_MAX + 1];
        for (slice, part) in slices.iter_mut().skip(1).zip(parts) {
            *slice = IoSlice::new(part);
        }
        Some(Self {
            slices,
            len: parts.len() + 1,
        })
    }

    pub(super) fn as_slice(&self) -> &[IoSlice<'a>] {
        self.slices.get(..self.len).unwrap_or_default()
    }
}

/// Bytes of all parts together.
pub(super) fn total_len(parts: &[&[u8]]) -> usize {
    parts.iter().map(|part| part.len()).sum()
}

/// Copies `parts` into `frame`, which is as long as all of them together.
pub(super) fn copy_together(frame: &mut [u8], parts: &[&[u8]]) {
    let mut rest = frame;
    for part in parts {
        let (head, tail) = rest.split_at_mut(part.len());
        head.copy_from_slice(part);
        rest = tail;
    }
}
