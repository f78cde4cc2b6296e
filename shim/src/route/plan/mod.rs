//! Which sockets the in-process stack serves, as a person wrote it down: interfaces, rules, defaults.
//!
//! `KCMSHIM_CONFIG` names a TOML file ([`file`](mod@file)), `KCMSHIM_STACK` gives interfaces on one line
//! ([`inline`]); both may be set. What they say becomes [`Settings`], checked as a whole, and for one
//! program a [`Plan`], which [`Plan::decide`] asks. kcmshim.toml(5) is the language's reference.
//!
//! Three crates compile this module (the library, `kcmctl`, the fuzz targets), so that a file is
//! checked by the very code that will read it: it depends on nothing of theirs.

mod check;
pub(crate) mod decide;
mod errnos;
mod file;
mod glob;
mod inline;
mod prefix;
mod words;

use std::fmt;
use std::path::Path;

pub(crate) use self::prefix::Prefix;

/// Largest configuration file, in bytes. A thousand rules take a tenth of it.
pub(crate) const FILE_BYTES_MAX: usize = 1 << 20;
/// Longest value of either variable that is kept, in bytes: PATH_MAX, and room for sixteen interfaces.
pub(crate) const VALUE_BYTES_MAX: usize = 4096;
/// Interfaces of one process, as many as the engine has.
pub(crate) const INTERFACES_MAX: usize = 16;
/// Rules of one file: they are asked one by one, once a socket.
pub(crate) const RULES_MAX: usize = 4096;
/// Queues of one interface, and engines of a process. A socket has four bits for its engine, and who waits
/// for sockets of several watches all their devices.
pub(crate) const QUEUES_MAX: u16 = 16;
/// MTU: least a host must take (RFC 791), most an IP packet can have.
pub(crate) const MTU_MIN: u16 = 68;
/// Problems that are told; more help nobody.
pub(crate) const PROBLEMS_MAX: usize = 64;

/// An interface that the stack drives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    /// The device's name, as `kcm_stack::device::open` takes it; checked by `DeviceName`.
    pub(crate) device: String,
    /// Static addresses with their prefixes.
    pub(crate) addresses: Vec<Prefix>,
    /// An IPv4 address, its prefix and gateway come from a DHCP server.
    pub(crate) dhcp: bool,
    /// Default gateways, one for each family at most.
    pub(crate) gateways: Vec<std::net::IpAddr>,
    /// Further routes.
    pub(crate) routes: Vec<Route>,
    /// The MTU the device must have, in bytes; the device's own if not given.
    pub(crate) mtu: Option<u16>,
    /// Queues to open; the one engine serves them all.
    pub(crate) queues: u16,
    /// Whether checksum and segmentation offloads are used.
    pub(crate) offloads: bool,
    /// Of a hundred frames in each direction, how many are lost, how many come twice and how many out of
    /// order: to try a program on a bad link.
    pub(crate) faults: u8,
}

/// A prefix that is reached through a router, or on the link itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) to: Prefix,
    pub(crate) via: Option<std::net::IpAddr>,
}

/// Who serves a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Stack,
    Kernel,
    /// The kernel and the stack together: sockets bound to 0.0.0.0 or ::.
    Both,
    /// The call fails with this errno.
    Refuse(i32),
}

/// What becomes of a socket that the stack should serve when the stack cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnFailure {
    /// The kernel serves it.
    Kernel,
    /// The call fails with this errno.
    Fail(i32),
}

/// A rule: for sockets that match all it names, `serve` holds. The first that matches decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// What `kcmctl explain` calls it.
    pub(crate) name: String,
    /// Line of the file it begins in, from 1.
    pub(crate) line: usize,
    /// Patterns of program names or paths; none: all programs.
    pub(crate) programs: Vec<String>,
    /// None: all roles.
    pub(crate) roles: Vec<RoleName>,
    /// None: all addresses but loopback ones.
    pub(crate) addresses: Vec<Prefix>,
    /// First and last port of each range; none: all ports.
    pub(crate) ports: Vec<(u16, u16)>,
    pub(crate) serve: Use,
    /// Device of the interface that serves, if the rule names one.
    pub(crate) device: Option<String>,
    pub(crate) on_failure: Option<OnFailure>,
}

/// A role as rules name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoleName {
    /// TCP sockets that listen, by the address they are bound to.
    Listen,
    /// TCP sockets that connect, by the address they connect to.
    Connect,
    /// UDP sockets, by the address they are bound to, connect to, or send to.
    Udp,
}

/// All that was written down, for any program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) rules: Vec<Rule>,
    /// Who serves sockets bound to 0.0.0.0 or ::, where no rule says; [`Use::Both`] if not given.
    pub(crate) wildcard: Option<Use>,
    /// [`OnFailure::Kernel`] if not given.
    pub(crate) on_failure: Option<OnFailure>,
}

/// What holds for one program.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The stack's interfaces; verdicts name them by index.
    pub(crate) interfaces: Vec<Interface>,
    rules: Vec<Rule>,
    wildcard: Use,
    on_failure: OnFailure,
}

impl Settings {
    /// Reads what the two variables give: a file's path and contents, and a line.
    ///
    /// # Errors
    /// Every problem found, in the order of the text; the settings are then not to be used.
    pub(crate) fn read(
        file: Option<(&str, &[u8])>,
        line: Option<&[u8]>,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Problems::default();
        let mut settings = Self::default();
        if let Some((name, text)) = file {
            file::read(name, text, &mut settings, &mut problems);
        }
        if let Some(text) = line {
            inline::read(text, &mut settings, &mut problems);
        }
        let place = file.map_or(inline::VARIABLE, |(name, _)| name);
        if problems.0.is_empty() {
            check::whole(&settings, place, &mut problems);
        }
        if problems.0.is_empty() {
            Ok(settings)
        } else {
            Err(problems.0)
        }
    }

    /// What of it concerns the program whose executable file is `program`.
    pub(crate) fn plan_for(self, program: &Path) -> Plan {
        let path = program.as_os_str().as_encoded_bytes();
        let mut rules = self.rules;
        rules.retain(|rule| {
            rule.programs.is_empty() || rule.programs.iter().any(|p| glob::names(p, path))
        });
        Plan {
            interfaces: self.interfaces,
            rules,
            wildcard: self.wildcard.unwrap_or(Use::Both),
            on_failure: self.on_failure.unwrap_or(OnFailure::Kernel),
        }
    }
}

/// What is wrong, and where. `Display` is one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// `FILE:LINE`, or the variable's name.
    pub(crate) place: String,
    /// A sentence: what was found, and what is allowed.
    pub(crate) what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Problems found so far.
#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, place: impl Into<String>, what: impl Into<String>) {
        if self.0.len() < PROBLEMS_MAX {
            self.0.push(Problem {
                place: place.into(),
                what: what.into(),
            });
        }
    }
}

/// A text from outside, in quotes, cut to a length that fits a line, without control characters.
fn quoted(text: &str) -> String {
    /// Longer ones are cut.
    const SHOWN_MAX: usize = 60;
    let mut shown: String = text.chars().take(SHOWN_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}
