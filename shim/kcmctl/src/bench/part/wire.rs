//! The messages that the parts of the benchmark exchange, and what a receiver makes of them.
//!
//! A message is a 4-byte big-endian body length (not counting itself), a connection number, a kind, a
//! sequence number, filler, and a trailer that depends on the sequence number. A receiver looks at
//! both ends of each, so that bytes can be neither skipped nor framed wrongly, and the last message
//! of a connection says how many came before it.

/// The length itself.
pub(super) const LEN_BYTES: usize = 4;
/// Head and trailer with room to spare; one batch of the source.
pub(super) const MESSAGE_MIN: usize = 32;
pub(super) const MESSAGE_MAX: usize = 65_536;
/// Connections of one part that exchange messages.
pub(super) const CONNS_MAX: usize = 16;

const HEAD_BYTES: usize = 16;
const TRAILER_BYTES: usize = 8;
const SALT: u64 = 0x9e37_79b9_7f4a_7c15;

pub(super) const DATA: u16 = 0;
pub(super) const END: u16 = 1;

/// Writes head and trailer of the message that fills `message`; the filler stays as it is. `seq` of an
/// [`END`] is how many came before.
#[inline]
pub(super) fn fill(message: &mut [u8], conn: u16, kind: u16, seq: u64) {
    let body = (message.len() - LEN_BYTES) as u32;
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&body.to_be_bytes());
    head[4..6].copy_from_slice(&conn.to_ne_bytes());
    head[6..8].copy_from_slice(&kind.to_ne_bytes());
    head[8..].copy_from_slice(&seq.to_ne_bytes());
    if let Some((to, rest)) = message.split_first_chunk_mut() {
        *to = head;
        if let Some((_, to)) = rest.split_last_chunk_mut() {
            *to = (seq ^ SALT).to_ne_bytes();
        }
    }
}

/// Bytes of the message that `bytes` begins with; `None` while its length is not whole.
#[inline]
pub(super) fn size(bytes: &[u8]) -> Option<usize> {
    let body = u32::from_be_bytes(*bytes.first_chunk()?);
    Some((body as usize).saturating_add(LEN_BYTES))
}

/// What one receiver has seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) count: u64,
    seq_sum: u64,
    /// Announced by [`END`] messages.
    pub(super) expected: u64,
    expected_seq_sum: u64,
    /// Connections that are complete.
    pub(super) ends: usize,
    /// Messages out of order, of a wrong size, or with a wrong trailer.
    faults: u64,
    next_seq: [u64; CONNS_MAX],
}

impl Tally {
    /// Checks and counts one whole message. Whether it was the [`END`] of a connection.
    #[inline]
    pub(super) fn take(&mut self, message: &[u8]) -> bool {
        let (Some(head), Some(trailer)) = (
            message.first_chunk::<HEAD_BYTES>(),
            message.last_chunk::<TRAILER_BYTES>(),
        ) else {
            self.faults += 1;
            return false;
        };
        let [_, _, _, _, c0, c1, k0, k1, seq @ ..] = *head;
        let (conn, kind) = (u16::from_ne_bytes([c0, c1]), u16::from_ne_bytes([k0, k1]));
        let seq = u64::from_ne_bytes(seq);
        let next = self.next_seq.get_mut(usize::from(conn));
        let (Some(next), true) = (
            next,
            u64::from_ne_bytes(*trailer) == seq ^ SALT && size(message) == Some(message.len()),
        ) else {
            self.faults += 1;
            return false;
        };
        if kind == END {
            self.expected += seq;
            self.expected_seq_sum = self.expected_seq_sum.wrapping_add(sum_below(seq));
            self.ends += 1;
            return true;
        }
        self.faults += u64::from(seq < *next);
        *next = seq.wrapping_add(1);
        self.seq_sum = self.seq_sum.wrapping_add(seq);
        self.count += 1;
        false
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.seq_sum = self.seq_sum.wrapping_add(other.seq_sum);
        self.expected += other.expected;
        self.expected_seq_sum = self.expected_seq_sum.wrapping_add(other.expected_seq_sum);
        self.ends += other.ends;
        self.faults += other.faults;
    }

    /// Every announced message arrived once, in order, whole.
    pub(super) fn is_complete(&self, conns: usize) -> bool {
        (self.ends, self.faults) == (conns, 0)
            && (self.count, self.seq_sum) == (self.expected, self.expected_seq_sum)
    }

    /// What a sink reports on its standard output, and its reading.
    pub(super) fn to_line(&self) -> String {
        let all = [
            self.count,
            self.seq_sum,
            self.expected,
            self.expected_seq_sum,
        ];
        let [count, sum, expected, expected_sum] = all;
        let (ends, faults) = (self.ends, self.faults);
        format!("{count} {sum} {expected} {expected_sum} {ends} {faults}\n")
    }

    pub(super) fn from_line(line: &str) -> Option<Self> {
        let words: Result<Vec<u64>, _> = line.split_ascii_whitespace().map(str::parse).collect();
        let [count, seq_sum, expected, expected_seq_sum, ends, faults] = words.ok()?[..] else {
            return None;
        };
        Some(Self {
            count,
            seq_sum,
            expected,
            expected_seq_sum,
            ends: ends as usize,
            faults,
            ..Self::default()
        })
    }
}

/// 0 + 1 + … up to `count` numbers.
fn sum_below(count: u64) -> u64 {
    (u128::from(count) * u128::from(count.saturating_sub(1)) / 2) as u64
}

/// Takes whole messages from reads that end anywhere, where they lie.
pub(super) struct Framer {
    data: Vec<u8>,
    /// Bytes at its start that are no whole message yet.
    have: usize,
}

/// Room for one read.
const READ_BYTES: usize = 65_536;

impl Framer {
    pub(super) fn new() -> Self {
        Self {
            data: vec![0; READ_BYTES + MESSAGE_MAX],
            have: 0,
        }
    }

    /// Where the next read goes.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.data[self.have..self.have + READ_BYTES]
    }

    /// Passes on the messages that `received` further bytes complete. False when framing is lost.
    #[inline]
    pub(super) fn take(&mut self, received: usize, mut each: impl FnMut(&[u8])) -> bool {
        let end = self.have + received;
        let mut rest = &self.data[..end];
        while let Some(size) = size(rest) {
            if !(MESSAGE_MIN..=MESSAGE_MAX).contains(&size) {
                return false;
            }
            let Some((message, after)) = rest.split_at_checked(size) else {
                break;
            };
            each(message);
            rest = after;
        }
        self.have = rest.len();
        self.data.copy_within(end - self.have..end, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_is_counted_and_damage_is_a_fault() {
        let mut stream = Vec::new();
        for seq in 0..3 {
            let mut message = [0; 40];
            fill(&mut message, 2, DATA, seq);
            stream.extend(message);
        }
        let mut end = [0; MESSAGE_MIN];
        fill(&mut end, 2, END, 3);
        stream.extend(end);
        let (mut framer, mut tally) = (Framer::new(), Tally::default());
        for part in stream.chunks(7) {
            framer.space()[..part.len()].copy_from_slice(part);
            assert!(framer.take(part.len(), |message| _ = tally.take(message)));
        }
        assert!(tally.is_complete(1) && tally.count == 3);
        let read = Tally::from_line(&tally.to_line()).expect("it is a line of numbers");
        assert!(read.is_complete(1) && !read.is_complete(2));
        stream[39] ^= 1;
        tally.take(&stream[..40]);
        assert!(!tally.is_complete(1));
        framer.space()[..4].fill(0xff);
        assert!(!framer.take(4, |_| {}), "framing is lost");
    }
}
