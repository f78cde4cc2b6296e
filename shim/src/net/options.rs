//! Socket options of a stack socket. SOL_SOCKET options that mean the same on any socket are kept
//! and answered by the AF_UNIX socket beneath; those that TCP, UDP or IP give a meaning are here.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use kcm_stack::{CongestionControl, IfaceId, SockFlag, SockOpts, State as TcpState};
use rustix::fd::AsFd;
use rustix::net::sockopt;

use super::cells::{self, EngineGuard};
use super::listeners;
use super::socket::State;
use super::udp::groups::Place;
use super::udp::options::Wants;
use super::{device, errors, fixed, info, socket, udp};
use crate::errno::{Errno, Exit, Outcome};
use crate::fd::File;
use crate::kcm::options::{put_bytes, put_int};
use crate::sys;
use crate::user_mem::{self, UserPtr};
use crate::values;

/// Options of one socket, as far as the engine does not have them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// Options with a value, as the engine takes them.
    pub(crate) tcp: SockOpts,
    /// Flags of [`FLAGS`], a bit each.
    on: u8,
    pub(crate) reuse_address: bool,
    pub(crate) reuse_port: bool,
    pub(crate) v6_only: bool,
    /// TCP_DEFER_ACCEPT in SYN-ACKs, 0 for off.
    pub(crate) defer_accept: u8,
    /// The interface the socket keeps to.
    pub(crate) device: Option<IfaceId>,
    /// The address by which IP_MULTICAST_IF named the interface.
    pub(crate) multicast_address: [u8; 4],
    /// What a UDP socket tells beside its datagrams.
    pub(crate) wants: Wants,
    /// SO_LINGER in seconds; `None` for off.
    pub(crate) linger: Option<u32>,
    /// SO_RCVTIMEO and SO_SNDTIMEO in nanoseconds, 0 for none.
    pub(super) timeouts: [u64; 2],
}

/// The engine's on/off options and their names.
const FLAGS: [(i32, i32, SockFlag); 5] = [
    (libc::IPPROTO_TCP, libc::TCP_NODELAY, SockFlag::NoDelay),
    (libc::IPPROTO_TCP, libc::TCP_CORK, SockFlag::Cork),
    (libc::IPPROTO_TCP, libc::TCP_QUICKACK, SockFlag::QuickAck),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE, SockFlag::KeepAlive),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE, SockFlag::OobInline),
];

/// SO_RCVTIMEO and SO_SNDTIMEO with 64-bit fields.
const SO_RCVTIMEO_NEW: i32 = 66;
const SO_SNDTIMEO_NEW: i32 = 67;
/// Buffer sizes are reported doubled, since Linux counts its overhead in (socket(7)).
pub(super) const OVERHEAD: u32 = 2;
/// The least the buffers can be set to (SOCK_MIN_SNDBUF, SOCK_MIN_RCVBUF), overhead included.
const SNDBUF_MIN: u32 = 4608;
const RCVBUF_MIN: u32 = 2304;

impl Settings {
    /// What a connection gets from its listener.
    pub(crate) fn inherited(&self) -> Self {
        self.clone()
    }

    /// Timeouts are the file's, where every wait finds them.
    pub(crate) fn keep_timeouts(&self, file: &File) {
        file.rcvtimeo.store(self.timeouts[0], Ordering::Relaxed);
        file.sndtimeo.store(self.timeouts[1], Ordering::Relaxed);
    }

    /// The socket beneath answers for the timeouts.
    pub(crate) fn show_timeouts(&self, beneath: impl AsFd) {
        let both = [sockopt::Timeout::Recv, sockopt::Timeout::Send];
        for (which, length) in both.into_iter().zip(self.timeouts) {
            if length != 0 {
                let length = Some(Duration::from_nanos(length));
                let _ = sockopt::set_socket_timeout(&beneath, which, length);
            }
        }
    }

    /// The engine's flags that are on.
    pub(crate) fn flags(&self) -> Vec<SockFlag> {
        let on = |(at, (_, _, flag)): (usize, &(i32, i32, SockFlag))| {
            (self.on & 1 << at != 0).then_some(*flag)
        };
        FLAGS.iter().enumerate().filter_map(on).collect()
    }

    /// Value of an integer option.
    /// SO_RCVBUF.
    pub(super) fn rcvbuf(&self) -> u32 {
        let size = self.int(libc::SOL_SOCKET, libc::SO_RCVBUF);
        size.and_then(|size| u32::try_from(size).ok()).unwrap_or(0)
    }

    pub(super) fn int(&self, level: i32, name: i32) -> Option<i32> {
        let seconds = |d: Duration| d.as_secs().min(i32::MAX as u64) as i32;
        let tcp = &self.tcp;
        Some(match (level, name) {
            (libc::SOL_SOCKET, libc::SO_REUSEADDR) => self.reuse_address.into(),
            (libc::SOL_SOCKET, libc::SO_REUSEPORT) => self.reuse_port.into(),
            (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => tcp.rcvlowat as i32,
            (libc::SOL_SOCKET, libc::SO_SNDLOWAT) => 1,
            (libc::SOL_SOCKET, libc::SO_RCVBUF) => {
                doubled(tcp.rcvbuf.unwrap_or(kcm_stack::limits::RCVBUF_BYTES))
            }
            (libc::SOL_SOCKET, libc::SO_SNDBUF) => {
                doubled(tcp.sndbuf.unwrap_or(kcm_stack::limits::SNDBUF_BYTES))
            }
            (libc::IPPROTO_TCP, libc::TCP_MAXSEG) => tcp.max_seg.unwrap_or(536).into(),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => seconds(tcp.keep_idle),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => seconds(tcp.keep_interval),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT) => tcp.keep_count.into(),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => {
                tcp.user_timeout.map_or(0, |d| d.as_millis() as i32)
            }
            (libc::IPPROTO_TCP, libc::TCP_SYNCNT) => tcp.syn_retries.into(),
            (libc::IPPROTO_TCP, libc::TCP_LINGER2) => seconds(tcp.fin_wait),
            (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT) => {
                kcm_stack::defer_seconds(self.defer_accept) as i32
            }
            (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                tcp.tos.into()
            }
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) => {
                tcp.hop_limit.into()
            }
            (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) => self.v6_only.into(),
            _ => {
                let at = flag_at(level, name)?;
                i32::from(self.on & 1 << at != 0)
            }
        })
    }

    /// Sets an integer option, by the limits of tcp(7), ip(7) and socket(7).
    pub(super) fn set_int(&mut self, level: i32, name: i32, value: i32) -> Result<(), Errno> {
        let within = |low: i32, high: i32| match value {
            v if v < low || v > high => Err(Errno::EINVAL),
            v => Ok(v as u32),
        };
        let seconds = |n: u32| Duration::from_secs(n.into());
        let tcp = &mut self.tcp;
        match (level, name) {
            (libc::SOL_SOCKET, libc::SO_REUSEADDR) => self.reuse_address = value != 0,
            (libc::SOL_SOCKET, libc::SO_REUSEPORT) => self.reuse_port = value != 0,
            (libc::SOL_SOCKET, libc::SO_RCVLOWAT) => {
                tcp.rcvlowat = if value < 0 {
                    i32::MAX as u32
                } else {
                    value.max(1) as u32
                };
            }
            (libc::SOL_SOCKET, libc::SO_SNDLOWAT) => return Err(Errno::ENOPROTOOPT),
            (libc::SOL_SOCKET, libc::SO_RCVBUF | libc::SO_RCVBUFFORCE) => {
                tcp.rcvbuf = Some(buffer(
                    value,
                    RCVBUF_MIN,
                    kcm_stack::limits::RCVBUF_BYTES_MAX,
                ));
            }
            (libc::SOL_SOCKET, libc::SO_SNDBUF | libc::SO_SNDBUFFORCE) => {
                tcp.sndbuf = Some(buffer(
                    value,
                    SNDBUF_MIN,
                    kcm_stack::limits::SNDBUF_BYTES_MAX,
                ));
            }
            (libc::IPPROTO_TCP, libc::TCP_MAXSEG) => {
                tcp.max_seg = match value {
                    0 => None,
                    _ => Some(within(i32::from(kcm_stack::limits::MSS_MIN), 32767)? as u16),
                };
            }
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => tcp.keep_idle = seconds(within(1, 32767)?),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => {
                tcp.keep_interval = seconds(within(1, 32767)?);
            }
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT) => tcp.keep_count = within(1, 127)? as u8,
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => {
                let ms = within(0, i32::MAX)?;
                tcp.user_timeout = (ms != 0).then(|| Duration::from_millis(ms.into()));
            }
            (libc::IPPROTO_TCP, libc::TCP_SYNCNT) => tcp.syn_retries = within(1, 127)? as u8,
            (libc::IPPROTO_TCP, libc::TCP_LINGER2) => {
                tcp.fin_wait = match value {
                    ..0 => Duration::ZERO,
                    0 => kcm_stack::limits::FIN_WAIT_2,
                    n => seconds(n as u32).min(kcm_stack::limits::FIN_WAIT_2 * 2),
                };
            }
            (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT) => {
                self.defer_accept = kcm_stack::defer_repeats(value.max(0) as u32);
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => tcp.tos = value as u8 & !3,
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                tcp.tos = within(-1, 255).map(|_| value.max(0) as u8 & !3)?;
            }
            (libc::IPPROTO_IP, libc::IP_TTL) => {
                tcp.hop_limit = match value {
                    -1 => SockOpts::DEFAULT.hop_limit,
                    _ => within(1, 255)? as u8,
                };
            }
            (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) => {
                tcp.hop_limit = match value {
                    -1 => SockOpts::DEFAULT.hop_limit,
                    _ => within(0, 255)? as u8,
                };
            }
            (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) => self.v6_only = value != 0,
            _ => {
                let at = flag_at(level, name).ok_or(Errno::ENOPROTOOPT)?;
                self.on = self.on & !(1 << at) | u8::from(value != 0) << at;
            }
        }
        Ok(())
    }
}

fn flag_at(level: i32, name: i32) -> Option<usize> {
    FLAGS.iter().position(|(l, n, _)| (*l, *n) == (level, name))
}

fn doubled(bytes: u32) -> i32 {
    bytes.saturating_mul(OVERHEAD).min(i32::MAX as u32) as i32
}

/// A buffer size as the engine counts it: payload.
fn buffer(value: i32, min: u32, max: u32) -> u32 {
    (value.max(0) as u32).clamp(min / OVERHEAD, max)
}

/// getsockopt(2).
pub(crate) fn get(
    file: &'static File,
    level: i32,
    name: i32,
    value: UserPtr,
    length: UserPtr,
) -> Outcome<i32> {
    let mut engine = cells::lock(file)?;
    let (state, v6) = {
        let socket = engine.socket(file)?;
        (socket.state, socket.v6)
    };
    let is_udp = matches!(state, State::Udp(_));
    if let Some(errno) = fixed::foreign_level(level, is_udp, v6) {
        return Err(errno.into());
    }
    if fixed::is_beneath_only(level, name) {
        return Err(Errno::EOPNOTSUPP.into());
    }
    if let Some(done) = device::get(&mut engine, file, (level, name), value, length)? {
        return Ok(done);
    }
    if is_udp {
        if udp::options::is_beneath(level, name) {
            return Err(Exit::Native);
        }
        if let Some(done) = udp::filter::get(&mut engine, file, (level, name), value, length)? {
            return Ok(done);
        }
        if let Some(answer) = udp::options::get(&mut engine, file, level, name)? {
            drop(engine);
            return put_int(answer, value, length);
        }
    }
    let answer = match (level, name) {
        (libc::SOL_SOCKET, libc::SO_TYPE) => {
            if is_udp {
                libc::SOCK_DGRAM
            } else {
                libc::SOCK_STREAM
            }
        }
        (libc::SOL_SOCKET, libc::SO_DOMAIN) => {
            if v6 {
                libc::AF_INET6
            } else {
                libc::AF_INET
            }
        }
        (libc::SOL_SOCKET, libc::SO_PROTOCOL) => {
            if is_udp {
                libc::IPPROTO_UDP
            } else {
                libc::IPPROTO_TCP
            }
        }
        (libc::SOL_SOCKET, libc::SO_ACCEPTCONN) => matches!(state, State::Listening(_)).into(),
        (libc::SOL_SOCKET, libc::SO_ERROR) => take_error(&mut engine, file)?,
        (libc::SOL_SOCKET, libc::SO_LINGER) => {
            let linger = engine.socket(file)?.settings.linger;
            drop(engine);
            let (on, seconds) = (i32::from(linger.is_some()), linger.unwrap_or(0) as i32);
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&on.to_ne_bytes());
            bytes[4..].copy_from_slice(&seconds.to_ne_bytes());
            return put_bytes(&bytes, value, length);
        }
        (libc::IPPROTO_TCP, libc::TCP_INFO) => {
            let now = engine.now();
            let bytes = match state {
                State::Connecting(id) | State::Connected(id) => {
                    engine.stack.tcp_info(now, id).map(|i| info::encode(&i))
                }
                State::Listening(_) => Some(info::of_state(info::LISTEN)),
                _ => None,
            };
            drop(engine);
            let bytes = bytes.unwrap_or_else(|| info::of_state(info::CLOSE));
            return put_bytes(&bytes, value, length);
        }
        (libc::IPPROTO_TCP, libc::TCP_CONGESTION) => {
            let name = engine.socket(file)?.settings.tcp.congestion.name();
            drop(engine);
            let mut room = [0; CONGESTION_MAX];
            for (to, from) in room.iter_mut().zip(name.bytes()) {
                *to = from;
            }
            return put_bytes(&room, value, length);
        }
        (libc::IPPROTO_TCP, libc::TCP_MAXSEG) if conn_of(state).is_some() => {
            let now = engine.now();
            let info = conn_of(state).and_then(|id| engine.stack.tcp_info(now, id));
            info.map_or(536, |i| i.snd_mss.into())
        }
        _ => match engine.socket(file)?.settings.int(level, name) {
            Some(answer) => answer,
            None => match fixed::value(level, name) {
                Some(only) => only,
                None if level == libc::SOL_SOCKET => {
                    file.not_plain(); // SO_COOKIE, which is no other socket's
                    return Err(Exit::Native);
                }
                None => return Err(Errno::ENOPROTOOPT.into()),
            },
        },
    };
    drop(engine);
    put_int(answer, value, length)
}

fn conn_of(state: State) -> Option<kcm_stack::TcpId> {
    match state {
        State::Connecting(id) | State::Connected(id) => Some(id),
        _ => None,
    }
}

/// SO_ERROR: what is pending, reported once. A connect that failed is over with it.
fn take_error(engine: &mut EngineGuard, file: &'static File) -> Outcome<i32> {
    engine.pump();
    let state = engine.socket(file)?.state;
    let cause = match state {
        State::Connecting(id) | State::Connected(id) => engine.stack.tcp_take_error(id),
        State::Udp(id) => engine.stack.udp_take_error(id),
        _ => return Ok(core::mem::take(&mut engine.socket(file)?.error)),
    };
    if let State::Connecting(id) = state {
        match engine.stack.tcp_state(id) {
            Some(TcpState::SynSent | TcpState::SynReceived) => {}
            Some(TcpState::Closed) | None if cause.is_some() => {
                let now = engine.now();
                socket::lose(engine, file)?;
                engine.stack.tcp_close(now, id);
            }
            _ => drop(engine.set_state(file, State::Connected(id))?),
        }
    }
    Ok(cause.map_or(0, |cause| errors::cause(cause).0))
}

/// setsockopt(2). `native` makes the real call on the socket beneath.
pub(crate) fn set(
    file: &'static File,
    fd: i32,
    level: i32,
    name: i32,
    value: UserPtr,
    length: u32,
    native: impl Fn() -> i32,
) -> Outcome<i32> {
    if device::names_stranger((level, name), value, length)? {
        return Err(Errno::ENODEV.into());
    }
    let place = udp::groups::place(level, name, value, length)?;
    if file.speaks() && place == Some(Place::Elsewhere) {
        return Err(Exit::Native);
    }
    // A group on an interface of the stack's would be heard twice.
    if file.speaks() && !matches!(place, Some(Place::Here(_))) {
        // The kernel's listener beneath has its own; ours decides about the answer.
        let saved = Errno::current();
        native();
        saved.set();
    }
    {
        let mut engine = cells::lock(file)?;
        let socket = engine.socket(file)?;
        let udp = matches!(socket.state, State::Udp(_));
        if fixed::foreign_level(level, udp, socket.v6).is_some() {
            return Err(Errno::ENOPROTOOPT.into());
        }
    }
    if fixed::is_beneath_only(level, name) {
        return Err(Errno::EOPNOTSUPP.into());
    }
    if udp::options::is_beneath(level, name) && udp::is_udp(file)? {
        let done = native();
        udp::options::follow_rcvbuf(file, fd)?;
        return Ok(done);
    }
    if let Some(done) = device::set(file, (level, name), value, length)? {
        return Ok(done);
    }
    if let Some(done) = udp::groups::set(file, level, name, value, length)? {
        return Ok(done);
    }
    if let Some(done) = udp::filter::set(file, level, name, value, length)? {
        return Ok(done);
    }
    if let Some(done) = udp::options::set(file, level, name, value, length)? {
        return Ok(done);
    }
    match (level, name) {
        (libc::SOL_SOCKET, libc::SO_RCVTIMEO | SO_RCVTIMEO_NEW) => {
            let done = native();
            follow(&file.rcvtimeo, fd, sockopt::Timeout::Recv);
            return Ok(done);
        }
        (libc::SOL_SOCKET, libc::SO_SNDTIMEO | SO_SNDTIMEO_NEW) => {
            let done = native();
            follow(&file.sndtimeo, fd, sockopt::Timeout::Send);
            return Ok(done);
        }
        // Who may is for the kernel to say, of the socket beneath.
        (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE | libc::SO_SNDBUFFORCE) => {
            let done = native();
            if done != 0 {
                return Ok(done);
            }
            let size = user_mem::copy_in::<i32>(value)?;
            return change(file, |settings| settings.set_int(level, name, size));
        }
        (libc::SOL_SOCKET, libc::SO_LINGER) => return set_linger(file, value, length),
        (libc::IPPROTO_TCP, libc::TCP_CONGESTION) => return set_congestion(file, value, length),
        _ => {}
    }
    let known = {
        let mut engine = cells::lock(file)?;
        engine.socket(file)?.settings.int(level, name).is_some()
    };
    let only = fixed::value(level, name).filter(|_| !known);
    if !known && only.is_none() && level == libc::SOL_SOCKET {
        return Err(Exit::Native);
    }
    if !known && only.is_none() {
        return Err(Errno::ENOPROTOOPT.into());
    }
    let value = user_mem::int_value(value, length)?;
    if let Some(only) = only {
        return match value == only {
            true => Ok(0),
            false => Err(Errno::ENOPROTOOPT.into()),
        };
    }
    change(file, |settings| settings.set_int(level, name, value))?;
    if let Some(at) = flag_at(level, name)
        && let Some((_, _, flag)) = FLAGS.get(at)
    {
        let mut engine = cells::lock(file)?;
        let now = engine.now();
        if let Some(id) = engine.socket(file)?.conn() {
            let _ = engine.stack.tcp_set_flag(now, id, *flag, value != 0);
        }
    }
    Ok(0)
}

/// Whether the value of an option is no int, and not the socket's beneath either.
pub(super) fn is_composite(level: i32, name: i32) -> bool {
    matches!(
        (level, name),
        (libc::SOL_SOCKET, libc::SO_LINGER) | (libc::IPPROTO_TCP, libc::TCP_CONGESTION)
    )
}

/// Changes the settings of a socket, and what the engine has of them.
fn change(
    file: &'static File,
    edit: impl FnOnce(&mut Settings) -> Result<(), Errno>,
) -> Outcome<i32> {
    let mut engine = cells::lock(file)?;
    let now = engine.now();
    let socket = engine.socket(file)?;
    edit(&mut socket.settings)?;
    let (opts, state) = (socket.settings.tcp.clone(), socket.state);
    match state {
        State::Connecting(id) | State::Connected(id) => {
            if engine.stack.tcp_opts(id) != Some(&opts) {
                let _ = engine.stack.tcp_set_opts(now, id, opts);
            }
        }
        State::Listening(_) => {
            drop(engine);
            listeners::settings_changed(file);
        }
        State::Udp(_) | State::Unbound | State::Bound(_) => {}
    }
    Ok(0)
}

fn set_linger(file: &'static File, value: UserPtr, length: u32) -> Outcome<i32> {
    let mut room = [0; size_of::<libc::linger>()];
    let value = user_mem::value(value, length, room.len(), &mut room)?;
    let linger = values::linger(value).ok_or(Errno::EINVAL)?;
    change(file, |settings| {
        settings.linger = linger;
        Ok(())
    })
}

/// Longest name of a congestion control, TCP_CA_NAME_MAX.
pub(super) const CONGESTION_MAX: usize = 16;

fn set_congestion(file: &'static File, value: UserPtr, length: u32) -> Outcome<i32> {
    let mut room = [0; CONGESTION_MAX - 1];
    let name = user_mem::value(value, length, 1, &mut room)?;
    let congestion = str::from_utf8(values::text(name))
        .ok()
        .and_then(CongestionControl::from_name)
        .ok_or(Errno::ENOENT)?;
    change(file, |settings| {
        settings.tcp.congestion = congestion;
        Ok(())
    })
}

fn follow(at: &AtomicU64, fd: i32, which: sockopt::Timeout) {
    let set = sockopt::socket_timeout(sys::borrow(fd), which)
        .ok()
        .flatten();
    let length = set.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX));
    at.store(length, Ordering::Relaxed);
}
