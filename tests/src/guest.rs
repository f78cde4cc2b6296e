//! Builds guest programs with `cc` and runs them under `libkcmshim.so`.
//!
//! Artifacts go beside the test executable's profile directory, so that any `CARGO_TARGET_DIR`
//! and profile work. Nothing here knows what a trace means.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

/// How many cases of one guest run at a time. They mostly sleep, but what must happen while they do
/// has to get a CPU in time.
const CASES_AT_ONCE: &str = "3";
/// Seconds one case may take before its trace says `HANG`; the slowest good one takes about 3.
const CASE_SECONDS: &str = "20";
/// The traditional user without rights.
const NOBODY: &str = "65534";
/// When a whole guest is given up. Guests end their own cases; this catches a stuck runner.
const GUEST_DEADLINE: Duration = Duration::from_secs(150);

/// The `tests` directory of the source tree.
#[must_use]
pub fn tests_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `<target>/<profile>`, found from the running test executable in `<target>/<profile>/deps`.
fn profile_dir() -> PathBuf {
    let exe = env::current_exe().expect("a running test has an executable");
    let deps = exe.parent().expect("executables lie in a directory");
    deps.parent()
        .expect("deps lies in the profile directory")
        .to_path_buf()
}

/// `libkcmshim.so`: the file named by `KCMSHIM_LIB`, or one built now with this test's profile.
///
/// # Panics
/// When the library cannot be built.
#[must_use]
pub fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| match env::var_os("KCMSHIM_LIB") {
        Some(path) => fs::canonicalize(path).expect("KCMSHIM_LIB names a file"),
        None => build_library(&profile_dir()),
    })
}

/// `libkcmshim.so` built now without optimisation, whatever `KCMSHIM_LIB` says: each of its functions can
/// be counted.
///
/// # Panics
/// When the library cannot be built.
#[must_use]
pub fn countable_library() -> PathBuf {
    build_library(&profile_dir().with_file_name("debug"))
}

fn build_library(profile_dir: &Path) -> PathBuf {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(tests_dir())
        .args(["build", "--quiet", "--package", "kcmshim"]);
    cargo
        .arg("--target-dir")
        .arg(profile_dir.parent().expect("profiles lie in the target"));
    // The directory of the dev profile is called "debug".
    match profile_dir.file_name().and_then(OsStr::to_str) {
        Some("debug") | None => {}
        Some(profile) => drop(cargo.args(["--profile", profile])),
    }
    let status = cargo.status().expect("cargo runs");
    assert!(status.success(), "building kcmshim failed");
    profile_dir.join("libkcmshim.so")
}

/// Compiles `tests/programs/kcm_<section>.c` with the common guest sources; returns the program.
///
/// # Panics
/// When `cc` is missing or refuses the program: guests must be free of warnings.
#[must_use]
pub fn build(section: &str) -> PathBuf {
    let out_dir = profile_dir().join("guests");
    fs::create_dir_all(&out_dir).expect("the target directory is writable");
    let program = out_dir.join(format!("kcm_{section}"));
    // Another test may be running the same program: it is replaced, never written to.
    static BUILDS: AtomicUsize = AtomicUsize::new(0);
    let build = BUILDS.fetch_add(1, Ordering::Relaxed);
    let fresh = out_dir.join(format!("kcm_{section}.{}.{build}", process::id()));
    let sources = tests_dir().join("programs");
    let output = Command::new("cc")
        .args(["-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .arg(&fresh)
        .arg(sources.join(format!("kcm_{section}.c")))
        .args(["guest.c", "guest_proc.c", "guest_main.c"].map(|name| sources.join(name)))
        .output()
        .expect("cc runs");
    let diagnostics = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "cc refused {section}:\n{diagnostics}"
    );
    fs::rename(&fresh, &program).expect("both lie in one directory");
    program
}

/// Whose rights a guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    /// Those of the test. As root, the kernel loads parser programs.
    Caller,
    /// Nobody's: the kernel refuses parser programs, so the shim verifies and holds them itself.
    Ordinary,
}

/// Whose TCP connections a guest attaches. It makes both ends itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tcp {
    /// The kernel's, over loopback.
    Kernel,
    /// The stack's in the process, over a device that hears itself. Each case has a network namespace
    /// of its own, which takes root.
    Stack,
    /// As `Stack`, with two engines.
    TwoEngines,
}

impl Tcp {
    const fn environment(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Kernel => &[],
            Self::Stack => &[
                ("KCMSHIM_STACK", "mem: 10.9.0.2/24 fd00::2/64"),
                ("GUEST_ADDRESS", "10.9.0.2"),
                ("GUEST_ADDRESS6", "fd00::2"),
            ],
            Self::TwoEngines => &[
                ("KCMSHIM_STACK", "mem: 10.9.0.2/24 fd00::2/64 queues=2"),
                ("GUEST_ADDRESS", "10.9.0.2"),
                ("GUEST_ADDRESS6", "fd00::2"),
            ],
        }
    }
}

/// Runs one set (`strict` or `quirk`) of a guest under the shim; returns what it printed.
///
/// What the program writes to stderr (the shim's log) follows under a line of its own when the
/// program did not end well.
///
/// # Panics
/// When the guest does not start, or is not done in time.
#[must_use]
pub fn run_under_shim(program: &Path, set: &str, user: User) -> String {
    run_cases(program, set, &[], user, Tcp::Kernel)
}

/// As [`run_under_shim`], over TCP connections of whose choice, and only the cases `ids` unless there are
/// none.
///
/// # Panics
/// As [`run_under_shim`].
#[must_use]
pub fn run_cases(program: &Path, set: &str, ids: &[&str], user: User, tcp: Tcp) -> String {
    let uid = match user {
        User::Caller => "0",
        User::Ordinary => NOBODY,
    };
    let mut child = Command::new(program)
        .args(["-j", CASES_AT_ONCE, "-t", CASE_SECONDS, "-u", uid, set])
        .args(ids)
        .env("LD_PRELOAD", library())
        .envs(tcp.environment().iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the guest starts");
    let mut stdout = child.stdout.take().expect("stdout is piped");
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        stdout
            .read_to_end(&mut text)
            .map(|_| String::from_utf8_lossy(&text).into_owned())
    });
    let deadline = Instant::now() + GUEST_DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("the guest is our child") {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().expect("the guest is our child");
            panic!(
                "{} {set}: not done in {GUEST_DEADLINE:?}",
                program.display()
            );
        }
        thread::sleep(Duration::from_millis(20));
    };
    let text = reader
        .join()
        .expect("the reader does not panic")
        .expect("a pipe can be read");
    assert!(
        status.success(),
        "{} {set}: {status}\n{text}",
        program.display()
    );
    text
}
