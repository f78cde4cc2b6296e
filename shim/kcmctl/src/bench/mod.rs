//! `kcmctl bench`: the README's headline table, on the user's machine.
//!
//! A ratio is only worth something inside one run on one machine: the parts of a group take turns, and
//! a ratio is the median of the ratios of the rounds, so that drift and other load hit all sides.

mod chart;
mod headline;
mod part;
mod report;
mod run;

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

pub(crate) use self::part::run_if_asked;
use self::report::Machine;
use crate::progress::Progress;
use crate::{Outcome, Problem, out, run as start};

/// What the command line says.
pub(crate) struct Wanted<'a> {
    /// A glance: short rounds, and few of them.
    pub(crate) quick: bool,
    /// Only groups whose title holds this.
    pub(crate) only: &'a str,
    pub(crate) svg: Option<&'a Path>,
    pub(crate) as_json: bool,
}

pub(crate) fn bench(wanted: &Wanted<'_>) -> Outcome<()> {
    let library = start::library()?;
    let mut groups = headline::groups(wanted.quick);
    groups.retain(|group| group.title.contains(wanted.only));
    if groups.is_empty() {
        return Err(Problem(format!(
            "no part of the table is called {:?}",
            wanted.only
        )));
    }
    if let Some(file) = wanted.svg {
        check_writable(file)?;
    }
    let machine = Machine::here();
    let mut progress = Progress::new(groups.iter().map(headline::Group::runs).sum());
    for group in &mut groups {
        run::group(group, &library, &mut progress);
    }
    drop(progress);
    if wanted.as_json {
        out::print_json(&report::json(&groups, &machine))?;
    } else {
        out::print(&report::table(&groups, &machine, out::columns()))?;
    }
    if let Some(file) = wanted.svg {
        fs::write(file, chart::svg(&groups, &machine)).map_err(|err| named(file, &err))?;
    }
    let mut failures = groups.iter().flat_map(|group| group.failures.iter());
    match failures.next() {
        Some(why) => Err(Problem(format!("a part failed: {why}"))),
        None => Ok(()),
    }
}

/// Half a minute of measuring is not to end in a complaint about the chart's file.
fn check_writable(file: &Path) -> Outcome<()> {
    let made = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(file);
    match made {
        Ok(_) => fs::remove_file(file).map_err(|err| named(file, &err)),
        Err(err) if err.kind() == ErrorKind::AlreadyExists => {
            let opened = fs::OpenOptions::new().write(true).open(file);
            opened.map(drop).map_err(|err| named(file, &err))
        }
        Err(err) => Err(named(file, &err)),
    }
}

fn named(file: &Path, err: &std::io::Error) -> Problem {
    Problem(format!(
        "{}: {err}",
        out::clean(file.as_os_str().as_encoded_bytes())
    ))
}
