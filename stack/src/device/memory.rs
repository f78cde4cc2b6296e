//! Two devices wired back to back in memory, for engines of one process.
//!
//! Frames are written into a batch's arena and lent from it on the other side: one copy-free hand-over,
//! one lock taken per batch and side. Batches go round, so a warm pair allocates nothing.

use super::doorbell::{Bells, Doorbell};
use super::{
    Batch, BorrowedFd, Capabilities, Checksum, Counters, DeviceError, ETHERNET_HEADER_LEN,
    FrameMeta, GSO_FRAME_LEN_MAX, GsoSet, MacAddr, NetDevice, RxChecksum, RxFrame, TransmitError,
    Wait, Written, admit,
};
use parking_lot::Mutex;
use rustix::fd::OwnedFd;
use std::collections::VecDeque;
use std::sync::Arc;

/// Most frames of one arena, and so between two locks.
const ARENA_FRAMES: usize = 64;

/// Bytes of one arena: two of the largest frames, and 64 ordinary ones.
const ARENA_BYTES: usize = 128 * 1024;
const _: () = assert!(ARENA_BYTES >= 2 * GSO_FRAME_LEN_MAX.next_multiple_of(FRAME_ALIGN) - 1024);

/// Alignment of a frame in its arena: a cache line, so that no two frames share one.
const FRAME_ALIGN: usize = 64;

/// What a memory pair can do.
#[derive(Debug, Clone)]
pub struct MemoryOptions {
    /// MTU in bytes.
    pub mtu: usize,
    /// Frames in flight in each direction before transmit answers `Full`.
    pub slots: usize,
    /// Whether partial checksums pass as they are, marked; otherwise they are computed on transmit.
    pub checksum_offload: bool,
    /// Kinds of segmentation; a super-frame passes as it is, marked.
    pub gso: GsoSet,
    /// Whether each side has a descriptor to wait on.
    pub doorbell: bool,
    /// What becomes of it, as [`OpenOptions::keep`](super::OpenOptions::keep).
    pub keep: fn(OwnedFd) -> OwnedFd,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self {
            mtu: 1500,
            slots: 1024,
            checksum_offload: false,
            gso: GsoSet::default(),
            doorbell: false,
            keep: core::convert::identity,
        }
    }
}

/// One half of an in-memory pair.
pub struct MemoryDevice {
    caps: Capabilities,
    outbox: Arc<Mutex<Lane>>,
    inbox: Arc<Mutex<Lane>>,
    filling: Option<Arena>,
    /// Frames `filling` may still take: what its lane had room for when it was started.
    credit: usize,
    reading: Option<(Arena, usize)>,
    doorbell: Option<Arc<Doorbell>>,
    counters: Counters,
}

/// Frames travelling in one direction.
struct Lane {
    ready: VecDeque<Arena>,
    free: Vec<Arena>,
    /// Frames handed over and not yet given back.
    in_flight: usize,
    slots: usize,
    bells: Bells,
    /// Set by the receiver when it goes away.
    closed: bool,
}

impl Lane {
    fn new(options: &MemoryOptions, bells: Bells) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            ready: VecDeque::new(),
            free: Vec::new(),
            in_flight: 0,
            slots: options.slots.max(1),
            bells,
            closed: false,
        }))
    }
}

struct Arena {
    bytes: Box<[u8]>,
    used: usize,
    frames: Vec<Entry>,
}

struct Entry {
    at: usize,
    len: usize,
    meta: FrameMeta,
}

impl Arena {
    fn new() -> Self {
        Self {
            bytes: vec![0; ARENA_BYTES].into_boxed_slice(),
            used: 0,
            frames: Vec::with_capacity(ARENA_FRAMES),
        }
    }

    fn fits(&self, len: usize) -> bool {
        self.frames.len() < ARENA_FRAMES && self.used + len <= self.bytes.len()
    }
}

impl MemoryDevice {
    /// Two halves of a pair: what one transmits the other receives.
    ///
    /// # Errors
    ///
    /// [`DeviceError::System`] when a doorbell is wanted and the process is out of descriptors.
    pub fn pair(options: &MemoryOptions) -> Result<(Self, Self), DeviceError> {
        let [to_second, to_first] = Bells::pair(options.doorbell.then_some(options.keep))?;
        let (there, back) = (Lane::new(options, to_second), Lane::new(options, to_first));
        Ok((
            Self::half(options, 1, &there, &back),
            Self::half(options, 2, &back, &there),
        ))
    }

    /// A cable that ends where it begins: what the device transmits it receives.
    ///
    /// # Errors
    ///
    /// As for [`pair`](Self::pair).
    pub fn looped(options: &MemoryOptions) -> Result<Self, DeviceError> {
        let lane = Lane::new(
            options,
            Bells::looped(options.doorbell.then_some(options.keep))?,
        );
        Ok(Self::half(options, 1, &lane, &lane))
    }

    fn half(
        options: &MemoryOptions,
        last: u8,
        outbox: &Arc<Mutex<Lane>>,
        inbox: &Arc<Mutex<Lane>>,
    ) -> Self {
        Self {
            caps: capabilities(options, [0x02, 0, 0, 0, 0, last]),
            outbox: Arc::clone(outbox),
            inbox: Arc::clone(inbox),
            filling: None,
            credit: 0,
            reading: None,
            doorbell: inbox.lock().bells.receiver(),
            counters: Counters::default(),
        }
    }

    /// Makes `filling` an arena with room for `len` bytes, handing over the one before.
    fn make_room(&mut self, len: usize) -> bool {
        if self
            .filling
            .as_ref()
            .is_some_and(|arena| self.credit > 0 && arena.fits(len))
        {
            return true;
        }
        self.hand_over();
        let mut lane = self.outbox.lock();
        if lane.closed {
            // As a cable without a far end: frames leave and go nowhere.
            lane.ready.clear();
            lane.in_flight = 0;
        }
        self.credit = lane.slots.saturating_sub(lane.in_flight);
        lane.bells.looked_for_room(self.credit > 0);
        if self.credit == 0 {
            return false;
        }
        let arena = lane.free.pop();
        drop(lane);
        self.filling = Some(arena.unwrap_or_else(Arena::new));
        true
    }

    fn hand_over(&mut self) {
        let Some(arena) = self.filling.take_if(|arena| !arena.frames.is_empty()) else {
            return;
        };
        let mut lane = self.outbox.lock();
        lane.in_flight += arena.frames.len();
        lane.ready.push_back(arena);
        lane.bells.arrived();
    }

    /// Gives the last arena back and takes the next one that is ready.
    fn next_arena(&mut self) -> bool {
        let done = self.reading.take();
        let mut lane = self.inbox.lock();
        if let Some((mut arena, _)) = done {
            lane.in_flight = lane.in_flight.saturating_sub(arena.frames.len());
            arena.frames.clear();
            arena.used = 0;
            lane.free.push(arena);
            lane.bells.made_room();
        }
        self.reading = lane.ready.pop_front().map(|arena| (arena, 0));
        if self.reading.is_none() && self.doorbell.is_some() {
            lane.bells.drained();
            drop(lane);
            self.outbox.lock().bells.recall();
        }
        self.reading.is_some()
    }
}

fn capabilities(options: &MemoryOptions, mac: MacAddr) -> Capabilities {
    let wire = options.mtu + ETHERNET_HEADER_LEN;
    let gso = options.gso != GsoSet::default();
    Capabilities {
        mtu: options.mtu,
        max_frame_len: if gso {
            GSO_FRAME_LEN_MAX.max(wire)
        } else {
            wire
        },
        mac,
        tx_checksum: options.checksum_offload,
        rx_checksum: if options.checksum_offload {
            RxChecksum::PerFrame
        } else {
            RxChecksum::Unverified
        },
        tx_gso: options.gso,
        rx_gro: gso,
        tx_slots: options.slots,
        forwards: false,
    }
}

impl NetDevice for MemoryDevice {
    fn capabilities(&self) -> &Capabilities {
        &self.caps
    }

    fn receive(
        &mut self,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<usize, DeviceError> {
        let mut received = 0;
        while received < budget {
            let Some((arena, next)) = &mut self.reading else {
                if self.next_arena() {
                    continue;
                } else {
                    break;
                };
            };
            let mut batch = Batch::new();
            for entry in arena.frames.iter().skip(*next).take(budget - received) {
                if batch.is_full() {
                    break;
                }
                let data = arena
                    .bytes
                    .get(entry.at..entry.at + entry.len)
                    .unwrap_or_default();
                batch.push(data, entry.meta);
            }
            let frames = batch.as_slice();
            visit(frames);
            self.counters.received(frames);
            received += frames.len();
            *next += frames.len();
            if *next == arena.frames.len() && !self.next_arena() {
                break;
            }
        }
        Ok(received)
    }

    fn transmit_with(
        &mut self,
        room: usize,
        write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
    ) -> Result<bool, TransmitError> {
        if room > ARENA_BYTES {
            return Err(TransmitError::BadLength {
                len: room,
                max: ARENA_BYTES,
            });
        }
        if !self.make_room(room) {
            self.counters.tx_full += 1;
            return Err(TransmitError::Full);
        }
        let Some(arena) = &mut self.filling else {
            return Err(TransmitError::Full);
        };
        let at = arena.used;
        let buffer = arena.bytes.get_mut(at..).unwrap_or_default();
        let Some(Written { len, mut meta }) = write(buffer) else {
            return Ok(false);
        };
        admit(&self.caps, len, meta)?;
        if !self.caps.tx_checksum
            && let Some(frame) = buffer.get_mut(..len)
        {
            meta.finish_checksum(frame);
            meta.csum = Checksum::Complete;
        }
        arena.frames.push(Entry { at, len, meta });
        arena.used = (at + len).next_multiple_of(FRAME_ALIGN);
        self.credit -= 1;
        self.counters.queued(len);
        Ok(true)
    }

    fn kick(&mut self) -> Result<(), DeviceError> {
        self.hand_over();
        Ok(())
    }

    fn wait_fd(&self, _: Wait) -> Option<(BorrowedFd<'_>, Wait)> {
        Some((self.doorbell.as_ref()?.as_fd(), Wait::Readable))
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

impl Drop for MemoryDevice {
    fn drop(&mut self) {
        self.inbox.lock().closed = true;
    }
}

#[cfg(test)]
mod tests;
