//! Waiting for a set: what its members show, ours and the kernel's, and the sleep until one shows something.

use kcm_mux::Nanos;
use libc::{epoll_event, pollfd};

use super::beneath::drain_aux;
use super::homes::engines;
use super::{ALWAYS, EPOLLET, EPOLLONESHOT, FLAGS, Member, kernel_set, with};
use crate::errno::Outcome;
use crate::fd::{File, lookup};
use crate::interpose::poll::{SigMask, native_ppoll_masked};
use crate::net::cells::ENGINES_MAX;
use crate::net::turns::{self, Turns};
use crate::ready::{self, Beneath};
use crate::sync::Lent;
use crate::sys;
use crate::wait::{self, BellId, Held, Pin};

/// epoll_pwait2(2) on a set that holds, or held, files of ours.
pub(crate) fn wait(
    file: &'static File,
    room: usize,
    until: Option<Nanos>,
    mask: SigMask,
) -> Outcome<Vec<epoll_event>> {
    let mut awake = None; // lets go of the set at the end
    let mut seen = Seen::at_first(file, until)?;
    loop {
        turns::look(engines(file));
        if seen.aux {
            drain_aux(file);
        }
        let mut events = Vec::new();
        if seen.kernel {
            let native_first = with(file, |set| {
                set.native_first = !set.native_first;
                set.native_first
            })?;
            if native_first {
                events = native(file, room)?;
            }
            events.extend(collect(file, room - events.len(), true)?);
            if !native_first && events.len() < room {
                events.extend(native(file, room - events.len())?);
            }
        } else {
            events = collect(file, room, true)?;
        }
        if !events.is_empty() || until.is_some_and(|at| at <= sys::now()) {
            return Ok(events);
        }
        (awake, seen) = sleep(file, until, mask, awake)?;
    }
}

/// Which of a set's descriptors may have something.
#[derive(Clone, Copy)]
struct Seen {
    kernel: bool,
    aux: bool,
}

/// A program that comes back sooner has its kernel members asked when it sleeps, or the next time: a
/// thread that serves thousands of messages from here spares a system call for each.
const ASK_INTERVAL: Nanos = 50_000;

impl Seen {
    const ALL: Self = Self {
        kernel: true,
        aux: true,
    };

    /// Before the first sleep. What a sleep tells need not be asked beforehand.
    fn at_first(file: &File, until: Option<Nanos>) -> Outcome<Self> {
        let now = sys::now();
        let kernel = with(file, |set| {
            let due = until.is_some_and(|at| at <= now) || set.call_in.is_some();
            due || now.saturating_sub(set.asked_at) >= ASK_INTERVAL
        })?;
        Ok(Self { kernel, aux: true })
    }
}

/// Whether a member of ours has something to report now.
pub(crate) fn any_ready(file: &'static File) -> bool {
    drain_aux(file);
    collect(file, 1, false).is_ok_and(|events| !events.is_empty())
}

/// Events of ready members, at most `room`. Taking them (`take`) ends an edge, spends a one-shot
/// and puts a level member at the end of the list; members that have nothing leave it, unless
/// something came while that was found out.
fn collect(file: &'static File, room: usize, take: bool) -> Outcome<Vec<epoll_event>> {
    let queued: Vec<_> = with(file, |set| {
        let member = |key: &u64| set.members.get(key).map(|m| (*key, *m));
        set.ready.iter().filter_map(member).collect()
    })?;
    let mut events = Vec::new();
    for (key, member) in queued {
        if events.len() == room {
            break;
        }
        let (now, news) = look(file, key, member)?;
        with(file, |set| {
            let Some(member) = set.members.get_mut(&key) else {
                return;
            };
            let spends = take && now != 0 && member.events & EPOLLONESHOT != 0;
            let over = now == 0 || (take && member.events & EPOLLET != 0);
            let leaves = spends || (over && member.news == news);
            if now != 0 {
                events.push(epoll_event {
                    events: now,
                    u64: member.data,
                });
                member.spent |= spends;
            }
            if leaves || take {
                match set.ready.front() {
                    Some(first) if *first == key => drop(set.ready.pop_front()),
                    _ => set.ready.retain(|k| *k != key),
                }
            }
            if leaves {
                member.queued = false;
            } else if take {
                set.ready.push_back(key);
            }
        })?;
    }
    Ok(events)
}

/// What a member has to report, and the news that this takes in. Looking may bring news itself, when
/// it reads connections; that is looked at too.
fn look(file: &File, key: u64, mut member: Member) -> Outcome<(u32, u32)> {
    /// What still comes then stays news.
    const LOOKS_MAX: usize = 4;
    let mut now = 0;
    let mut news = member.news;
    for _ in 0..LOOKS_MAX {
        news = member.news;
        now = current(&member) & (member.events & !FLAGS | ALWAYS);
        match with(file, |set| set.members.get(&key).copied())? {
            Some(latest) if latest.news != news => member = latest,
            _ => break,
        }
    }
    Ok((now, news))
}

/// Poll bits of a member now.
fn current(member: &Member) -> u32 {
    let bits = ready::bits(member.file, member.fd);
    // The number may name another file by now, while duplicates keep the member.
    let is_there = lookup(member.fd).is_some_and(|file| core::ptr::eq(file, member.file));
    if ready::beneath(member.file) != Beneath::Speaks || !is_there {
        return bits;
    }
    let events = (member.events & !FLAGS) as i16;
    let mut entry = [pollfd {
        fd: member.fd,
        events,
        revents: 0,
    }];
    sys::poll_now(&mut entry);
    bits | entry[0].revents as u16 as u32
}

/// Events of the kernel's members, without waiting.
fn native(file: &'static File, room: usize) -> Outcome<Vec<epoll_event>> {
    with(file, |set| {
        let calling = usize::from(set.call_in.is_some());
        set.asked_at = sys::now();
        let mut events = sys::epoll_now(sys::number(&set.kernel), room + calling);
        if calling != 0 {
            kernel_set::strip(&mut events);
            events.truncate(room); // what is cut off is level-triggered or comes with a new edge
        }
        events
    })
}

/// What a thread that sleeps in epoll_wait holds.
pub(crate) struct SetStay {
    set: Pin,
    bell: Lent,
    id: BellId,
    turn: Option<Turns>,
    /// The bell's descriptor may be readable.
    rung: bool,
}

impl Drop for SetStay {
    fn drop(&mut self) {
        let id = self.id;
        let _ = with(self.set.file(), |set| set.sleepers.retain(|b| *b != id));
        self.bell.disarm(self.rung);
    }
}

/// Sleeps until a member, of ours or of the kernel's, may have something. The set stays as long as
/// the caller keeps what it gets; it gives up `before` in exchange.
fn sleep(
    file: &'static File,
    until: Option<Nanos>,
    mask: SigMask,
    mut before: Option<SetStay>,
) -> Outcome<(Option<SetStay>, Seen)> {
    let set = Pin::new(file)?;
    let (bell, id) = wait::lend()?;
    bell.arm();
    let raw_bell = bell.bell().raw_fd();
    let turn = before.as_mut().and_then(|before| before.turn.take());
    let duty = turns::sleep(engines(file), id, turn);
    let due = duty.until;
    let mut all = [wait::readable(-1); 3 + ENGINES_MAX];
    let used = 3 + duty.entries().len();
    all[3..used].copy_from_slice(duty.entries());
    let stay = SetStay {
        set,
        bell,
        id,
        turn: Some(duty.turns()),
        rung: true,
    };
    drop(before);
    let (fds, calling, pending) = with(file, |set| {
        set.sleepers.push(id);
        let calling = set.call_in.as_ref().and_then(kernel_set::CallIn::next_look);
        if calling.is_none() {
            set.call_in = None;
        }
        // While others are called in, the kernel's set shows the call all the time.
        let kernel = calling.is_none().then(|| sys::number(&set.kernel));
        (
            (kernel, set.has_beneath.then(|| sys::number(&set.aux))),
            calling,
            !set.ready.is_empty(),
        )
    })?;
    if pending {
        return Ok((Some(stay), Seen::ALL));
    }
    // poll(2) passes over negative numbers.
    for (place, fd) in all.iter_mut().zip([raw_bell, fds.0, fds.1]) {
        place.fd = fd.unwrap_or(-1);
    }
    let fds = &mut all[..used];
    let wake_at = [until, calling, due].into_iter().flatten().min();
    let (slept, held) = wait::holding(Held::Set(stay), || native_ppoll_masked(fds, wake_at, mask));
    slept?;
    let seen = Seen {
        kernel: calling.is_some() || fds[1].revents != 0,
        aux: fds[2].revents != 0,
    };
    let stay = match held {
        Some(Held::Set(mut stay)) => {
            stay.rung = fds[0].revents != 0;
            Some(stay)
        }
        _ => None,
    };
    Ok((stay, seen))
}
