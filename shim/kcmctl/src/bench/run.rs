//! Running the parts: each a process, in turns.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::headline::{Group, Part};
use crate::progress::Progress;
use crate::{Outcome, Problem, child};

/// Longest a part may take beyond what it measures.
const PATIENCE: Duration = Duration::from_secs(20);
/// Fills in the results of a group. A part that has failed is not run again.
pub(super) fn group(group: &mut Group, library: &Path, progress: &mut Progress) {
    for round in 0..group.rounds {
        for at in 0..group.parts.len() {
            let name = group
                .rows
                .iter()
                .find(|row| row.part == at)
                .map_or("", |row| row.name);
            let what = format!("{}: {}", group.title, name.trim());
            progress.step(&format!("{what}, round {}", round + 1));
            let part = &mut group.parts[at];
            if part.results.iter().any(Option::is_none) {
                continue;
            }
            match once(part, library) {
                Ok(result) => part.results.push(Some(result)),
                Err(Problem(why)) => {
                    part.results.push(None);
                    let why = why.replace('\n', "; ");
                    group.failures.push(format!("{what}: {why}"));
                }
            }
        }
    }
}

fn once(part: &Part, library: &Path) -> Outcome<Value> {
    let mut command = child::again(part.options.arguments());
    if part.is_shimmed {
        command.env("LD_PRELOAD", library);
    }
    let patience = PATIENCE + Duration::from_millis(part.options.ms);
    let (said, _) = child::output(command, patience)?;
    serde_json::from_slice(&said).map_err(|_| Problem::new("it reported nothing"))
}
