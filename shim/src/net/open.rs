//! Opening the engine: once, when the first socket is given to the stack.

use std::fmt::Write;

use kcm_stack::device::{self, OpenOptions};
use kcm_stack::{Config, Key, Stack};
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::engine::{CELL, Engine, instant};
use crate::errno::{Errno, Exit, Outcome};
use crate::route::{Interface, OnFailure, Plan};
use crate::{housekeeper, log, own, publish, sys};

/// The engine is there, or what the plan says holds when it is not.
///
/// # Errors
/// What [`OnFailure`] wants: the kernel's answer, or an errno.
pub(crate) fn open(plan: &'static Plan, on_failure: OnFailure) -> Outcome<()> {
    if CELL.is_open() {
        return Ok(());
    }
    match CELL.open_with(|| make(plan))? {
        Ok(()) => {
            housekeeper::start()?;
            housekeeper::watch_device();
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

/// Why the engine could not be made, as a sentence.
fn make(plan: &'static Plan) -> Result<Engine, String> {
    let interface = plan
        .interfaces
        .first()
        .ok_or("no interface is configured")?;
    let claims = claim(interface)?;
    let options = OpenOptions {
        mtu: interface.mtu.map(usize::from),
        offloads: interface.offloads,
        ..OpenOptions::default()
    };
    let mut queues = device::open(&interface.device, &options).map_err(|why| why.to_string())?;
    let device = queues.pop().ok_or("the device has no queue")?;
    let mut config = Config::new([0; 6], key());
    device.capabilities().configure(&mut config);
    let mut stack = Stack::new(&config, instant(sys::now()));
    configure(&mut stack, interface)?;
    if let Some((fd, _)) = device.wait_fd(device::Wait::Readable) {
        own::protect(rustix::fd::AsRawFd::as_raw_fd(&fd));
    }
    Ok(Engine::new(stack, device, claims))
}

/// Takes the interface's addresses for this process: two engines with one address would reset each
/// other's connections. An abstract name is the network namespace's, and free again when its last
/// holder ends, however that comes.
fn claim(interface: &Interface) -> Result<Vec<OwnedFd>, String> {
    let mut claims = Vec::new();
    for address in &interface.addresses {
        let name = format!("kcmshim/address/{}", address.ip);
        let claimed = SocketAddrUnix::new_abstract_name(name.as_bytes()).and_then(|name| {
            let flags = SocketFlags::CLOEXEC;
            let fd = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
            rustix::net::bind(&fd, &name)?;
            Ok(sys::raise(fd))
        });
        let fd = claimed.map_err(|_| {
            let ip = address.ip;
            format!("{ip} is in use by another process, and each needs an address of its own")
        })?;
        own::protect(sys::number(&fd));
        claims.push(fd);
    }
    Ok(claims)
}

fn configure(stack: &mut Stack, interface: &Interface) -> Result<(), String> {
    let failed = |what: &dyn core::fmt::Display, why: kcm_stack::SocketError| {
        let mut text = String::new();
        let _ = write!(text, "{what}: {why}");
        text
    };
    for address in &interface.addresses {
        stack
            .add_address(address.ip, address.len)
            .map_err(|why| failed(address, why))?;
    }
    for router in &interface.gateways {
        let all = match router.is_ipv4() {
            true => core::net::IpAddr::V4(core::net::Ipv4Addr::UNSPECIFIED),
            false => core::net::IpAddr::V6(core::net::Ipv6Addr::UNSPECIFIED),
        };
        stack
            .add_route(all, 0, Some(*router))
            .map_err(|why| failed(router, why))?;
    }
    for route in &interface.routes {
        stack
            .add_route(route.to.ip, route.to.len, route.via)
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
