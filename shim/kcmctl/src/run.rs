//! `kcmctl run -- PROGRAM ARGS`: sets the environment, says what will not work, and becomes the
//! program.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::out::clean;
use crate::settings::Sources;
use crate::{Outcome, Problem, doctor, out};

/// Name of the library's file, and where it lies seen from the directory of this program: beside it, as
/// cargo builds both, as `ci/install` has it, or as Debian does.
const LIBRARY: &str = "libkcmshim.so";
const DIRECTORIES: [&str; 3] = [".", "../lib", DEBIAN];
#[cfg(target_arch = "aarch64")]
const DEBIAN: &str = "../lib/aarch64-linux-gnu";
#[cfg(not(target_arch = "aarch64"))]
const DEBIAN: &str = "../lib/x86_64-linux-gnu";

/// The library that belongs to this program.
pub(crate) fn library() -> Outcome<PathBuf> {
    let me = env::current_exe()?;
    let here = me.parent().unwrap_or(Path::new("/"));
    let found = DIRECTORIES.iter().find_map(|directory| {
        let path = here.join(directory).join(LIBRARY).canonicalize().ok()?;
        path.is_file().then_some(path)
    });
    found.ok_or_else(|| {
        let here = clean(here.as_os_str().as_encoded_bytes());
        Problem(format!(
            "{LIBRARY} lies neither in {here} nor in {here}/../lib or {DEBIAN}"
        ))
    })
}

/// `LD_PRELOAD` with the library before what is there already.
fn preload(library: &Path, before: Option<OsString>) -> Outcome<OsString> {
    let bytes = library.as_os_str().as_encoded_bytes();
    if bytes.iter().any(|byte| matches!(byte, b' ' | b':')) {
        let path = clean(bytes);
        return Err(Problem(format!(
            "{path}: LD_PRELOAD cannot name a path with a space or a colon"
        )));
    }
    let mut value = library.as_os_str().to_owned();
    if let Some(before) = before.filter(|before| !before.is_empty()) {
        value.push(":");
        value.push(before);
    }
    Ok(value)
}

/// What the program's environment is to say.
pub(crate) struct Wanted<'a> {
    pub(crate) settings: Sources,
    pub(crate) log: Option<&'a str>,
}

/// Becomes the program. With `as_json` it only tells what it would do.
pub(crate) fn run(words: &[&OsStr], wanted: &Wanted<'_>, as_json: bool) -> Outcome<()> {
    let [program, arguments @ ..] = words else {
        return Err(Problem::new("no program is named"));
    };
    let library = library()?;
    let preload = preload(&library, env::var_os("LD_PRELOAD"))?;
    let diagnosis = doctor::diagnose(Path::new(program))?;
    let problems = wanted.settings.problems();
    if as_json {
        return out::print_json(&json!({
            "library": clean(library.as_os_str().as_encoded_bytes()),
            "LD_PRELOAD": clean(preload.as_encoded_bytes()),
            "obstacles": diagnosis.obstacles,
            "settings": problems,
        }));
    }
    let name = clean(program.as_encoded_bytes());
    for obstacle in &diagnosis.obstacles {
        out::complain(&format!("{name}: {obstacle}"));
    }
    for problem in &problems {
        out::complain(problem);
    }
    let mut command = Command::new(program);
    command.args(arguments).env("LD_PRELOAD", preload);
    wanted.settings.pass_on(&mut command);
    if let Some(level) = wanted.log {
        command.env("KCMSHIM_LOG", level);
    }
    let failed = command.exec();
    Err(Problem(format!("{name}: {failed}")))
}
