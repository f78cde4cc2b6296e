//! Opening the engine: once, when the first socket is given to the stack.

use core::num::NonZeroU16;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::fmt::Write;

use kcm_mux::Nanos;
use kcm_stack::device::{self, Fault, Joined, LinkFaults, Loss, NetDevice, OpenOptions};
use kcm_stack::{Config, IfaceId, Key, Stack};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::devices::Devices;
use super::engine::{Engine, instant};
use super::lease::Leases;
use super::{cells, steer};
use crate::errno::{Errno, Exit, Outcome};
use crate::interpose::poll::native_ppoll;
use crate::route::{Interface, OnFailure, Plan};
use crate::{housekeeper, log, own, publish, sys};

/// The engine is there, or what the plan says holds when it is not.
///
/// # Errors
/// What [`OnFailure`] wants: the kernel's answer, or an errno.
pub(crate) fn open(plan: &'static Plan, on_failure: OnFailure) -> Outcome<()> {
    if cells::is_open() {
        return Ok(());
    }
    match cells::first().open_with(|| make(plan))? {
        Ok(()) => {
            housekeeper::start()?;
            housekeeper::watch_device(cells::first());
            publish::stack_opened();
            Ok(())
        }
        Err(why) => {
            log::stack_failed(&why);
            Err(match on_failure {
                OnFailure::Kernel => Exit::Native,
                OnFailure::Fail(errno) => Errno(errno).into(),
            })
        }
    }
}

/// Why the engine could not be made, as a sentence. It has all interfaces of the plan, or is not made.
fn make(plan: &'static Plan) -> Result<Engine, String> {
    let now = instant(sys::now());
    let mut stack: Option<Stack> = None;
    let (mut devices, mut claims, mut leases) = (Vec::new(), Vec::new(), Leases::default());
    for (at, interface) in plan.interfaces.iter().enumerate() {
        claim(interface, &mut claims)?;
        let device = device(interface)?;
        let capabilities = device.capabilities();
        let failed = |why: kcm_stack::SocketError| format!("{}: {why}", interface.device);
        let (stack, iface) = match &mut stack {
            None => {
                let mut config = Config::new([0; 6], key());
                capabilities.configure(&mut config);
                config.tcp.hold_acks = true;
                (stack.insert(Stack::new(&config, now)), IfaceId::FIRST)
            }
            Some(stack) => {
                let iface = stack.add_interface(&capabilities.interface());
                (stack, iface.map_err(failed)?)
            }
        };
        configure(stack, iface, interface)?;
        if interface.dhcp {
            stack.dhcp_start(now, iface).map_err(failed)?;
            leases.add(at, iface);
        }
        devices.push((iface, device));
    }
    let stack = stack.ok_or("no interface is configured")?;
    let fd = socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    );
    if let Ok(fd) = fd {
        steer::learn(plan, fd.as_fd());
    }
    let devices = Devices::new(devices).map_err(|_| "the process has no descriptor left")?;
    Ok(Engine::new(0, stack, devices, leases, claims))
}

/// Opens the device of an interface, all its queues as one.
fn device(interface: &Interface) -> Result<Box<dyn NetDevice>, String> {
    let options = OpenOptions {
        queues: NonZeroU16::new(interface.queues).unwrap_or(NonZeroU16::MIN),
        mtu: interface.mtu.map(usize::from),
        offloads: interface.offloads,
        ..OpenOptions::default()
    };
    let mut queues = device::open(&interface.device, &options).map_err(|why| why.to_string())?;
    let device: Box<dyn NetDevice> = match queues.pop() {
        None => return Err(format!("{}: the device has no queue", interface.device)),
        Some(only) if queues.is_empty() => only,
        Some(last) => {
            queues.push(last);
            let joined = Joined::new(queues);
            Box::new(joined.map_err(|why| format!("{}: {why}", interface.device))?)
        }
    };
    Ok(match interface.faults {
        0 => device,
        percent => {
            let seed = sys::random().unwrap_or_else(sys::now);
            Box::new(Fault::new(device, seed, faults(percent), faults(percent)))
        }
    })
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

/// Takes the interface's addresses for this process: two engines with one address would reset each
/// other's connections. So would two that ask a DHCP server for the address of one device. An abstract
/// name is the network namespace's, and free again when its last holder ends, however that comes.
fn claim(interface: &Interface, claims: &mut Vec<OwnedFd>) -> Result<(), String> {
    for address in &interface.addresses {
        let what = format!("address/{}", address.ip);
        claims.push(take(&what).ok_or_else(|| {
            let ip = address.ip;
            format!("{ip} is in use by another process, and each needs an address of its own")
        })?);
    }
    if interface.dhcp {
        let device = &interface.device;
        claims.push(take(&format!("dhcp/{device}")).ok_or_else(|| {
            format!("{device}: another process has the address that DHCP gives to the device")
        })?);
    }
    Ok(())
}

/// Takes a name for this process, if no other has it. A broker whose last socket has just been closed
/// may not have noticed: it is told to look, and has a moment to end. Once: who still has the name then
/// will have it when the next socket asks.
fn take(what: &str) -> Option<OwnedFd> {
    /// A few times what a look and the end of a process take.
    const PATIENCE: Nanos = 200_000_000;
    const AGAIN: Nanos = 5_000_000;
    static HAS_WAITED: AtomicBool = AtomicBool::new(false);
    let name = format!("kcmshim/{what}");
    let name = SocketAddrUnix::new_abstract_name(name.as_bytes()).ok()?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).ok()?;
    let end = sys::now().saturating_add(PATIENCE);
    let (mut waits, mut is_told) = (!HAS_WAITED.load(Ordering::Relaxed), false);
    while rustix::net::bind(&fd, &name).is_err() {
        if !waits {
            return None;
        }
        waits = sys::now() < end;
        HAS_WAITED.store(true, Ordering::Relaxed);
        if !core::mem::replace(&mut is_told, true) {
            let _ = rustix::net::sendto(&fd, &[0], SendFlags::NOSIGNAL, &name);
        }
        let _ = native_ppoll(&mut [], Some(sys::now().saturating_add(AGAIN)));
    }
    let fd = sys::raise(fd);
    own::protect(sys::number(&fd));
    Some(fd)
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
            true => core::net::IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED),
            false => core::net::IpAddr::V6(core::net::Ipv6Addr::UNSPECIFIED),
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
