//! The decision about one socket.

use std::net::{IpAddr, SocketAddr};

use super::{OnFailure, Plan, Prefix, RoleName, Rule, Use};

/// What a socket is about to do with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A TCP socket listens on, or binds, this address of ours.
    Listen,
    /// A TCP socket connects to this address.
    Connect,
    /// A UDP socket binds this address of ours.
    UdpBind,
    /// A UDP socket connects or sends to this address.
    UdpSend,
}

/// Who serves a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The stack on one interface, or for sockets bound to 0.0.0.0 or :: on all (`None`). The index
    /// is that of [`Plan::interfaces`].
    Stack {
        /// Which.
        iface: Option<usize>,
    },
    /// Both the kernel and the stack, as for `Stack`: sockets bound to 0.0.0.0 or ::.
    Both {
        /// Which interface of the stack; all if `None`.
        iface: Option<usize>,
    },
    /// The kernel.
    Kernel,
    /// Nobody: the call fails with this errno.
    Refuse(i32),
}

/// The verdict with its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Decision<'p> {
    pub(crate) verdict: Verdict,
    /// The rule's name, or the default's.
    pub(crate) rule: &'p str,
    /// Line of the file the rule begins in; 0 for a default.
    pub(crate) line: usize,
    /// The interface that the rule names, by index: sockets keep to it.
    #[allow(dead_code, reason = "asked by the library alone")]
    pub(crate) device: Option<usize>,
    /// What holds if the stack cannot start.
    pub(crate) on_failure: OnFailure,
}

impl Decision<'_> {
    /// Whether the kernel serves the socket only because no prefix of the stack covers its address.
    #[allow(dead_code, reason = "asked by the library alone")]
    pub(crate) fn is_for_want_of_a_prefix(&self) -> bool {
        self.rule == default::REST
    }
}

/// Names of the defaults, for `kcmctl explain`.
mod default {
    pub(super) const OWN: &str = "default: the stack's own address";
    pub(super) const PREFIX: &str = "default: a prefix of the stack";
    pub(super) const WILDCARD: &str = "default: wildcard";
    pub(super) const LOOPBACK: &str = "default: loopback";
    pub(super) const REST: &str = "default: not the stack's";
}

/// Addresses that interfaces got at run time (DHCP), by index of the interface.
pub(crate) type Learned<'a> = &'a [Vec<Prefix>];

impl Role {
    const fn name(self) -> RoleName {
        match self {
            Self::Listen => RoleName::Listen,
            Self::Connect => RoleName::Connect,
            Self::UdpBind | Self::UdpSend => RoleName::Udp,
        }
    }

    /// Whether the address is one of ours, and not a peer's.
    const fn is_local(self) -> bool {
        matches!(self, Self::Listen | Self::UdpBind)
    }
}

impl Rule {
    fn matches(&self, role: Role, ip: IpAddr, port: u16) -> bool {
        let address = match self.addresses.as_slice() {
            [] => !is_loopback(role, ip),
            some => some.iter().any(|prefix| prefix.contains(ip)),
        };
        address
            && (self.roles.is_empty() || self.roles.contains(&role.name()))
            && (self.ports.is_empty() || self.ports.iter().any(|(a, b)| (*a..=*b).contains(&port)))
    }
}

/// Bound to, it is an address of kernel and stack alike: all of them, or that of a group.
fn is_everybodys(role: Role, ip: IpAddr) -> bool {
    role.is_local() && ip.is_unspecified() || role == Role::UdpBind && ip.is_multicast()
}

/// A peer's address 0.0.0.0 is loopback to Linux.
fn is_loopback(role: Role, ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() && !role.is_local()
}

impl Plan {
    /// Who serves a socket that is about to use `address` in `role`.
    pub(crate) fn decide(
        &self,
        learned: Learned<'_>,
        role: Role,
        address: SocketAddr,
    ) -> Decision<'_> {
        let ip = address.ip().to_canonical();
        let mut rules = self.rules.iter();
        let Some(rule) = rules.find(|rule| rule.matches(role, ip, address.port())) else {
            return self.by_default(learned, role, ip);
        };
        let device = rule.device.as_deref();
        let only = device.and_then(|d| self.interfaces.iter().position(|i| i.device == d));
        let verdict = match rule.serve {
            Use::Kernel => Verdict::Kernel,
            Use::Refuse(errno) => Verdict::Refuse(errno),
            Use::Stack if is_everybodys(role, ip) => Verdict::Stack { iface: only },
            Use::Both if is_everybodys(role, ip) => Verdict::Both { iface: only },
            Use::Stack => Verdict::Stack {
                iface: only.or_else(|| self.nearest(learned, ip)),
            },
            // Of one address, one of the two is the owner.
            Use::Both => self.by_default(learned, role, ip).verdict,
        };
        Decision {
            verdict,
            rule: &rule.name,
            line: rule.line,
            device: only,
            on_failure: rule.on_failure.unwrap_or(self.on_failure),
        }
    }

    fn by_default(&self, learned: Learned<'_>, role: Role, ip: IpAddr) -> Decision<'static> {
        let found = if role.is_local() {
            self.owner(learned, ip)
        } else {
            self.covering(learned, ip)
        };
        let (verdict, rule) = match found {
            _ if is_loopback(role, ip) => (Verdict::Kernel, default::LOOPBACK),
            _ if is_everybodys(role, ip) => {
                let verdict = match self.wildcard {
                    Use::Stack => Verdict::Stack { iface: None },
                    Use::Both => Verdict::Both { iface: None },
                    Use::Kernel | Use::Refuse(_) => Verdict::Kernel,
                };
                (verdict, default::WILDCARD)
            }
            Some(_) if role.is_local() => (Verdict::Stack { iface: found }, default::OWN),
            Some(_) => (Verdict::Stack { iface: found }, default::PREFIX),
            None => (Verdict::Kernel, default::REST),
        };
        Decision {
            verdict,
            rule,
            line: 0,
            device: None,
            on_failure: self.on_failure,
        }
    }

    /// Addresses of an interface, static ones and those it got.
    fn addresses<'a>(
        &'a self,
        learned: Learned<'a>,
        at: usize,
    ) -> impl Iterator<Item = &'a Prefix> {
        let fixed = self.interfaces.get(at).map_or(&[][..], |i| &i.addresses);
        let got = learned.get(at).map_or(&[][..], Vec::as_slice);
        fixed.iter().chain(got)
    }

    /// Whether some rule names an interface.
    #[allow(dead_code, reason = "asked by the library alone")]
    pub(crate) fn names_devices(&self) -> bool {
        self.rules.iter().any(|rule| rule.device.is_some())
    }

    /// The interface that has this very address.
    pub(crate) fn owner(&self, learned: Learned<'_>, ip: IpAddr) -> Option<usize> {
        let ip = ip.to_canonical();
        (0..self.interfaces.len()).find(|at| self.addresses(learned, *at).any(|p| p.ip == ip))
    }

    /// The interface whose own prefixes, or routes but the default one, cover an address; the longest
    /// prefix of all wins.
    fn covering(&self, learned: Learned<'_>, ip: IpAddr) -> Option<usize> {
        let mut best: Option<(u8, usize)> = None;
        for (at, interface) in self.interfaces.iter().enumerate() {
            let routes = interface.routes.iter().map(|route| &route.to);
            let prefixes = self.addresses(learned, at).chain(routes);
            for prefix in prefixes.filter(|p| p.len > 0 && p.contains(ip)) {
                if best.is_none_or(|(len, _)| prefix.len > len) {
                    best = Some((prefix.len, at));
                }
            }
        }
        best.map(|(_, at)| at)
    }

    /// The interface to use where a rule says "stack" and not which: the one that covers the address,
    /// else one with a default gateway, else one with an address of the family, else the first.
    fn nearest(&self, learned: Learned<'_>, ip: IpAddr) -> Option<usize> {
        let same = |other: IpAddr| other.is_ipv4() == ip.is_ipv4();
        let all = || 0..self.interfaces.len();
        let gateway = |at: &usize| {
            let interface = self.interfaces.get(*at);
            interface.is_some_and(|i| {
                let default = i.routes.iter().filter(|r| r.to.len == 0).map(|r| r.to.ip);
                i.gateways.iter().copied().chain(default).any(same)
            })
        };
        self.covering(learned, ip)
            .or_else(|| all().find(gateway))
            .or_else(|| all().find(|at| self.addresses(learned, *at).any(|p| same(p.ip))))
            .or_else(|| all().next())
    }
}
