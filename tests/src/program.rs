//! Builds and runs programs that check themselves: one C file of `tests/programs` each, with the
//! helpers of the guests, which exits with 0 when all is as it should be.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs};

use crate::guest;

/// Compiles `tests/programs/NAME.c` with the guests' helpers and further `cc` arguments.
///
/// # Panics
/// When `cc` is missing or refuses the program, which must be free of warnings.
#[must_use]
pub fn build(name: &str, arguments: &[&str]) -> PathBuf {
    let exe = env::current_exe().expect("a running test has an executable");
    let profile_dir = exe
        .parent()
        .and_then(Path::parent)
        .expect("executables lie in <target>/<profile>/deps");
    let out_dir = profile_dir.join("programs");
    fs::create_dir_all(&out_dir).expect("the target directory is writable");
    // Tests that run at the same time build programs of their own.
    static BUILDS: AtomicUsize = AtomicUsize::new(0);
    let build = BUILDS.fetch_add(1, Ordering::Relaxed);
    let program = out_dir.join(format!("{name}.{}.{build}", process::id()));
    let sources = guest::tests_dir().join("programs");
    let output = Command::new("cc")
        .args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .arg(&program)
        .arg(sources.join(format!("{name}.c")))
        .args(["guest.c", "guest_proc.c"].map(|helper| sources.join(helper)))
        .args(arguments)
        .output()
        .expect("cc runs");
    let diagnostics = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cc refused {name}:\n{diagnostics}");
    program
}

/// A command that runs a program under the library.
#[must_use]
pub fn under_shim(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", guest::library());
    command
}

/// Runs a command to its end and returns what it printed. Programs end themselves when they hang.
///
/// # Panics
/// When it does not start, or does not end with success.
pub fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
