//! `kcmctl`, programs for it to look at, and terminals to show them on.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, process, thread};

use crate::{guest, program};

/// How long anything may take before it counts as missing: more than the slowest machine needs.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// The tool, built like the library that the other tests run.
///
/// # Panics
/// When it cannot be built.
pub fn tool() -> &'static Path {
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
        let built = cargo.status().expect("cargo runs").success();
        assert!(built, "building kcmctl failed");
        profile.join("kcmctl")
    })
}

/// The program `ctl_guest.c`.
pub fn guest_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| program::build("ctl_guest", &[]))
}

/// What a program printed.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A runtime directory of a test's own, removed with it.
#[derive(Debug)]
pub struct Runtime(pub PathBuf);

impl Runtime {
    /// An empty one.
    ///
    /// # Panics
    /// When it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let _ = tool(); // building it takes longer than programs to be looked at live
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("kcmctl-test.{}.{number}", process::id()));
        fs::create_dir(&path).expect("temporary directories can be made");
        Self(path)
    }

    /// Where pages lie.
    #[must_use]
    pub fn pages(&self) -> PathBuf {
        self.0.join("kcmshim")
    }

    /// Puts the tool and the library here, as `ci/install` does below a prefix; returns the tool.
    ///
    /// # Panics
    /// When there is no room.
    #[must_use]
    pub fn install(&self) -> PathBuf {
        for directory in ["bin", "lib"] {
            fs::create_dir(self.0.join(directory)).expect("there is room");
        }
        let installed = self.0.join("bin/kcmctl");
        copy_for_all(tool(), &installed);
        copy_for_all(guest::library(), &self.0.join("lib/libkcmshim.so"));
        installed
    }

    /// The tool, which looks here.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(tool());
        command
            .args(arguments)
            .env("XDG_RUNTIME_DIR", &self.0)
            .stdin(Stdio::null());
        command
    }

    /// Runs the tool to its end.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn ctl(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("kcmctl runs")
    }

    /// What the tool prints when all is well.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn says(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        text(&output.stdout)
    }

    /// The one line the tool complains with, when it fails.
    ///
    /// # Panics
    /// When it does not fail, or says more or less than a line.
    #[must_use]
    pub fn complains(&self, arguments: &[&str]) -> String {
        let output = self.ctl(arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments:?}: {said}");
        said
    }

    /// Asks until the answer holds `wanted`: counters come at their own pace.
    ///
    /// # Panics
    /// When it never does.
    pub fn says_at_last(&self, arguments: &[&str], wanted: &str) -> String {
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

impl Default for Runtime {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An address of 10.77.0.0/16 for a stack, of which each process needs its own: not 10.77.0.9, which
/// `ctl_stack.c` looks for in vain.
#[must_use]
pub fn stack_address() -> String {
    static MADE: AtomicUsize = AtomicUsize::new(0);
    /// Stacks of one test program, and what is left of 16 bits for programs.
    const EACH: usize = 16;
    const PROGRAMS: usize = 4000;
    let program = process::id() as usize % PROGRAMS;
    let number = 256 + program * EACH + MADE.fetch_add(1, Ordering::Relaxed) % EACH;
    format!("10.77.{}.{}", number / 256, number % 256)
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    said: BufReader<ChildStdout>,
    /// Numbers of its KCM and its TCP descriptor.
    pub kcm: String,
    /// See `kcm`.
    pub tcp: String,
}

impl Guest {
    /// Starts one whose page is in `runtime`.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn start(runtime: &Runtime) -> Self {
        Self::start_as(runtime, program::under_shim(guest_program()))
    }

    /// Starts `ctl_stack.c`, whose sockets the stack serves at [`stack_address`]es.
    /// Its numbers are those of a listener and of a connection.
    ///
    /// # Panics
    /// When it does not start, or makes no page.
    #[must_use]
    pub fn start_on_stack(runtime: &Runtime, address: &str) -> Self {
        let mut command = program::under_shim(program::build("ctl_stack", &[]));
        command.env("KCMSHIM_STACK", format!("mem: {address}/16"));
        Self::start_on_stack_as(runtime, address, command)
    }

    /// As [`start_on_stack`](Self::start_on_stack), by this command.
    ///
    /// # Panics
    /// When it does not start, or makes no page.
    #[must_use]
    pub fn start_on_stack_as(runtime: &Runtime, address: &str, mut command: Command) -> Self {
        command.arg(address).env("XDG_RUNTIME_DIR", &runtime.0);
        let mut guest = Self::run(command);
        guest.obey('f'); // the page follows what happens
        await_file(&runtime.pages().join(guest.pid()), 1);
        guest
    }

    /// Starts one by this command, and waits for its page in `runtime`.
    ///
    /// # Panics
    /// When it does not start, or makes no page.
    #[must_use]
    pub fn start_as(runtime: &Runtime, mut command: Command) -> Self {
        command.env("XDG_RUNTIME_DIR", &runtime.0);
        let guest = Self::run(command);
        await_file(&runtime.pages().join(guest.pid()), 1);
        guest
    }

    /// Starts one by this command.
    ///
    /// # Panics
    /// When it does not start.
    #[must_use]
    pub fn run(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the guest starts");
        let mut guest = Self {
            said: BufReader::new(child.stdout.take().expect("stdout is piped")),
            child,
            kcm: String::new(),
            tcp: String::new(),
        };
        let line = guest.line();
        let mut numbers = line.split_ascii_whitespace().map(str::to_owned);
        let (Some(kcm), Some(tcp)) = (numbers.next(), numbers.next()) else {
            panic!("the guest said {line:?}");
        };
        (guest.kcm, guest.tcp) = (kcm, tcp);
        guest
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("a pipe can be read");
        line.trim_end().to_owned()
    }

    /// Has it obey a letter; returns what it says once it has.
    ///
    /// # Panics
    /// When it has ended.
    pub fn obey(&mut self, letter: char) -> String {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        write!(stdin, "{letter}").expect("the guest reads");
        stdin.flush().expect("the guest reads");
        self.line()
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> String {
        self.child.id().to_string()
    }

    /// Has it end by itself.
    ///
    /// # Panics
    /// When it fails.
    pub fn end(mut self) {
        drop(self.child.stdin.take());
        let ended = self.child.wait().expect("the guest is our child");
        let mut rest = String::new();
        let _ = self.said.read_to_string(&mut rest);
        assert!(ended.success(), "{ended}: {rest}");
    }

    /// Kills it.
    ///
    /// # Panics
    /// When it is gone already.
    pub fn kill(mut self) {
        self.child.kill().expect("the guest is our child");
        self.child.wait().expect("the guest is our child");
    }
}

/// Waits for a file of at least so many bytes.
///
/// # Panics
/// When it never comes.
pub fn await_file(path: &Path, bytes: u64) {
    let deadline = Instant::now() + PATIENCE;
    while fs::metadata(path).map_or(0, |meta| meta.len()) < bytes {
        assert!(Instant::now() < deadline, "{} is missing", path.display());
        thread::sleep(Duration::from_millis(2));
    }
}

/// Locks a file as the writer of a page does. A child that a test of another thread has just forked
/// may hold an earlier lock until it executes its program: that is waited for.
///
/// # Panics
/// When it is no file that can be locked.
pub fn lock(file: &File) {
    // SAFETY: the number is the open file's.
    let locked = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) };
    assert_eq!(locked, 0, "it can be locked");
}

/// Copies a program to where every user may run it, by another process: a child that a test of
/// another thread forks meanwhile would hold our file open for writing, and it could not be run.
///
/// # Panics
/// When there is no room.
pub fn copy_for_all(from: &Path, to: &Path) {
    program::run(Command::new("cp").args([from, to]));
    let all = fs::Permissions::from_mode(0o755);
    fs::set_permissions(to, all).expect("it is ours");
}

/// A pseudo-terminal: its two ends.
#[derive(Debug)]
pub struct Terminal {
    /// Where a person would sit.
    pub master: File,
    slave: OwnedFd,
}

impl Terminal {
    /// One of this size.
    ///
    /// # Panics
    /// When the system has none.
    #[must_use]
    pub fn new(columns: u16, rows: u16) -> Self {
        let size = window(columns, rows);
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
        unsafe {
            Self {
                master: File::from_raw_fd(master),
                slave: OwnedFd::from_raw_fd(slave),
            }
        }
    }

    /// Gives it another size; whoever has it as its terminal is told.
    ///
    /// # Panics
    /// When the terminal is gone.
    pub fn resize(&self, columns: u16, rows: u16) {
        let size = window(columns, rows);
        // SAFETY: the size outlives the call.
        let set = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &size) };
        assert_eq!(set, 0);
    }

    /// Its local modes: whether it echoes, and the like.
    ///
    /// # Panics
    /// When the terminal is gone.
    #[must_use]
    pub fn modes(&self) -> u32 {
        // SAFETY: an all-zero termios is valid, and outlives the call.
        unsafe {
            let mut modes: libc::termios = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(self.slave.as_raw_fd(), &mut modes), 0);
            modes.c_lflag
        }
    }

    /// Starts a command on it.
    ///
    /// # Panics
    /// When it does not start.
    pub fn spawn(&self, mut command: Command) -> Child {
        let end = || self.slave.try_clone().expect("numbers are free");
        command.stdin(end()).stdout(end()).stderr(end());
        command.spawn().expect("it starts")
    }

    /// Whether something is drawn within a moment.
    fn is_readable(&self) -> bool {
        const MOMENT_MS: i32 = 100;
        let mut entry = libc::pollfd {
            fd: self.master.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the entry outlives the call.
        unsafe { libc::poll(&mut entry, 1, MOMENT_MS) > 0 }
    }

    /// Reads what is drawn until `enough` says so of all that was, which is returned.
    ///
    /// # Panics
    /// When it never does.
    pub fn read_until(&mut self, seen: &mut Vec<u8>, enough: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let all = text(seen);
            if enough(&all) {
                return all;
            }
            assert!(
                Instant::now() < deadline,
                "what is drawn never suffices: {all}"
            );
            if !self.is_readable() {
                continue;
            }
            let mut part = [0; 4096];
            let count = self.master.read(&mut part).expect("somebody draws");
            seen.extend_from_slice(&part[..count]);
        }
    }
}

/// The rows of the last whole picture that a view in a terminal drew.
#[must_use]
pub fn last_picture(output: &str) -> Option<Vec<&str>> {
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

fn window(columns: u16, rows: u16) -> libc::winsize {
    libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
