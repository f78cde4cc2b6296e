//! `kcmctl doctor --measure`: whether a device of the stack is faster or slower than the kernel's stack
//! here.
//!
//! A device of the same kind is opened on a veth pair, or a TAP interface, in network namespaces that
//! are made for this and vanish with the processes in them ([`stage`]): the user's interfaces are not
//! touched. The same program ([`near`]) talks to the same peer on the kernel's stack ([`far`]), in
//! turns on the kernel's stack and on the one in the process.

mod far;
mod near;
mod stage;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{ExitCode, Stdio};

use kcm_stack::device::DeviceName;
use serde_json::{Value, json};

use crate::child::{self, Running};
use crate::figures::{ratio, times};
use crate::out::clean;
use crate::plan::Interface;
use crate::progress::Progress;
use crate::{Outcome, Problem, out, run};

/// The first argument of the processes that measure.
const NAME: &str = "measure-part";
/// Rounds, each of both sides.
const ROUNDS: usize = 3;
/// Within so much of 1 two figures are called equal.
const NOISE: f64 = 0.05;

/// What is measured of both stacks: a name, the field, and whether more is better.
const FIGURES: [(&str, &str, bool); 3] = [
    ("round trip, 64 B", "p50_us", false),
    ("sending", "send_gbps", true),
    ("receiving", "recv_gbps", true),
];

/// A device to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Packet,
    Xdp,
    Netmap,
    Tap,
}

impl Kind {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Packet, "packet"),
        (Self::Xdp, "xdp"),
        (Self::Netmap, "netmap"),
        (Self::Tap, "tap"),
    ];

    fn name(self) -> &'static str {
        let found = Self::ALL.into_iter().find(|(kind, _)| *kind == self);
        found.map_or("", |(_, name)| name)
    }

    fn parse(name: &str) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|(_, known)| *known == name);
        found.map(|(kind, _)| kind)
    }
}

/// What of an interface is measured: its device's kind, and how it is to be opened.
pub(crate) struct Subject {
    /// As the user named it; `None` when nothing is configured.
    device: Option<String>,
    kind: Result<Kind, String>,
    offloads: bool,
}

impl Subject {
    /// Where nothing is configured: what needs the least.
    pub(crate) fn usual() -> Self {
        Self {
            device: None,
            kind: Ok(Kind::Packet),
            offloads: true,
        }
    }

    pub(crate) fn of(interface: &Interface) -> Self {
        let kind = match interface.device.parse() {
            Ok(DeviceName::Packet(_)) => Ok(Kind::Packet),
            Ok(DeviceName::Xdp(_)) => Ok(Kind::Xdp),
            Ok(DeviceName::Netmap(_)) => Ok(Kind::Netmap),
            Ok(DeviceName::Tap(_)) => Ok(Kind::Tap),
            Ok(DeviceName::Memory | DeviceName::SharedMemory(_)) => {
                Err("a memory device has no kernel at its other end".to_owned())
            }
            Err(why) => Err(why.to_string()),
        };
        Self {
            device: Some(clean(interface.device.as_bytes())),
            kind,
            offloads: interface.offloads,
        }
    }

    fn name(&self) -> &str {
        match (&self.device, &self.kind) {
            (Some(device), _) => device,
            (None, Ok(kind)) => kind.name(),
            (None, Err(_)) => "device",
        }
    }

    /// What the figures are of.
    fn scene(&self) -> String {
        let on = match self.kind {
            Ok(Kind::Tap) => "a TAP interface",
            _ => "a veth pair",
        };
        let untouched = match &self.device {
            Some(device) => {
                format!("; {device} itself, its driver and its hardware, was left alone")
            }
            None => String::new(),
        };
        format!("measured on {on} of its own in new network namespaces{untouched}")
    }
}

/// Becomes one of the processes that measure if the arguments say so.
pub(crate) fn run_if_asked() -> Option<ExitCode> {
    child::part(NAME, |words| match words {
        ["stage", kind, offloads, library] => stage::main(kind, offloads, Path::new(library)),
        ["far", address, interface] => far::main(address, interface),
        ["near", to] => near::main(to),
        ["namespace"] => stage::enter_namespace(),
        _ => Err(Problem::new("a part of a measurement, to be started by it")),
    })
}

/// The arguments of a process that measures.
fn arguments<const N: usize>(words: [&str; N]) -> impl Iterator<Item = String> {
    [NAME].into_iter().chain(words).map(str::to_owned)
}

/// Whether this user can make a network namespace, by trying.
///
/// # Errors
/// Why not.
pub(crate) fn try_namespace() -> Outcome<()> {
    let command = child::again(arguments(["namespace"]));
    child::output(command, stage::PATIENCE).map(drop)
}

/// Measures every subject and prints what came out.
pub(crate) fn measure(subjects: &[Subject], as_json: bool) -> Outcome<()> {
    let steps = subjects.iter().filter(|s| s.kind.is_ok()).count() * stage::STEPS;
    let mut progress = Progress::new(steps);
    let measured: Vec<_> = subjects
        .iter()
        .map(|subject| one(subject, &mut progress))
        .collect();
    drop(progress);
    let both = subjects.iter().zip(&measured);
    if as_json {
        let all = both.map(|(subject, rounds)| subject_json(subject, rounds));
        return out::print_json(&Value::Array(all.collect()));
    }
    let columns = out::columns();
    let text: String = both.map(|(s, rounds)| text(s, rounds, columns)).collect();
    out::print(&text)
}

/// Rounds of one side: what [`near`] said.
struct Rounds {
    kernel: Vec<Value>,
    stack: Vec<Value>,
}

impl Rounds {
    /// A figure, round by round.
    fn of<'r>(rounds: &'r [Value], field: &'r str) -> impl Iterator<Item = Option<f64>> + 'r {
        rounds.iter().map(move |round| round.get(field)?.as_f64())
    }

    fn median(rounds: &[Value], field: &str) -> Option<f64> {
        let values = Self::of(rounds, field).flatten().collect();
        crate::figures::Spread::of(values).map(|spread| spread.median)
    }

    /// How many times as good as the kernel's the stack's figure is.
    fn gain(&self, field: &str, more_is_better: bool) -> Option<f64> {
        let (stack, kernel) = (Self::of(&self.stack, field), Self::of(&self.kernel, field));
        match more_is_better {
            true => ratio(stack, kernel),
            false => ratio(kernel, stack),
        }
    }
}

/// Both stacks, in turns; or a sentence why that cannot be.
fn one(subject: &Subject, progress: &mut Progress) -> Outcome<Rounds> {
    let kind = subject.kind.clone().map_err(Problem)?;
    let library = run::library()?;
    let library = library
        .to_str()
        .ok_or_else(|| Problem::new("the library's path is no text"))?;
    let offloads = if subject.offloads { "on" } else { "off" };
    let mut command = child::again(arguments(["stage", kind.name(), offloads, library]));
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut running = Running(command.spawn()?);
    let mut rounds = Rounds {
        kernel: Vec::new(),
        stack: Vec::new(),
    };
    // Every step of the stage has a bound of its own.
    if let Some(stdout) = running.0.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let said: Value = serde_json::from_str(&line?)
                .map_err(|_| Problem::new("a part said what is no JSON"))?;
            if let Some(step) = said.get("step").and_then(Value::as_str) {
                progress.step(&format!("{}: {step}", subject.name()));
            }
            for (side, name) in [(&mut rounds.kernel, "kernel"), (&mut rounds.stack, "stack")] {
                side.extend(said.get(name).cloned());
            }
        }
    }
    let status = running.0.wait()?;
    let mut why = String::new();
    if let Some(stderr) = &mut running.0.stderr {
        let _ = stderr.take(4096).read_to_string(&mut why);
    }
    match status.success() {
        true => Ok(rounds),
        false => Err(Problem(clean(
            why.trim().trim_start_matches("kcmctl: ").as_bytes(),
        ))),
    }
}

/// A gain in a word.
fn verdict(gain: f64) -> &'static str {
    match gain {
        g if g > 1.0 + NOISE => "faster",
        g if g < 1.0 - NOISE => "slower",
        _ => "equal",
    }
}

fn text(subject: &Subject, rounds: &Outcome<Rounds>, columns: Option<usize>) -> String {
    let name = subject.name();
    let rounds = match rounds {
        Ok(rounds) => rounds,
        Err(Problem(why)) => {
            return out::wrapped(
                &format!("{name:<16} cannot be measured here: {why}"),
                17,
                columns,
            );
        }
    };
    let mut table = out::Table::new(&["<", "KERNEL", "STACK", "<THE STACK IS"]);
    let mut gains = Vec::new();
    for (figure, field, more_is_better) in FIGURES {
        let human = |side: &[Value]| match Rounds::median(side, field) {
            Some(value) if more_is_better => format!("{value:.1} Gb/s"),
            Some(value) => format!("{value:.1} us"),
            None => "-".to_owned(),
        };
        let gain = rounds.gain(field, more_is_better);
        gains.extend(gain.map(|gain| (figure, gain)));
        let said = gain.map_or_else(String::new, |gain| match verdict(gain) {
            "equal" => "as fast".to_owned(),
            "faster" => format!("{} as fast: faster", times(gain)),
            _ => format!("{} as fast: slower", times(gain)),
        });
        table.row([
            figure.to_owned(),
            human(&rounds.kernel),
            human(&rounds.stack),
            said,
        ]);
    }
    let sentence = format!("{name}: {}; {}.", summary(&gains), subject.scene());
    table.text(columns) + &out::wrapped(&sentence, 2, columns)
}

/// The gains in a sentence.
fn summary(gains: &[(&str, f64)]) -> String {
    let of = |wanted: &str| {
        let names = gains.iter().filter(|(_, gain)| verdict(*gain) == wanted);
        let names: Vec<_> = names.map(|(name, _)| *name).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let [faster, slower] = ["faster", "slower"].map(of);
    match (faster, slower) {
        (None, None) => "neither faster nor slower than the kernel's stack here".to_owned(),
        (Some(_), None) => "faster than the kernel's stack here".to_owned(),
        (None, Some(_)) => "slower than the kernel's stack here".to_owned(),
        (Some(faster), Some(slower)) => {
            format!("faster than the kernel's stack here in {faster}; slower in {slower}")
        }
    }
}

fn subject_json(subject: &Subject, rounds: &Outcome<Rounds>) -> Value {
    let rounds = match rounds {
        Ok(rounds) => rounds,
        Err(Problem(why)) => return json!({ "device": subject.name(), "cannot_be_measured": why }),
    };
    let figures = FIGURES.map(|(name, field, more_is_better)| {
        let gain = rounds.gain(field, more_is_better);
        json!({
            "name": name,
            "field": field,
            "kernel": Rounds::median(&rounds.kernel, field),
            "stack": Rounds::median(&rounds.stack, field),
            "times_as_fast": gain,
            "stack_is": gain.map(verdict),
        })
    });
    json!({
        "device": subject.name(),
        "scene": subject.scene(),
        "rounds": ROUNDS,
        "figures": figures,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence_says_what_is_faster_and_what_is_slower() {
        let all = |gains: [f64; 2]| summary(&[("a", gains[0]), ("b", gains[1])]);
        assert_eq!(all([1.2, 1.0]), "faster than the kernel's stack here");
        assert_eq!(all([0.5, 1.04]), "slower than the kernel's stack here");
        assert!(all([1.0, 1.0]).starts_with("neither"));
        assert!(all([1.2, 0.5]).ends_with("in a; slower in b"));
    }
}
