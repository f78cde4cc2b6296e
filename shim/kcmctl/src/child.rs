//! Programs that measure: started, listened to until they end, and never left behind.

use std::env;
use std::ffi::OsString;
use std::io::Read;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::out::{self, clean};
use crate::{Outcome, Problem, fd};

/// This executable. The name is the kernel's, so that a newer file in its place changes nothing.
pub(crate) const SELF: &str = "/proc/self/exe";
/// Variables that the library reads: what is measured is to be the library as it is when none is set.
const SETTINGS: &str = "KCMSHIM_";
/// What is kept of complaints.
const COMPLAINT_MAX: u64 = 4096;

/// This executable with these arguments, under nothing and with no settings.
pub(crate) fn again(arguments: impl IntoIterator<Item = String>) -> Command {
    let mut command = Command::new(SELF);
    command.args(arguments).env_remove("LD_PRELOAD");
    for (name, _) in env::vars_os() {
        if name.as_encoded_bytes().starts_with(SETTINGS.as_bytes()) {
            command.env_remove(name);
        }
    }
    command
}

/// Becomes a part that measures if the first argument is `name`; `main` gets the others. Nobody types
/// such a word: it is in no help and no completion.
pub(crate) fn part(name: &str, main: impl FnOnce(&[&str]) -> Outcome<()>) -> Option<ExitCode> {
    let mut arguments = env::args_os().skip(1);
    if arguments.next()? != name {
        return None;
    }
    let words: Result<Vec<_>, _> = arguments.map(OsString::into_string).collect();
    let words = words.unwrap_or_default();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Some(match follow_parent().and_then(|()| main(&words)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            out::complain(&problem.to_string());
            ExitCode::FAILURE
        }
    })
}

/// Has this process end with the one that started it: whoever that is may be killed.
fn follow_parent() -> Outcome<()> {
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(fd::error)?;
    match getppid() == parent {
        true => Ok(()),
        false => Err(Problem::new("whoever started it has ended")),
    }
}

/// A process that is killed when this is dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a program that ends well within `patience` prints, and what it complains about. One that fails
/// is a problem in its own last words, in as many lines.
pub(crate) fn output(mut command: Command, patience: Duration) -> Outcome<(Vec<u8>, String)> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut running = Running(command.spawn()?);
    let said = read_until_end(&mut running.0, patience)?;
    let status = running.0.wait()?;
    let mut complaint = Vec::new();
    if let Some(stderr) = &mut running.0.stderr {
        let _ = stderr.take(COMPLAINT_MAX).read_to_end(&mut complaint);
    }
    let lines: Vec<_> = complaint.split(|byte| *byte == b'\n').map(clean).collect();
    let complaint = lines.join("\n").trim().to_owned();
    match (status.success(), complaint.as_str()) {
        (true, _) => Ok((said, complaint)),
        (false, "") => Err(Problem(status.to_string())),
        (false, why) => Err(Problem(why.replace("kcmctl: ", ""))),
    }
}

/// What it prints until it closes its standard output.
fn read_until_end(child: &mut Child, patience: Duration) -> Outcome<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let mut said = Vec::new();
    let Some(stdout) = &mut child.stdout else {
        return Ok(said);
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Problem(format!("no end within {} s", patience.as_secs())));
        }
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut fds = [PollFd::from_borrowed_fd(fd::of(stdout), PollFlags::IN)];
        if poll(&mut fds, Some(&left)) == Ok(0) {
            continue;
        }
        let mut bytes = [0; 4096];
        match stdout.read(&mut bytes)? {
            0 => return Ok(said),
            count => said.extend_from_slice(&bytes[..count]),
        }
    }
}
