//! poll(2) and select(2) over sets that hold at least one descriptor of ours.
//!
//! The calling thread looks at our files, then sleeps in the real ppoll on everything at once: the
//! foreign descriptors, the connections beneath our files, and a doorbell that other threads ring.

use kcm_mux::{Nanos, PsockId};
use libc::pollfd;

use crate::errno::Outcome;
use crate::fd::{File, Kind, lookup};
use crate::interpose::poll::{SigMask, native_ppoll_masked};
use crate::kcm::MuxCell;
use crate::net::cells::{self, Engines};
use crate::net::turns::{self, Turns};
use crate::ready::{self, Beneath};
use crate::sync::Lent;
use crate::wait::{BellId, Held, Pin, readable};
use crate::watch::Watcher;
use crate::{epoll, heap, net, sys, wait};

/// Entries that name a file of ours.
type Ours = Vec<(usize, &'static File)>;

/// Whether an entry has to be answered here.
pub(crate) fn any_ours(fds: &[pollfd]) -> bool {
    fds.iter().any(|entry| ours(entry.fd).is_some())
}

/// The file of `fd`, if its readiness is not the kernel's alone.
pub(crate) fn ours(fd: i32) -> Option<&'static File> {
    let file = lookup(fd)?;
    match file.kind() {
        Kind::Kcm | Kind::Tcp | Kind::Epoll | Kind::Stack => Some(file),
        Kind::Inherited => {
            net::inherited::hold(file, fd); // the kernel tells, once bytes flow
            Some(file).filter(|file| file.was_attached())
        }
        Kind::Bpf | Kind::Own | Kind::Free => None,
    }
}

/// Fills in `revents` of every entry and returns how many have any, as ppoll(2).
///
/// # Errors
/// EINTR when a signal handler ran, ENOMEM.
pub(crate) fn poll(fds: &mut [pollfd], until: Option<Nanos>, mask: SigMask) -> Outcome<usize> {
    let ours: Ours = fds
        .iter()
        .enumerate()
        .filter_map(|(at, e)| Some((at, ours(e.fd)?)))
        .collect();
    for entry in fds.iter_mut() {
        entry.revents = 0;
    }
    let mut awake = None; // lets go of the files at the end
    loop {
        heap::check_room()?;
        turns::look(engines(&ours));
        if look(fds, &ours) {
            merge_native(fds, &ours, Some(0), mask)?;
            return Ok(count(fds));
        }
        if until.is_some_and(|at| at <= sys::now()) {
            merge_native(fds, &ours, Some(0), mask)?;
            return Ok(count(fds));
        }
        awake = sleep(fds, &ours, until, mask, awake)?;
        if count(fds) > 0 {
            look(fds, &ours);
            return Ok(count(fds));
        }
    }
}

/// The engines that those are in which the files wait for.
fn engines(ours: &Ours) -> Engines {
    if !cells::are_several() {
        return Engines::ALL;
    }
    let beneath = |cell: &'static MuxCell| cell.lock().map(|engine| engine.conns.engines());
    let each = { ours.iter() }.map(|(_, file)| match (file.kind(), file.cell.get()) {
        (Kind::Stack, _) => file.engines(),
        (Kind::Kcm, Some(cell)) => beneath(cell).unwrap_or(Engines::NONE),
        (Kind::Epoll, _) => epoll::engines(file),
        _ => Engines::NONE,
    });
    each.fold(Engines::NONE, |all, one| all | one)
}

fn count(fds: &[pollfd]) -> usize {
    fds.iter().filter(|e| e.revents != 0).count()
}

/// Bits that ask for input.
const INPUT: i16 = libc::POLLIN | libc::POLLRDNORM;
/// Bits of an entry that are reported whether asked for or not.
const ALWAYS: i16 = libc::POLLERR | libc::POLLHUP | libc::POLLNVAL;

/// Notes what our own files show. True if any does.
fn look(fds: &mut [pollfd], ours: &Ours) -> bool {
    let mut any = false;
    for (at, file) in ours {
        let Some(entry) = fds.get_mut(*at) else {
            continue;
        };
        let bits = ready::bits(file, entry.fd);
        entry.revents |= bits as i16 & (entry.events | ALWAYS);
        any |= entry.revents != 0;
    }
    any
}

/// The entries as the kernel shall see them: ours are left out unless it has a say too.
fn native_entries(fds: &[pollfd], ours: &Ours) -> Vec<pollfd> {
    let mut native: Vec<pollfd> = fds.iter().map(|e| pollfd { revents: 0, ..*e }).collect();
    for (at, file) in ours {
        let Some(entry) = native.get_mut(*at) else {
            continue;
        };
        match ready::beneath(file) {
            Beneath::Queue if entry.events & INPUT != 0 => entry.events = libc::POLLIN,
            Beneath::Queue | Beneath::Mute => entry.fd = -1,
            Beneath::Speaks => {}
        }
    }
    native
}

/// Adds what the kernel said, but of KCM sockets, which are looked at anew.
fn merge(fds: &mut [pollfd], native: &[pollfd], ours: &Ours) {
    let mut skip = ours
        .iter()
        .filter(|(_, file)| file.kind() == Kind::Kcm)
        .map(|(at, _)| *at)
        .peekable();
    for (at, (entry, seen)) in fds.iter_mut().zip(native).enumerate() {
        if skip.next_if_eq(&at).is_none() {
            entry.revents |= seen.revents;
        }
    }
}

fn merge_native(
    fds: &mut [pollfd],
    ours: &Ours,
    until: Option<Nanos>,
    mask: SigMask,
) -> Outcome<()> {
    let mut native = native_entries(fds, ours);
    if until == Some(0) && native.iter().all(|entry| entry.fd < 0) {
        return Ok(()); // the kernel has nothing to say
    }
    native_ppoll_masked(&mut native, until, mask)?;
    merge(fds, &native, ours);
    Ok(())
}

/// Sleeps until anything happens or `until` has passed. The files of the last sleep, `before`, are
/// held until this one holds them; those of this one as long as the caller keeps what it gets.
fn sleep(
    fds: &mut [pollfd],
    ours: &Ours,
    until: Option<Nanos>,
    mask: SigMask,
    mut before: Option<Watching>,
) -> Outcome<Option<Watching>> {
    let mut watching = Watching::start(ours)?;
    let turn = before.as_mut().and_then(|before| before.turn.take());
    let duty = turns::sleep(engines(ours), watching.id, turn);
    let (device, due) = (duty.entries().to_vec(), duty.until);
    watching.turn = Some(duty.turns());
    drop(before);
    if look(fds, ours) {
        return Ok(Some(watching)); // it came between the last look and now
    }
    let mut native = native_entries(fds, ours);
    let program = native.len();
    native.extend(watching.bell.bell().raw_fd().map(readable));
    let mut sources: Vec<Source> = Vec::new();
    native.extend(device);
    let mut wake_at = [until, due].into_iter().flatten().min();
    for (_, file) in ours {
        match (file.kind(), file.cell.get()) {
            (Kind::Epoll, _) => native.extend(epoll::sources(file).into_iter().map(readable)),
            // An attached socket is polled itself; others read for it.
            (Kind::Kcm, Some(cell)) if !sources.iter().any(|(_, c, _)| core::ptr::eq(*c, cell)) => {
                let Ok(engine) = cell.lock() else { continue };
                let interest = engine.interest();
                for (psock, entry) in interest.ids.into_iter().zip(interest.fds) {
                    sources.push((native.len(), cell, psock));
                    native.push(entry);
                }
                wake_at = [wake_at, engine.mux.next_deadline()]
                    .into_iter()
                    .flatten()
                    .min();
            }
            _ => {}
        }
    }
    let (slept, held) = wait::holding(Held::Files(watching), || {
        native_ppoll_masked(&mut native, wake_at, mask)
    });
    note(&native, &sources);
    slept?;
    merge(fds, native.get(..program).unwrap_or(&[]), ours);
    Ok(match held {
        Some(Held::Files(watching)) => Some(watching),
        _ => None,
    })
}

/// A poll entry that belongs to a mux: where it stands, and what `kcm::connections` calls it.
type Source = (usize, &'static MuxCell, Option<PsockId>);

/// Tells the muxes what was seen of their connections.
fn note(native: &[pollfd], sources: &[Source]) {
    for (at, cell, psock) in sources {
        let seen = native.get(*at).map_or(0, |e| e.revents);
        if seen != 0
            && let Ok(mut engine) = cell.lock()
        {
            engine.note(*psock, seen);
            engine.pump_known();
        }
    }
}

/// A doorbell hung on every file of a set, and the files kept, as the kernel keeps those that a
/// thread polls while another closes them.
pub(crate) struct Watching {
    bell: Lent,
    id: BellId,
    files: Vec<Pin>,
    turn: Option<Turns>,
}

impl Watching {
    fn start(ours: &Ours) -> Outcome<Self> {
        let (bell, id) = wait::lend()?;
        bell.arm();
        let files = ours.iter().filter_map(|(_, file)| Pin::new(file).ok());
        let files: Vec<Pin> = files.collect();
        for pin in &files {
            pin.file().watch.add(Watcher::Thread(id));
        }
        Ok(Self {
            bell,
            id,
            files,
            turn: None,
        })
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        for pin in &self.files {
            pin.file().watch.remove(Watcher::Thread(self.id));
        }
        self.bell.disarm(true);
    }
}
