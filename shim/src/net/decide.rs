//! The moment at which a kernel socket becomes one of the stack: the first call that names an address
//! the plan gives to it. Each function here is asked about a number that is not ours, and leaves
//! what the plan leaves to the kernel to the real call.

use core::net::SocketAddr;

use kcm_mux::Nanos;
use kcm_stack::IfaceId;
use rustix::net::{AddressFamily, SocketType, ipproto, sockopt};

use super::address::{self, Address};
use super::channel::holder;
use super::copies::Copies;
use super::guest::{self, Candidate, Host};
use super::open::{self, Place};
use super::socket::{self, State};
use super::udp::early;
use super::{beneath, cells, homes, lease, pristine, spare, steer, udp};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::interpose::poll::native_ppoll;
use crate::route::{self, Decision, OnFailure, Plan, Role, Verdict};
use crate::user_mem::{self, Iovecs, UserPtr};
use crate::{message, publish, sys};

/// A TCP or UDP socket of the kernel's.
#[derive(Clone, Copy)]
struct Inet {
    v6: bool,
    udp: bool,
    /// Has just been made.
    is_new: bool,
}

/// What `fd` is, where [`pristine::first_use`] has not told it.
fn inet(fd: i32, new: Option<bool>) -> Outcome<Inet> {
    match new {
        Some(v6) => Ok(Inet {
            v6,
            udp: false,
            is_new: true,
        }),
        None => asked(fd),
    }
}

/// What the kernel says of `fd`; the real call answers for anything else.
fn asked(fd: i32) -> Outcome<Inet> {
    let at = sys::borrow(fd);
    let v6 = match sockopt::socket_domain(at) {
        Ok(AddressFamily::INET) => false,
        Ok(AddressFamily::INET6) => true,
        _ => return Err(Exit::Native),
    };
    let udp = match (sockopt::socket_type(at), sockopt::socket_protocol(at)) {
        (Ok(SocketType::STREAM), Ok(Some(p))) if p == ipproto::TCP => false,
        (Ok(SocketType::DGRAM), Ok(Some(p))) if p == ipproto::UDP => true,
        _ => return Err(Exit::Native),
    };
    Ok(Inet {
        v6,
        udp,
        is_new: false,
    })
}

/// The address that a program passed with a socket of the kernel's. What makes no sense is the
/// kernel's to refuse.
fn named(addr: UserPtr, length: u32, v6: Option<bool>) -> Outcome<SocketAddr> {
    match address::read(addr, length) {
        Ok(Address::Inet(named)) if v6.is_none_or(|v6| v6 == named.is_ipv6()) => Ok(named),
        _ => Err(Exit::Native),
    }
}

/// What the plan says, once the leases it depends on are there.
fn decide(
    plan: &'static Plan,
    role: Role,
    fd: i32,
    addr: SocketAddr,
) -> Outcome<Decision<'static>> {
    let decision = route::decide(plan, role, addr);
    if !lease::matters(plan, &decision, addr) {
        return Ok(decision);
    }
    asked(fd)?; // else the address is that of a socket which is none of ours
    lease::wait(plan, decision.on_failure)?;
    Ok(route::decide(plan, role, addr))
}

/// What is to become of a socket that the plan wants on the stack.
struct Ruling {
    verdict: Verdict,
    /// The interface it is to keep to.
    device: Option<IfaceId>,
    place: Place,
    on_failure: OnFailure,
}

impl Ruling {
    /// The engine is this process's, or what the plan says holds when it is not.
    fn here(self) -> Outcome<Self> {
        match self.place {
            Place::Here => Ok(self),
            Place::With(_) => Err(open::policy(self.on_failure)),
        }
    }
}

/// Opens the engine, or finds who has one, if the plan wants the socket on the stack; else it is the
/// kernel's or nobody's.
fn verdict(
    plan: &'static Plan,
    role: Role,
    fd: i32,
    inet: Inet,
    addr: SocketAddr,
) -> Outcome<Ruling> {
    let decision = decide(plan, role, fd, addr)?;
    let mut device = None;
    let outcome = match decision.verdict {
        Verdict::Kernel => Err(Exit::Native),
        Verdict::Refuse(errno) => Err(Errno(errno).into()),
        _ => steer::wanted(&decision, fd, inet.is_new).and_then(|wanted| {
            device = wanted;
            open::open(plan, decision.on_failure)
        }),
    };
    let told = outcome.as_ref().map(|_| ()).map_err(|why| *why);
    publish::routed(plan, (role, fd, addr), &decision, &told);
    Ok(Ruling {
        verdict: decision.verdict,
        device,
        place: outcome?,
        on_failure: decision.on_failure,
    })
}

/// Has the process that has the address do the call. Should it end meanwhile, another look tells who has
/// the address now; `None` if that is this process.
fn as_guest<T>(
    mut ruling: Ruling,
    look: impl Fn() -> Outcome<Ruling>,
    call: impl Fn(&Host) -> Outcome<T>,
) -> Outcome<(Ruling, Option<T>)> {
    /// Many processes that share an address may end one after the other, each just after it has said that it
    /// will serve. As long as one may take to answer.
    const PATIENCE: Nanos = 10_000_000_000;
    const AGAIN: Nanos = 1_000_000;
    let end = sys::now().saturating_add(PATIENCE);
    loop {
        let Place::With(host) = &ruling.place else {
            return Ok((ruling, None));
        };
        match call(host) {
            Err(Exit::Failed(Errno::EPIPE)) if sys::now() < end => {
                let _ = native_ppoll(&mut [], Some(sys::now().saturating_add(AGAIN)));
                ruling = look()?;
            }
            Err(Exit::Failed(Errno::EPIPE)) => return Err(open::policy(ruling.on_failure)),
            done => return done.map(|done| (ruling, Some(done))),
        }
    }
}

/// What the socket is bound to before the call.
fn bound(fd: i32, inet: Inet) -> SocketAddr {
    match inet.is_new {
        true => address::any(inet.v6, 0),
        false => kernel_address(fd, inet.v6),
    }
}

/// What the kernel has bound the socket to.
fn kernel_address(fd: i32, v6: bool) -> SocketAddr {
    let name = rustix::net::getsockname(sys::borrow(fd));
    name.ok()
        .and_then(|name| SocketAddr::try_from(name).ok())
        .unwrap_or(address::any(v6, 0))
}

/// Whether `fd` is a UDP socket of the kernel's that has no address yet; the real call answers for anything
/// but sockets of the internet.
pub(super) fn is_unbound_udp(fd: i32) -> Outcome<bool> {
    let inet = asked(fd)?;
    Ok(inet.udp && bound(fd, inet).port() == 0)
}

/// Runs a call that gives the socket an address, after which what was set on it early holds there, and its
/// copies are copies of what it is then.
fn with_early<T>(fd: i32, call: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
    let noted = early::of(fd);
    let copies = Copies::of(fd);
    let done = call();
    copies.follow(fd);
    if let Err(Exit::Native) = done {
        spare::renew(fd);
    }
    if let Ok(_) | Err(Exit::Native) = done {
        noted.repeat(fd);
    }
    done
}

/// bind(2).
pub(crate) fn bind(
    fd: i32,
    addr: UserPtr,
    length: u32,
    native: impl FnOnce() -> i32,
) -> Outcome<i32> {
    spare::renew(fd);
    with_early(fd, || bind_by_plan(fd, addr, length, native))
}

fn bind_by_plan(fd: i32, addr: UserPtr, length: u32, native: impl FnOnce() -> i32) -> Outcome<i32> {
    let plan = route::plan().ok_or(Exit::Native)?;
    let new = pristine::first_use(fd);
    let local = named(addr, length, None)?;
    let inet = inet(fd, new)?;
    if local.is_ipv6() != inet.v6 {
        return Err(Exit::Native);
    }
    let role = if inet.udp {
        Role::UdpBind
    } else {
        Role::Listen
    };
    if local.ip().is_unspecified() && !inet.udp {
        return Err(Exit::Native); // listen or connect will tell
    }
    if bound(fd, inet).port() != 0 {
        return Err(Exit::Native);
    }
    if inet.udp
        && local.port() == 0
        && let Verdict::Both { .. } = route::decide(plan, role, local).verdict
    {
        return Err(Exit::Native); // a client: where it sends will tell
    }
    let look = || verdict(plan, role, fd, inet, local);
    let ruling = look()?;
    let local = address::canonical(local);
    let ruling = match ruling.verdict {
        Verdict::Both { .. } => ruling.here()?,
        _ => {
            let v6 = inet.v6;
            let call = |host: &Host| match inet.udp {
                true => guest::open_udp(host, Candidate { fd, v6, local }),
                false => guest::bind(host, Candidate { fd, v6, local }),
            };
            match as_guest(ruling, look, call)? {
                (_, Some(_)) => return Ok(0),
                (ruling, None) => ruling,
            }
        }
    };
    let device = ruling.device;
    if inet.udp {
        if let Verdict::Both { .. } = ruling.verdict {
            let done = native();
            if done != 0 {
                return Ok(done);
            }
            return udp::join(fd, inet.v6, local, device).map(|_| 0);
        }
        return udp::bind(fd, inet.v6, local, device).map(|_| 0);
    }
    let cell = cells::first();
    let file = socket::replace(fd, (inet.v6, false), State::Unbound, device, cell)?;
    socket::bind_in(file, local)?;
    Ok(0)
}

/// listen(2).
pub(crate) fn listen(fd: i32, backlog: i32, native: impl FnOnce() -> i32) -> Outcome<i32> {
    with_early(fd, || listen_by_plan(fd, backlog, native))
}

fn listen_by_plan(fd: i32, backlog: i32, native: impl FnOnce() -> i32) -> Outcome<i32> {
    let plan = route::plan().ok_or(Exit::Native)?;
    spare::renew(fd);
    let new = pristine::first_use(fd);
    let inet = inet(fd, new)?;
    if inet.udp {
        return Err(Exit::Native);
    }
    let local = bound(fd, inet);
    let look = || verdict(plan, Role::Listen, fd, inet, local);
    let ruling = look()?;
    if let Verdict::Both { .. } = ruling.verdict {
        return listen_both(fd, inet.v6, ruling, look, backlog, native);
    }
    let (v6, at) = (inet.v6, address::canonical(local));
    let call = |host: &Host| {
        let file = guest::bind(host, Candidate { fd, v6, local: at })?;
        guest::listen(file, fd, backlog)
    };
    let (ruling, done) = as_guest(ruling, look, call)?;
    if let Some(done) = done {
        return Ok(done);
    }
    let cell = cells::first();
    let file = socket::replace(fd, (inet.v6, false), State::Unbound, ruling.device, cell)?;
    if local.port() != 0 {
        socket::bind_in(file, at)?;
    }
    socket::listen(file, backlog)
}

/// listen(2) on the wildcard: the kernel's socket listens for the kernel's addresses, and one of the
/// stack on the same port for the stack's.
fn listen_both(
    fd: i32,
    v6: bool,
    ruling: Ruling,
    look: impl Fn() -> Outcome<Ruling>,
    backlog: i32,
    native: impl FnOnce() -> i32,
) -> Outcome<i32> {
    let done = native();
    if done != 0 {
        return Ok(done);
    }
    let local = address::canonical(kernel_address(fd, v6));
    let call = |host: &Host| guest::listen_both(host, Candidate { fd, v6, local }, backlog);
    let (ruling, done) = as_guest(ruling, look, call)?;
    if let Some(done) = done {
        return Ok(done);
    }
    let cell = cells::first();
    let file = socket::join(fd, (v6, false), State::Unbound, ruling.device, cell)?;
    socket::bind_in(file, local)?;
    socket::listen(file, backlog)
}

/// connect(2).
pub(crate) fn connect(fd: i32, addr: UserPtr, length: u32) -> Outcome<i32> {
    with_early(fd, || connect_by_plan(fd, addr, length))
}

fn connect_by_plan(fd: i32, addr: UserPtr, length: u32) -> Outcome<i32> {
    let plan = route::plan().ok_or(Exit::Native)?;
    let new = pristine::first_use(fd);
    let remote = named(addr, length, None)?;
    let inet = inet(fd, new)?;
    if remote.is_ipv6() != inet.v6 {
        return Err(Exit::Native);
    }
    let local = bound(fd, inet);
    if !local.ip().is_unspecified() {
        return Err(Exit::Native); // bound to an address of the kernel's, or connected
    }
    let role = if inet.udp {
        Role::UdpSend
    } else {
        Role::Connect
    };
    let look = || verdict(plan, role, fd, inet, remote);
    let ruling = look()?;
    let remote = address::canonical(remote);
    let local = address::any(remote.is_ipv6(), local.port());
    let v6 = inet.v6;
    let file = if inet.udp {
        let call = |host: &Host| {
            let file = guest::open_udp(host, Candidate { fd, v6, local })?;
            holder::connect_to(file, fd, Some(remote))
        };
        let (ruling, done) = as_guest(ruling, look, call)?;
        if let Some(done) = done {
            return Ok(done);
        }
        udp::bind(fd, v6, local, ruling.device)?
    } else {
        let call = |host: &Host| guest::connect(host, Candidate { fd, v6, local }, remote);
        let (ruling, done) = as_guest(ruling, look, call)?;
        if let Some(done) = done {
            return Ok(done);
        }
        let cell = homes::of_thread();
        match local.port() {
            0 => beneath::keep(fd, v6, ruling.device, cell)?,
            _ => {
                let file = socket::replace(fd, (v6, false), State::Unbound, ruling.device, cell)?;
                socket::bind_in(file, local)?;
                file
            }
        }
    };
    socket::connect_to(file, fd, remote)
}

/// sendto(2) and its kin with an address: a UDP socket of the kernel's that sends to an address of the
/// stack's is both from then on, since it may hear from either.
fn sending_to(fd: i32, addr: UserPtr, length: u32) -> Outcome<&'static File> {
    with_early(fd, || sending_by_plan(fd, addr, length))
}

fn sending_by_plan(fd: i32, addr: UserPtr, length: u32) -> Outcome<&'static File> {
    let plan = route::plan().ok_or(Exit::Native)?;
    let new = pristine::first_use(fd);
    let remote = named(addr, length, None)?;
    let decision = decide(plan, Role::UdpSend, fd, remote)?;
    let by_choice = remote.ip().is_multicast() && early::of(fd).sends_on_stack();
    if decision.verdict == Verdict::Kernel && !by_choice {
        return Err(Exit::Native);
    }
    let inet = inet(fd, new)?;
    let local = bound(fd, inet);
    if !inet.udp || !local.ip().is_unspecified() {
        return Err(Exit::Native);
    }
    let look = || match decision.verdict {
        Verdict::Kernel => Ok(Ruling {
            verdict: Verdict::Both { iface: None },
            device: None,
            place: open::open(plan, decision.on_failure)?,
            on_failure: decision.on_failure,
        }),
        _ => verdict(plan, Role::UdpSend, fd, inet, remote),
    };
    let (v6, at) = (inet.v6, address::any(inet.v6, local.port()));
    let call = |host: &Host| guest::open_udp(host, Candidate { fd, v6, local: at });
    if let (_, Some(file)) = as_guest(look()?, look, call)? {
        return Ok(file);
    }
    if local.port() == 0 {
        rustix::net::bind(sys::borrow(fd), &address::any(inet.v6, 0))?;
    }
    // A rule is about this datagram's way; the next may go elsewhere.
    let device = steer::named(&sys::bound_device(fd));
    let local = address::any(inet.v6, kernel_address(fd, inet.v6).port());
    udp::join(fd, inet.v6, local, device)
}

/// As [`sending_to`], and sends.
pub(crate) fn send_to(
    fd: i32,
    src: Outcome<Iovecs<'_>>,
    flags: i32,
    addr: UserPtr,
    length: u32,
) -> Outcome<isize> {
    let file = sending_to(fd, addr, length)?;
    super::message::sendto(file, fd, src?, flags, addr, length)
}

/// As [`sending_to`] for sendmsg(2).
pub(crate) fn send_msg(fd: i32, msg: UserPtr, flags: i32) -> Outcome<isize> {
    let file = sending_to_name(fd, msg)?;
    message::sendmsg(file, fd, msg, flags).map(|n| n as isize)
}

/// As [`sending_to`] for sendmmsg(2): the first message tells.
pub(crate) fn send_mmsg(fd: i32, msgs: UserPtr, count: u32, flags: i32) -> Outcome<i32> {
    if count == 0 {
        return Err(Exit::Native);
    }
    let file = sending_to_name(fd, msgs)?;
    message::sendmmsg(file, fd, msgs, count, flags)
}

fn sending_to_name(fd: i32, msg: UserPtr) -> Outcome<&'static File> {
    let Ok(header) = user_mem::copy_in::<libc::msghdr>(msg) else {
        return Err(Exit::Native);
    };
    if header.msg_name.is_null() {
        return Err(Exit::Native);
    }
    sending_to(fd, UserPtr::new(header.msg_name), header.msg_namelen)
}
