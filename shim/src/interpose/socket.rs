//! socket(2) and the calls on its address, state and options.

use libc::{c_int, c_void, sockaddr, socklen_t};
use rustix::net::SocketFlags;

use super::numbers::fresh_pair;
use super::{conclude, fresh, on};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::{File, Kind, lookup};
use crate::kcm::{self, AF_KCM};
use crate::message::check_address;
use crate::real::hooks;
use crate::user_mem::UserPtr;
use crate::{net, publish, route, sys, tcp};

fn at<T>(ptr: *const T) -> UserPtr {
    UserPtr::new(ptr.cast_mut().cast())
}

/// A call that no KCM socket supports, and that any other file of ours leaves to the kernel.
fn refuse(
    call: &'static str,
    file: &'static File,
    check: impl FnOnce() -> Outcome<()>,
) -> Outcome<c_int> {
    if file.kind() != Kind::Kcm {
        return Err(Exit::Native);
    }
    check()?;
    Err(publish::unsupported(file, call, Errno::EOPNOTSUPP).into())
}

/// A request that KCM does not know.
fn refuse_with(call: &'static str, file: &'static File, err: Errno) -> Outcome<c_int> {
    match file.kind() {
        Kind::Kcm => Err(publish::unsupported(file, call, err).into()),
        _ => Err(Exit::Native),
    }
}

/// A call on a number that is not ours, which may make it one of the stack's.
#[inline]
fn routed(stack: impl FnOnce() -> Outcome<c_int>, native: impl FnOnce() -> c_int) -> c_int {
    if route::is_set() {
        conclude(stack(), native)
    } else {
        native()
    }
}

/// The flags of accept4(2).
fn accept_flags(flags: c_int) -> Outcome<SocketFlags> {
    match flags & !sys::SOCKET_FLAGS {
        0 => Ok(sys::socket_flags(flags)),
        _ => Err(Errno::EINVAL.into()),
    }
}

/// setsockopt(2) on a descriptor of ours. Not in line, so that its frame costs others nothing.
#[inline(never)]
fn set_option(
    file: &'static File,
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    let native = || {
        file.not_plain();
        set_natively(fd, level, name, value, len)
    };
    let outcome = match file.kind() {
        Kind::Kcm => {
            let done = kcm::options::set(file, fd, level, name, at(value), len, native);
            publish::option(done, ("setsockopt", fd), level, name)
        }
        Kind::Stack => {
            let done = net::options::set(file, fd, level, name, at(value), len, native)
                .inspect(|_| tcp::option_set(file, level, name));
            publish::stack_option(done, ("setsockopt", fd), level, name)
        }
        Kind::Inherited => {
            let done = match net::inherited::set(file, fd, level, name, at(value), len) {
                Err(Exit::Native) => Ok(native()),
                done => done,
            };
            let done = done.inspect(|_| tcp::option_set(file, level, name));
            publish::stack_option(done, ("setsockopt", fd), level, name)
        }
        Kind::Tcp => {
            let done = native();
            if done == 0 {
                tcp::option_set(file, level, name);
            }
            Ok(done)
        }
        _ => Err(Exit::Native),
    };
    conclude(outcome, native)
}

#[inline(never)]
fn set_natively(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    net::pristine::sets(fd, level);
    // SAFETY: the arguments are the program's own; the kernel checks them.
    unsafe { next::setsockopt(fd, level, name, value, len) }
}

/// setsockopt(2) on a descriptor that is not ours yet, but may be the stack's later.
#[inline(never)]
fn set_early(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int {
    let native = || set_natively(fd, level, name, value, len);
    let done = net::udp::early::set(fd, (level, name), at(value), len, native);
    conclude(done, native)
}

hooks! {
    /// socket(2). AF_KCM is ours, whether or not the kernel has it.
    fn socket(family: c_int, ty: c_int, protocol: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || fresh(unsafe { next::socket(family, ty, protocol) });
        if family != AF_KCM {
            let made = net::spare::socket(family, ty, protocol).unwrap_or_else(native);
            net::pristine::made(made, family, ty, protocol);
            return made;
        }
        if !crate::init::serves_kcm() {
            return publish::left_to_kernel(native());
        }
        conclude(publish::socket(kcm::socket::create(ty, protocol), ty), native)
    }

    /// socketpair(2). The kernel makes both sockets before it finds that KCM has no pairs.
    fn socketpair(family: c_int, ty: c_int, protocol: c_int, pair: *mut c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || fresh_pair(unsafe { next::socketpair(family, ty, protocol, pair) }, pair);
        if family != AF_KCM || !crate::init::serves_kcm() {
            return native();
        }
        let refused = kcm::socket::check_type(ty, protocol).and(Err(Errno::EOPNOTSUPP.into()));
        conclude(publish::pair(refused), native)
    }

    /// bind(2).
    fn bind(fd: c_int, addr: *const sockaddr, len: socklen_t) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::bind(fd, addr, len) };
        on(fd, |f| match f.kind() {
            Kind::Stack => net::socket::bind(f, at(addr), len),
            Kind::Inherited => Err(Errno::EINVAL.into()),
            _ => refuse("bind", f, || check_address(at(addr), len)),
        }, || routed(|| net::bind(fd, at(addr), len, native), native))
    }

    /// connect(2).
    fn connect(fd: c_int, addr: *const sockaddr, len: socklen_t) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::connect(fd, addr, len) };
        on(fd, |f| match f.kind() {
            Kind::Stack => net::socket::connect(f, fd, at(addr), len),
            Kind::Inherited => net::guest::connect_again(f, fd, at(addr), len),
            _ => refuse("connect", f, || check_address(at(addr), len)),
        }, || routed(|| net::connect(fd, at(addr), len), native))
    }

    /// listen(2).
    fn listen(fd: c_int, backlog: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::listen(fd, backlog) };
        on(fd, |f| match f.kind() {
            Kind::Stack => {
                if f.speaks() {
                    native();
                }
                net::socket::listen_at(f, fd, backlog)
            }
            Kind::Inherited => net::guest::listen(f, fd, backlog),
            _ => refuse("listen", f, || Ok(())),
        }, || routed(|| net::listen(fd, backlog, native), native))
    }

    /// accept(2).
    fn accept(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || fresh(unsafe { next::accept(fd, addr, len) });
        on(fd, |f| match f.kind() {
            Kind::Stack => net::socket::accept(f, fd, at(addr), at(len), SocketFlags::empty(), native),
            Kind::Inherited => net::inherited::accept(f, fd, at(addr), at(len), SocketFlags::empty()),
            _ => refuse("accept", f, || Ok(())),
        }, native)
    }

    /// accept4(2).
    fn accept4(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t, flags: c_int) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || fresh(unsafe { next::accept4(fd, addr, len, flags) });
        on(fd, |f| match f.kind() {
            Kind::Stack => net::socket::accept(f, fd, at(addr), at(len), accept_flags(flags)?, native),
            Kind::Inherited => net::inherited::accept(f, fd, at(addr), at(len), accept_flags(flags)?),
            _ => refuse("accept4", f, || accept_flags(flags).map(drop)),
        }, native)
    }

    /// getsockname(2).
    fn getsockname(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::getsockname(fd, addr, len) };
        on(fd, |f| match f.kind() {
            Kind::Stack => net::socket::local_name(f, at(addr), at(len)),
            Kind::Inherited => net::inherited::local_name(f, at(addr), at(len)),
            _ => refuse("getsockname", f, || Ok(())),
        }, native)
    }

    /// getpeername(2).
    fn getpeername(fd: c_int, addr: *mut sockaddr, len: *mut socklen_t) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::getpeername(fd, addr, len) };
        on(fd, |f| match f.kind() {
            Kind::Stack => net::socket::peer_name(f, at(addr), at(len)),
            Kind::Inherited => net::inherited::peer_name(f, fd, at(addr), at(len)),
            _ => refuse("getpeername", f, || Ok(())),
        }, native)
    }

    /// sockatmark(3).
    fn sockatmark(fd: c_int) -> c_int {
        // SAFETY: forwards the caller's own argument.
        let native = || unsafe { next::sockatmark(fd) };
        on(fd, |f| match f.kind() {
            Kind::Stack => net::ioctl::at_mark(f),
            _ => refuse_with("sockatmark", f, Errno::ENOTTY),
        }, native)
    }

    /// shutdown(2). On an attached TCP socket it is a state change that KCM reports.
    fn shutdown(fd: c_int, how: c_int) -> c_int {
        let native = || {
            net::pristine::changed(fd);
            // SAFETY: forwards the caller's own arguments.
            unsafe { next::shutdown(fd, how) }
        };
        on(fd, |f| {
            match f.kind() {
                Kind::Kcm => return Err(publish::unsupported(f, "shutdown", Errno::EOPNOTSUPP).into()),
                Kind::Inherited if !f.is_stream() => return net::channel::holder::shutdown(f),
                Kind::Stack => {
                    if f.speaks() {
                        native();
                    }
                    let done = net::socket::shutdown(f, how)?;
                    tcp::state_changed(f);
                    return Ok(done);
                }
                _ => {}
            }
            let done = native();
            if done == 0 {
                tcp::state_changed(f);
            }
            Ok(done)
        }, native)
    }

    /// getsockopt(2).
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, len: *mut socklen_t) -> c_int {
        // SAFETY: forwards the caller's own arguments.
        let native = || unsafe { next::getsockopt(fd, level, name, value, len) };
        on(fd, |f| match f.kind() {
            Kind::Kcm => {
                let done = kcm::options::get(f, fd, level, name, at(value), at(len));
                publish::option(done, ("getsockopt", fd), level, name)
            }
            Kind::Tcp => tcp::getsockopt(f, level, name, at(value), at(len)),
            Kind::Stack => match tcp::getsockopt(f, level, name, at(value), at(len)) {
                Err(Exit::Native) => {
                    let done = net::options::get(f, level, name, at(value), at(len));
                    publish::stack_option(done, ("getsockopt", fd), level, name)
                }
                posted => posted,
            },
            Kind::Inherited => match tcp::getsockopt(f, level, name, at(value), at(len)) {
                Err(Exit::Native) => {
                    let done = net::inherited::get(f, fd, level, name, at(value), at(len));
                    publish::stack_option(done, ("getsockopt", fd), level, name)
                }
                posted => posted,
            },
            _ => Err(Exit::Native),
        }, native)
    }

    /// setsockopt(2).
    fn setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, len: socklen_t) -> c_int {
        match lookup(fd) {
            // SAFETY: forwards the caller's own arguments.
            None if !route::is_set() => unsafe { next::setsockopt(fd, level, name, value, len) },
            None => set_early(fd, level, name, value, len),
            Some(file) => set_option(file, fd, level, name, value, len),
        }
    }
}
