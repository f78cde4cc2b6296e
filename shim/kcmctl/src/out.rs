//! Words on standard output and standard error: tables that fit the terminal, JSON, complaints.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use crate::{Outcome, Problem, fd};

/// What a [`Problem`] says when standard output has no reader any more.
pub(crate) const PIPE_CLOSED: &str = "standard output is closed";

/// Prints text as it is.
pub(crate) fn print(text: &str) -> Outcome<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Err(Problem::new(PIPE_CLOSED)),
        Err(err) => Err(Problem::new(format!("standard output: {err}"))),
    }
}

/// Prints one JSON document on a line.
pub(crate) fn print_json(value: &Value) -> Outcome<()> {
    print(&format!("{value}\n"))
}

/// One line on standard error.
pub(crate) fn complain(what: &str) {
    // Standard error may be closed; then nobody is there to be told.
    let _ = writeln!(io::stderr(), "kcmctl: {what}");
}

/// Columns of the terminal on standard output; `None` when it is a pipe or a file.
pub(crate) fn columns() -> Option<usize> {
    size().map(|(columns, _)| columns)
}

/// Columns and rows of the terminal on standard output. One that does not say has 80 by 24.
pub(crate) fn size() -> Option<(usize, usize)> {
    if !io::stdout().is_terminal() {
        return None;
    }
    Some(match rustix::termios::tcgetwinsize(fd::of(&io::stdout())) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    })
}

/// Text of a stranger: without control characters, which would be the terminal's to obey.
pub(crate) fn clean(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Cuts a line to a number of columns.
pub(crate) fn cut(line: &str, columns: Option<usize>) -> &str {
    let end = columns.and_then(|columns| line.char_indices().nth(columns));
    end.map_or(line, |(at, _)| &line[..at])
}

/// Sets words in lines of at most `columns`, those after the first indented. A word that is longer
/// than a line stays whole, unless it does not fit any.
pub(crate) fn wrapped(text: &str, indent: usize, columns: Option<usize>) -> String {
    let columns = columns.unwrap_or(usize::MAX);
    let indent = indent.min(columns / 2);
    let (mut lines, mut line) = (String::new(), String::new());
    for word in text.split_inclusive(' ') {
        let width = line.chars().count() + word.trim_end().chars().count();
        if width > columns && !line.trim().is_empty() {
            lines += line.trim_end();
            lines.push('\n');
            line = " ".repeat(indent);
        }
        line += word;
    }
    lines += cut(line.trim_end(), Some(columns));
    lines.push('\n');
    lines
}

/// Rows under headings. Headings that start with `<` mark columns set to the left.
pub(crate) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(headings: &[&'static str]) -> Self {
        Self {
            headings: headings.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table's lines, each no longer than `columns`.
    pub(crate) fn lines(&self, columns: Option<usize>) -> Vec<String> {
        let headings: Vec<String> = self
            .headings
            .iter()
            .map(|h| h.trim_start_matches('<').to_owned())
            .collect();
        let widths: Vec<usize> = (0..headings.len())
            .map(|at| {
                let cells = self.rows.iter().chain([&headings]);
                let lengths = cells.filter_map(|row| Some(row.get(at)?.chars().count()));
                lengths.max().unwrap_or(0)
            })
            .collect();
        [&headings]
            .into_iter()
            .chain(&self.rows)
            .map(|row| cut(&self.line(row, &widths), columns).to_owned())
            .collect()
    }

    fn line(&self, row: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for ((cell, width), heading) in row.iter().zip(widths).zip(&self.headings) {
            let gap = if line.is_empty() { "" } else { "  " };
            line += gap;
            line += &if heading.starts_with('<') {
                format!("{cell:<width$}")
            } else {
                format!("{cell:>width$}")
            };
        }
        line.truncate(line.trim_end().len());
        line
    }

    /// The table as one text.
    pub(crate) fn text(&self, columns: Option<usize>) -> String {
        self.lines(columns).join("\n") + "\n"
    }
}

/// A number of bytes or messages in at most five characters.
pub(crate) fn short(value: f64) -> String {
    const UNITS: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let mut scaled = value;
    for unit in UNITS {
        if scaled < 999.5 {
            let digits = usize::from(scaled < 99.95 && !unit.is_empty());
            return format!("{scaled:.digits$}{unit}");
        }
        scaled /= 1000.0;
    }
    "lots".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_cut() {
        let mut table = Table::new(&["PID", "<NAME"]);
        table.row(["7".into(), "seven".into()]);
        table.row(["1234".into(), "x".into()]);
        assert_eq!(table.text(None), " PID  NAME\n   7  seven\n1234  x\n");
        assert_eq!(table.text(Some(8)), " PID  NA\n   7  se\n1234  x\n");
    }

    #[test]
    fn words_are_set_in_lines() {
        assert_eq!(
            wrapped("name   one two three", 2, None),
            "name   one two three\n"
        );
        assert_eq!(
            wrapped("name   one two three", 2, Some(11)),
            "name   one\n  two three\n"
        );
        assert_eq!(wrapped("enormous", 2, Some(4)), "enor\n");
    }

    #[test]
    fn numbers_stay_short() {
        assert_eq!(short(0.0), "0");
        assert_eq!(short(999.4), "999");
        assert_eq!(short(1500.0), "1.5k");
        assert_eq!(short(999_960.0), "1.0M");
        assert_eq!(short(123_456_789.0), "123M");
    }

    #[test]
    fn control_characters_of_strangers_do_not_reach_the_terminal() {
        assert_eq!(clean(b"a\x1b[2Jb\xff"), "a?[2Jb\u{fffd}");
    }
}
