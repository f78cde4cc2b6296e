//! A bar on standard error, when that is a terminal, while something takes longer than a person waits
//! without asking.

use std::io::{self, IsTerminal, Write};
use std::thread;
use std::time::{Duration, Instant};

use crate::{fd, out};

/// Shorter ones are not announced.
const WORTH: Duration = Duration::from_secs(2);
/// How often the bar moves while one step takes its time.
const TICK: Duration = Duration::from_millis(200);
const BAR: usize = 20;
/// Takes the line away.
const CLEAR: &str = "\r\x1b[K";

/// How far a piece of work is. The line goes when this is dropped.
pub(crate) struct Progress {
    is_shown: bool,
    start: Instant,
    steps: usize,
    done: usize,
}

impl Progress {
    /// Of work that is known to be worth a bar.
    pub(crate) fn new(steps: usize) -> Self {
        Self {
            is_shown: io::stderr().is_terminal(),
            start: Instant::now(),
            steps,
            done: 0,
        }
    }

    /// Begins the next step.
    pub(crate) fn step(&mut self, what: &str) {
        if self.is_shown {
            let line = line(what, self.done, self.steps, self.start.elapsed());
            draw(&line);
        }
        self.done += 1;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown {
            show(CLEAR);
        }
    }
}

/// Sleeps, with a bar if that takes long.
pub(crate) fn pause(duration: Duration) {
    if duration <= WORTH || !io::stderr().is_terminal() {
        return thread::sleep(duration);
    }
    let start = Instant::now();
    while let Some(left) = duration
        .checked_sub(start.elapsed())
        .filter(|left| !left.is_zero())
    {
        let permille = start.elapsed().as_millis() * 1000 / duration.as_millis().max(1);
        draw(&line("next look", permille as usize, 1000, start.elapsed()));
        thread::sleep(left.min(TICK));
    }
    show(CLEAR);
}

/// The bar, how much of it is done, how long the rest takes at this pace, and what is done now.
fn line(what: &str, done: usize, steps: usize, elapsed: Duration) -> String {
    let steps = steps.max(1);
    let full = (BAR * done / steps).min(BAR);
    let left = match done {
        0 => String::new(),
        _ => {
            let each = elapsed.as_secs_f64() / done as f64;
            format!("{:>3.0} s left  ", each * steps.saturating_sub(done) as f64)
        }
    };
    let percent = (100 * done / steps).min(100);
    let (full, empty) = ("#".repeat(full), ".".repeat(BAR - full));
    format!("[{full}{empty}] {percent:>3} %  {left}{what}")
}

fn draw(line: &str) {
    let columns = match rustix::termios::tcgetwinsize(fd::of(&io::stderr())) {
        Ok(size) if size.ws_col > 1 => usize::from(size.ws_col) - 1,
        _ => 79,
    };
    show(&format!("{CLEAR}{}", out::cut(line, Some(columns))));
}

fn show(text: &str) {
    // A bar that cannot be shown is missed by nobody.
    let _ = io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_tells_how_much_is_left() {
        let half = line("x", 5, 10, Duration::from_secs(5));
        assert_eq!(half, "[##########..........]  50 %    5 s left  x");
        let start = line("x", 0, 10, Duration::ZERO);
        assert_eq!(start, "[....................]   0 %  x");
        assert!(line("x", 11, 10, Duration::ZERO).contains("100 %"));
        assert!(line("x", 1, 0, Duration::ZERO).contains("100 %"));
    }
}
