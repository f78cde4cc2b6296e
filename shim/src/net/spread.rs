//! One interface's frames for several engines. Whose a frame is, its ports tell ([`shard_of`]); which
//! queue of the device it comes by, the device decides. An engine that reads a frame of another's leaves
//! a copy in that one's inbox, and rings for whoever watches that engine. A device with a queue for each
//! engine that sorts as we do (AF_PACKET) leaves nothing to hand over but what concerns everybody; one
//! with fewer queues has them shared.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::collections::VecDeque;
use std::sync::Arc;

use kcm_stack::device::{
    Capabilities, Counters, DeviceError, ETHERNET_HEADER_LEN, FrameMeta, Ingress, NetDevice,
    RX_BATCH_FRAMES, RxFrame, TransmitError, Wait, Written,
};
use kcm_stack::{Belongs, IfaceId, Instant, SharedPorts, shard_of};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fd::{AsFd, BorrowedFd};

use super::shown::Traced;
use crate::errno::{Errno, Outcome};
use crate::own;
use crate::publish::trace;
use crate::sync::{Mutex, Rank};

/// Bytes that wait for an engine nobody pumps: what a receive ring of a few hundred large frames holds.
const INBOX_BYTES_MAX: usize = 4 << 20;
/// And frames.
const INBOX_FRAMES_MAX: usize = 4096;

/// What others have received for an engine.
struct Inbox {
    frames: Mutex<VecDeque<(Vec<u8>, FrameMeta)>>,
    /// Bytes in `frames`; changed under its lock, read without.
    bytes: AtomicUsize,
    /// Frames there was no room for.
    dropped: AtomicU64,
    /// Readable while something is in; changed under the lock of `frames`.
    bell: own::Kept,
}

impl Inbox {
    fn new() -> rustix::io::Result<Self> {
        let bell = own::keep(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(Self {
            frames: Mutex::ranked(Rank::Leaf, VecDeque::new()),
            bytes: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            bell,
        })
    }

    fn put(&self, data: &[u8], meta: FrameMeta) {
        let Ok(mut frames) = self.frames.lock() else {
            return;
        };
        let bytes = self.bytes.load(Ordering::Relaxed) + data.len();
        if frames.len() >= INBOX_FRAMES_MAX || bytes > INBOX_BYTES_MAX {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        frames.push_back((data.to_vec(), meta));
        self.bytes.store(bytes, Ordering::Release);
        if frames.len() == 1 {
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// Up to `max` frames. The bell is silent once none are left.
    fn take(&self, max: usize) -> VecDeque<(Vec<u8>, FrameMeta)> {
        if self.bytes.load(Ordering::Acquire) == 0 {
            return VecDeque::new();
        }
        let Ok(mut frames) = self.frames.lock() else {
            return VecDeque::new();
        };
        let count = frames.len().min(max);
        let rest = frames.split_off(count);
        let taken = core::mem::replace(&mut *frames, rest);
        let left = frames.iter().map(|(data, _)| data.len()).sum();
        self.bytes.store(left, Ordering::Relaxed);
        if left == 0 {
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        }
        taken
    }
}

/// The inboxes of an interface, one for each engine.
pub(super) struct Exchange(Vec<Inbox>);

impl Exchange {
    fn count(&self) -> u8 {
        self.0.len() as u8
    }

    /// Gives a frame that the engine `from` has, by the interface, to those it concerns besides. Whether it
    /// concerns `from`.
    pub(super) fn give(
        &self,
        (from, iface): (u8, IfaceId),
        ports: &SharedPorts,
        data: &[u8],
        meta: FrameMeta,
    ) -> bool {
        let whose = match ports.is_empty() {
            true => shard_of(data, self.count()),
            false => ports.shard_of(data, iface),
        };
        match whose {
            Belongs::To(one) if one == from => true,
            Belongs::To(other) => {
                if let Some(inbox) = self.0.get(usize::from(other)) {
                    inbox.put(data, meta);
                }
                false
            }
            Belongs::All => {
                let others = self.0.iter().enumerate();
                for (_, inbox) in others.filter(|(at, _)| *at != usize::from(from)) {
                    inbox.put(data, meta);
                }
                true
            }
        }
    }
}

/// A queue of the device.
enum Queue {
    Own(Box<dyn NetDevice>),
    Shared(Arc<Mutex<Box<dyn NetDevice>>>),
}

impl Queue {
    /// Runs `call` on the device. A signal handler that has interrupted its thread in there finds it
    /// full and empty.
    fn with<R>(&mut self, busy: R, call: impl FnOnce(&mut dyn NetDevice) -> R) -> R {
        match self {
            Self::Own(device) => call(&mut **device),
            Self::Shared(device) => match device.lock() {
                Ok(mut device) => call(&mut **device),
                Err(_) => busy,
            },
        }
    }

    fn look<R>(&self, busy: R, look: impl FnOnce(&dyn NetDevice) -> R) -> R {
        match self {
            Self::Own(device) => look(&**device),
            Self::Shared(device) => match device.lock() {
                Ok(device) => look(&**device),
                Err(_) => busy,
            },
        }
    }
}

/// What one engine has of a device.
pub(super) struct Spread {
    engine: u8,
    queue: Queue,
    /// Another engine tells what the queue counts.
    is_counted_elsewhere: bool,
    exchange: Arc<Exchange>,
    /// UDP ports with sockets in several engines, and which interface this is.
    shared: (Arc<SharedPorts>, IfaceId),
    capabilities: Capabilities,
    /// Readable while the queue's descriptor or the inbox's is.
    readable: own::Kept,
    /// As `readable`, or writable while the queue has room.
    writable: own::Kept,
}

impl Spread {
    /// The `engine`th part.
    fn new(engine: u8, queue: Queue, elsewhere: bool, exchange: Arc<Exchange>) -> Outcome<Self> {
        let inbox = exchange.0.get(usize::from(engine)).ok_or(Errno::EINVAL)?;
        let set = |wait| {
            let set = own::keep(epoll::create(epoll::CreateFlags::CLOEXEC)?);
            let data = epoll::EventData::new_u64(0);
            epoll::add(&set, &inbox.bell, data, epoll::EventFlags::IN)?;
            queue.look(Ok(()), |device| {
                let Some((fd, wait)) = device.wait_fd(wait) else {
                    return Ok(());
                };
                let mut flags = epoll::EventFlags::IN;
                flags.set(epoll::EventFlags::OUT, wait == Wait::Writable);
                epoll::add(&set, fd, data, flags)
            })?;
            Ok::<_, rustix::io::Errno>(set)
        };
        let (readable, writable) = (set(Wait::Readable)?, set(Wait::Writable)?);
        let capabilities = queue.look(None, |device| Some(device.capabilities().clone()));
        Ok(Self {
            engine,
            is_counted_elsewhere: elsewhere,
            capabilities: capabilities.ok_or(Errno::EAGAIN)?,
            queue,
            readable,
            writable,
            exchange,
            shared: (Arc::default(), IfaceId::FIRST),
        })
    }

    /// Spreads the queues of a device over `engines` engines.
    ///
    /// # Errors
    /// The process or the system is out of descriptors.
    pub(super) fn over(queues: Vec<Box<dyn NetDevice>>, engines: u8) -> Outcome<Vec<Self>> {
        let inboxes = (0..engines).map(|_| Inbox::new());
        let exchange = Arc::new(Exchange(inboxes.collect::<Result<_, _>>()?));
        let count = queues.len();
        if count >= usize::from(engines) {
            let of_engines = queues.into_iter().zip(0..engines);
            let parts = of_engines
                .map(|(queue, at)| Self::new(at, Queue::Own(queue), false, exchange.clone()));
            return parts.collect();
        }
        let shared = |queue| Arc::new(Mutex::ranked(Rank::Any, queue));
        let shared: Vec<_> = queues.into_iter().map(shared).collect();
        let parts = shared.iter().cycle().zip(0..engines).map(|(queue, at)| {
            let elsewhere = usize::from(at) >= count;
            Self::new(
                at,
                Queue::Shared(queue.clone()),
                elsewhere,
                exchange.clone(),
            )
        });
        parts.collect()
    }

    /// How the engines hand frames to each other.
    pub(super) fn exchange(&self) -> Arc<Exchange> {
        self.exchange.clone()
    }

    /// Lends what others have left here.
    fn receive_left(&mut self, budget: usize, visit: &mut dyn FnMut(&[RxFrame<'_>])) -> usize {
        let Some(inbox) = self.exchange.0.get(usize::from(self.engine)) else {
            return 0;
        };
        let frames = inbox.take(budget);
        let lent: Vec<_> = frames
            .iter()
            .map(|(data, meta)| RxFrame::new(data, *meta))
            .collect();
        lent.chunks(RX_BATCH_FRAMES).for_each(visit);
        frames.len()
    }
}

/// What tells whose a frame is that an engine has received.
struct Sorter<'a> {
    exchange: &'a Exchange,
    engine: u8,
    shared: &'a (Arc<SharedPorts>, IfaceId),
}

impl Sorter<'_> {
    fn give(&self, frame: &RxFrame<'_>) -> bool {
        let (ports, iface) = self.shared;
        self.exchange
            .give((self.engine, *iface), ports, frame.data, frame.meta)
    }
}

/// Lends the frames of a batch that concern the engine, and gives the others away.
fn sort(sorter: &Sorter<'_>, frames: &[RxFrame<'_>], visit: &mut dyn FnMut(&[RxFrame<'_>])) {
    let mut first = 0;
    for (at, frame) in frames.iter().enumerate() {
        if sorter.give(frame) {
            continue;
        }
        if let Some(before) = frames.get(first..at).filter(|run| !run.is_empty()) {
            visit(before);
        }
        first = at + 1;
    }
    if let Some(rest) = frames.get(first..).filter(|run| !run.is_empty()) {
        visit(rest);
    }
}

/// Where the device passes on what is not ours: the engine says that first, and does nothing with what is
/// another's.
fn sort_forwarded(
    sorter: &Sorter<'_>,
    frames: &[RxFrame<'_>],
    visit: &mut dyn FnMut(&[RxFrame<'_>]),
) {
    const ARP: [u8; 2] = [0x08, 0x06];
    visit(frames);
    for frame in frames {
        let to_group = frame.data.first().is_some_and(|first| first & 1 != 0);
        let is_arp = frame.data.get(12..ETHERNET_HEADER_LEN) == Some(&ARP);
        if !frame.is_forwarded() || to_group || is_arp {
            sorter.give(frame);
        }
    }
}

impl NetDevice for Spread {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn receive(
        &mut self,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<usize, DeviceError> {
        let left = self.receive_left(budget, visit);
        let here = Sorter {
            exchange: &self.exchange,
            engine: self.engine,
            shared: &self.shared,
        };
        let mut sorted = |frames: &[RxFrame<'_>]| match self.capabilities.forwards {
            false => sort(&here, frames, visit),
            true => sort_forwarded(&here, frames, visit),
        };
        let budget = budget - left;
        let received = self
            .queue
            .with(Ok(0), |device| match trace::wants_frames() {
                false => device.receive(budget, &mut sorted),
                true => Traced(device).receive(budget, &mut sorted),
            });
        received.map(|received| left + received)
    }

    fn transmit_with(
        &mut self,
        room: usize,
        write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
    ) -> Result<bool, TransmitError> {
        self.queue.with(
            Err(TransmitError::Full),
            |device| match trace::wants_frames() {
                false => device.transmit_with(room, write),
                true => Traced(device).transmit_with(room, write),
            },
        )
    }

    fn kick(&mut self) -> Result<(), DeviceError> {
        self.queue.with(Ok(()), |device| device.kick())
    }

    fn wait_fd(&self, wait: Wait) -> Option<(BorrowedFd<'_>, Wait)> {
        let set = match wait {
            Wait::Readable => &self.readable,
            Wait::Writable => &self.writable,
        };
        Some((set.as_fd(), Wait::Readable))
    }

    fn advance(&mut self, now: Instant) {
        self.queue.with((), |device| device.advance(now));
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.queue.look(None, |device| device.next_deadline())
    }

    fn steer(&mut self, iface: IfaceId, ports: &Arc<SharedPorts>) {
        self.shared = (ports.clone(), iface);
        self.queue.with((), |device| device.steer(iface, ports));
    }

    fn ingress(&self) -> Option<Ingress> {
        self.queue.look(None, |device| device.ingress())
    }

    fn counters(&self) -> Counters {
        let mut counters = match self.is_counted_elsewhere {
            true => Counters::default(),
            false => self
                .queue
                .look(Counters::default(), |device| device.counters()),
        };
        let inbox = self.exchange.0.get(usize::from(self.engine));
        counters.rx_missed += inbox.map_or(0, |inbox| inbox.dropped.load(Ordering::Relaxed));
        counters
    }
}

#[cfg(test)]
mod tests;
