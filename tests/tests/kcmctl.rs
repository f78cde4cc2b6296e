//! `kcmctl` against programs that really run under the library: every view, pages that lie, pages
//! whose writer was killed, and `top` on terminals of two sizes.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use kcm_tests::{guest, program};

/// How long anything may take before it counts as missing.
const PATIENCE: Duration = Duration::from_secs(20);

/// The tool, built like the library that the other tests run.
fn kcmctl() -> &'static Path {
    static TOOL: OnceLock<PathBuf> = OnceLock::new();
    TOOL.get_or_init(|| {
        let exe = env::current_exe().expect("a running test has an executable");
        let profile = exe
            .parent()
            .and_then(Path::parent)
            .expect("<target>/<profile>/deps");
        let target = profile.parent().expect("profiles lie in the target");
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .current_dir(guest::tests_dir())
            .args(["build", "--quiet", "--package", "kcmctl"]);
        cargo.arg("--target-dir").arg(target);
        match profile.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => {}
            Some(profile) => drop(cargo.args(["--profile", profile])),
        }
        assert!(
            cargo.status().expect("cargo runs").success(),
            "building kcmctl failed"
        );
        profile.join("kcmctl")
    })
}

fn guest_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| program::build("ctl_guest", &[]))
}

/// A runtime directory of a test's own.
struct Runtime(PathBuf);

impl Runtime {
    fn new() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("kcmctl-test.{}.{number}", process::id()));
        fs::create_dir(&path).expect("temporary directories can be made");
        Self(path)
    }

    fn pages(&self) -> PathBuf {
        self.0.join("kcmshim")
    }

    /// Runs the tool, with names of processes of other tests out of sight.
    fn ctl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(kcmctl());
        command
            .args(arguments)
            .env("XDG_RUNTIME_DIR", &self.0)
            .stdin(Stdio::null());
        command.output().expect("kcmctl runs")
    }

    fn says(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    /// Asks until the answer holds `wanted`: counters come at their own pace.
    fn says_at_last(&self, arguments: &[&str], wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.says(arguments);
            if text.contains(wanted) {
                return text;
            }
            assert!(
                Instant::now() < deadline,
                "{arguments:?} never says {wanted:?}:\n{text}"
            );
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running guest.
struct Guest {
    child: Child,
    kcm: String,
    tcp: String,
}

impl Guest {
    fn start(runtime: &Runtime) -> Self {
        let mut command = program::under_shim(guest_program());
        command.env("XDG_RUNTIME_DIR", &runtime.0);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the guest starts");
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("stdout is piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("a pipe can be read");
        let mut numbers = line.split_ascii_whitespace().map(str::to_owned);
        let (Some(kcm), Some(tcp)) = (numbers.next(), numbers.next()) else {
            panic!("the guest said {line:?}");
        };
        Self { child, kcm, tcp }
    }

    fn pid(&self) -> String {
        self.child.id().to_string()
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().expect("the guest is our child").success());
    }

    fn kill(mut self) {
        self.child.kill().expect("the guest is our child");
        self.child.wait().expect("the guest is our child");
    }
}

#[test]
fn every_view_shows_what_the_program_did() {
    let runtime = Runtime::new();
    let guest = Guest::start(&runtime);
    let pid = guest.pid();
    let page = runtime.pages().join(&pid);
    let mode = |path: &Path| {
        fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode(&runtime.pages()), mode(&page)), (0o700, 0o600));

    let json = runtime.says_at_last(&["mux", &pid, "--json"], "\"TX-Msgs\":1");
    for part in [
        "\"RX-Msgs\":3",
        "\"RX-Bytes\":24",
        "\"TX-Bytes\":6",
        "\"Attach\":1",
        "\"remote\":\"127.0.0.1:",
    ] {
        assert!(json.contains(part), "no {part} in {json}");
    }
    assert!(json.contains(&format!("\"fds\":[{}]", guest.kcm)), "{json}");
    let table = runtime.says(&["mux", &pid]);
    assert!(
        table.contains("kcm-0") && table.contains("psock-0"),
        "{table}"
    );
    let list = runtime.says(&["ps"]);
    assert!(
        list.lines()
            .any(|line| line.trim_start().starts_with(&pid) && line.contains("ctl_guest")),
        "{list}"
    );
    assert!(runtime.says(&["stat", &pid]).contains("Attach"));
    let rates = runtime.says(&["stat", &pid, "-i", "0.05", "-n", "2"]);
    assert_eq!(rates.lines().count(), 3, "{rates}");
    let text = runtime.says(&["export"]);
    let sample = format!("kcmshim_rx_msgs_total{{pid=\"{pid}\",program=\"ctl_guest");
    assert!(
        text.lines()
            .any(|line| line.starts_with(&sample) && line.ends_with(" 3")),
        "{text}"
    );

    let why = runtime.says(&["explain", &pid]);
    assert!(why.contains("instructions"), "{why}");
    assert!(why.contains(&format!("fd {}: KCM", guest.kcm)), "{why}");
    assert!(
        why.contains(&format!("fd {}: attached", guest.tcp)),
        "{why}"
    );
    assert!(
        why.contains("unsupported: bind answered") && why.contains("(2 times)"),
        "{why}"
    );
    assert!(
        runtime
            .says(&["explain", &pid, "0"])
            .contains("passed through")
    );
    guest.end();
    assert!(!page.exists(), "the page outlives its process");
}

#[test]
fn program_without_kcm_leaves_no_trace() {
    let runtime = Runtime::new();
    let mut command = program::under_shim("/bin/ls");
    program::run(command.env("XDG_RUNTIME_DIR", &runtime.0));
    assert!(!runtime.pages().exists());
}

#[test]
fn page_of_a_killed_process_is_removed() {
    let runtime = Runtime::new();
    let guest = Guest::start(&runtime);
    let (pid, page) = (guest.pid(), runtime.pages().join(guest.pid()));
    guest.kill();
    assert!(page.exists());
    let list = runtime.says(&["ps", "--json"]);
    assert!(!list.contains(&format!("\"pid\":{pid},")), "{list}");
    assert!(!page.exists());
}

/// Locks a file as a live writer would.
fn lock(file: &File) {
    // SAFETY: the number is the open file's.
    let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
    assert_eq!(locked, 0, "nobody else has it");
}

#[test]
fn pages_that_lie_cost_one_line_each() {
    let runtime = Runtime::new();
    let guest = Guest::start(&runtime);
    let honest = fs::read(runtime.pages().join(guest.pid())).expect("the page can be read");
    let word = |at: usize, value: u64| {
        let mut bytes = honest.clone();
        bytes[at * 8..at * 8 + 8].copy_from_slice(&value.to_ne_bytes());
        bytes
    };
    let cases: [(&str, Vec<u8>); 8] = [
        ("truncated", honest[..honest.len() - 1].to_vec()),
        ("truncated", honest[..24].to_vec()),
        ("not a page", b"#!/bin/sh\n".repeat(10)),
        ("newer library", word(1, 2)),
        ("older library", word(1, 0)),
        ("claims 18446744073709551615 records", word(10, u64::MAX)),
        ("never at rest", word(2, 7)),
        ("claims to be of process", honest.clone()),
    ];
    let liar = runtime.pages().join("4194305"); // beyond the largest process number
    for (wanted, bytes) in cases {
        let mut file = File::create(&liar).expect("the directory is ours");
        file.write_all(&bytes).expect("there is room");
        lock(&file);
        let output = runtime.ctl(&["ps"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let lines: Vec<_> = said
            .lines()
            .filter(|line| line.contains("4194305"))
            .collect();
        assert!(
            output.status.success() && lines.len() == 1 && lines[0].contains(wanted),
            "{wanted}: {said}"
        );
        assert!(String::from_utf8_lossy(&output.stdout).contains(&guest.pid()));
    }
    // Every word of the header and of the first record, made absurd: answered, never a crash.
    let file = File::create(&liar).expect("the directory is ours");
    lock(&file);
    let pid = (3, 4_194_305);
    for at in (4..64).chain(8256..8288) {
        let mut bytes = word(at, u64::MAX);
        bytes[pid.0 * 8..pid.0 * 8 + 8].copy_from_slice(&u64::to_ne_bytes(pid.1));
        file.write_all_at(&bytes, 0).expect("there is room");
        for view in ["mux", "stat", "explain"] {
            let output = runtime.ctl(&[view, "4194305"]);
            assert!(
                output.status.code().is_some_and(|code| code <= 1),
                "{view}, word {at}: {output:?}"
            );
        }
    }
    drop(file);
    fs::remove_file(&liar).expect("it is ours");
    symlink("/etc/passwd", &liar).expect("the directory is ours");
    assert!(String::from_utf8_lossy(&runtime.ctl(&["ps"]).stderr).contains("4194305"));
    guest.end();
}

#[test]
fn doctor_and_run_say_what_cannot_work() {
    let runtime = Runtime::new();
    let program = guest_program().to_str().expect("paths here are text");
    assert!(runtime.says(&["doctor"]).contains("AF_KCM"));
    assert!(
        runtime
            .says(&["doctor", program])
            .contains("can run under kcmshim")
    );
    let fixed = program::build("ctl_guest", &["-static"]);
    let fixed = fixed.to_str().expect("paths here are text");
    let said = runtime.says(&["doctor", fixed]);
    assert!(said.contains("statically linked"), "{said}");
    let refused = runtime.ctl(&["doctor", "/nonexistent"]);
    assert!(!refused.status.success() && !refused.stderr.is_empty());
    // The library is looked for beside the tool.
    let tool = runtime.0.join("bin/kcmctl");
    fs::create_dir(runtime.0.join("bin")).expect("there is room");
    // By another process: a child that another test forks meanwhile would hold our file open for
    // writing, and it could not be run.
    program::run(Command::new("cp").args([kcmctl(), &tool]));
    let run = || {
        let mut command = Command::new(&tool);
        command.args(["run", "--", "/bin/sh", "-c", "echo $LD_PRELOAD"]);
        command.output().expect("the tool runs")
    };
    assert!(String::from_utf8_lossy(&run().stderr).contains("libkcmshim.so lies neither in"));
    fs::create_dir(runtime.0.join("lib")).expect("there is room");
    let library = runtime.0.join("lib/libkcmshim.so");
    fs::copy(guest::library(), &library).expect("there is room");
    let set = String::from_utf8_lossy(&run().stdout).trim().to_owned();
    assert_eq!(fs::canonicalize(set).ok(), fs::canonicalize(library).ok());
}

/// A place with the tool and the library in it, as `ci/install` makes one.
fn installed(runtime: &Runtime) -> PathBuf {
    for directory in ["bin", "lib"] {
        fs::create_dir(runtime.0.join(directory)).expect("there is room");
    }
    let tool = runtime.0.join("bin/kcmctl");
    program::run(Command::new("cp").args([kcmctl(), &tool]));
    let library = runtime.0.join("lib/libkcmshim.so");
    fs::copy(guest::library(), library).expect("there is room");
    tool
}

#[test]
fn run_checks_settings_with_a_sentence_each_and_passes_them_on() {
    let runtime = Runtime::new();
    let tool = installed(&runtime);
    let config = runtime.0.join("k.toml");
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&tool);
        command.current_dir(&runtime.0).arg("run").args(arguments);
        let shown = "echo \"$KCMSHIM_CONFIG|$KCMSHIM_STACK\"";
        command.args(["--", "/bin/sh", "-c", shown]);
        let output = command.output().expect("the tool runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(&output.stdout), text(&output.stderr))
    };
    let line = "mem: 10.9.0.2/24";
    assert_eq!(
        run(&["--stack", line]),
        (format!("|{line}\n"), String::new())
    );

    fs::write(&config, "[[rule]]\nuse = \"kernel\"\n").expect("there is room");
    let (shown, said) = run(&["--config", "k.toml", "--stack", line]);
    assert_eq!(said, "");
    assert_eq!(shown, format!("{}|{line}\n", config.display()));

    fs::write(&config, "[[rule]]\nuse = \"kernal\"\nprot = 1\n").expect("there is room");
    let (_, said) = run(&["--config", "k.toml"]);
    let said: Vec<_> = said.lines().collect();
    let place = format!("kcmctl: {}", config.display());
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].starts_with(&format!(
        "{place}:2: use: \"kernal\" is not one of \"stack\""
    )));
    assert!(said[1].starts_with(&format!(
        "{place}:3: rule.\"prot\" is not known; allowed: name"
    )));

    let (_, said) = run(&["--stack", "packet:nosuch0 10.9.0.2/24"]);
    assert!(said.starts_with("kcmctl: packet:nosuch0: "), "{said}");
    assert!(said.contains("no such interface"), "{said}");
    let (_, said) = run(&["--config", "/nonexistent"]);
    assert!(
        said.starts_with("kcmctl: /nonexistent: No such file"),
        "{said}"
    );
}

/// A pseudo-terminal of this size: its two ends.
fn terminal(columns: u16, rows: u16) -> (File, OwnedFd) {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let (mut master, mut slave) = (-1, -1);
    // SAFETY: the numbers and the size outlive the call; name and modes may be null.
    let made = unsafe {
        libc::openpty(
            &mut master,
            &mut slave,
            std::ptr::null_mut(),
            std::ptr::null(),
            &size,
        )
    };
    assert_eq!(made, 0);
    // SAFETY: both were just made and belong to nobody else.
    unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) }
}

/// The rows of the last whole picture.
fn last_picture(output: &str) -> Option<Vec<&str>> {
    let pictures: Vec<_> = output
        .split("\x1b[H")
        .skip(1)
        .filter(|p| p.contains("\x1b[J"))
        .collect();
    let picture = pictures.last()?.split("\x1b[J").next()?;
    Some(
        picture
            .split("\r\n")
            .map(|row| row.trim_end_matches('\r').trim_end_matches("\x1b[K"))
            .collect(),
    )
}

#[test]
fn top_fits_terminals_of_either_size() {
    let runtime = Runtime::new();
    let guest = Guest::start(&runtime);
    for (columns, rows) in [(80, 24), (200, 60)] {
        let (mut master, slave) = terminal(columns, rows);
        let modes = |fd: i32| {
            // SAFETY: an all-zero termios is valid, and outlives the call.
            unsafe {
                let mut modes: libc::termios = std::mem::zeroed();
                assert_eq!(libc::tcgetattr(fd, &mut modes), 0);
                modes.c_lflag
            }
        };
        let before = modes(slave.as_raw_fd());
        let mut command = Command::new(kcmctl());
        command
            .args(["top", "-i", "0.05"])
            .env("XDG_RUNTIME_DIR", &runtime.0);
        for end in [&slave, &slave, &slave]
            .map(|end| end.try_clone().expect("numbers are free"))
            .into_iter()
            .enumerate()
        {
            match end {
                (0, end) => command.stdin(end),
                (1, end) => command.stdout(end),
                (_, end) => command.stderr(end),
            };
        }
        let mut top = command.spawn().expect("kcmctl runs");
        let mut seen = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        let shows = |seen: &[u8], wanted: &str| {
            let text = String::from_utf8_lossy(seen).into_owned();
            last_picture(&text).is_some_and(|rows| rows.iter().any(|row| row.contains(wanted)))
        };
        for (wanted, key) in [("ctl_guest", b"t"), ("by TX-Msg/s", b"q")] {
            while !shows(&seen, wanted) {
                assert!(
                    Instant::now() < deadline,
                    "no {wanted}: {}",
                    String::from_utf8_lossy(&seen)
                );
                let mut part = [0; 4096];
                let count = master.read(&mut part).expect("top draws");
                seen.extend_from_slice(&part[..count]);
            }
            master.write_all(key).expect("top reads its keys");
        }
        assert!(top.wait().expect("top is our child").success());
        let text = String::from_utf8_lossy(&seen).into_owned();
        let picture = last_picture(&text).expect("a picture was drawn");
        assert_eq!(picture.len(), usize::from(rows));
        assert!(
            picture
                .iter()
                .all(|row| row.chars().count() <= usize::from(columns)),
            "{picture:?}"
        );
        assert!(
            picture.last().is_some_and(|row| row.starts_with("q quit")),
            "{picture:?}"
        );
        assert_eq!(
            modes(slave.as_raw_fd()),
            before,
            "the terminal is left as it was found"
        );
    }
    guest.end();
}
