//! The newest decisions, in memory from the start and copied to the page.

use core::net::{IpAddr, SocketAddr};

use rustix::time::{ClockId, clock_gettime};

use super::layout::{Verdict, decision};
use super::page::put_text;
use super::words::Route;
use crate::sync::Mutex;

/// One decision as the page holds it.
pub(super) type Entry = [u64; decision::WORDS];

/// The ring. Its lock is a leaf: nothing else is locked while it is held.
pub(super) static JOURNAL: Mutex<Journal> = Mutex::new(Journal::new());

pub(super) struct Journal {
    /// Entry number `n` stands at `(n - 1) % RING`.
    ring: Vec<Entry>,
    made: u64,
}

/// Whom a decision is about, and what it is.
pub(super) struct Decision<'a> {
    pub(super) call: &'static str,
    pub(super) verdict: Verdict,
    /// The descriptor's number, −1 where the call site does not know it.
    pub(super) fd: i32,
    pub(super) inode: u64,
    pub(super) answer: i32,
    /// What the verdict says of them.
    pub(super) numbers: [u64; 2],
    /// Of a decision by the plan.
    pub(super) route: Option<Route<'a>>,
}

/// Fills three words with an address: 16 bytes, IPv4 ones mapped, and a port.
pub(super) fn put_address(words: &mut [u64], address: SocketAddr) {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let bits = u128::from(ip);
    let all = [(bits >> 64) as u64, bits as u64, address.port().into()];
    words.iter_mut().zip(all).for_each(|(to, from)| *to = from);
}

impl Journal {
    const fn new() -> Self {
        Self {
            ring: Vec::new(),
            made: 0,
        }
    }

    /// Decisions ever made.
    pub(super) fn made(&self) -> u64 {
        self.made
    }

    /// Entries from number `after` on that are still there (`after` itself may have been repeated
    /// since), oldest first, each with its place in the ring.
    pub(super) fn from(&self, after: u64) -> impl Iterator<Item = (usize, &Entry)> {
        let oldest = self.made.saturating_sub(decision::RING as u64) + 1;
        (after.max(oldest)..=self.made).filter_map(|number| {
            let at = (number - 1) as usize % decision::RING;
            Some((at, self.ring.get(at)?))
        })
    }

    /// Adds a decision; one that only repeats the last counts there.
    pub(super) fn add(&mut self, decided: &Decision<'_>) {
        let mut entry = [0; decision::WORDS];
        let time = clock_gettime(ClockId::Realtime);
        for (at, word) in [
            (decision::VERDICT, decided.verdict as u64),
            (decision::FD, i64::from(decided.fd) as u64),
            (decision::INODE, decided.inode),
            (decision::ANSWER, decided.answer as u64),
            (decision::FIRST, decided.numbers[0]),
            (decision::SECOND, decided.numbers[1]),
        ] {
            entry[at] = word;
        }
        let call = decision::CALL..decision::CALL + decision::CALL_WORDS;
        put_text(&mut entry[call], decided.call.as_bytes());
        if let Some(route) = &decided.route {
            put_address(&mut entry[decision::ADDRESS..], route.address);
            let rule = decision::RULE..decision::RULE + decision::RULE_WORDS;
            put_text(&mut entry[rule], route.rule.as_bytes());
            let device = decision::DEVICE..decision::DEVICE + decision::DEVICE_WORDS;
            put_text(&mut entry[device], route.device.as_bytes());
        }
        if let Some(last) = self.last_mut()
            && last[decision::VERDICT..decision::TIMES] == entry[decision::VERDICT..decision::TIMES]
            && last[decision::CALL..] == entry[decision::CALL..]
        {
            last[decision::TIMES] += 1;
            return;
        }
        entry[decision::TIME] = time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64;
        entry[decision::THREAD] = rustix::thread::gettid().as_raw_nonzero().get() as u64;
        entry[decision::TIMES] = 1;
        self.made += 1;
        entry[decision::NUMBER] = self.made;
        let at = (self.made - 1) as usize % decision::RING;
        match self.ring.get_mut(at) {
            Some(old) => *old = entry,
            None => self.ring.push(entry),
        }
    }

    fn last_mut(&mut self) -> Option<&mut Entry> {
        let last = (self.made.checked_sub(1)?) as usize % decision::RING;
        self.ring.get_mut(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(fd: i32) -> Decision<'static> {
        Decision {
            call: "bind",
            verdict: Verdict::Unsupported,
            fd,
            inode: 7,
            answer: libc::EOPNOTSUPP,
            numbers: [0, 0],
            route: None,
        }
    }

    #[test]
    fn repeats_are_counted_where_they_stand() {
        let mut journal = Journal::new();
        (0..3).for_each(|_| journal.add(&refused(4)));
        journal.add(&refused(5));
        let times: Vec<_> = journal
            .from(1)
            .map(|(at, e)| (at, e[decision::TIMES]))
            .collect();
        assert_eq!(times, [(0, 3), (1, 1)]);
    }

    #[test]
    fn ring_keeps_the_newest() {
        let mut journal = Journal::new();
        let count = decision::RING as i32 + 2;
        (0..count).for_each(|fd| journal.add(&refused(fd)));
        let numbers: Vec<_> = journal.from(1).map(|(_, e)| e[decision::NUMBER]).collect();
        assert_eq!(numbers, (3..=count as u64).collect::<Vec<_>>());
        assert_eq!(journal.from(count as u64).count(), 1);
    }
}
