//! Keeps the kernel's own IP stack from frames for the stack's addresses, where a device leaves them to both
//! ([`Ingress`]).
//!
//! To begin that and to end it takes the kernel ten milliseconds each, mostly of waiting, and a program that ends
//! waits too: longer than many clients run. So the housekeeper begins once some thousand frames have come. Where it
//! may not, all stays as it is.

use core::net::IpAddr;

use kcm_stack::device::Ingress;
use rustix::fd::OwnedFd;

use super::cells;
use crate::{log, own};

/// Frames that have come before: they cost the kernel a microsecond each.
const FRAMES_MIN: u64 = 4096;
/// Rounds of the program's threads after which to look, at first and in the end: the locks of the engines are
/// not to be had for nothing.
const ROUNDS_MIN: u32 = 1 << 11;
const ROUNDS_MAX: u32 = 1 << 20;

/// What the housekeeper knows of it.
pub(crate) struct Aside {
    /// Rounds when last looked, and how many more until the next look.
    seen: u32,
    rounds: u32,
    /// What was asked for last, granted or not.
    addresses: Vec<IpAddr>,
    filters: Vec<OwnedFd>,
}

impl Aside {
    pub(crate) fn new() -> Self {
        Self {
            seen: 0,
            rounds: ROUNDS_MIN,
            addresses: Vec::new(),
            filters: Vec::new(),
        }
    }

    /// Does what has come to pay meanwhile.
    pub(crate) fn follow(&mut self) {
        let passes = cells::all().fold(0_u32, |sum, cell| sum.wrapping_add(cell.passes()));
        if passes.wrapping_sub(self.seen) < self.rounds {
            return;
        }
        self.seen = passes;
        self.rounds = (self.rounds * 2).min(ROUNDS_MAX);
        let (behind, addresses) = facts();
        if behind.is_empty() || addresses == self.addresses {
            return;
        }
        let new = behind.iter().filter_map(|ingress| {
            let filter = ingress.keep_from_host(&addresses, own::keep_for_device);
            match &filter {
                Ok(_) => log::debug(format_args!("the kernel leaves {addresses:?} alone")),
                Err(why) => log::debug(format_args!(
                    "the kernel looks at frames for {addresses:?} too: {why}"
                )),
            }
            filter.ok()?
        });
        let old = core::mem::replace(&mut self.filters, new.collect());
        drop(old);
        own::forget_closed();
        self.addresses = addresses;
    }
}

/// Behind which devices the kernel sees frames, once there have been enough, and the stack's addresses.
fn facts() -> (Vec<Ingress>, Vec<IpAddr>) {
    let (mut received, mut behind, mut addresses) = (0, Vec::new(), Vec::new());
    for cell in cells::all() {
        let Ok(engine) = cell.lock() else { continue };
        received += engine.received();
        if behind.is_empty() {
            behind = engine.ingresses();
            addresses = engine.stack.addresses().collect();
        }
    }
    if received < FRAMES_MIN {
        behind.clear();
    }
    (behind, addresses)
}
