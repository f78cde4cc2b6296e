//! Listeners of a process with several engines. A connection comes up in the engine its ports belong to,
//! so every engine needs a listener for each address. One that has its address alone is in all of them,
//! and accept takes from any. Those that share it (SO_REUSEPORT) have the engines shared out among them,
//! so that a thread which accepts on one of them looks at one engine only; while there are fewer of them
//! than engines, some are in several. An engine is never without one.
//!
//! The socket lives in its *home*, where [`File::net_index`] leads; elsewhere it has a copy, which is
//! found by its file.

use core::net::SocketAddr;

use kcm_stack::{IfaceId, ListenOptions, ListenerId};

use super::cells::{self, Engines, NetCell};
use super::engine::Engine;
use super::options::Settings;
use super::socket::{self, Socket, State};
use super::{address, errors, homes, ready};
use crate::epoll;
use crate::errno::{Errno, Outcome};
use crate::fd::File;
use crate::sync::{Mutex, Rank};

/// A listener of a process with several engines.
struct Listening {
    file: &'static File,
    local: SocketAddr,
    device: Option<IfaceId>,
    reuse_port: bool,
    backlog: usize,
}

/// All of them, in the order they came. Its lock also keeps two threads from placing sockets at once,
/// since an engine alone cannot say which addresses are taken.
pub(super) struct Placing(Vec<Listening>);

pub(super) static PLACING: Mutex<Placing> = Mutex::ranked(Rank::Directory, Placing(Vec::new()));

/// What the settings of a socket say of how it listens.
pub(super) fn options(settings: &Settings, backlog: usize) -> ListenOptions {
    ListenOptions {
        backlog,
        reuse_port: settings.reuse_port,
        v6_only: settings.v6_only,
        defer_accept: settings.defer_accept,
        opts: Some(settings.tcp.clone()),
        flags: settings.flags(),
        iface: settings.device,
    }
}

/// The address a socket would listen on; `None` when it does.
pub(super) fn wants_to_listen(socket: &Socket) -> Outcome<Option<SocketAddr>> {
    match socket.state {
        State::Unbound => Ok(Some(address::any(socket.v6, 0))),
        State::Bound(local) => Ok(Some(local)),
        State::Listening(_) => Ok(None),
        State::Connecting(_) | State::Connected(_) => Err(Errno::EINVAL.into()),
        State::Udp(_) => Err(Errno::EOPNOTSUPP.into()),
    }
}

/// listen(2) in a process with several engines.
pub(super) fn listen(file: &'static File, backlog: usize) -> Outcome<i32> {
    let mut placing = PLACING.lock()?;
    let (local, device, reuse_port) = {
        let mut engine = cells::lock(file)?;
        let socket = engine.socket(file)?;
        let Some(local) = wants_to_listen(socket)? else {
            return Ok(0);
        };
        (local, socket.settings.device, socket.settings.reuse_port)
    };
    let local = match local.port() {
        0 => socket::bind_placed(file, local)?,
        _ => local,
    };
    let new = Listening {
        file,
        local,
        device,
        reuse_port,
        backlog,
    };
    let before = placing.group(&new).count();
    if reuse_port {
        let nth = before % usize::from(cells::count());
        let cell = homes::from_port(local.port()).nth(nth);
        relocate(&placing, file, cell.unwrap_or(cells::first()))?;
    }
    let mut engine = cells::lock(file)?;
    let settings = engine.socket(file)?.settings.clone();
    let id = { engine.stack.tcp_listen(local, &options(&settings, backlog)) };
    let id = id.map_err(errors::socket)?;
    engine.socket(file)?.bound = Some(local);
    engine.set_state(file, State::Listening(id))?;
    drop(engine);
    placing.0.push(new);
    let done = placing.arrange(file);
    if done.is_err() {
        placing.remove(file);
        let mut engine = cells::lock(file)?;
        engine.set_state(file, State::Bound(local))?;
        let now = engine.now();
        engine.stack.tcp_unlisten(now, id);
    }
    done.map(|()| 0)
}

/// The file listens no more, or is about to end: what it has outside its home goes, once others of its
/// address have taken its place there.
pub(super) fn close(file: &'static File) {
    if cells::are_several()
        && let Ok(mut placing) = PLACING.lock()
    {
        placing.remove(file);
    }
}

/// In a forked child: the engines stay with the parent, and with them what listens there.
pub(super) fn forget() {
    if let Ok(mut placing) = PLACING.lock() {
        placing.0.clear();
    }
}

impl Placing {
    /// Those that share the address of `one`.
    fn group(&self, one: &Listening) -> impl Iterator<Item = &Listening> {
        let (local, device, shares) = (one.local, one.device, one.reuse_port);
        self.0.iter().filter(move |other| {
            shares && other.reuse_port && other.local == local && other.device == device
        })
    }

    /// Gives each listener of the address that `file` has the engines which fall to it.
    fn arrange(&self, file: &File) -> Outcome<()> {
        let one = self.0.iter().find(|one| core::ptr::eq(one.file, file));
        let Some(one) = one else { return Ok(()) };
        let group: Vec<_> = match one.reuse_port {
            true => self.group(one).collect(),
            false => vec![one],
        };
        spread(&group)
    }

    fn remove(&mut self, file: &'static File) {
        let at = self.0.iter().position(|one| core::ptr::eq(one.file, file));
        let Some(at) = at else { return };
        let gone = self.0.remove(at);
        let _ = spread(&self.group(&gone).collect::<Vec<_>>());
        for cell in file.engines().cells() {
            if cell.index() != file.net_engine() {
                withdraw(file, cell, true);
            }
        }
    }
}

/// The engines that fall to the `nth` of `members` listeners, in the order of [`homes::from_port`].
fn share(nth: usize, members: usize, engines: usize) -> impl Iterator<Item = usize> {
    (0..engines).filter(move |at| at % members == nth || *at == nth % engines)
}

fn spread(group: &[&Listening]) -> Outcome<()> {
    let port = group.first().map_or(0, |one| one.local.port());
    let cells: Vec<_> = homes::from_port(port).collect();
    let engines = cells.len();
    // Those who come before those who go: no engine is without one in between.
    for (nth, one) in group.iter().enumerate() {
        for cell in share(nth, group.len(), engines).filter_map(|at| cells.get(at).copied()) {
            if !one.file.engines().has(cell.index()) {
                one.join(cell)?;
            }
        }
    }
    for (nth, one) in group.iter().enumerate() {
        for cell in one.file.engines().cells() {
            let at = { cells.iter() }.position(|kept| kept.index() == cell.index());
            let keeps = at.is_some_and(|at| share(nth, group.len(), engines).any(|own| own == at));
            if !keeps && cell.index() != one.file.net_engine() {
                withdraw(one.file, cell, false);
            }
        }
    }
    Ok(())
}

impl Listening {
    /// Listens in another engine too.
    fn join(&self, cell: &'static NetCell) -> Outcome<()> {
        let file = self.file;
        let mut copy = {
            let mut engine = cells::lock(file)?;
            engine.socket(file)?.copy()
        };
        let mut engine = cell.lock()?;
        let id = {
            engine
                .stack
                .tcp_listen(self.local, &options(&copy.settings, self.backlog))
        };
        let id = id.map_err(errors::socket)?;
        copy.state = State::Listening(id);
        engine.add(copy);
        drop(engine);
        moved(file, file.engines() | Engines::one(cell.index()));
        Ok(())
    }
}

/// Ends the copy that `file` has in an engine; unless it has to, not one with connections.
fn withdraw(file: &'static File, cell: &'static NetCell, has_to: bool) {
    let Ok(mut engine) = cell.lock() else { return };
    let Some((index, id)) = engine.copy_of(file) else {
        return;
    };
    if !has_to && !engine.stack.tcp_listener_is_idle(id) {
        return;
    }
    let now = engine.now();
    engine.remove(index);
    engine.stack.tcp_unlisten(now, id);
    drop(engine);
    moved(file, file.engines().without(Engines::one(cell.index())));
}

/// Who waits for the file has other engines to look at.
fn moved(file: &'static File, engines: Engines) {
    file.set_engines(engines);
    for set in file.watch.sets() {
        epoll::look_elsewhere(set, file);
    }
    file.watch.notify(ready::IN);
}

/// A socket that the engines know nothing of yet moves to another one.
pub(super) fn relocate(
    _placing: &Placing,
    file: &'static File,
    to: &'static NetCell,
) -> Outcome<()> {
    let (from, old) = (cells::of(file), file.net_index());
    if core::ptr::eq(from, to) {
        return Ok(());
    }
    let copy = {
        let mut engine = from.lock()?;
        let socket = engine.socket(file)?;
        match socket.state {
            State::Unbound | State::Bound(_) => socket.relocated(),
            _ => return Ok(()),
        }
    };
    to.lock()?.enlist(copy);
    from.lock()?.remove(old);
    moved(file, Engines::one(to.index()));
    Ok(())
}

/// Runs `change` on the socket wherever it is.
pub(super) fn each(file: &File, mut change: impl FnMut(&mut Socket)) {
    for cell in file.engines().cells() {
        if let Ok(mut engine) = cell.lock()
            && let Ok(socket) = engine.socket(file)
        {
            change(socket);
        }
    }
}

/// What has been set on a listener holds for all of it.
pub(super) fn settings_changed(file: &File) {
    if file.engines() == Engines::one(file.net_engine()) {
        return;
    }
    let settings = cells::lock(file)
        .ok()
        .and_then(|mut engine| engine.socket(file).ok().map(|s| s.settings.clone()));
    if let Some(settings) = settings {
        each(file, |socket| socket.settings = settings.clone());
    }
}

/// Whether an engine has a connection that can be accepted.
pub(super) fn has_connection(file: &File) -> bool {
    file.engines().cells().any(|cell| {
        let Ok(mut engine) = cell.lock() else {
            return false;
        };
        match engine.socket(file).map(|socket| socket.state) {
            Ok(State::Listening(id)) => is_waiting(&mut engine, id),
            _ => false,
        }
    })
}

pub(super) fn is_waiting(engine: &mut Engine, id: ListenerId) -> bool {
    engine.stack.tcp_accept_queue_len(id).unwrap_or(0) > 0
}

#[cfg(test)]
mod tests {
    use super::share;

    /// Every engine has a listener, every listener has one, and with as many as engines each has its own.
    #[test]
    fn engines_are_shared_out() {
        for engines in 1..=16 {
            for members in 1..=40 {
                let of = |nth| share(nth, members, engines).collect::<Vec<_>>();
                assert!((0..engines).all(|at| (0..members).any(|nth| of(nth).contains(&at))));
                assert!((0..members).all(|nth| !of(nth).is_empty()));
                if members >= engines {
                    assert!((0..members).all(|nth| of(nth) == [nth % engines]));
                }
            }
        }
    }
}
