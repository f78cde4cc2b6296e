//! In which engines the members of a set are: a thread that waits for the set looks at those.

use super::with;
use crate::fd::{File, Kind};
use crate::net::cells::{self, ENGINES_MAX, Engines};

/// How many members are in each engine.
pub(super) struct InEngines {
    members: [u32; ENGINES_MAX],
    counted: Engines,
    /// Of connections of KCM sockets: the engines of all there have been.
    pub(super) beneath: Engines,
}

impl InEngines {
    pub(super) fn new() -> Self {
        Self {
            members: [0; ENGINES_MAX],
            counted: Engines::NONE,
            beneath: Engines::NONE,
        }
    }

    fn all(&self) -> Engines {
        self.counted | self.beneath
    }

    pub(super) fn add(&mut self, engines: Engines) {
        self.counted |= engines;
        for (at, count) in self.members.iter_mut().enumerate() {
            *count += u32::from(engines.has(at as u8));
        }
    }

    pub(super) fn remove(&mut self, engines: Engines) {
        for (at, count) in self.members.iter_mut().enumerate() {
            *count -= u32::from(engines.has(at as u8));
            if *count == 0 {
                self.counted = self.counted.without(Engines::one(at as u8));
            }
        }
    }
}

/// A member is in other engines than before.
pub(crate) fn look_elsewhere(set: &'static File, target: &'static File) {
    let _ = with(set, |set| {
        let engines = engines_of(target);
        let these = { set.members.values_mut() }.filter(|m| core::ptr::eq(m.file, target));
        for member in these {
            set.engines.remove(member.engines);
            set.engines.add(engines);
            member.engines = engines;
        }
        set.wake();
    });
}

/// The engines a thread has to look at which waits for the set.
pub(crate) fn engines(set: &File) -> Engines {
    if !cells::are_several() {
        return Engines::ALL;
    }
    with(set, |set| set.engines.all()).unwrap_or(Engines::NONE)
}

/// The engines that a member is in. What is inside another set may change.
pub(super) fn engines_of(target: &File) -> Engines {
    match target.kind() {
        Kind::Stack => target.engines(),
        Kind::Epoll => Engines::ALL,
        _ => Engines::NONE,
    }
}
