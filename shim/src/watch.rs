//! Who wants to hear that a file became ready: sleeping threads and epoll sets.

use core::sync::atomic::{AtomicUsize, Ordering};

use crate::fd::File;
use crate::sync::{Mutex, Rank};
use crate::wait::{self, BellId};

/// One listener of a file.
#[derive(Clone, Copy)]
pub(crate) enum Watcher {
    /// A thread asleep in recv, send, poll or select.
    Thread(BellId),
    /// Registration `key` of an epoll set.
    Set { set: &'static File, key: u64 },
}

impl Watcher {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Thread(a), Self::Thread(b)) => a == b,
            (Self::Set { set: a, key: x }, Self::Set { set: b, key: y }) => {
                core::ptr::eq(*a, *b) && x == y
            }
            _ => false,
        }
    }
}

/// The listeners of one file. Lock order: behind the mux, before an epoll set.
pub(crate) struct Watch {
    count: AtomicUsize,
    list: Mutex<Vec<Watcher>>,
}

impl Watch {
    pub(crate) const fn new() -> Self {
        Self {
            count: AtomicUsize::new(0),
            list: Mutex::ranked(Rank::Watch, Vec::new()),
        }
    }

    /// From now on `watcher` hears of every change; it looks at the state once more before it
    /// sleeps, so that nothing falls between.
    pub(crate) fn add(&self, watcher: Watcher) {
        if let Ok(mut list) = self.list.lock() {
            list.push(watcher);
            self.count.store(list.len(), Ordering::SeqCst);
        }
    }

    pub(crate) fn remove(&self, watcher: Watcher) {
        if let Ok(mut list) = self.list.lock() {
            list.retain(|w| !w.is(&watcher));
            self.count.store(list.len(), Ordering::SeqCst);
        }
    }

    /// The epoll sets among the listeners.
    pub(crate) fn sets(&self) -> Vec<&'static File> {
        let Ok(list) = self.list.lock() else {
            return Vec::new();
        };
        let set = |w: &Watcher| match w {
            Watcher::Set { set, .. } => Some(*set),
            Watcher::Thread(_) => None,
        };
        list.iter().filter_map(set).collect()
    }

    /// The file shows `events` (poll bits) anew.
    #[inline]
    pub(crate) fn notify(&self, events: u32) {
        if self.count.load(Ordering::SeqCst) != 0 {
            self.notify_all(events);
        }
    }

    #[cold]
    fn notify_all(&self, events: u32) {
        let Ok(list) = self.list.lock() else { return };
        for watcher in list.iter() {
            match watcher {
                Watcher::Thread(bell) => wait::ring(*bell),
                Watcher::Set { set, key } => {
                    crate::epoll::deliver(set, *key, events);
                }
            }
        }
    }

    /// The file is gone. Sets forget it; a thread that slept on it holds a reference, so none can
    /// be left.
    pub(crate) fn clear(&self) {
        let Ok(mut list) = self.list.lock() else {
            return;
        };
        let watchers = core::mem::take(&mut *list);
        self.count.store(0, Ordering::SeqCst);
        drop(list);
        for watcher in watchers {
            if let Watcher::Set { set, key } = watcher {
                crate::epoll::forget(set, key);
            }
        }
    }
}
