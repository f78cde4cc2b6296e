//! What loads from the packet and from `struct __sk_buff`, the program's context, mean.
//!
//! Packet loads count from the message's first byte. The kernel counts from the start of the TCP
//! buffer the message begins in, which frames wrongly as soon as messages share a buffer.

/// A message as far as it has arrived, readable at any offset.
pub trait Packet {
    /// Bytes that have arrived.
    fn len(&self) -> usize;

    /// Whether nothing has arrived.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first contiguous part; may be shorter than [`Packet::len`].
    fn head(&self) -> &[u8];

    /// Copies `dst.len()` bytes from `off`. False, with `dst` in any state, if a byte is missing.
    fn load(&self, off: usize, dst: &mut [u8]) -> bool;
}

impl Packet for [u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn head(&self) -> &[u8] {
        self
    }

    fn load(&self, off: usize, dst: &mut [u8]) -> bool {
        let bytes = off
            .checked_add(dst.len())
            .and_then(|end| self.get(off..end));
        bytes.map(|bytes| dst.copy_from_slice(bytes)).is_some()
    }
}

/// Bytes of an `LD_ABS`/`LD_IND`/`skb_load_bytes` offset: the kernel's `int`.
pub(crate) type PacketOffset = i32;

/// `LD_ABS`: `bytes` (1, 2 or 4) at `off`, in network order. None if any of them is missing, and
/// for negative offsets: those address link and network headers and ancillary data, which a
/// message does not have.
#[inline(always)]
pub(crate) fn load_be<P: Packet + ?Sized>(
    packet: &P,
    off: PacketOffset,
    bytes: usize,
) -> Option<u64> {
    let off = usize::try_from(off).ok()?;
    match (bytes, packet.head().get(off..)) {
        (4, Some(&[a, b, c, d, ..])) => Some(u64::from(u32::from_be_bytes([a, b, c, d]))),
        (2, Some(&[a, b, ..])) => Some(u64::from(u16::from_be_bytes([a, b]))),
        (1, Some(&[a, ..])) => Some(u64::from(a)),
        _ => load_be_split(packet, off, bytes),
    }
}

/// The bytes lie behind or across the end of the head.
#[cold]
fn load_be_split<P: Packet + ?Sized>(packet: &P, off: usize, bytes: usize) -> Option<u64> {
    let mut word = [0; 8];
    let low = word.get_mut(8usize.checked_sub(bytes)?..)?;
    packet.load(off, low).then(|| u64::from_be_bytes(word))
}

/// Bytes of `struct __sk_buff`.
pub(crate) const CTX_BYTES: usize = 192;
/// Offset of `cb[0]`; `cb` is five words, the only ones a program may write.
pub(crate) const CB_OFFSET: usize = 48;
/// First offset behind `cb[4]`.
pub(crate) const CB_END: usize = CB_OFFSET + 4 * CB_WORDS;
/// Words of `cb`.
pub const CB_WORDS: usize = 5;

/// `ETH_P_IP` in network order, as `skb->protocol` holds it.
const PROTOCOL_IP: u32 = 0x0800_u16.to_be() as u32;
/// The loopback interface, over which most shimmed traffic runs.
const INGRESS_IFINDEX: u32 = 1;
/// The flow hash is non-zero on a TCP socket's buffers; its value means nothing.
const HASH: u32 = 1;
/// A buffer that is not a GSO train counts as one segment.
const GSO_SEGS: u32 = 1;

/// The word of the context at byte offset `off` (a multiple of four).
fn ctx_word(off: usize, packet_len: usize, cb: &[u32; CB_WORDS]) -> u32 {
    match off {
        0 => u32::try_from(packet_len).unwrap_or(u32::MAX),
        16 => PROTOCOL_IP,
        36 => INGRESS_IFINDEX,
        68 => HASH,
        164 => GSO_SEGS,
        CB_OFFSET..CB_END => cb.get((off - CB_OFFSET) / 4).copied().unwrap_or(0),
        _ => 0,
    }
}

/// Whether the verifier lets a program make this access, as the kernel does for this program
/// type: packet pointers, time stamps, addresses, ports, the traffic class and the socket are out
/// of reach (`sk` is readable in the kernel; a message has none), `cb` is writable, and the rest
/// is readable in aligned parts of a word.
pub(crate) fn ctx_access_allowed(off: i64, bytes: usize, write: bool) -> bool {
    let Some(off) = usize::try_from(off).ok().filter(|off| off % bytes == 0) else {
        return false;
    };
    let end = off + bytes;
    if (CB_OFFSET..CB_END).contains(&off) {
        return end <= CB_END;
    }
    let hidden = match off {
        72..=83 => true,   // tc_classid, data, data_end
        88..=143 => true,  // family to local_port, data_meta
        144..=163 => true, // flow_keys, tstamp, wire_len
        168..=175 => true, // sk
        180.. => true,     // tstamp_type, padding, hwtstamp
        _ => false,
    };
    !write && !hidden && bytes <= 4
}

/// A context load of 1, 2, 4 or 8 bytes. None outside the structure.
pub(crate) fn ctx_load(
    off: usize,
    bytes: usize,
    packet_len: usize,
    cb: &[u32; CB_WORDS],
) -> Option<u64> {
    if off.checked_add(bytes)? > CTX_BYTES || !off.is_multiple_of(bytes) {
        return None;
    }
    let low = u64::from(ctx_word(off & !3, packet_len, cb));
    Some(match bytes {
        8 => low | u64::from(ctx_word(off + 4, packet_len, cb)) << 32,
        4 => low,
        2 => (low >> (8 * (off & 3))) & 0xffff,
        _ => (low >> (8 * (off & 3))) & 0xff,
    })
}

/// A context store. None unless it falls into `cb` as a whole and is aligned.
pub(crate) fn ctx_store(
    off: usize,
    bytes: usize,
    value: u64,
    cb: &mut [u32; CB_WORDS],
) -> Option<()> {
    if off < CB_OFFSET || off.checked_add(bytes)? > CB_END || !off.is_multiple_of(bytes) {
        return None;
    }
    let shift = 8 * (off & 3);
    let word = cb.get_mut((off - CB_OFFSET) / 4)?;
    match bytes {
        8 => {
            *word = value as u32;
            *cb.get_mut((off - CB_OFFSET) / 4 + 1)? = (value >> 32) as u32;
        }
        4 => *word = value as u32,
        2 => *word = *word & !(0xffff << shift) | u32::from(value as u16) << shift,
        _ => *word = *word & !(0xff << shift) | u32::from(value as u8) << shift,
    }
    Some(())
}
