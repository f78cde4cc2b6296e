//! What lies beneath the members of a set: connections of their muxes, sockets of attached TCP descriptors,
//! queues that processes share, inner sets. A private epoll descriptor, `aux`, watches it.

use kcm_mux::PsockId;
use rustix::event::epoll;

use super::{deliver, with};
use crate::errno::Outcome;
use crate::fd::{File, Kind};
use crate::kcm::{Connection, MuxCell};
use crate::ready::{self, Beneath};
use crate::sys;

/// Events taken from `aux` at a time.
const AUX_BATCH: usize = 64;

/// What `aux` reports: a connection of a mux, or the real descriptor of a member.
pub(super) enum Source {
    Connection(u32, PsockId),
    Member(u64),
}

impl Source {
    const MEMBER: u64 = 1 << 63;

    pub(super) fn pack(&self) -> u64 {
        match self {
            Self::Connection(cell, psock) => u64::from(*cell) << 32 | u64::from(psock.0),
            Self::Member(key) => Self::MEMBER | key,
        }
    }

    fn unpack(data: u64) -> Self {
        if data & Self::MEMBER != 0 {
            Self::Member(data & !Self::MEMBER)
        } else {
            Self::Connection((data >> 32) as u32, PsockId(data as u32))
        }
    }
}

/// Makes `aux` watch what lies beneath a new member.
pub(super) fn watch_beneath(
    set: &'static File,
    target: &'static File,
    fd: i32,
    key: u64,
    events: u32,
) -> Outcome<()> {
    if ready::beneath(target) == Beneath::Queue {
        return watch_queue(set, fd, key);
    }
    if ready::beneath(target) == Beneath::Mute && target.kind() == Kind::Stack {
        return Ok(()); // the engine tells by the watch list
    }
    if target.kind() == Kind::Kcm {
        let cell = target.mux()?;
        let engine = cell.lock()?;
        let conns: Vec<_> = engine.mux.psocks().collect();
        for psock in conns {
            if let Some(conn) = engine.connection(psock) {
                watch_connection(set, cell, psock, conn);
            }
        }
        return Ok(());
    }
    let inner = sources(target);
    with(set, |set| {
        let tag = epoll::EventData::new_u64(Source::Member(key).pack());
        for fd in inner.into_iter().chain([fd]) {
            set.has_beneath = true;
            let _ = epoll::add(&set.aux, sys::borrow(fd), tag, asked(events));
        }
    })
}

/// What `aux` watches of a member's own descriptor: each change of what the program asks for, and
/// no other. A monitor that waits for the end of a connection does not wake for its data.
pub(super) fn asked(events: u32) -> epoll::EventFlags {
    let bits = epoll::EventFlags::IN
        | epoll::EventFlags::OUT
        | epoll::EventFlags::RDHUP
        | epoll::EventFlags::PRI;
    epoll::EventFlags::from_bits_retain(events) & bits | epoll::EventFlags::ET
}

/// A socket shared between processes tells itself when it has a message.
fn watch_queue(set: &File, fd: i32, key: u64) -> Outcome<()> {
    let tag = epoll::EventData::new_u64(Source::Member(key).pack());
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    let _ = with(set, |set| {
        set.has_beneath = true;
        epoll::add(&set.aux, sys::borrow(fd), tag, flags)
    })?;
    Ok(())
}

/// A member has become a socket of which the descriptor beneath has something to say.
pub(crate) fn watch_anew(set: &'static File, target: &'static File) {
    let these: Vec<_> = with(set, |set| {
        let members = set.members.iter();
        let these = members.filter(|(_, m)| core::ptr::eq(m.file, target));
        these.map(|(key, m)| (*key, *m)).collect()
    })
    .unwrap_or_default();
    for (key, member) in these {
        let _ = watch_beneath(set, target, member.fd, key, member.events);
        deliver(set, key, u32::MAX);
    }
}

/// A connection joins the mux of a member: the set watches it too.
pub(crate) fn watch_connection(
    set: &File,
    cell: &'static MuxCell,
    psock: PsockId,
    conn: &Connection,
) {
    let tag = epoll::EventData::new_u64(Source::Connection(cell.index(), psock).pack());
    let flags = epoll::EventFlags::IN
        | epoll::EventFlags::OUT
        | epoll::EventFlags::RDHUP
        | epoll::EventFlags::ET;
    let _ = with(set, |set| {
        let fd = conn.fd();
        set.has_beneath = true;
        set.engines.beneath |= conn.engines();
        epoll::add(&set.aux, fd, tag, flags).or_else(|_| epoll::modify(&set.aux, fd, tag, flags))
    });
}

/// Descriptors that say something about what lies beneath our members.
pub(crate) fn sources(file: &File) -> Vec<i32> {
    with(file, |set| vec![sys::number(&set.aux)]).unwrap_or_default()
}

/// Takes in what `aux` has seen: connections are read, members queued.
pub(super) fn drain_aux(file: &'static File) {
    loop {
        let mut seen = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; AUX_BATCH];
        let none = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let count = with(file, |set| match set.has_beneath {
            true => epoll::wait(&set.aux, &mut seen[..], Some(&none)).unwrap_or(0),
            false => 0,
        });
        let Ok(count) = count else { return };
        for event in seen.into_iter().take(count) {
            let flags = event.flags;
            match Source::unpack(event.data.u64()) {
                Source::Connection(cell, psock) => {
                    if let Some(Ok(mut engine)) = MuxCell::by_index(cell).map(MuxCell::lock) {
                        engine.note(Some(psock), flags.bits() as i16);
                        engine.pump_known();
                    }
                }
                Source::Member(key) => {
                    deliver(file, key, u32::MAX);
                }
            }
        }
        if count < AUX_BATCH {
            return;
        }
    }
}
