//! `kcmctl explain PID [FD]`: what was decided about each descriptor, and why.

use serde_json::{Value, json};

use crate::layout::{Verdict, socket};
use crate::mux::errno;
use crate::page::{self, Decision, Kind, Page};
use crate::ss::{self, Socket};
use crate::words::{self, Told, role};
use crate::{Outcome, Problem, out, process};

pub(crate) fn explain(pid: u32, fd: Option<i64>, as_json: bool) -> Outcome<()> {
    let page = page::of(pid)?;
    let fds: Vec<i64> = match fd {
        Some(fd) => vec![fd],
        None => known(&page),
    };
    let all: Vec<_> = fds.iter().map(|fd| Descriptor::of(&page, *fd)).collect();
    if let (Some(fd), [only]) = (fd, all.as_slice())
        && only.target.is_none()
        && only.history.is_empty()
    {
        return Err(Problem(format!("process {pid} has no descriptor {fd}")));
    }
    let strays: Vec<_> = page
        .decisions
        .iter()
        .filter(|d| fd.is_none() && is_stray(&page, d))
        .collect();
    if as_json {
        return out::print_json(&json!({
            "pid": pid,
            "decided": page.decided,
            "overwritten": page.decided.saturating_sub(page.decisions.len() as u64),
            "sockets_left_out": page.left_out,
            "descriptors": all.iter().map(Descriptor::json).collect::<Vec<_>>(),
            "without_descriptor": strays.iter().map(|d| decision_json(d)).collect::<Vec<_>>(),
        }));
    }
    let mut lines = Vec::new();
    for descriptor in &all {
        lines.push(format!("fd {}: {}", descriptor.fd, descriptor.now));
        lines.extend(descriptor.history.iter().map(|d| line(d)));
    }
    if !strays.is_empty() {
        lines.push("no descriptor:".to_owned());
        lines.extend(strays.iter().map(|d| line(d)));
    }
    let kept = page.decisions.len() as u64;
    if page.decided > kept {
        lines.push(format!(
            "{} of {} decisions are not kept: newer ones have taken their place",
            page.decided - kept,
            page.decided
        ));
    }
    if page.left_out > 0 {
        lines.push(format!(
            "{} sockets more than the page has room for are not shown as what they are now",
            page.left_out
        ));
    }
    if fd.is_none() {
        lines.push(
            "every other descriptor is passed through: it is neither KCM, attached nor the stack's"
                .to_owned(),
        );
    }
    let width = out::columns();
    let text: Vec<_> = lines.iter().map(|line| out::cut(line, width)).collect();
    out::print(&(text.join("\n") + "\n"))
}

/// A descriptor as it stands, and what was decided about it.
struct Descriptor<'a> {
    fd: i64,
    /// What /proc says it is; `None` when it is closed.
    target: Option<String>,
    kind: &'static str,
    now: String,
    history: Vec<&'a Decision>,
}

impl<'a> Descriptor<'a> {
    fn of(page: &'a Page, fd: i64) -> Self {
        let target = process::target(page.pid, fd);
        let inode = target.as_deref().and_then(process::socket_inode);
        let about = |d: &&Decision| d.fd == fd || d.fd < 0 && owner(page, d) == Some(fd);
        let history = page.decisions.iter().filter(about).collect();
        let record = inode.and_then(|inode| page.records.iter().find(|r| r.inode == inode));
        let is_parser = |d: &&Decision| {
            matches!(
                d.verdict,
                Some(Verdict::ParserGranted | Verdict::ParserVerified)
            ) && d.fd == fd
        };
        let last = page.decisions.iter().rev().find(|d| d.fd == fd);
        let parser = last.filter(is_parser);
        let served = inode.and_then(|inode| ss::sockets(page).find(|s| s.inode() == inode));
        let is_stack = |d: &Decision| matches!(d.verdict, Some(Verdict::Stack | Verdict::Both));
        let is_decided = last.is_some_and(is_stack);
        let routed = last.filter(|d| d.route.is_some() && Some(d.inode) == inode);
        let inherited = last.filter(|d| d.verdict == Some(Verdict::Inherited));
        let (kind, now) = match (&target, record.map(|r| (r.kind, r))) {
            (None, _) => ("closed", "closed".to_owned()),
            (_, Some((Kind::Kcm, r))) => {
                ("kcm", format!("KCM: socket {} of mux {}", r.number, r.mux))
            }
            (_, Some((Kind::Psock, r))) => (
                "attached",
                format!(
                    "attached: psock {} of mux {}, over the kernel's TCP",
                    r.number, r.mux
                ),
            ),
            _ if served.is_some() => (
                "stack",
                served.map_or_else(String::new, |s| stack(page, s, is_decided)),
            ),
            (Some(target), _) if inherited.is_some() && target.starts_with("socket:") => (
                "remote",
                format!(
                    "KCM: a socket of process {}, which has its mux",
                    inherited.map_or(0, |d| d.first)
                ),
            ),
            (Some(target), _) if parser.is_some() && target.starts_with("anon_inode:") => {
                ("parser", "a parser program".to_owned())
            }
            (Some(target), _) if routed.is_some() => {
                ("passed", format!("passed through to the kernel: {target}"))
            }
            (Some(target), _) => (
                "passed",
                format!(
                    "passed through to the kernel: {target} is neither KCM, attached nor the stack's"
                ),
            ),
        };
        Self {
            fd,
            target,
            kind,
            now,
            history,
        }
    }

    fn json(&self) -> Value {
        json!({
            "fd": self.fd,
            "target": self.target,
            "is": self.kind,
            "why": self.now,
            "decisions": self.history.iter().map(|d| decision_json(d)).collect::<Vec<_>>(),
        })
    }
}

/// A socket of the stack; one that nothing was decided about was accepted.
fn stack(page: &Page, shown: Socket<'_>, is_decided: bool) -> String {
    let local = shown.address(socket::LOCAL);
    let mut text = format!("stack: {} {} {local}", shown.protocol(), shown.state());
    if shown.state() != "LISTEN" && shown.protocol() == "tcp" {
        text += &format!(" {}", shown.address(socket::REMOTE));
    }
    let listens = |d: &&Decision| {
        let at = d.route.as_ref().map(|route| route.address);
        matches!(d.verdict, Some(Verdict::Stack | Verdict::Both))
            && d.call == role::LISTEN
            && at.is_some_and(|at| at.port() == local.port())
    };
    if let Some(listener) = page
        .decisions
        .iter()
        .rev()
        .find(listens)
        .filter(|_| !is_decided)
    {
        text += &format!(", accepted from the listener that fd {} was", listener.fd);
    }
    text
}

/// Descriptors that a decision names or that a record's socket stands behind, in order.
fn known(page: &Page) -> Vec<i64> {
    let mut fds: Vec<_> = page
        .decisions
        .iter()
        .map(|d| d.fd)
        .filter(|fd| *fd >= 0)
        .collect();
    let sockets = process::sockets(page.pid);
    let lent = page
        .records
        .iter()
        .filter(|r| r.kind != Kind::Mux && r.inode != 0);
    fds.extend(lent.filter_map(|r| sockets.get(&r.inode)).flatten());
    let served = ss::sockets(page).filter(|s| s.inode() != 0);
    fds.extend(served.filter_map(|s| sockets.get(&s.inode())).flatten());
    fds.sort_unstable();
    fds.dedup();
    fds
}

/// The descriptor of a decision that knows only its inode: the one an earlier decision gave it.
fn owner(page: &Page, decision: &Decision) -> Option<i64> {
    let named = page
        .decisions
        .iter()
        .filter(|d| d.fd >= 0 && d.inode == decision.inode);
    (decision.inode != 0)
        .then(|| named.map(|d| d.fd).next())
        .flatten()
}

fn is_stray(page: &Page, decision: &Decision) -> bool {
    decision.fd < 0 && owner(page, decision).is_none()
}

/// What was decided, in words.
fn told(d: &Decision) -> String {
    let told = Told {
        verdict: d.verdict,
        is_success: d.answer == 0,
        call: &d.call,
        answer: errno(d.answer),
        first: d.first,
        second: d.second,
        route: d.route.as_ref().map(|route| words::Route {
            address: route.address,
            rule: &route.rule,
            device: &route.device,
        }),
    };
    told.to_string()
}

/// Time of day in UTC, with this many digits of the second's fraction.
pub(crate) fn clock(nanoseconds: u64, digits: usize) -> String {
    let seconds = nanoseconds / 1_000_000_000 % 86_400;
    let fraction = format!("{:09}", nanoseconds % 1_000_000_000);
    format!(
        "{:02}:{:02}:{:02}.{}Z",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        &fraction[..digits.min(fraction.len())]
    )
}

fn line(d: &Decision) -> String {
    let times = if d.times > 1 {
        format!(" ({} times)", d.times)
    } else {
        String::new()
    };
    format!(
        "    {}  thread {}  {}{times}",
        clock(d.time, 3),
        d.thread,
        told(d)
    )
}

fn decision_json(d: &Decision) -> Value {
    json!({
        "time_ns": d.time,
        "thread": d.thread,
        "fd": d.fd,
        "call": d.call,
        "verdict": d.verdict.map(|verdict| format!("{verdict:?}").to_lowercase()),
        "errno": d.answer,
        "times": d.times,
        "what": told(d),
        "address": d.route.as_ref().map(|route| route.address.to_string()),
        "rule": d.route.as_ref().map(|route| &route.rule),
        "line": d.route.as_ref().map(|_| d.first),
        "device": d.route.as_ref().map(|route| &route.device),
    })
}
