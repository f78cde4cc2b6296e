//! Waking the other half of an in-memory pair, by descriptors that read ready while they are rung.

use super::{BorrowedFd, DeviceError};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

/// Bytes read at once: 512 rings. What a FIFO holds beyond them is read the next time.
const FIFO_BYTES: usize = 4096;

pub(super) struct Doorbell(OwnedFd);

/// As [`OpenOptions::keep`](super::OpenOptions::keep).
type Keep = fn(OwnedFd) -> OwnedFd;

impl Doorbell {
    pub(super) fn new(keep: Keep) -> Result<Self, DeviceError> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map(|made| Self(keep(made)))
            .map_err(|errno| DeviceError::of("eventfd", errno))
    }

    /// A bell over a FIFO, which another process can open by its name.
    pub(super) fn over(fifo: OwnedFd) -> Self {
        Self(fifo)
    }

    /// Makes the descriptor readable. A counter or FIFO that is full refuses the write, and is readable
    /// already.
    pub(super) fn ring(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes the descriptor unreadable.
    pub(super) fn clear(&self) {
        // An eventfd is cleared by its eight bytes, a FIFO by all that it holds.
        let _ = rustix::io::read(&self.0, &mut [0u8; FIFO_BYTES]);
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Who wakes whom over one direction of a pair. Lives under the direction's lock.
///
/// Each half has one bell, for frames to receive and for room to transmit alike.
pub(super) struct Bells {
    receiver: Option<Arc<Doorbell>>,
    sender: Option<Arc<Doorbell>>,
    /// The sender was refused and has not tried again.
    starved: bool,
    room_made: bool,
}

impl Bells {
    /// Bells of both directions, if they are wanted: for frames from the first half to the second, and back.
    pub(super) fn pair(wanted: Option<Keep>) -> Result<[Self; 2], DeviceError> {
        let bell = || wanted.map(Doorbell::new).transpose();
        let (first, second) = (bell()?.map(Arc::new), bell()?.map(Arc::new));
        let direction = |sender: &Option<Arc<Doorbell>>, receiver: &Option<Arc<Doorbell>>| Self {
            receiver: receiver.clone(),
            sender: sender.clone(),
            starved: false,
            room_made: false,
        };
        Ok([direction(&first, &second), direction(&second, &first)])
    }

    /// The bell of a device that hears itself, if it is wanted.
    pub(super) fn looped(wanted: Option<Keep>) -> Result<Self, DeviceError> {
        let bell = wanted.map(Doorbell::new).transpose()?.map(Arc::new);
        Ok(Self {
            receiver: bell.clone(),
            sender: bell,
            starved: false,
            room_made: false,
        })
    }

    /// The receiver's bell.
    pub(super) fn receiver(&self) -> Option<Arc<Doorbell>> {
        self.receiver.clone()
    }

    /// Frames have arrived.
    pub(super) fn arrived(&self) {
        if let Some(bell) = &self.receiver {
            bell.ring();
        }
    }

    /// The receiver found nothing.
    pub(super) fn drained(&self) {
        if let Some(bell) = &self.receiver {
            bell.clear();
        }
    }

    /// The sender looked for room.
    pub(super) fn looked_for_room(&mut self, found: bool) {
        self.starved = !found;
        self.room_made = false;
    }

    /// The receiver made room.
    pub(super) fn made_room(&mut self) {
        if self.starved {
            self.room_made = true;
            self.recall();
        }
    }

    /// Rings the sender's bell again if it has news of room: the bell serves both directions, and may
    /// just have been cleared for the other one.
    pub(super) fn recall(&self) {
        if self.room_made
            && let Some(bell) = &self.sender
        {
            bell.ring();
        }
    }
}
