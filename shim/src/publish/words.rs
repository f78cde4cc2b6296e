//! A decision in words: what `kcmctl explain` shows afterwards, and `KCMSHIM_LOG=debug` as it happens.
//! Both crates compile this file.

use core::fmt;
use core::net::SocketAddr;

use super::layout::Verdict;

/// What a decision by the plan was about, and what made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route<'a> {
    pub(crate) address: SocketAddr,
    /// Name of the rule or default.
    pub(crate) rule: &'a str,
    /// Device of the interface; empty where it is none or all.
    pub(crate) device: &'a str,
}

/// What was decided.
pub(crate) struct Told<'a, E> {
    /// `None`: of a kind that a newer library knows.
    pub(crate) verdict: Option<Verdict>,
    pub(crate) call: &'a str,
    /// Nothing was refused.
    pub(crate) is_success: bool,
    /// The errno answered, in words.
    pub(crate) answer: E,
    /// Two numbers whose meaning is the verdict's.
    pub(crate) first: u64,
    pub(crate) second: u64,
    /// Of a decision by the plan.
    pub(crate) route: Option<Route<'a>>,
}

/// Names of what a socket is about to do, as the plan distinguishes it.
pub(crate) mod role {
    pub(crate) const LISTEN: &str = "listen";
    pub(crate) const CONNECT: &str = "connect";
    pub(crate) const UDP_BIND: &str = "udp bind";
    pub(crate) const UDP_SEND: &str = "udp send";
}

impl<E: fmt::Display> Told<'_, E> {
    /// What the plan decided: `who` gets what was asked for.
    fn routed(
        &self,
        f: &mut fmt::Formatter<'_>,
        who: &str,
        outcome: fmt::Arguments<'_>,
    ) -> fmt::Result {
        let Some(route) = &self.route else {
            return write!(f, "{who}: {}", self.call);
        };
        let at = match self.call {
            role::LISTEN | role::UDP_BIND => "on",
            role::CONNECT | role::UDP_SEND => "to",
            _ => "at",
        };
        let (call, address, rule) = (self.call, route.address, route.rule);
        write!(f, "{who}: {call} {at} {address} {outcome}, by ")?;
        match self.first {
            0 => f.write_str(rule),
            line => write!(f, "rule \"{rule}\" in line {line}"),
        }
    }
}

impl<E: fmt::Display> fmt::Display for Told<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Told {
            call,
            answer,
            first,
            second,
            route,
            ..
        } = self;
        let device = match route.map_or("", |route| route.device) {
            "" => "every interface of the stack",
            device => device,
        };
        let Some(verdict) = self.verdict else {
            return write!(f, "{call}: decided by a newer library");
        };
        match verdict {
            Verdict::Kcm => {
                let ty = match *first {
                    5 => "SOCK_SEQPACKET",
                    _ => "SOCK_DGRAM",
                };
                write!(f, "KCM: {call} made a {ty} socket in user space")
            }
            Verdict::Cloned => write!(f, "KCM: {call} made socket {second} of mux {first}"),
            Verdict::Attached => {
                write!(f, "attached: {call} made it psock {second} of mux {first}")
            }
            Verdict::Unattached => write!(
                f,
                "unattached: {call} took it from mux {first}; it is plain TCP again"
            ),
            Verdict::Refused => write!(f, "refused: {call} answered {answer}"),
            Verdict::Unsupported => write!(
                f,
                "unsupported: {call} answered {answer}, as the kernel's KCM does"
            ),
            Verdict::Option => write!(
                f,
                "refused: {call} of option {second} at level {first} answered {answer}"
            ),
            Verdict::Kernel => write!(
                f,
                "passed: {call} went to the kernel, as KCMSHIM_KCM=kernel asks"
            ),
            Verdict::ParserGranted => write!(
                f,
                "parser: the kernel loaded its {first} instructions; the library runs them"
            ),
            Verdict::ParserVerified => write!(
                f,
                "parser: refused by the kernel for want of rights; the library verified its {first} \
                 instructions"
            ),
            Verdict::Inherited => write!(
                f,
                "KCM: {call} found a socket whose mux is with process {first}; messages come \
                 through the kernel"
            ),
            Verdict::IoUring => write!(
                f,
                "refused: {call} answered {answer}: its rings would pass every hook \
                 (KCMSHIM_IO_URING=allow leaves it alone)"
            ),
            Verdict::Stack => self.routed(f, "stack", format_args!("goes to {device}")),
            Verdict::Both => {
                let outcome = format_args!("goes to the kernel and to {device}");
                self.routed(f, "both", outcome)
            }
            Verdict::LeftToKernel => self.routed(f, "passed", format_args!("goes to the kernel")),
            Verdict::Denied => self.routed(f, "refused", format_args!("answered {answer}")),
            Verdict::StackFailed if self.is_success => {
                let outcome = format_args!(
                    "goes to the kernel, since the stack could not start: it was given to {device}"
                );
                self.routed(f, "passed", outcome)
            }
            Verdict::StackFailed => {
                let outcome = format_args!(
                    "answered {answer}, since the stack could not start: it was given to {device}"
                );
                self.routed(f, "refused", outcome)
            }
        }
    }
}
