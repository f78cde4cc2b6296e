//! Interfaces as programs name them: SO_BINDTODEVICE by the name, most else by the number that the kernel
//! gives the interface under the device. A device under which the kernel has none (a VALE port, a pipe)
//! has a number of ours.

use core::net::SocketAddr;
use core::sync::atomic::{AtomicU32, Ordering};

use kcm_stack::IfaceId;
use kcm_stack::device::DeviceName;
use kcm_stack::limits::IFACES_MAX;
use rustix::fd::BorrowedFd;
use rustix::net::netdevice;

use crate::errno::{Errno, Exit, Outcome};
use crate::route::{self, Decision, Plan, Role};
use crate::sys;

/// Longest name and its end, IFNAMSIZ.
pub(crate) const NAME_BYTES: usize = 16;
/// What numbers of ours begin with: the kernel counts from 1.
const OURS: u32 = 1 << 24;

/// By interface, from the opening of the engine on.
static NUMBERS: [AtomicU32; IFACES_MAX] = [const { AtomicU32::new(0) }; IFACES_MAX];

/// Asks the kernel for the numbers of the plan's interfaces; `socket` is any.
pub(super) fn learn(plan: &Plan, socket: BorrowedFd<'_>) {
    for (at, place) in NUMBERS.iter().enumerate() {
        let number = name_at(plan, at).and_then(|n| netdevice::name_to_index(socket, &n).ok());
        place.store(number.unwrap_or(OURS + at as u32), Ordering::Relaxed);
    }
}

/// As [`learn`], for who asks before there is an engine.
pub(super) fn know(plan: &Plan, socket: BorrowedFd<'_>) {
    if NUMBERS[0].load(Ordering::Relaxed) == 0 {
        learn(plan, socket);
    }
}

/// The kernel's name of what the plan's interface runs on.
fn name_at(plan: &Plan, at: usize) -> Option<String> {
    let device = &plan.interfaces.get(at)?.device;
    Some(match device.parse().ok()? {
        DeviceName::Packet(name) | DeviceName::Xdp(name) | DeviceName::Tap(name) => {
            name.as_str().to_owned()
        }
        DeviceName::Netmap(port) => port.port,
        DeviceName::Memory | DeviceName::SharedMemory(_) => device.clone(),
    })
}

/// What programs call the interface.
pub(crate) fn name(iface: IfaceId) -> Option<String> {
    name_at(route::plan()?, iface.index())
}

/// The interface of that name.
pub(crate) fn named(name: &[u8]) -> Option<IfaceId> {
    let plan = route::plan()?;
    let is_it = |at: &usize| name_at(plan, *at).is_some_and(|own| own.as_bytes() == name);
    let at = (0..plan.interfaces.len()).find(is_it)?;
    IfaceId::from_index(at)
}

/// The number of an interface.
pub(crate) fn number(iface: IfaceId) -> u32 {
    let known = NUMBERS.get(iface.index());
    known.map_or(0, |number| number.load(Ordering::Relaxed))
}

/// The interface of that number; `None` for 0, and for what is none of the stack's.
pub(crate) fn numbered(number: u32) -> Option<IfaceId> {
    let is_it = |known: &AtomicU32| number != 0 && known.load(Ordering::Relaxed) == number;
    IfaceId::from_index(NUMBERS.iter().position(is_it)?)
}

/// As [`numbered`], where 0 stands for any.
///
/// # Errors
/// `ENODEV`.
pub(crate) fn numbered_or_any(number: u32) -> Outcome<Option<IfaceId>> {
    match (number, numbered(number)) {
        (0, _) => Ok(None),
        (_, None) => Err(Errno::ENODEV.into()),
        (_, found) => Ok(found),
    }
}

/// Which interface a socket of the kernel's shall keep to once it is the stack's: that of SO_BINDTODEVICE
/// (`is_new`: nobody can have set it), or that of the rule. One that is bound to another device is the
/// kernel's.
pub(super) fn wanted(decision: &Decision<'_>, fd: i32, is_new: bool) -> Outcome<Option<IfaceId>> {
    let bound = match is_new {
        true => Vec::new(),
        false => sys::bound_device(fd),
    };
    if bound.is_empty() {
        return Ok(decision.device.and_then(IfaceId::from_index));
    }
    named(&bound).map(Some).ok_or(Exit::Native)
}

/// The interface that a rule gives a datagram for `to`.
pub(super) fn by_rule(to: SocketAddr) -> Option<IfaceId> {
    let plan = route::plan().filter(|plan| plan.names_devices())?;
    let at = route::decide(plan, Role::UdpSend, to).device?;
    IfaceId::from_index(at)
}
