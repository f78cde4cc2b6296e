//! Which of the program's TCP and UDP sockets the in-process stack serves.
//!
//! The settings are read when a socket first asks, once, from the two variables as they were at
//! start. A process that has neither set pays one load a socket.

mod plan;
mod source;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use rustix::fs::readlink;

#[allow(unused_imports, reason = "as before")]
pub(crate) use self::plan::decide::{Decision, Role, Verdict};
#[allow(unused_imports, reason = "as before")]
pub(crate) use self::plan::{Interface, OnFailure, Plan, Prefix, QUEUES_MAX};
use self::plan::{Problem, Settings};
pub(crate) use self::source::{is_set, note};
use crate::log;
use crate::sync::{Mutex, Rank};

static PLAN: OnceLock<Option<Plan>> = OnceLock::new();
/// Held while the settings are read. [`OnceLock`]'s own waiting is not used: it goes through a libc
/// function that we interpose.
static READING: Mutex<()> = Mutex::ranked(Rank::Leaf, ());
/// What interfaces got at run time, by index.
static LEARNED: Mutex<Vec<Vec<Prefix>>> = Mutex::ranked(Rank::Leaf, Vec::new());

/// The plan of this program; `None` without settings, with bad ones, and in a signal handler that
/// interrupts their reading.
#[inline]
pub(crate) fn plan() -> Option<&'static Plan> {
    if !is_set() {
        return None;
    }
    match PLAN.get() {
        Some(plan) => plan.as_ref(),
        None => read(),
    }
}

/// Who serves a socket that is about to use `address` in `role`.
pub(crate) fn decide(plan: &'static Plan, role: Role, address: SocketAddr) -> Decision<'static> {
    match LEARNED.lock() {
        Ok(learned) => plan.decide(&learned, role, address),
        Err(_) => plan.decide(&[], role, address),
    }
}

/// The interface of the stack that has this very address.
pub(crate) fn owner(plan: &Plan, ip: IpAddr) -> Option<usize> {
    match LEARNED.lock() {
        Ok(learned) => plan.owner(&learned, ip),
        Err(_) => plan.owner(&[], ip),
    }
}

/// Interface `iface` now has these addresses beyond its static ones (DHCP); they replace what was
/// learned before.
pub(crate) fn learn(iface: usize, addresses: Vec<Prefix>) {
    if let Ok(mut learned) = LEARNED.lock() {
        if learned.len() <= iface {
            learned.resize_with(iface + 1, Vec::new);
        }
        if let Some(place) = learned.get_mut(iface) {
            *place = addresses;
        }
    }
}

/// Holds still for the length of a fork.
pub(crate) fn freeze() -> impl Sized {
    (READING.lock().ok(), LEARNED.lock().ok())
}

#[cold]
fn read() -> Option<&'static Plan> {
    let _reading = READING.lock().ok()?;
    if PLAN.get().is_none() {
        let plan = match settings() {
            Ok(settings) => Some(settings.plan_for(&program())),
            Err(problems) => {
                // One line, so the first; `kcmctl run` shows them all.
                if let Some(problem) = problems.first() {
                    log::bad_settings(problem);
                }
                None
            }
        };
        let _ = PLAN.set(plan);
    }
    PLAN.get()?.as_ref()
}

fn settings() -> Result<Settings, Vec<Problem>> {
    let file = source::file()?;
    let file = file.as_ref().map(|(name, text)| (name.as_str(), &text[..]));
    Settings::read(file, source::line()?)
}

/// The file this process runs.
fn program() -> PathBuf {
    let link = readlink("/proc/self/exe", Vec::new()).map(|link| link.into_bytes());
    OsString::from_vec(link.unwrap_or_default()).into()
}
