//! A look at every message as it passes, for whoever traces the mux.
//!
//! A message received is seen when it joins the queue of a KCM socket, one sent when TCP has taken
//! its last byte: the moments at which a psock counts them. Switched off, the tap costs one test a
//! run of messages received, one a write.

use alloc::vec::Vec;

use crate::batch::Run;
use crate::limits::TAP_BYTES_MAX;
use crate::mux::{Event, Events, KcmId, PsockId};
use crate::tx_queue::TxBuf;

/// Which way a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a psock to a KCM socket.
    Rx,
    /// From a KCM socket to a psock.
    Tx,
}

/// One message that passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed<'a> {
    /// Which way it went.
    pub direction: Direction,
    /// The KCM socket that received or sent it.
    pub kcm: KcmId,
    /// The psock it came from or left by.
    pub psock: PsockId,
    /// Bytes of the whole message.
    pub len: usize,
    /// Its first bytes, as many as [`Mux::set_tap`](crate::Mux::set_tap) asked for.
    pub head: &'a [u8],
}

/// A [`Passed`] whose first bytes end at `head_end` of [`Tap::heads`].
#[derive(Debug)]
struct Noted {
    direction: Direction,
    kcm: KcmId,
    psock: PsockId,
    len: usize,
    head_end: usize,
}

/// What has passed since it was last asked for.
#[derive(Debug, Default)]
pub(crate) struct Tap {
    /// First bytes to copy of each message; `None` while nobody looks.
    head_max: Option<usize>,
    noted: Vec<Noted>,
    heads: Vec<u8>,
    /// Messages that found no room.
    lost: u64,
}

impl Tap {
    /// See [`Mux::set_tap`](crate::Mux::set_tap).
    pub(crate) fn set(&mut self, head: Option<usize>) {
        *self = Self {
            head_max: head,
            ..Self::default()
        };
    }

    /// See [`Mux::take_tapped`](crate::Mux::take_tapped).
    pub(crate) fn take(&mut self, mut each: impl FnMut(Passed<'_>)) -> u64 {
        let mut start = 0;
        for noted in self.noted.drain(..) {
            let head = self.heads.get(start..noted.head_end).unwrap_or_default();
            start = noted.head_end;
            each(Passed {
                direction: noted.direction,
                kcm: noted.kcm,
                psock: noted.psock,
                len: noted.len,
                head,
            });
        }
        self.heads.clear();
        core::mem::take(&mut self.lost)
    }

    /// Bytes that are held for whoever looks.
    fn held(&self) -> usize {
        self.noted.len() * size_of::<Noted>() + self.heads.len()
    }

    fn note<'a>(
        &mut self,
        (direction, kcm, psock): (Direction, KcmId, PsockId),
        len: usize,
        parts: impl Iterator<Item = &'a [u8]>,
    ) {
        let mut left = self.head_max.unwrap_or(0).min(len);
        if self.held() + size_of::<Noted>() + left > TAP_BYTES_MAX {
            self.lost += 1;
            return;
        }
        for part in parts {
            let taken = part.get(..left).unwrap_or(part);
            self.heads.extend_from_slice(taken);
            left -= taken.len();
        }
        self.noted.push(Noted {
            direction,
            kcm,
            psock,
            len,
            head_end: self.heads.len(),
        });
    }
}

impl Events {
    /// Messages that `kcm` receives from `psock`.
    #[inline]
    pub(crate) fn tap_received(&mut self, kcm: KcmId, psock: PsockId, run: &Run) {
        if self.tap.head_max.is_some() {
            self.note_received(kcm, psock, run);
        }
    }

    #[cold]
    fn note_received(&mut self, kcm: KcmId, psock: PsockId, run: &Run) {
        for message in run.messages() {
            let parts = message.parts();
            self.tap
                .note((Direction::Rx, kcm, psock), message.len(), parts);
        }
        self.push(Event::Tapped);
    }

    /// A message of `len` bytes that `kcm` sent through `psock` from the caller's memory.
    #[inline]
    pub(crate) fn tap_sent(&mut self, kcm: KcmId, psock: PsockId, len: usize, parts: &[&[u8]]) {
        if self.tap.head_max.is_some() {
            let way = (Direction::Tx, kcm, psock);
            self.tap.note(way, len, parts.iter().copied());
            self.push(Event::Tapped);
        }
    }

    /// The messages of `bufs` that end within the next `sent` bytes.
    #[inline]
    pub(crate) fn tap_written(&mut self, kcm: KcmId, psock: PsockId, bufs: &[TxBuf], sent: usize) {
        if self.tap.head_max.is_some() {
            self.note_written(kcm, psock, bufs, sent);
        }
    }

    #[cold]
    fn note_written(&mut self, kcm: KcmId, psock: PsockId, bufs: &[TxBuf], sent: usize) {
        let mut left = sent;
        for buf in bufs {
            for message in buf.completed_by(left) {
                let part = core::iter::once(message);
                self.tap
                    .note((Direction::Tx, kcm, psock), message.len(), part);
            }
            left = left.saturating_sub(buf.unwritten().len());
        }
        self.push(Event::Tapped);
    }
}
