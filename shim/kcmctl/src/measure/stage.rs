//! The process in whose network namespace everything happens: it makes the interfaces and has both
//! sides take turns. The namespaces are gone when it and its children are.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{getegid, geteuid};
use serde_json::{Value, json};

use super::{Kind, ROUNDS, arguments};
use crate::child::{self, Running};
use crate::{Outcome, Problem, fd, out};

/// Longest a step may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks at an interface.
const GLANCE: Duration = Duration::from_millis(5);
/// What is announced on standard output: each side of each round.
pub(super) const STEPS: usize = 2 * ROUNDS;

/// Addresses on both sides of the veth pair, and of the TAP interface. Nothing outside the namespaces
/// hears of them.
const NEAR: &str = "10.98.76.2/24";
const FAR: &str = "10.98.76.1/24";
const TAP_NEAR: &str = "10.98.77.2/24";
const TAP_FAR: &str = "10.98.77.1/24";
/// Names of the interfaces, within the namespaces.
const VETH: &str = "kcm0";
const TAP: &str = "kcmtap0";

/// Leaves for a network namespace of its own, as root of a user namespace where that is needed.
#[allow(
    unsafe_code,
    reason = "unshare(2) is unsafe where it splits the table of descriptors"
)]
pub(super) fn enter_namespace() -> Outcome<()> {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    // SAFETY: the descriptors stay shared.
    let alone = unsafe { unshare_unsafe(UnshareFlags::NEWNET) };
    if alone.is_ok() {
        return Ok(());
    }
    // SAFETY: as before.
    let as_user = unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNET) };
    as_user.map_err(|err| {
        Problem(format!(
            "no network namespace can be made: {}",
            fd::error(err)
        ))
    })?;
    // user_namespaces(7): a group map needs this first. Old kernels have no such file.
    let _ = fs::write("/proc/self/setgroups", "deny");
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    Ok(())
}

/// Waits until the kernel has noticed an interface's carrier, in its own time: what is sent before is lost.
pub(super) fn await_carrier(interface: &str) -> Outcome<()> {
    let deadline = Instant::now() + PATIENCE;
    while !ip(&format!("link show dev {interface}"))?.contains("state UP") {
        if Instant::now() > deadline {
            return Err(Problem(format!("{interface} gets no carrier")));
        }
        std::thread::sleep(GLANCE);
    }
    Ok(())
}

/// What ip(8) says; its complaint becomes ours.
pub(super) fn ip(words: &str) -> Outcome<String> {
    let mut command = Command::new("ip");
    command.args(words.split_ascii_whitespace());
    match child::output(command, PATIENCE) {
        Ok((said, _)) => Ok(String::from_utf8_lossy(&said).into_owned()),
        Err(Problem(why)) if why.contains("No such file") => Err(Problem::new(
            "it takes the program ip (iproute2), which is not here",
        )),
        Err(Problem(why)) => Err(Problem(format!("ip {words}: {why}"))),
    }
}

/// The peer: a process that serves an address, by the kernel.
struct Far {
    running: Running,
    said: BufReader<std::process::ChildStdout>,
}

impl Far {
    /// Starts it: in a namespace of its own, whose interface it is to set up, if one is named.
    fn start(address: &str, interface: &str) -> Outcome<Self> {
        let mut command = child::again(arguments(["far", address, interface]));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Running(command.spawn()?);
        let stdout = running.0.stdout.take();
        let stdout = stdout.ok_or_else(|| Problem::new("no pipe to the peer"))?;
        Ok(Self {
            running,
            said: BufReader::new(stdout),
        })
    }

    /// The next line that it says.
    fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        match self.said.read_line(&mut line)? {
            0 => Err(Problem::new("the peer could not be set up")),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    /// Its interface is there: where does it listen?
    fn go(&mut self) -> Outcome<String> {
        if let Some(stdin) = &mut self.running.0.stdin {
            writeln!(stdin)?;
        }
        self.line()
    }
}

pub(super) fn main(kind: &str, offloads: &str, library: &Path) -> Outcome<()> {
    let kind = Kind::parse(kind).ok_or_else(|| Problem::new("no such kind of device"))?;
    enter_namespace()?;
    let mut far = Far::start(FAR, VETH)?;
    far.line()?; // it is in its namespace
    let pid = far.running.0.id();
    ip(&format!(
        "link add {VETH} type veth peer name {VETH} netns {pid}"
    ))?;
    ip("link set lo up")?;
    ip(&format!("link set {VETH} up"))?;
    let veth = far.go()?;
    await_carrier(VETH)?;
    let mut tap = None;
    if kind == Kind::Tap {
        ip(&format!("tuntap add dev {TAP} mode tap"))?;
        ip(&format!("link set {TAP} up"))?;
        let mut far = Far::start(TAP_FAR, "")?;
        ip(&format!("address add {TAP_FAR} dev {TAP}"))?;
        far.line()?;
        tap = Some((far.go()?, far));
    }
    let (device, near, to) = match (kind, &tap) {
        (Kind::Tap, Some((to, _))) => (format!("tap:{TAP}"), TAP_NEAR, to),
        _ => (format!("{}:{VETH}", kind.name()), NEAR, &veth),
    };
    let line = format!("{device} {near} offloads={offloads} on_failure=EIO");
    for round in 1..=ROUNDS {
        step(&format!("round {round}, the kernel's stack"))?;
        ip(&format!("address add {NEAR} dev {VETH}"))?;
        let kernel = turn(child::again(arguments(["near", &veth])))?;
        ip(&format!("address flush dev {VETH}"))?;
        step(&format!("round {round}, the stack in the process"))?;
        let mut command = child::again(arguments(["near", to]));
        command
            .env("LD_PRELOAD", library)
            .env("KCMSHIM_STACK", &line);
        let stack = turn(command)?;
        out::print_json(&json!({ "kernel": kernel, "stack": stack }))?;
    }
    Ok(())
}

fn step(what: &str) -> Outcome<()> {
    out::print_json(&json!({ "step": what }))
}

/// One side's turn.
fn turn(command: Command) -> Outcome<Value> {
    /// What the library says before the reason why it leaves a socket alone.
    const REFUSAL: &str = "kcmshim: the stack is not used: ";
    let (said, _) = child::output(command, PATIENCE).map_err(|Problem(why)| {
        let reason = why.lines().find_map(|line| line.strip_prefix(REFUSAL));
        Problem(reason.map_or_else(|| why.replace('\n', "; "), str::to_owned))
    })?;
    serde_json::from_slice(&said).map_err(|_| Problem::new("the client reported nothing"))
}
