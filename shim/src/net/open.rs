//! Opening the engines: once, when the first socket is given to the stack.

use core::net::IpAddr;
use core::num::NonZeroU16;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::fmt::Write;
use std::sync::Arc;

use kcm_mux::Nanos;
use kcm_stack::device::{self, Fault, LinkFaults, Loss, NetDevice, OpenOptions};
use kcm_stack::{Config, IfaceId, Key, Shard, Stack};
use rustix::fd::AsFd;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::cells::{self, ENGINES_MAX};
use super::claims::{self, Taken};
use super::devices::{Devices, Part};
use super::engine::{Engine, instant};
use super::guest::{self, Host};
use super::lease::Leases;
use super::leaving::Left;
use super::spread::{Exchange, Spread};
use super::{handover, steer};
use crate::errno::{Errno, Exit, Outcome};
use crate::interpose::poll::native_ppoll;
use crate::route::{Interface, OnFailure, Plan};
use crate::share::owner;
use crate::{housekeeper, log, own, publish, sys};

/// Whose engine serves the sockets of this process.
pub(crate) enum Place {
    /// This process's own.
    Here,
    /// That of the process which has the address.
    With(Host),
}

/// Why there is no engine.
enum Why {
    /// Another process has the address of this claim.
    Taken(IpAddr, Vec<u8>),
    /// A sentence.
    Failed(String),
}

impl From<Taken> for Why {
    fn from(taken: Taken) -> Self {
        match taken {
            Taken::Address(ip, claim) => Self::Taken(ip, claim),
            Taken::Lease(device) => Self::Failed(format!(
                "{device}: another process has the address that DHCP gives to the device"
            )),
        }
    }
}

impl From<String> for Why {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

/// The engine is there, or another process's, or what the plan says holds when neither is.
///
/// # Errors
/// What [`OnFailure`] wants: the kernel's answer, or an errno.
pub(crate) fn open(plan: &'static Plan, on_failure: OnFailure) -> Outcome<Place> {
    /// Many times what it takes a process to end, or to come from bind(2) to listen(2), on a machine that has other
    /// work: with 1 s, three programs of a churn that shared an address were turned away at a load of 15.
    const PATIENCE: Nanos = 10_000_000_000;
    const AGAIN: Nanos = 5_000_000;
    static IN_VAIN: InVain = InVain::new();
    if cells::is_open() {
        return Ok(Place::Here);
    }
    let end = sys::now().saturating_add(PATIENCE);
    let why = loop {
        let in_flight = owner::in_flight(); // a child of a fork would keep the addresses
        let opened = cells::open_with(|| make(plan))?;
        drop(in_flight);
        let (ip, claim) = match opened {
            Ok(()) => {
                IN_VAIN.forget();
                housekeeper::start()?;
                cells::all().for_each(housekeeper::watch_device);
                handover::watch_claims();
                publish::stack_opened();
                return Ok(Place::Here);
            }
            Err(Why::Failed(why)) => break why,
            Err(Why::Taken(ip, claim)) => (ip, claim),
        };
        match guest::greet(&claim) {
            Ok(()) => {
                IN_VAIN.forget();
                return Ok(Place::With(Host { claim }));
            }
            Err(Exit::Failed(Errno::EPERM)) => {
                break format!("{ip} is in use by a process of another user");
            }
            // Whoever has the address is about to end, or has just begun. Once: who still does not answer
            // then will have it when the next socket asks.
            Err(Exit::Failed(Errno::EPIPE))
                if !IN_VAIN.is_recent(sys::now()) && sys::now() < end =>
            {
                let _ = native_ppoll(&mut [], Some(sys::now().saturating_add(AGAIN)));
            }
            Err(_) => {
                IN_VAIN.note(sys::now());
                break format!("{ip} is in use by another process, which does not answer");
            }
        }
    };
    log::stack_failed(&why);
    Err(policy(on_failure))
}

/// When a process was waited for that did not answer: others are not, for a while. Whoever has the address after
/// that is somebody else.
struct InVain(AtomicU64);

impl InVain {
    const WHILE: Nanos = 60_000_000_000;

    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    fn is_recent(&self, now: Nanos) -> bool {
        let at = self.0.load(Ordering::Relaxed);
        at != 0 && now < at.saturating_add(Self::WHILE)
    }

    /// Counts from the first time.
    fn note(&self, now: Nanos) {
        if !self.is_recent(now) {
            self.0.store(now, Ordering::Relaxed);
        }
    }

    fn forget(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// What a call comes to where the stack cannot serve it.
pub(super) fn policy(on_failure: OnFailure) -> Exit {
    match on_failure {
        OnFailure::Kernel => Exit::Native,
        OnFailure::Fail(errno) => Errno(errno).into(),
    }
}

/// How many engines serve the plan: one for each queue of the interface that has most.
fn engines(plan: &Plan) -> u8 {
    let queues = plan.interfaces.iter().map(|interface| interface.queues);
    let most = queues.max().unwrap_or(1).clamp(1, ENGINES_MAX as u16);
    most as u8
}

/// Makes the engines. They have all interfaces of the plan, or are not made.
fn make(plan: &'static Plan) -> Result<Vec<Engine>, Why> {
    let mut claims = Vec::new();
    let made = make_with(plan, &mut claims);
    // An engine has taken them, or there is none.
    drop(claims);
    own::forget_closed(); // and what opening alone needed
    made
}

fn make_with(plan: &'static Plan, claims: &mut Vec<own::Kept>) -> Result<Vec<Engine>, Why> {
    let now = instant(sys::now());
    let count = engines(plan);
    let mut leases = Leases::default();
    let mut stacks: Vec<Stack> = Vec::new();
    let mut devices: Vec<Vec<Part>> = (0..count).map(|_| Vec::new()).collect();
    for interface in &plan.interfaces {
        claims::claim(interface, claims)?;
    }
    let left = Left::find(plan).map(Arc::new);
    for (at, interface) in plan.interfaces.iter().enumerate() {
        let parts = parts(interface, count)?;
        let failed = |why: kcm_stack::SocketError| format!("{}: {why}", interface.device);
        for (index, (device, exchange)) in parts.into_iter().enumerate() {
            let capabilities = device.capabilities();
            let (stack, iface) = match stacks.get_mut(index) {
                None => {
                    let mut config = Config::new([0; 6], key());
                    capabilities.configure(&mut config);
                    config.tcp.hold_acks = true;
                    config.shard = Shard::new(index as u8, count).unwrap_or_default();
                    stacks.push(Stack::new(&config, now));
                    (stacks.last_mut(), IfaceId::FIRST)
                }
                Some(stack) => {
                    let iface = stack.add_interface(&capabilities.interface());
                    (Some(stack), iface.map_err(failed)?)
                }
            };
            let stack = stack.ok_or_else(|| "no memory".to_owned())?;
            configure(stack, iface, interface)?;
            stack.announce(now, iface).map_err(failed)?;
            if interface.dhcp && index == 0 {
                stack.dhcp_start(now, iface).map_err(failed)?;
                leases.add(at, iface);
            }
            if let Some(all) = devices.get_mut(index) {
                all.push(Part {
                    iface,
                    device,
                    exchange,
                });
            }
        }
    }
    if stacks.is_empty() {
        return Err("no interface is configured".to_owned().into());
    }
    let fd = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    );
    if let Ok(fd) = fd.map(sys::raise) {
        steer::learn(plan, fd.as_fd());
    }
    let mut made = Vec::new();
    for (index, (stack, devices)) in stacks.into_iter().zip(devices).enumerate() {
        let index = index as u8;
        let devices = Devices::new(index, devices);
        let devices = devices.map_err(|_| "the process has no descriptor left".to_owned())?;
        // The first has what the host has once.
        let leases = core::mem::take(&mut leases);
        let claims = core::mem::take(claims);
        let mut engine = Engine::new(index, stack, devices, leases, claims);
        if let Some(left) = &left {
            engine.spare(left.clone());
        }
        made.push(engine);
    }
    guest::make_token();
    Ok(made)
}

/// What one engine has of a device, and with several the way from one to the other.
type Half = (Box<dyn NetDevice>, Option<Arc<Exchange>>);

/// Opens the device of an interface, for each engine.
fn parts(interface: &Interface, count: u8) -> Result<Vec<Half>, String> {
    let mut queues = queues(interface)?;
    if count > 1 {
        let parts = Spread::over(queues, count);
        let parts = parts.map_err(|_| "the process has no descriptor left")?;
        let half = |part: Spread| {
            let exchange = part.exchange();
            (Box::new(part) as Box<dyn NetDevice>, Some(exchange))
        };
        return Ok(parts.into_iter().map(half).collect());
    }
    let only = queues.pop().ok_or("the device has no queue")?;
    Ok(vec![(only, None)])
}

/// Opens the queues of an interface's device.
fn queues(interface: &Interface) -> Result<Vec<Box<dyn NetDevice>>, String> {
    let options = OpenOptions {
        queues: NonZeroU16::new(interface.queues).unwrap_or(NonZeroU16::MIN),
        mtu: interface.mtu.map(usize::from),
        offloads: interface.offloads,
        keep: own::keep_for_device,
        ..OpenOptions::default()
    };
    let queues = device::open(&interface.device, &options).map_err(|why| why.to_string())?;
    if queues.is_empty() {
        return Err(format!("{}: the device has no queue", interface.device));
    }
    let with_faults = |device: Box<dyn NetDevice>| -> Box<dyn NetDevice> {
        match interface.faults {
            0 => device,
            percent => {
                let seed = sys::random().unwrap_or_else(sys::now);
                Box::new(Fault::new(device, seed, faults(percent), faults(percent)))
            }
        }
    };
    Ok(queues.into_iter().map(with_faults).collect())
}

/// A link that does to so many of a hundred frames whatever a link may do to frames.
fn faults(percent: u8) -> LinkFaults {
    /// Some frames of a bulk transfer overtake one that is held back.
    const HELD_BACK: Duration = Duration::from_micros(500);
    let share = f64::from(percent) / 100.0;
    LinkFaults {
        loss: Loss::Random(share),
        duplicate: share,
        reorder: share,
        reorder_by: HELD_BACK,
        ..LinkFaults::default()
    }
}

fn configure(stack: &mut Stack, iface: IfaceId, interface: &Interface) -> Result<(), String> {
    let failed = |what: &dyn core::fmt::Display, why: kcm_stack::SocketError| {
        let mut text = String::new();
        let _ = write!(text, "{what}: {why}");
        text
    };
    for address in &interface.addresses {
        stack
            .add_address_on(iface, address.ip, address.len)
            .map_err(|why| failed(address, why))?;
    }
    for router in &interface.gateways {
        let all = match router.is_ipv4() {
            true => IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED),
            false => IpAddr::V6(core::net::Ipv6Addr::UNSPECIFIED),
        };
        stack
            .add_route_on(iface, all, 0, Some(*router))
            .map_err(|why| failed(router, why))?;
    }
    for route in &interface.routes {
        stack
            .add_route_on(iface, route.to.ip, route.to.len, route.via)
            .map_err(|why| failed(&route.to, why))?;
    }
    Ok(())
}

/// What everything unpredictable derives from.
fn key() -> Key {
    let mut key = [0; 16];
    let words = [sys::random(), sys::random()];
    for (half, word) in key.chunks_exact_mut(8).zip(words) {
        half.copy_from_slice(&word.unwrap_or_else(sys::now).to_ne_bytes());
    }
    Key(key)
}

#[cfg(test)]
mod tests {
    use super::InVain;

    /// Who was waited for in vain once is not waited for with every socket; another, later, is.
    #[test]
    fn nobody_is_waited_for_again_and_again() {
        let in_vain = InVain::new();
        let (first, again) = (1_000, 1_000 + InVain::WHILE - 1);
        assert!(!in_vain.is_recent(first));
        in_vain.note(first);
        assert!(in_vain.is_recent(again));
        in_vain.note(again);
        assert!(!in_vain.is_recent(again + 1));
        in_vain.note(again + 1);
        in_vain.forget();
        assert!(!in_vain.is_recent(again + 1));
    }
}
