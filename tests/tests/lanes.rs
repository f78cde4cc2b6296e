//! The shim lane against the recorded traces, one test per section of cases.
//!
//! Strict and tolerant cases must print what kernel 6.12 printed (`traces/kernel-6.12`). Quirk and
//! version cases must print what the shim is known to do (`traces/shim`), and wherever that is not
//! what the kernel does, `notes/divergences.md` must say why.
//!
//! Every case also runs with the TCP connections it attaches on the stack in the process, and must print
//! the same; the cases that cannot are in the same notes.
//!
//! `LANES_RECORD=1` writes the shim's quirk traces instead of comparing them.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::{env, fs, io};

use kcm_tests::guest::{self, Tcp, User};
use kcm_tests::netlab;
use kcm_tests::trace::{Trace, render};

/// Cases that may state what their lane lacks: privilege, or a feature of the machine's kernel.
const MAY_LACK: [&str; 8] = ["A18", "B05", "B26", "B27", "B28", "B29", "G26", "K20"];

fn trace_path(lane: &str, file: &str) -> PathBuf {
    guest::tests_dir().join("traces").join(lane).join(file)
}

fn recorded(lane: &str, file: &str) -> Trace {
    let path = trace_path(lane, file);
    let text = fs::read_to_string(&path).unwrap_or_default();
    Trace::parse(&text)
}

/// Fails with every differing case, save those whose lane says what it lacks.
fn assert_same(what: &str, got: &Trace, expected: &Trace) {
    assert_same_but(what, got, expected, &BTreeSet::new());
}

/// As [`assert_same`], save for cases that are known to differ.
fn assert_same_but(what: &str, got: &Trace, expected: &Trace, known: &BTreeSet<String>) {
    let lacking: BTreeSet<&str> = got
        .lacking()
        .map(|(heading, reason)| {
            // Past the test harness's capture: a case that did not run is always said.
            let _ = writeln!(
                io::stderr(),
                "{what}: {heading} not run, this lane lacks {reason}"
            );
            heading.split(' ').next().unwrap_or_default()
        })
        .filter(|id| MAY_LACK.contains(id))
        .collect();
    let mut differences = got.differences(expected);
    differences.retain(|it| !lacking.contains(it.id()) && !known.contains(it.id()));
    assert!(
        differences.is_empty(),
        "{what}: {} cases differ (- expected, + got)\n{}",
        differences.len(),
        render(&differences)
    );
}

fn strict(section: &str) {
    strict_as(section, User::Caller);
}

fn ordinary_user(section: &str) {
    strict_as(section, User::Ordinary);
}

fn strict_as(section: &str, user: User) {
    let got = Trace::parse(&guest::run_under_shim(
        &guest::build(section),
        "strict",
        user,
    ));
    let expected = recorded("kernel-6.12", &format!("{section}.txt"));
    assert_ne!(
        expected.case_count(),
        0,
        "{section}: no recorded kernel trace"
    );
    assert_same(
        &format!("{section} as {user:?}, shim against kernel 6.12"),
        &got,
        &expected,
    );
}

fn quirk(section: &str) {
    let file = format!("{section}.quirk.txt");
    let text = guest::run_under_shim(&guest::build(section), "quirk", User::Caller);
    if env::var_os("LANES_RECORD").is_some() {
        let path = trace_path("shim", &file);
        fs::create_dir_all(path.parent().expect("traces lie in a directory"))
            .and_then(|()| fs::write(&path, &text))
            .expect("the source tree is writable when recording");
    }
    assert_same(
        &format!("{section}, shim's quirks"),
        &Trace::parse(&text),
        &recorded("shim", &file),
    );
}

/// Both sets over the stack's connections.
fn on_stack(section: &str) {
    over(Tcp::Stack, section);
}

/// And over connections that live in two engines.
fn on_engines(section: &str) {
    over(Tcp::TwoEngines, section);
}

fn over(tcp: Tcp, section: &str) {
    if let Some(why) = netlab::missing() {
        let _ = writeln!(io::stderr(), "{section} on the stack not run: {why}");
        return;
    }
    let program = guest::build(section);
    let known = explained(ON_STACK);
    let sets = [
        ("strict", "kernel-6.12", format!("{section}.txt")),
        ("quirk", "shim", format!("{section}.quirk.txt")),
    ];
    for (set, lane, file) in sets {
        let expected = recorded(lane, &file);
        let same = expected.ids().filter(|id| !known.contains(*id));
        let ids: Vec<&str> = same.collect();
        if ids.is_empty() {
            continue;
        }
        let text = guest::run_cases(&program, set, &ids, User::Caller, tcp);
        let what = format!("{section}, {set} cases on the stack against {lane}");
        assert_same_but(&what, &Trace::parse(&text), &expected, &known);
    }
}

macro_rules! sections {
    ($($section:ident($cases:literal): $($set:ident)+;)*) => {
        /// Every section with its number of cases, for the tests that look at all of them.
        const SECTIONS: &[(&str, usize)] = &[$((stringify!($section), $cases)),*];
        $(mod $section {
            $(#[test]
            fn $set() {
                super::$set(stringify!($section));
            })+
        })*
    };
}

sections! {
    a_create(18): strict on_stack on_engines;
    b_ioctl(29): strict ordinary_user quirk on_stack on_engines;
    c_options(10): strict on_stack on_engines;
    d_send(35): strict quirk on_stack on_engines;
    e_flow(18): strict on_stack on_engines;
    f_failure(18): strict quirk on_stack on_engines;
    g_recv(28): strict quirk on_stack on_engines;
    h_poll(10): strict quirk on_stack on_engines;
    i_steering(24): strict quirk on_stack on_engines;
    j_parser(46): strict ordinary_user quirk on_stack on_engines;
    k_lifetime(24): strict quirk on_stack on_engines;
    l_random(24): strict ordinary_user on_stack on_engines;
    m_signals(9): strict on_stack on_engines;
}

/// Headings of the two tables of divergences.
const FROM_KERNEL: &str = "# Where the shim differs from the kernel";
const ON_STACK: &str = "## On stack connections";

/// Identifiers in the first column of the table under a heading.
fn explained(heading: &str) -> BTreeSet<String> {
    let notes = fs::read_to_string(guest::tests_dir().join("notes/divergences.md"))
        .expect("notes/divergences.md exists");
    let (_, section) = notes
        .split_once(heading)
        .expect("the notes have the heading");
    let section = section.split("\n## ").next().unwrap_or_default();
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .flat_map(|ids| ids.split(", "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_divergence_from_the_kernel_has_a_reason() {
    let explained = explained(FROM_KERNEL);
    for (section, _) in SECTIONS {
        let file = format!("{section}.quirk.txt");
        let differences = recorded("shim", &file).differences(&recorded("kernel-6.12", &file));
        for difference in differences {
            assert!(
                explained.contains(difference.id()),
                "notes/divergences.md does not explain\n{difference}"
            );
        }
    }
}

#[test]
fn every_program_is_a_section() {
    let programs = fs::read_dir(guest::tests_dir().join("programs")).expect("programs exist");
    for program in programs {
        let name = program.expect("the directory can be read").file_name();
        let name = name.to_str().expect("file names are text");
        if let Some(section) = name.strip_prefix("kcm_").and_then(|n| n.strip_suffix(".c")) {
            assert!(
                SECTIONS.iter().any(|(known, _)| *known == section),
                "{section} is not tested"
            );
        }
    }
}

#[test]
fn every_case_is_recorded() {
    for (section, cases) in SECTIONS {
        let letter = section[..1].to_uppercase();
        let traces = [format!("{section}.txt"), format!("{section}.quirk.txt")]
            .map(|file| recorded("kernel-6.12", &file));
        for number in 1..=*cases {
            let id = format!("{letter}{number:02}");
            assert!(
                traces.iter().any(|trace| trace.has(&id)),
                "{id} is not recorded"
            );
        }
    }
}
