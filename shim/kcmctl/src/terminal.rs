//! A terminal that shows a picture instead of lines: one key at a time, nothing echoed, and left
//! as it was found.

use std::io::{self, IsTerminal, Read};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::{Outcome, fd, out};

/// Another screen, no cursor, no wrapping of long lines; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// The screen while it is ours.
pub(crate) struct Screen {
    before: Option<Termios>,
}

impl Screen {
    pub(crate) fn enter() -> Outcome<Self> {
        let mut before = None;
        if io::stdin().is_terminal()
            && let Ok(modes) = tcgetattr(fd::of(&io::stdin()))
        {
            let mut raw = modes.clone();
            // Ctrl-C comes as a key, so that it too leaves the screen in order.
            raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
            let _ = tcsetattr(fd::of(&io::stdin()), OptionalActions::Now, &raw);
            before = Some(modes);
        }
        out::print(ENTER)?;
        Ok(Self { before })
    }

    /// Shows `lines`, cut to the screen.
    pub(crate) fn show(&self, lines: &[String], (columns, rows): (usize, usize)) -> Outcome<()> {
        let mut picture = String::from("\x1b[H");
        for (at, line) in lines.iter().take(rows).enumerate() {
            if at > 0 {
                picture += "\r\n";
            }
            picture += out::cut(line, Some(columns));
            picture += "\x1b[K";
        }
        picture += "\x1b[J";
        out::print(&picture)
    }

    /// Waits for a key. `None` when none came in time; the end of input is a `q`.
    pub(crate) fn key(&self, wait: Duration) -> Option<u8> {
        let stdin = io::stdin();
        let mut fds = [PollFd::from_borrowed_fd(fd::of(&stdin), PollFlags::IN)];
        let wait = Timespec {
            tv_sec: wait.as_secs() as i64,
            tv_nsec: wait.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&wait)) {
            Ok(1..) => {
                let mut key = [0];
                match stdin.lock().read(&mut key) {
                    Ok(1) => Some(key[0]),
                    _ => Some(b'q'),
                }
            }
            _ => None, // also after a signal, such as a change of the window's size
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to put back.
        let _ = out::print(LEAVE);
        if let Some(before) = &self.before {
            let _ = tcsetattr(fd::of(&io::stdin()), OptionalActions::Now, before);
        }
    }
}
