//! Addresses by DHCP: the rules hear of each lease, and the first socket that one could decide about
//! waits for it.

use core::net::{IpAddr, SocketAddr};
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use kcm_mux::Nanos;
use kcm_stack::{Addressing, IfaceId, Stack};

use super::cells::{self, Engines};
use super::open::{self, Place};
use super::turns;
use crate::errno::Outcome;
use crate::interpose::poll::native_ppoll;
use crate::route::{self, Decision, OnFailure, Plan, Prefix, Verdict};
use crate::sync::{Mutex, Rank};
use crate::{log, sys};

/// How long the first socket waits for a lease: a server that first probes an address takes a second or
/// two, and a lost message is repeated after four (RFC 2131 §4.1).
const PATIENCE: Nanos = 10_000_000_000;

/// Nobody has waited yet.
const UNKNOWN: u8 = 0;
/// Every interface with DHCP has an address.
const GRANTED: u8 = 1;
/// One has none, and that has been told.
const MISSING: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);

/// The addresses and routes of the first engine, which has the leases, for the others.
static ADDRESSING: Mutex<Option<Addressing>> = Mutex::ranked(Rank::Leaf, None);
/// Counts their changes.
static CHANGES: AtomicU32 = AtomicU32::new(0);

/// The interfaces that run a DHCP client.
#[derive(Default)]
pub(super) struct Leases {
    all: Vec<Lease>,
    /// Of an engine but the first: the changes it has seen.
    seen: u32,
}

struct Lease {
    /// Index in the plan.
    at: usize,
    iface: IfaceId,
    address: Option<Prefix>,
}

impl Leases {
    pub(super) fn add(&mut self, at: usize, iface: IfaceId) {
        self.all.push(Lease {
            at,
            iface,
            address: None,
        });
    }

    /// The plan's index of an interface that has no address.
    fn missing(&self) -> Option<usize> {
        let none = self.all.iter().find(|lease| lease.address.is_none());
        none.map(|lease| lease.at)
    }

    /// Tells the rules what has been granted or has ended.
    #[inline]
    pub(super) fn follow(&mut self, engine: u8, stack: &mut Stack) {
        if engine != 0 {
            return self.follow_first(stack);
        }
        if !self.all.is_empty() {
            self.tell(stack);
        }
    }

    /// Takes over what the first engine has been granted.
    fn follow_first(&mut self, stack: &mut Stack) {
        let changes = CHANGES.load(Ordering::Acquire);
        if core::mem::replace(&mut self.seen, changes) != changes
            && let Ok(addressing) = ADDRESSING.lock()
            && let Some(addressing) = &*addressing
        {
            let _ = stack.set_addressing(addressing); // the interfaces are the same
        }
    }

    fn tell(&mut self, stack: &Stack) {
        let mut has_changed = false;
        for lease in &mut self.all {
            let now = stack.dhcp_lease(lease.iface).map(|granted| Prefix {
                ip: IpAddr::V4(granted.address),
                len: granted.prefix_len,
            });
            if now == lease.address {
                continue;
            }
            lease.address = now;
            has_changed = true;
            route::learn(lease.at, now.into_iter().collect());
        }
        if has_changed
            && cells::are_several()
            && let Ok(mut addressing) = ADDRESSING.lock()
        {
            *addressing = Some(stack.addressing());
            CHANGES.fetch_add(1, Ordering::Release);
        }
        let state = STATE.load(Ordering::Relaxed);
        let new = match self.all.iter().all(|lease| lease.address.is_some()) {
            true => GRANTED,
            false if state == GRANTED => MISSING,
            false => state,
        };
        STATE.store(new, Ordering::Relaxed);
    }
}

/// Whether a lease that is not there yet could change who serves a socket: its interface has no other
/// address, and no rule has said "kernel" or "refuse".
pub(super) fn matters(plan: &Plan, decision: &Decision<'_>, address: SocketAddr) -> bool {
    let awaited = |at: usize| {
        let interface = plan.interfaces.get(at);
        interface.is_some_and(|i| i.dhcp && i.addresses.is_empty())
    };
    if STATE.load(Ordering::Relaxed) == GRANTED || !address.ip().to_canonical().is_ipv4() {
        return false;
    }
    match decision.verdict {
        Verdict::Stack { iface: Some(at) } => awaited(at),
        Verdict::Kernel => {
            decision.is_for_want_of_a_prefix() && (0..plan.interfaces.len()).any(awaited)
        }
        _ => false,
    }
}

/// Opens the engine and waits until every lease is there.
///
/// # Errors
/// What [`OnFailure`] wants, if there is no engine or one lease was not granted in time. Whoever comes
/// after that does not wait again.
pub(super) fn wait(plan: &'static Plan, on_failure: OnFailure) -> Outcome<()> {
    if let Place::With(_) = open::open(plan, on_failure)? {
        return Err(open::policy(on_failure)); // what was granted to that process is not known here
    }
    let end = sys::now().saturating_add(PATIENCE);
    loop {
        let mut engine = cells::first().lock()?;
        engine.pump();
        let (until, entry) = (engine.next_deadline(), engine.device_entry());
        drop(engine);
        match STATE.load(Ordering::Relaxed) {
            GRANTED => {
                turns::look(Engines::ALL); // the others hear of it
                return Ok(());
            }
            MISSING => break,
            _ if sys::now() >= end => {
                give_up(plan);
                break;
            }
            _ => {}
        }
        let until = until.map_or(end, |at| at.min(end));
        let mut fds: Vec<_> = entry.into_iter().collect();
        let _ = native_ppoll(&mut fds, Some(until.max(1))); // a signal only makes it look earlier
    }
    Err(open::policy(on_failure))
}

/// From now on nobody waits. Said once.
fn give_up(plan: &Plan) {
    if STATE.swap(MISSING, Ordering::Relaxed) == MISSING {
        return;
    }
    let missing = { cells::first().lock().ok() }.and_then(|engine| engine.leases.missing());
    if let Some(interface) = missing.and_then(|at| plan.interfaces.get(at)) {
        let seconds = PATIENCE / 1_000_000_000;
        let device = &interface.device;
        log::stack_failed(&format!(
            "{device}: no DHCP server has answered in {seconds} s"
        ));
    }
}
