//! Several queues seen as one, for an engine that runs alone.

use super::{
    BorrowedFd, Capabilities, Counters, DeviceError, FrameMeta, NetDevice, RxFrame, TransmitError,
    Wait, Written,
};
use crate::time::Instant;
use rustix::event::epoll;
use rustix::fd::{AsFd as _, OwnedFd};

/// Queues of one device behind a single [`NetDevice`]: receives from all of them in turn, transmits
/// through the first.
pub struct Joined {
    queues: Vec<Box<dyn NetDevice>>,
    /// Which queue is asked first next time, so that a busy one does not starve the rest.
    turn: usize,
    /// Readable while any queue's descriptor is; a queue without one cannot be waited for.
    readable: OwnedFd,
    /// As `readable`, or writable while the first queue has room.
    writable: OwnedFd,
}

impl Joined {
    /// Joins the queues that [`open`](super::open) returned.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Gone`] for no queue at all, [`DeviceError::System`] when the process is out of
    /// descriptors.
    pub fn new(queues: Vec<Box<dyn NetDevice>>) -> Result<Self, DeviceError> {
        Self::kept(queues, core::convert::identity)
    }

    /// [`new`](Self::new), with [`OpenOptions::keep`](super::OpenOptions::keep).
    pub(super) fn kept(
        queues: Vec<Box<dyn NetDevice>>,
        keep: fn(OwnedFd) -> OwnedFd,
    ) -> Result<Self, DeviceError> {
        let set = |first: Wait| {
            let set = keep(epoll::create(epoll::CreateFlags::CLOEXEC)?);
            for (index, queue) in queues.iter().enumerate() {
                let wait = if index == 0 { first } else { Wait::Readable };
                let Some((fd, wait)) = queue.wait_fd(wait) else {
                    continue;
                };
                let flags = match wait {
                    Wait::Readable => epoll::EventFlags::IN,
                    Wait::Writable => epoll::EventFlags::IN | epoll::EventFlags::OUT,
                };
                epoll::add(&set, fd, epoll::EventData::new_u64(index as u64), flags)?;
            }
            Ok(set)
        };
        let failed = |errno| DeviceError::of("epoll_ctl", errno);
        if queues.is_empty() {
            return Err(DeviceError::Gone);
        }
        let readable = set(Wait::Readable).map_err(failed)?;
        let writable = set(Wait::Writable).map_err(failed)?;
        Ok(Self {
            queues,
            turn: 0,
            readable,
            writable,
        })
    }

    fn first(&mut self) -> Result<&mut Box<dyn NetDevice>, DeviceError> {
        self.queues.first_mut().ok_or(DeviceError::Gone)
    }
}

impl NetDevice for Joined {
    fn capabilities(&self) -> &Capabilities {
        // `new` refuses an empty set, and nothing removes a queue.
        self.queues[0].capabilities()
    }

    fn receive(
        &mut self,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<usize, DeviceError> {
        let count = self.queues.len();
        let start = self.turn;
        self.turn = (start + 1) % count;
        let mut received = 0;
        for index in (start..count).chain(0..start) {
            if let Some(queue) = self.queues.get_mut(index)
                && received < budget
            {
                received += queue.receive(budget - received, visit)?;
            }
        }
        Ok(received)
    }

    fn transmit_with(
        &mut self,
        room: usize,
        write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
    ) -> Result<bool, TransmitError> {
        self.first()?.transmit_with(room, write)
    }

    fn transmit_parts(&mut self, parts: &[&[u8]], meta: FrameMeta) -> Result<(), TransmitError> {
        self.first()?.transmit_parts(parts, meta)
    }

    fn kick(&mut self) -> Result<(), DeviceError> {
        // All of them: a kick also passes forwarded frames on and wakes receive rings.
        self.queues.iter_mut().try_for_each(|queue| queue.kick())
    }

    fn wait_fd(&self, wait: Wait) -> Option<(BorrowedFd<'_>, Wait)> {
        let set = match wait {
            Wait::Readable => &self.readable,
            Wait::Writable => &self.writable,
        };
        Some((set.as_fd(), Wait::Readable))
    }

    fn advance(&mut self, now: Instant) {
        for queue in &mut self.queues {
            queue.advance(now);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.queues
            .iter()
            .filter_map(NetDevice::next_deadline)
            .min()
    }

    fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for queue in &self.queues {
            sum += queue.counters();
        }
        sum
    }
}
