//! /proc/net/kcm and /proc/net/kcm_stats as this process sees them: its own muxes, in the kernel's
//! format (kcm-semantics §12, §13). A page is a snapshot made when it is opened.

use kcm_mux::proc::{TcpQueues, write_header, write_mux, write_stats};
use kcm_mux::{Mux, Totals};
use rustix::fd::OwnedFd;
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};

use crate::errno::{Errno, Outcome};
use crate::kcm::{Engine, MuxCell};
use crate::sync::Mutex;
use crate::user_mem::{self, UserPtr};
use crate::{sys, tcp};

/// One of our two pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Page {
    /// /proc/net/kcm.
    Sockets,
    /// /proc/net/kcm_stats.
    Statistics,
}

/// Counters of muxes that have ended.
static ENDED: Mutex<Option<Totals>> = Mutex::new(None);

/// Where our pages are.
const PROC: &[u8; 6] = b"/proc/";

/// Longest path we compare, with its NUL.
const PATH_MAX: usize = 48;

/// Which page the program's path names.
pub(crate) fn page_at(path: UserPtr) -> Option<Page> {
    // Most paths are told apart by these few bytes, at the price of one check.
    let mut start = [0; PROC.len()];
    user_mem::read_bytes(path, &mut start).ok()?;
    if start != *PROC {
        return None;
    }
    let mut bytes = [0; PATH_MAX];
    let path = user_mem::read_str(path, &mut bytes)?;
    let name = path.strip_prefix(PROC)?;
    let name = match name.strip_prefix(b"net/") {
        Some(name) => name,
        None => {
            let slash = name.iter().position(|b| *b == b'/')?;
            let (process, rest) = name.split_at(slash);
            let me = rustix::process::getpid().as_raw_nonzero().to_string();
            if process != b"self" && process != b"thread-self" && process != me.as_bytes() {
                return None;
            }
            rest.strip_prefix(b"/net/")?
        }
    };
    let page = match name {
        b"kcm" => Page::Sockets,
        b"kcm_stats" => Page::Statistics,
        _ => return None,
    };
    crate::init::serves_kcm().then_some(page)
}

/// open(2) of a page: a sealed-off file that holds its text. The pages are read-only.
pub(crate) fn open(page: Page, flags: i32) -> Outcome<i32> {
    if flags & libc::O_ACCMODE != libc::O_RDONLY {
        return Err(Errno::EACCES.into());
    }
    if flags & libc::O_DIRECTORY != 0 {
        return Err(Errno(libc::ENOTDIR).into());
    }
    let close_on_exec = flags & libc::O_CLOEXEC != 0;
    let fd = match crate::share::remote::page(page) {
        Some(page) => page,
        None => snapshot(page)?,
    };
    if !close_on_exec {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?;
    }
    Ok(sys::hand_out(fd))
}

/// A file that holds the text of a page about the muxes of this process.
pub(crate) fn snapshot(page: Page) -> Outcome<OwnedFd> {
    let text = match page {
        Page::Sockets => sockets(),
        Page::Statistics => statistics(),
    };
    let writer = memfd_create("kcm", MemfdFlags::CLOEXEC)?;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let n = rustix::io::write(&writer, rest)?;
        rest = rest.get(n..).unwrap_or(&[]);
    }
    let reader = OFlags::RDONLY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", sys::number(&writer));
    Ok(rustix::fs::open(path.as_str(), reader, Mode::empty())?)
}

/// A mux has ended: its counters stay in the totals.
pub(crate) fn retire(mux: &Mux) {
    if let Ok(mut ended) = ENDED.lock() {
        ended.get_or_insert_default().add(mux);
    }
}

/// Counters of muxes that have ended.
pub(crate) fn ended() -> Totals {
    match ENDED.lock() {
        Ok(ended) => ended.unwrap_or_default(),
        Err(_) => Totals::default(),
    }
}

/// Brings every mux up to date with what its sockets have handed out.
fn account() {
    let mut sockets = Vec::new();
    MuxCell::for_each(|engine| sockets.extend(engine.mux.kcms().filter_map(|id| engine.kcm(id))));
    for file in sockets {
        if let Ok(mut rx) = file.rx.lock()
            && let Ok(cell) = file.mux()
            && let Ok(mut engine) = cell.lock()
        {
            engine.mux.account(file.kcm_id(), &mut rx);
        }
    }
}

fn sockets() -> String {
    account();
    let mut body = String::new();
    let mut muxes = 0;
    MuxCell::for_each(|engine| {
        muxes += 1;
        engine.look();
        engine.read_all();
        let engine = &*engine;
        let queues = |psock| queues(engine, psock);
        let _ = write_mux(&mut body, &engine.mux, queues);
    });
    let mut text = String::new();
    let _ = write_header(&mut text, muxes);
    text.push_str(&body);
    text
}

/// What the kernel's TCP holds beneath a psock. Buffers are not counted for user space; a queue that
/// is not empty shows as one.
fn queues(engine: &Engine, psock: kcm_mux::PsockId) -> TcpQueues {
    let Some(conn) = engine.connection(psock) else {
        return TcpQueues::default();
    };
    let kept = conn.file.map_or(0, tcp::unread) as u32;
    let (unread, unsent) = conn.queues();
    let unread = unread + kept;
    TcpQueues {
        recv_q: u32::from(unread > 0),
        rmem: unread,
        send_q: u32::from(unsent > 0),
        smem: unsent,
    }
}

fn statistics() -> String {
    account();
    let mut totals = ended();
    MuxCell::for_each(|engine| totals.add(&engine.mux));
    let mut text = String::new();
    let _ = write_stats(&mut text, &totals);
    text
}
