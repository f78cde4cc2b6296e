//! The places where something is decided, one function each. They pass the outcome on.

use core::sync::atomic::Ordering;

use super::journal::{Decision, JOURNAL};
use super::layout::Verdict;
use super::words::{Route, Told, role};
use super::{USED, decided};
use core::net::SocketAddr;

use crate::errno::{Errno, Exit, Outcome};
use crate::fd::{File, lookup};
use crate::route::{self, Plan, Role};
use crate::{log, sys};

fn note(decision: &Decision<'_>) {
    if log::is_debugging() {
        tell(decision);
    }
    if let Ok(mut journal) = JOURNAL.lock() {
        journal.add(decision);
    }
    decided();
}

/// The decision as a line on standard error.
#[cold]
fn tell(decision: &Decision<'_>) {
    let told = Told {
        verdict: Some(decision.verdict),
        is_success: decision.answer == 0,
        call: decision.call,
        answer: format_args!("errno {}", decision.answer),
        first: decision.numbers[0],
        second: decision.numbers[1],
        route: decision.route,
    };
    match decision.fd {
        0.. => log::debug(format_args!("fd {}: {told}", decision.fd)),
        _ if decision.inode != 0 => log::debug(format_args!("socket {}: {told}", decision.inode)),
        _ => log::debug(format_args!("{told}")),
    }
}

/// A call on `fd` succeeded with `verdict`, or was refused.
fn conclude<T>(
    outcome: &Outcome<T>,
    call: &'static str,
    fd: i32,
    verdict: Verdict,
    numbers: [u64; 2],
) {
    let (verdict, answer) = match outcome {
        Ok(_) => (verdict, 0),
        Err(Exit::Failed(Errno(errno))) => (Verdict::Refused, *errno),
        Err(Exit::Native) => return,
    };
    note(&Decision {
        call,
        verdict,
        fd,
        inode: if fd < 0 {
            0
        } else {
            sys::inode(sys::borrow(fd))
        },
        answer,
        numbers,
        route: None,
    });
}

/// socket(AF_KCM, `ty`).
pub(crate) fn socket(outcome: Outcome<i32>, ty: i32) -> Outcome<i32> {
    USED.store(true, Ordering::Relaxed);
    let (made, ty) = (outcome.as_ref().map_or(-1, |fd| *fd), ty & 0xf);
    conclude(
        &outcome,
        "socket(AF_KCM)",
        made,
        Verdict::Kcm,
        [ty as u64, 0],
    );
    outcome
}

/// socket(AF_KCM) that goes to the kernel; `made` is its answer.
pub(crate) fn left_to_kernel(made: i32) -> i32 {
    USED.store(true, Ordering::Relaxed);
    let saved = Errno::current();
    let outcome = if made < 0 { Err(saved.into()) } else { Ok(()) };
    conclude(&outcome, "socket(AF_KCM)", made, Verdict::Kernel, [0, 0]);
    saved.set();
    made
}

/// SIOCKCMCLONE made `fd`.
pub(crate) fn cloned(outcome: Outcome<i32>, fd: i32) -> Outcome<i32> {
    let made = if outcome.is_ok() { fd } else { -1 };
    conclude(&outcome, "SIOCKCMCLONE", made, Verdict::Cloned, place(made));
    outcome
}

/// SIOCKCMATTACH of `tcp_fd`.
pub(crate) fn attached(outcome: Outcome<i32>, tcp_fd: i32) -> Outcome<i32> {
    conclude(
        &outcome,
        "SIOCKCMATTACH",
        tcp_fd,
        Verdict::Attached,
        place(tcp_fd),
    );
    outcome
}

/// SIOCKCMUNATTACH of `tcp_fd` from the mux of `file`.
pub(crate) fn unattached(outcome: Outcome<i32>, file: &File, tcp_fd: i32) -> Outcome<i32> {
    let mux = file.cell.get().map_or(0, |cell| cell.index().into());
    conclude(
        &outcome,
        "SIOCKCMUNATTACH",
        tcp_fd,
        Verdict::Unattached,
        [mux, 0],
    );
    outcome
}

/// Mux and index of what stands behind `fd`.
fn place(fd: i32) -> [u64; 2] {
    let file = lookup(fd).filter(|_| fd >= 0);
    let mux = file.and_then(|file| file.cell.get());
    match (file, mux) {
        (Some(file), Some(mux)) if file.kind() == crate::fd::Kind::Kcm => {
            [mux.index().into(), file.kcm_id().0.into()]
        }
        (Some(file), Some(mux)) => [mux.index().into(), file.psock_id().0.into()],
        _ => [0, 0],
    }
}

/// A call that KCM sockets do not have, answered with `answer`.
pub(crate) fn unsupported(file: &File, call: &'static str, answer: Errno) -> Errno {
    note(&Decision {
        call,
        verdict: Verdict::Unsupported,
        fd: -1,
        inode: file.ino.load(Ordering::Relaxed),
        answer: answer.0,
        numbers: [0, 0],
        route: None,
    });
    answer
}

/// getsockopt or setsockopt on a KCM socket.
pub(crate) fn option(
    outcome: Outcome<i32>,
    (call, fd): (&'static str, i32),
    level: i32,
    name: i32,
) -> Outcome<i32> {
    let answer = match &outcome {
        Ok(0..) | Err(Exit::Native) => return outcome,
        Ok(_) => Errno::current(),
        Err(Exit::Failed(errno)) => *errno,
    };
    note(&Decision {
        call,
        verdict: Verdict::Option,
        fd,
        inode: sys::inode(sys::borrow(fd)),
        answer: answer.0,
        numbers: [i64::from(level) as u64, i64::from(name) as u64],
        route: None,
    });
    answer.set();
    outcome
}

/// getsockopt or setsockopt on a socket of the stack: noted where the option is one that the stack does
/// not have. A value that makes no sense is the program's own affair.
pub(crate) fn stack_option(
    outcome: Outcome<i32>,
    call: (&'static str, i32),
    level: i32,
    name: i32,
) -> Outcome<i32> {
    match outcome {
        Err(Exit::Failed(Errno::ENOPROTOOPT | Errno::EOPNOTSUPP)) => {
            option(outcome, call, level, name)
        }
        _ => outcome,
    }
}

/// socketpair(AF_KCM), which fails.
pub(crate) fn pair(outcome: Outcome<i32>) -> Outcome<i32> {
    USED.store(true, Ordering::Relaxed);
    conclude(&outcome, "socketpair(AF_KCM)", -1, Verdict::Refused, [0, 0]);
    outcome
}

/// io_uring_setup was refused with `answer`.
pub(crate) fn io_uring(answer: Errno) {
    note(&Decision {
        call: "io_uring_setup",
        verdict: Verdict::IoUring,
        fd: -1,
        inode: 0,
        answer: answer.0,
        numbers: [0, 0],
        route: None,
    });
}

/// A KCM socket of process `owner` is used here for the first time, at the number `fd`.
pub(crate) fn inherited(fd: i32, owner: u64) {
    USED.store(true, Ordering::Relaxed);
    note(&Decision {
        call: "the first use",
        verdict: Verdict::Inherited,
        fd,
        inode: sys::inode(sys::borrow(fd)),
        answer: 0,
        numbers: [owner, 0],
        route: None,
    });
}

/// BPF_PROG_LOAD of `instructions`, by the kernel or here.
pub(crate) fn parser(outcome: Outcome<i64>, granted: bool, instructions: u32) -> Outcome<i64> {
    let fd = outcome.as_ref().map_or(-1, |fd| *fd as i32);
    let verdict = if granted {
        Verdict::ParserGranted
    } else {
        Verdict::ParserVerified
    };
    conclude(
        &outcome,
        "BPF_PROG_LOAD",
        fd,
        verdict,
        [instructions.into(), 0],
    );
    outcome
}

/// The plan decided who serves socket `fd`, which named `address` in `role`. `stack` says whether the
/// stack could start, if it was to.
pub(crate) fn routed(
    plan: &Plan,
    (role, fd, address): (Role, i32, SocketAddr),
    decision: &route::Decision<'_>,
    stack: &Outcome<()>,
) {
    USED.store(true, Ordering::Relaxed);
    let (verdict, iface) = match decision.verdict {
        route::Verdict::Kernel => (Verdict::LeftToKernel, None),
        route::Verdict::Refuse(_) => (Verdict::Denied, None),
        route::Verdict::Stack { iface } => (Verdict::Stack, iface),
        route::Verdict::Both { iface } => (Verdict::Both, iface),
    };
    let (verdict, answer) = match (stack, decision.verdict) {
        (_, route::Verdict::Refuse(errno)) => (verdict, errno),
        (Ok(()), _) | (_, route::Verdict::Kernel) => (verdict, 0),
        (Err(Exit::Native), _) => (Verdict::StackFailed, 0),
        (Err(Exit::Failed(Errno(errno))), _) => (Verdict::StackFailed, *errno),
    };
    let device = iface.and_then(|at| plan.interfaces.get(at));
    // A socket of the stack takes its place, and the next such decision is a repetition.
    let is_replaced = verdict == Verdict::Stack && matches!(role, Role::Listen | Role::Connect);
    note(&Decision {
        call: match role {
            Role::Listen => role::LISTEN,
            Role::Connect => role::CONNECT,
            Role::UdpBind => role::UDP_BIND,
            Role::UdpSend => role::UDP_SEND,
        },
        verdict,
        fd,
        inode: match is_replaced {
            true => 0,
            false => sys::inode(sys::borrow(fd)),
        },
        answer,
        numbers: [decision.line as u64, 0],
        route: Some(Route {
            address,
            rule: decision.rule,
            device: device.map_or("", |interface| &interface.device),
        }),
    });
}
