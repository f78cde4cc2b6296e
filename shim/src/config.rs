//! `KCMSHIM_*` variables, read once at start. An unknown name or value is named in one line and
//! ignored: a foreign environment never stops a program.

use core::str;

use kcm_mux::Nanos;

use crate::log::{self, Level};
use crate::{net, publish};

/// What the environment asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Config {
    /// `KCMSHIM_KCM=shim|kernel`: whose AF_KCM sockets programs get.
    pub(crate) serve_kcm: bool,
    /// `KCMSHIM_IO_URING=refuse|allow`: whether io_uring_setup answers ENOSYS.
    pub(crate) refuse_io_uring: bool,
    /// `KCMSHIM_EXEC=inherit|strip`: whether programs started by this one load the library too.
    pub(crate) strip_env: bool,
    /// `KCMSHIM_STATS=on|off`: whether `kcmctl` sees a process that uses KCM.
    pub(crate) publish: bool,
    /// `KCMSHIM_STACK_BUSY_POLL=MICROSECONDS`: how long a thread that waits on stack sockets looks at the
    /// device itself before it sleeps.
    pub(crate) busy_poll_us: u32,
    /// `KCMSHIM_LOG=off|error|warn|info|debug`.
    pub(crate) log: Level,
}

impl Config {
    const DEFAULT: Self = Self {
        serve_kcm: true,
        refuse_io_uring: true,
        strip_env: false,
        publish: true,
        busy_poll_us: 0,
        log: Level::Warn,
    };

    pub(crate) fn read<'a>(environment: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Self {
        let mut config = Self::DEFAULT;
        for (name, value) in environment {
            let Some(name) = name.strip_prefix(b"KCMSHIM_") else {
                continue;
            };
            if !config.take(name, value) {
                log::unknown_setting(
                    str::from_utf8(name).unwrap_or("?"),
                    str::from_utf8(value).unwrap_or("?"),
                );
            }
        }
        config
    }
}

impl Config {
    /// One setting; false when its name or value is not known.
    fn take(&mut self, name: &[u8], value: &[u8]) -> bool {
        match (name, value) {
            (b"KCM", b"shim") => self.serve_kcm = true,
            (b"KCM", b"kernel") => self.serve_kcm = false,
            (b"IO_URING", b"refuse") => self.refuse_io_uring = true,
            (b"IO_URING", b"allow") => self.refuse_io_uring = false,
            (b"EXEC", b"inherit") => self.strip_env = false,
            (b"EXEC", b"strip") => self.strip_env = true,
            (b"STATS", b"on") => self.publish = true,
            (b"STATS", b"off") => self.publish = false,
            // `route` reads these when a socket first asks.
            (b"CONFIG" | b"STACK", _) => {}
            (b"STACK_BUSY_POLL", us) => match str::from_utf8(us).map(str::parse) {
                Ok(Ok(us)) => self.busy_poll_us = us,
                _ => return false,
            },
            // The tests' own: which library they preload.
            (b"LIB", _) => {}
            (b"LOG", level) => match Level::parse(level) {
                Some(level) => self.log = level,
                None => return false,
            },
            _ => return false,
        }
        true
    }
}

/// Puts into force what no other module asks for itself.
pub(crate) fn apply(config: &Config) {
    log::set_level(config.log);
    publish::enable(config.publish);
    net::sleep::set_busy_poll(Nanos::from(config.busy_poll_us) * 1000);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(env: &[(&str, &str)]) -> Config {
        Config::read(env.iter().map(|(n, v)| (n.as_bytes(), v.as_bytes())))
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        assert_eq!(read(&[("PATH", "/bin")]), Config::DEFAULT);
    }

    #[test]
    fn known_values_are_taken() {
        let config = read(&[
            ("KCMSHIM_KCM", "kernel"),
            ("KCMSHIM_IO_URING", "allow"),
            ("KCMSHIM_EXEC", "strip"),
            ("KCMSHIM_STATS", "off"),
            ("KCMSHIM_STACK_BUSY_POLL", "50"),
            ("KCMSHIM_LOG", "off"),
        ]);
        let expected = Config {
            serve_kcm: false,
            refuse_io_uring: false,
            strip_env: true,
            publish: false,
            busy_poll_us: 50,
            log: Level::Off,
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn unknown_values_are_ignored() {
        assert_eq!(
            read(&[("KCMSHIM_KCM", "maybe"), ("KCMSHIM_NOSUCH", "1")]),
            Config::DEFAULT
        );
    }
}
