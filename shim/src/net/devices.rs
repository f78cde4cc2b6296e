//! The devices of the engine, one for each interface of the plan, and the one descriptor that says when
//! any of them has something.

use std::sync::Arc;

use kcm_mux::Nanos;
use kcm_stack::device::{
    self, Checksum, Counters, DeviceError, FrameMeta, Ingress, NetDevice, Pumped, Wait,
};
use kcm_stack::{IfaceId, Instant, SharedPorts, Stack};
use libc::pollfd;
use rustix::event::epoll;
use rustix::fd::{AsRawFd, OwnedFd};

use super::engine::{instant, nanos};
use super::shown::Traced;
use super::spread::Exchange;
use crate::publish::trace;
use crate::{own, sys};

/// Frames moved in one go each way for each device: the ring's content of a few hundred microseconds,
/// after which another thread may have its turn.
const FRAMES: usize = 256;
/// How long a device that has failed is left alone before it is tried again.
const RETRY_AFTER: Nanos = 100_000_000;

/// Every device of the engine.
pub(super) struct Devices {
    /// The engine's index.
    engine: u8,
    all: Vec<Link>,
    /// Frames received.
    received: u64,
    /// With several: an epoll set of the descriptors of those that work.
    set: Option<own::Kept>,
}

/// What an engine has of a device.
pub(super) struct Part {
    pub(super) iface: IfaceId,
    pub(super) device: Box<dyn NetDevice>,
    pub(super) exchange: Option<Arc<Exchange>>,
}

/// A device and the interface it is to the engine.
struct Link {
    iface: IfaceId,
    device: Box<dyn NetDevice>,
    /// With several engines: what the frames of the interface go through, where tracers see them too.
    exchange: Option<Arc<Exchange>>,
    /// Frames wait for room in the device.
    is_full: bool,
    /// The device has failed, and is left alone until then; 0 while it works.
    failed_until: Nanos,
    /// What is in the set, if anything.
    watched: Option<(i32, i16)>,
}

impl Devices {
    /// Takes the engine's devices.
    ///
    /// # Errors
    /// The process or the system is out of descriptors.
    pub(super) fn new(engine: u8, all: Vec<Part>) -> rustix::io::Result<Self> {
        let set = match all.len() {
            0 | 1 => None,
            _ => Some(own::keep(epoll::create(epoll::CreateFlags::CLOEXEC)?)),
        };
        let links = all.into_iter().map(|part| Link {
            iface: part.iface,
            device: part.device,
            exchange: part.exchange,
            is_full: false,
            failed_until: 0,
            watched: None,
        });
        let mut new = Self {
            engine,
            all: links.collect(),
            received: 0,
            set,
        };
        if let Some(set) = &new.set {
            for link in &mut new.all {
                link.watch(set);
            }
        }
        Ok(new)
    }

    /// In a forked child: lets go of the devices, whose rings would keep them open although their
    /// descriptors are closed.
    pub(super) fn leave_to_parent(&mut self) {
        self.all.clear();
        self.set = None;
        own::forget_closed();
    }

    /// One round of every device that works: what has arrived, what is due, what is to be sent. Whether
    /// a frame moved, or a device is to be tried again later.
    pub(super) fn pump(&mut self, stack: &mut Stack, now: Nanos) -> bool {
        let moved = self.each(now, |iface, device| {
            device::pump_on(stack, iface, device, instant(now), FRAMES)
        });
        self.give_strays(stack);
        moved
    }

    /// What the engine has sent to the host itself, and another engine is to have.
    fn give_strays(&mut self, stack: &mut Stack) {
        while let Some((iface, frame)) = stack.take_stray() {
            let link = self.all.iter().find(|link| link.iface == iface);
            if let Some(exchange) = link.and_then(|link| link.exchange.as_ref()) {
                let meta = FrameMeta {
                    csum: Checksum::Verified,
                    gso: None,
                };
                exchange.give((self.engine, iface), stack.udp_shared(), &frame, meta);
            }
        }
    }

    /// Sends what the engine has composed.
    pub(super) fn flush(&mut self, stack: &mut Stack, now: Nanos) {
        self.each(now, |iface, device| {
            match stack.has_output_on(iface) {
                true => device::flush_on(stack, iface, device, instant(now), FRAMES).map(Some),
                false => Ok(None),
            }
            .map(Option::unwrap_or_default)
        });
        self.give_strays(stack);
    }

    fn each(
        &mut self,
        now: Nanos,
        mut round: impl FnMut(IfaceId, &mut dyn NetDevice) -> Result<Pumped, DeviceError>,
    ) -> bool {
        let is_traced = trace::wants_frames();
        let mut moved = false;
        for link in &mut self.all {
            if now < link.failed_until {
                continue;
            }
            let device = &mut *link.device;
            let pumped = match is_traced && link.exchange.is_none() {
                false => round(link.iface, device),
                true => round(link.iface, &mut Traced(device)),
            };
            let before = (link.is_full, link.failed_until);
            match pumped {
                Ok(pumped) => {
                    (link.is_full, link.failed_until) = (pumped.is_full, 0);
                    moved |= pumped.received + pumped.transmitted > 0;
                    self.received += pumped.received as u64;
                }
                Err(_) => {
                    link.failed_until = now + RETRY_AFTER;
                    moved = true;
                }
            }
            if let Some(set) = &self.set
                && before != (link.is_full, link.failed_until)
            {
                link.watch(set);
            }
        }
        moved
    }

    /// When the engine, which asks for `stack`, or a device next has something to do although nothing
    /// arrives. A device that has failed is tried again; while all have, nothing else can be done.
    pub(super) fn next_deadline(&self, stack: Option<Instant>) -> Option<Nanos> {
        let devices = self.all.iter().map(|link| link.device.next_deadline());
        let at = devices.chain([stack]).flatten().min().map(nanos);
        let tried = || self.all.iter().map(|link| link.failed_until);
        let retry = tried().filter(|at| *at != 0).min();
        let at = [at, retry].into_iter().flatten().min()?;
        Some(at.max(tried().min().unwrap_or(0)))
    }

    /// Which UDP ports have sockets in several engines.
    pub(super) fn steer(&mut self, ports: &Arc<SharedPorts>) {
        for link in &mut self.all {
            link.device.steer(link.iface, ports);
        }
    }

    /// Frames received.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Where the kernel sees the same frames.
    pub(super) fn ingresses(&self) -> impl Iterator<Item = Ingress> {
        self.all.iter().filter_map(|link| link.device.ingress())
    }

    /// What they count, all together.
    pub(super) fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.all
            .iter()
            .for_each(|link| sum += link.device.counters());
        sum
    }

    /// What to wait for as poll(2) takes it, while a device works.
    pub(super) fn entry(&self) -> Option<pollfd> {
        let now = sys::now();
        if self.all.iter().all(|link| now < link.failed_until) {
            return None;
        }
        let (fd, events) = match (&self.set, self.all.first()) {
            (Some(set), _) => (sys::number(set), libc::POLLIN),
            (None, Some(link)) => link.wanted()?,
            (None, None) => return None,
        };
        Some(pollfd {
            fd,
            events,
            revents: 0,
        })
    }
}

impl Link {
    /// The device's descriptor and what to wait for.
    fn wanted(&self) -> Option<(i32, i16)> {
        let wait = match self.is_full {
            true => Wait::Writable,
            false => Wait::Readable,
        };
        let (fd, wait) = self.device.wait_fd(wait)?;
        let events = match wait {
            Wait::Readable => libc::POLLIN,
            Wait::Writable => libc::POLLIN | libc::POLLOUT,
        };
        Some((fd.as_raw_fd(), events))
    }

    /// Keeps the set as the device wants it; one that has failed would only keep it ready.
    fn watch(&mut self, set: &OwnedFd) {
        let wanted = self.wanted().filter(|_| self.failed_until == 0);
        if wanted == self.watched {
            return;
        }
        if let Some((fd, _)) = self.watched.take() {
            let _ = epoll::delete(set, sys::borrow(fd));
        }
        if let Some((fd, events)) = wanted {
            let data = epoll::EventData::new_u64(0);
            let flags = epoll::EventFlags::from_bits_retain(events as u32);
            if epoll::add(set, sys::borrow(fd), data, flags).is_ok() {
                self.watched = wanted;
            }
        }
    }
}
