//! Lines for a person, written to standard error by one raw system call each, outside all locks.
//! Nothing is printed unless there is something a person must know, or has asked for.

use core::fmt::{self, Write};
use core::hash::{Hash, Hasher};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::hash::DefaultHasher;

/// How much is said.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(crate) enum Level {
    Off,
    Error,
    Warn,
    Info,
    Debug,
}

impl Level {
    pub(crate) fn parse(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"off" => Self::Off,
            b"error" => Self::Error,
            b"warn" => Self::Warn,
            b"info" => Self::Info,
            b"debug" => Self::Debug,
            _ => return None,
        })
    }
}

static LEVEL: AtomicU8 = AtomicU8::new(Level::Warn as u8);

pub(crate) fn set_level(level: Level) {
    LEVEL.store(level as u8, Ordering::Relaxed);
}

/// Longest line, cut beyond.
const LINE_MAX: usize = 512;

struct Line {
    bytes: [u8; LINE_MAX],
    used: usize,
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for byte in s.bytes() {
            if let Some(at) = self
                .bytes
                .get_mut(self.used)
                .filter(|_| self.used < LINE_MAX - 1)
            {
                *at = byte;
                self.used += 1;
            }
        }
        Ok(())
    }
}

fn say(level: Level, args: fmt::Arguments<'_>) {
    if LEVEL.load(Ordering::Relaxed) < level as u8 {
        return;
    }
    let mut line = Line {
        bytes: [0; LINE_MAX],
        used: 0,
    };
    let _ = write!(line, "kcmshim: {args}");
    if let Some(end) = line.bytes.get_mut(line.used) {
        *end = b'\n';
    }
    // Standard error may be closed; then nothing is said.
    let _ = rustix::io::write(
        crate::sys::borrow(2),
        line.bytes.get(..=line.used).unwrap_or(&[]),
    );
}

/// Whether decisions are told as they are made.
pub(crate) fn is_debugging() -> bool {
    LEVEL.load(Ordering::Relaxed) >= Level::Debug as u8
}

/// What whoever set `KCMSHIM_LOG=debug` wants to see.
pub(crate) fn debug(what: fmt::Arguments<'_>) {
    say(Level::Debug, what);
}

/// Something works less well than the program's user would expect.
pub(crate) fn warn(what: &str) {
    say(Level::Warn, format_args!("{what}"));
}

/// The stack cannot start; `why` says what would help. Each socket tries again; the same reason is said
/// once.
pub(crate) fn stack_failed(why: &str) {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let mut hasher = DefaultHasher::new();
    why.hash(&mut hasher);
    let this = hasher.finish();
    if LAST.swap(this, Ordering::Relaxed) == this {
        return;
    }
    say(Level::Warn, format_args!("the stack is not used: {why}"));
}

/// A variable or value that means nothing to us.
pub(crate) fn unknown_setting(name: &str, value: &str) {
    say(
        Level::Warn,
        format_args!("KCMSHIM_{name}={value} is not known and ignored"),
    );
}

/// Settings of the stack that cannot be used.
#[allow(dead_code, reason = "with `route`")]
pub(crate) fn bad_settings(problem: &dyn fmt::Display) {
    say(
        Level::Error,
        format_args!("{problem}; the kernel's stack serves this program"),
    );
}
