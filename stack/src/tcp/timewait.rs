//! TIME-WAIT (RFC 9293 §3.10.7.4, RFC 1337, RFC 6191) as a compact record of its own.

use std::collections::VecDeque;

use super::options::Options;
use super::segment::{Control, Segment};
use super::seq::Seq;
use crate::addr::{Endpoint, FourTuple, Ip};
use crate::limits::TIME_WAIT;
use crate::slab::Slab;
use crate::time::Instant;

/// What is needed to answer old segments.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TimeWait {
    local_ip: Ip,
    remote_ip: Ip,
    local_port: u16,
    remote_port: u16,
    pub(crate) snd_nxt: Seq,
    pub(crate) rcv_nxt: Seq,
    ts_recent: u32,
    pub(crate) ts_offset: u32,
    pub(crate) tag: u32,
    /// Millisecond clock of entry (or restart); it is compared within 2MSL only.
    since_ms: u32,
    pub(crate) has_ts: bool,
    /// Distinguishes successive users of a slot.
    epoch: u16,
}

const _: () = assert!(size_of::<TimeWait>() <= 64);

/// What to do about a segment for a TIME-WAIT record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ignore,
    /// Send `<SEQ=SND.NXT><ACK=RCV.NXT>`.
    Acknowledge,
    /// A new incarnation may start from this SYN, with an ISN beyond the old sequence space.
    Reopen {
        isn: Seq,
    },
}

impl TimeWait {
    pub(crate) const fn tuple(&self) -> FourTuple {
        FourTuple {
            local: Endpoint {
                ip: self.local_ip,
                port: self.local_port,
            },
            remote: Endpoint {
                ip: self.remote_ip,
                port: self.remote_port,
            },
        }
    }

    pub(crate) fn arrives(&mut self, seg: &Segment<'_>, now: Instant) -> Verdict {
        let o = Options::parse(seg.options, seg.has(Control::SYN));
        let newer_ts = o
            .timestamps
            .filter(|_| self.has_ts)
            .map(|t| t.val.wrapping_sub(self.ts_recent) as i32);
        if seg.has(Control::RST) {
            // RFC 1337: a RST must not shorten TIME-WAIT.
            return Verdict::Ignore;
        }
        if seg.has(Control::SYN) && !seg.has(Control::ACK) {
            // RFC 6191 §2: a newer timestamp or a larger sequence number proves a new connection.
            let newer = newer_ts.is_some_and(|d| d > 0) || seg.seq.after(self.rcv_nxt);
            if newer && newer_ts.is_none_or(|d| d >= 0) {
                return Verdict::Reopen {
                    isn: self.snd_nxt + 65_537,
                };
            }
            return Verdict::Acknowledge;
        }
        if newer_ts.is_some_and(|d| d < 0) {
            return Verdict::Acknowledge;
        }
        if seg.seq_len() == 0 && seg.seq == self.rcv_nxt {
            return Verdict::Ignore;
        }
        if seg.has(Control::FIN) {
            // The peer missed our last ACK: wait anew.
            self.since_ms = now.as_millis() as u32;
        }
        Verdict::Acknowledge
    }

    /// The peer's last timestamp, to echo.
    pub(crate) fn ts_recent(&self) -> u32 {
        self.ts_recent
    }

    /// tcp_tw_reuse: with timestamps, an outgoing connection may take the tuple after a second.
    pub(crate) fn reusable(&self, now: Instant) -> bool {
        self.has_ts && (now.as_millis() as u32).wrapping_sub(self.since_ms) > 1_000
    }

    fn left_ms(&self, now: Instant) -> u32 {
        let age = (now.as_millis() as u32).wrapping_sub(self.since_ms);
        (TIME_WAIT.as_millis() as u32).saturating_sub(age)
    }
}

/// All TIME-WAIT records, in the order they end: the length is one for all, so a queue is a timer.
#[derive(Debug)]
pub(crate) struct TimeWaits {
    pub(crate) records: Slab<TimeWait>,
    queue: VecDeque<(u32, u16, Instant)>,
}

/// State a record starts from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Last {
    pub(crate) tuple: FourTuple,
    pub(crate) snd_nxt: Seq,
    pub(crate) rcv_nxt: Seq,
    pub(crate) ts: Option<u32>,
    pub(crate) ts_offset: u32,
    pub(crate) tag: u32,
}

impl TimeWaits {
    pub(crate) fn new() -> Self {
        Self {
            records: Slab::new(),
            queue: VecDeque::new(),
        }
    }

    pub(crate) fn insert(&mut self, last: &Last, now: Instant) -> u32 {
        let t = last.tuple;
        let i = self.records.insert(|old| TimeWait {
            epoch: old.map_or(0, |o| o.epoch.wrapping_add(1)),
            local_ip: t.local.ip,
            remote_ip: t.remote.ip,
            local_port: t.local.port,
            remote_port: t.remote.port,
            snd_nxt: last.snd_nxt,
            rcv_nxt: last.rcv_nxt,
            ts_recent: last.ts.unwrap_or(0),
            ts_offset: last.ts_offset,
            tag: last.tag,
            since_ms: now.as_millis() as u32,
            has_ts: last.ts.is_some(),
        });
        let epoch = self.records[i].epoch;
        self.queue.push_back((i, epoch, now + TIME_WAIT));
        i
    }

    /// Frees a record. If its time was not over, the queue's entry is recognised as stale by its
    /// epoch.
    pub(crate) fn remove(&mut self, i: u32) {
        let r = &mut self.records[i];
        r.epoch = r.epoch.wrapping_add(1);
        self.records.remove(i);
    }

    pub(crate) fn next_deadline(&self) -> Instant {
        self.queue
            .front()
            .map_or(Instant::FAR_FUTURE, |(_, _, at)| *at)
    }

    /// Takes one record whose time is over; the caller unfiles it and then calls
    /// `remove`.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<u32> {
        while let Some(&(i, epoch, at)) = self.queue.front() {
            if at > now {
                return None;
            }
            self.queue.pop_front();
            if self.records[i].epoch != epoch {
                continue;
            }
            let left = self.records[i].left_ms(now);
            if left == 0 {
                return Some(i);
            }
            self.queue
                .push_back((i, epoch, now.plus_us(u64::from(left) * 1_000)));
        }
        None
    }
}
