//! Programs that serve beside a test.

use std::borrow::BorrowMut;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

/// A program that serves until this is dropped: the programs of `tests/programs` say so in a line when they
/// are ready, and end when their standard input does.
#[derive(Debug)]
pub struct Server {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Server {
    /// Starts it, and waits until it has said its first line.
    ///
    /// # Panics
    /// When it does not start, or ends before that.
    #[must_use]
    pub fn start(command: impl BorrowMut<Command>) -> Self {
        let (server, line) = Self::start_until(command, |_| true);
        assert!(!line.is_empty(), "the server listens");
        server
    }

    /// Starts it, and waits until it has said a line that `is_ready`; all it has said by then.
    ///
    /// # Panics
    /// When it does not start, or ends before that.
    #[must_use]
    pub fn start_until(
        mut command: impl BorrowMut<Command>,
        is_ready: impl Fn(&str) -> bool,
    ) -> (Self, String) {
        let piped = { command.borrow_mut() }.stdin(Stdio::piped());
        let mut child = piped.stdout(Stdio::piped()).spawn().expect("it starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let mut server = Self {
            child,
            stdout: BufReader::new(stdout),
        };
        let mut said = String::new();
        loop {
            let before = said.len();
            let read = server.stdout.read_line(&mut said);
            assert!(read.is_ok_and(|n| n > 0), "the server is ready: {said}");
            if is_ready(said[before..].trim_end()) {
                return (server, said);
            }
        }
    }

    /// Its process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal by its name without SIG.
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, name: &str) {
        let pid = self.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.is_ok_and(|status| status.success()));
    }

    /// Waits for the end of its process, where children of it go on with its streams.
    ///
    /// # Panics
    /// When it does not end with success.
    pub fn outlived(&mut self) {
        let stdin = self.child.stdin.take(); // which a wait closes
        let status = self.child.wait().expect("it is our child");
        self.child.stdin = stdin;
        assert!(status.success(), "{status}");
    }

    /// Waits for the end of one that ends by itself, and returns what else it has said.
    ///
    /// # Panics
    /// When that is not text, or it does not end with success.
    #[must_use]
    pub fn rest(mut self) -> String {
        let mut said = String::new();
        let read = self.stdout.read_to_string(&mut said);
        read.expect("the server ends");
        let status = self.child.wait().expect("it is our child");
        assert!(status.success(), "{status}: {said}");
        said
    }

    /// Ends it, and returns what else it has said.
    ///
    /// # Panics
    /// When that is not text, or it does not end with success.
    #[must_use]
    pub fn end(mut self) -> String {
        drop(self.child.stdin.take());
        let mut said = String::new();
        let read = self.stdout.read_to_string(&mut said);
        read.expect("the server ends");
        let status = self.child.wait().expect("it is our child");
        assert!(status.success(), "{status}: {said}");
        said
    }
}

/// One that failed tells whoever reads why.
impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let Ok(status) = self.child.wait() else {
            return;
        };
        if !status.success() {
            let mut said = String::new();
            let _ = self.stdout.read_to_string(&mut said);
            let _ = writeln!(io::stderr(), "the server ended with {status}\n{said}");
        }
    }
}
