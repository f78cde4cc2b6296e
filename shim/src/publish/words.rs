//! A decision in words: what `kcmctl explain` shows afterwards, and `KCMSHIM_LOG=debug` as it happens.
//! Both crates compile this file.

use core::fmt;

use super::layout::Verdict;

/// What was decided.
pub(crate) struct Told<'a, E> {
    /// `None`: of a kind that a newer library knows.
    pub(crate) verdict: Option<Verdict>,
    pub(crate) call: &'a str,
    /// The errno answered, in words.
    pub(crate) answer: E,
    /// Two numbers whose meaning is the verdict's.
    pub(crate) first: u64,
    pub(crate) second: u64,
}

impl<E: fmt::Display> fmt::Display for Told<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Told {
            call,
            answer,
            first,
            second,
            ..
        } = self;
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
        }
    }
}
