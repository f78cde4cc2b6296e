//! The table every case adds to.

use std::fmt::Write as _;

/// One line: what was done, the bar, what came out, and whether that is enough.
pub(crate) struct Row {
    work: String,
    bar: String,
    result: String,
    is_met: bool,
}

pub(crate) fn row(work: String, bar: &'static str, result: String, is_met: bool) -> Row {
    Row {
        work,
        bar: bar.into(),
        result,
        is_met,
    }
}

impl Row {
    /// One line for the parent process.
    pub(crate) fn encode(&self) -> String {
        format!(
            "{}\t{}\t{}\t{}",
            self.work, self.bar, self.result, self.is_met
        )
    }

    /// What [`encode`](Self::encode) wrote.
    pub(crate) fn decode(line: &str) -> Option<Self> {
        let mut fields = line.split('\t');
        Some(Self {
            work: fields.next()?.into(),
            bar: fields.next()?.into(),
            result: fields.next()?.into(),
            is_met: fields.next()? == "true",
        })
    }
}

/// A table in Markdown.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::from("| work | bar | result | |\n|---|---|---|---|\n");
    for row in rows {
        let verdict = if row.is_met { "met" } else { "**missed**" };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {verdict} |",
            row.work, row.bar, row.result
        );
    }
    text
}
