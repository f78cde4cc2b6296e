//! select(2) as poll(2): the descriptor sets become entries, and back.

use libc::pollfd;

use crate::errno::{Errno, Outcome};
use crate::fd::table;
use crate::interpose::poll::SigMask;
use crate::user_mem::{self, UserPtr};
use crate::{poll, sys};

/// What each of the three sets asks for, and which answers count for it (fs/select.c's grouping,
/// documented in select(2)).
const ASKS: [i16; 3] = [
    libc::POLLRDNORM | libc::POLLRDBAND | libc::POLLIN,
    libc::POLLWRBAND | libc::POLLWRNORM | libc::POLLOUT,
    libc::POLLPRI,
];
const COUNTS: [i16; 3] = [
    ASKS[0] | libc::POLLHUP | libc::POLLERR,
    ASKS[1] | libc::POLLERR,
    ASKS[2],
];

const WORD_BITS: usize = 64;
/// Longest set we copy: as many descriptors as the table has.
const COUNT_MAX: usize = table::FDS_MAX;

/// The program's three sets, one of which names a descriptor of ours.
pub(crate) struct Sets {
    count: usize,
    at: [UserPtr; 3],
    words: [Option<Vec<u64>>; 3],
}

impl Sets {
    /// Copies the sets in. `None` when the kernel shall answer: nothing of ours in them, or
    /// arguments it refuses.
    pub(crate) fn read(count: i32, at: [UserPtr; 3]) -> Option<Self> {
        if table::is_unused() {
            return None;
        }
        let count = usize::try_from(count)
            .ok()
            .filter(|n| (1..=COUNT_MAX).contains(n))?;
        let mut words = [None, None, None];
        for (set, at) in words.iter_mut().zip(at) {
            if !at.is_null() {
                *set = Some(user_mem::copy_in_words(at, count.div_ceil(WORD_BITS)).ok()?);
            }
        }
        let sets = Self { count, at, words };
        let any = sets
            .members()
            .any(|(fd, _)| poll::ours(fd as i32).is_some());
        any.then_some(sets)
    }

    fn has(&self, set: usize, fd: usize) -> bool {
        let word = self
            .words
            .get(set)
            .and_then(Option::as_ref)
            .and_then(|w| w.get(fd / WORD_BITS));
        word.is_some_and(|word| word & 1 << (fd % WORD_BITS) != 0)
    }

    /// Descriptors in any set, with the poll bits they ask for.
    fn members(&self) -> impl Iterator<Item = (usize, i16)> + '_ {
        (0..self.count).filter_map(|fd| {
            let asked = (0..3).filter(|set| self.has(*set, fd)).map(|set| ASKS[set]);
            let events = asked.fold(0, |all, bits| all | bits);
            (events != 0).then_some((fd, events))
        })
    }
}

/// select(2) with the program's timeval, which is updated to what is left.
pub(crate) fn select(sets: Sets, timeout: UserPtr) -> Outcome<i32> {
    if timeout.is_null() {
        return wait(sets, None, SigMask::NONE);
    }
    let [seconds, micros] = user_mem::copy_in::<[i64; 2]>(timeout)?;
    let (Ok(s), Ok(us)) = (u64::try_from(seconds), u64::try_from(micros)) else {
        return Err(Errno::EINVAL.into());
    };
    let length = s
        .saturating_mul(1_000_000_000)
        .saturating_add(us.saturating_mul(1000));
    let until = if length == 0 {
        0
    } else {
        sys::now().saturating_add(length)
    };
    let answer = wait(sets, Some(until), SigMask::NONE);
    let left = until.saturating_sub(sys::now());
    let left = [
        (left / 1_000_000_000) as i64,
        (left % 1_000_000_000 / 1000) as i64,
    ];
    let _ = user_mem::copy_out(timeout, &left); // read-only timeouts are tolerated, as by Linux
    answer
}

/// Waits and writes the sets back. Returns how many bits are set in them.
pub(crate) fn wait(sets: Sets, until: Option<u64>, mask: SigMask) -> Outcome<i32> {
    let mut entries: Vec<pollfd> = sets
        .members()
        .map(|(fd, events)| pollfd {
            fd: fd as i32,
            events,
            revents: 0,
        })
        .collect();
    poll::poll(&mut entries, until, mask)?;
    if entries.iter().any(|e| e.revents & libc::POLLNVAL != 0) {
        return Err(Errno::EBADF.into());
    }
    let mut total = 0;
    for (set, counts) in COUNTS.iter().enumerate() {
        let Some(old) = sets.words.get(set).and_then(Option::as_ref) else {
            continue;
        };
        let mut new = vec![0u64; old.len()];
        for entry in entries.iter().filter(|e| e.revents & counts != 0) {
            let fd = entry.fd as usize;
            if sets.has(set, fd)
                && let Some(word) = new.get_mut(fd / WORD_BITS)
            {
                *word |= 1 << (fd % WORD_BITS);
                total += 1;
            }
        }
        user_mem::copy_out_words(sets.at[set], &new)?;
    }
    Ok(total)
}
