//! Threads asleep on files of engines. Of those asleep on an engine, in whatever call, one watches its
//! devices and timers, the others their doorbells; a thread that waits for files of several engines
//! does its part for each.

use kcm_mux::Nanos;
use libc::pollfd;

use super::cells::{ENGINES_MAX, EngineGuard, Engines};
use crate::wait::{self, BellId};

/// A thread asleep on files of these engines. Dropping it ends that.
pub(crate) struct Turns {
    engines: Engines,
    bell: BellId,
}

/// What a sleeping thread watches for the engines.
pub(crate) struct Duty {
    turns: Turns,
    entries: [pollfd; ENGINES_MAX],
    count: usize,
    /// When an engine that falls to this thread has something to do.
    pub(crate) until: Option<Nanos>,
}

impl Duty {
    /// Of a thread that has entered nowhere yet.
    pub(super) fn none(bell: BellId) -> Self {
        Self {
            turns: Turns {
                engines: Engines::NONE,
                bell,
            },
            entries: [wait::readable(-1); ENGINES_MAX],
            count: 0,
            until: None,
        }
    }

    /// The devices that fall to this thread.
    pub(crate) fn entries(&self) -> &[pollfd] {
        self.entries.get(..self.count).unwrap_or_default()
    }

    pub(crate) fn turns(self) -> Turns {
        self.turns
    }

    /// The thread goes to sleep on this engine too.
    pub(super) fn enter(&mut self, engine: &mut EngineGuard) {
        engine.enter_sleep(self.turns.bell);
        self.begin(engine);
    }

    fn begin(&mut self, engine: &mut EngineGuard) {
        let leads = engine.is_led_by(self.turns.bell);
        self.turns.engines |= Engines::one(engine.index);
        engine.before_sleep();
        if !leads {
            return;
        }
        if let Some(entry) = engine.device_entry()
            && let Some(place) = self.entries.get_mut(self.count)
        {
            *place = entry;
            self.count += 1;
        }
        let due = engine.next_deadline();
        self.until = [self.until, due].into_iter().flatten().min();
    }
}

/// The thread with this bell goes to sleep on files of these engines, perhaps once more after `before`.
pub(crate) fn sleep(engines: Engines, bell: BellId, before: Option<Turns>) -> Duty {
    let mut duty = Duty::none(bell);
    for cell in engines.cells() {
        let Ok(mut engine) = cell.lock() else {
            continue;
        };
        match &before {
            Some(before) if before.engines.has(cell.index()) => {
                engine.rename_sleeper(before.bell, bell);
                duty.begin(&mut engine);
            }
            _ => duty.enter(&mut engine),
        }
    }
    if let Some(mut before) = before {
        before.engines = before.engines.without(duty.turns.engines);
    }
    duty
}

impl Drop for Turns {
    fn drop(&mut self) {
        for cell in self.engines.cells() {
            if let Ok(mut engine) = cell.lock() {
                engine.leave_sleep(self.bell);
            }
        }
    }
}

/// Moves frames for a thread of the program that is about to look at its files.
pub(crate) fn look(engines: Engines) {
    for cell in engines.cells() {
        cell.look();
    }
}
