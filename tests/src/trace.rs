//! Reads the traces that guest programs print, and compares them case by case.
//!
//! A trace is a sequence of cases: a heading `== ID CLASS [TYPE]`, then indented observations.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

/// What a guest prints when its lane cannot run a case, with the reason.
const LANE_LACKS: &str = "[lane lacks: ";

/// The observations of every case, by heading (`A07 S DGRAM`).
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Trace {
    cases: BTreeMap<String, Vec<String>>,
}

impl Trace {
    /// Reads a trace. Lines before the first heading belong to no case and are dropped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut cases = BTreeMap::new();
        let mut current: Option<&mut Vec<String>> = None;
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix("== ") {
                current = Some(cases.entry(heading.to_owned()).or_default());
            } else if let Some(lines) = &mut current {
                lines.push(line.trim_start().to_owned());
            }
        }
        Self { cases }
    }

    /// How many cases the trace holds.
    #[must_use]
    pub fn case_count(&self) -> usize {
        self.cases.len()
    }

    /// Whether the trace holds the case with this identifier, of whatever class and type.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        self.cases
            .keys()
            .any(|heading| heading.split(' ').next() == Some(id))
    }

    /// Identifiers of the cases; one that ran for both types comes twice.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.cases
            .keys()
            .filter_map(|heading| heading.split(' ').next())
    }

    /// Cases this lane could not run, each with its stated reason.
    pub fn lacking(&self) -> impl Iterator<Item = (&str, &str)> {
        self.cases.iter().filter_map(|(heading, lines)| {
            let line = lines
                .iter()
                .find_map(|line| line.strip_prefix(LANE_LACKS))?;
            Some((heading.as_str(), line.trim_end_matches(']')))
        })
    }

    /// Every case whose observations are not those of `expected`, in order of heading.
    #[must_use]
    pub fn differences(&self, expected: &Self) -> Vec<Difference> {
        let headings = expected.cases.keys().chain(
            self.cases
                .keys()
                .filter(|heading| !expected.cases.contains_key(*heading)),
        );
        headings
            .filter(|heading| self.cases.get(*heading) != expected.cases.get(*heading))
            .map(|heading| Difference {
                heading: heading.clone(),
                expected: expected.cases.get(heading).cloned().unwrap_or_default(),
                got: self.cases.get(heading).cloned().unwrap_or_default(),
            })
            .collect()
    }
}

/// One case that differs between two lanes.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    heading: String,
    expected: Vec<String>,
    got: Vec<String>,
}

impl Difference {
    /// The case's identifier, such as `A07`.
    #[must_use]
    pub fn id(&self) -> &str {
        self.heading.split(' ').next().unwrap_or_default()
    }
}

/// The case with `-` before what was expected and `+` before what came instead.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "== {}", self.heading)?;
        for at in 0..self.expected.len().max(self.got.len()) {
            match (self.expected.get(at), self.got.get(at)) {
                (Some(expected), Some(got)) if expected == got => writeln!(f, "    {got}")?,
                (expected, got) => {
                    if let Some(line) = expected {
                        writeln!(f, "  - {line}")?;
                    }
                    if let Some(line) = got {
                        writeln!(f, "  + {line}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// All differences as one text for a failure message.
#[must_use]
pub fn render(differences: &[Difference]) -> String {
    differences
        .iter()
        .fold(String::new(), |mut text, difference| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{difference}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_traces_have_no_differences() {
        let trace = Trace::parse("== A01 S\n  x = 1\n== A02 S\n");
        assert_eq!(trace.case_count(), 2);
        assert!(trace.differences(&trace.clone()).is_empty());
    }

    #[test]
    fn changed_line_names_case_and_shows_both_sides() {
        let expected = Trace::parse("== A01 S\n  same\n  x = 1\n== A02 S\n  y\n");
        let got = Trace::parse("== A01 S\n  same\n  x = EINVAL\n== A02 S\n  y\n");
        let differences = got.differences(&expected);
        assert_eq!(differences[0].id(), "A01");
        assert_eq!(
            render(&differences),
            "== A01 S\n    same\n  - x = 1\n  + x = EINVAL\n"
        );
    }

    #[test]
    fn missing_and_extra_cases_differ() {
        let expected = Trace::parse("== A01 S\n  x\n");
        let got = Trace::parse("== A02 S\n  x\n");
        let ids: Vec<_> = got
            .differences(&expected)
            .iter()
            .map(|d| d.id().to_owned())
            .collect();
        assert_eq!(ids, ["A01", "A02"]);
    }

    #[test]
    fn lacking_cases_carry_their_reason() {
        let trace = Trace::parse("== B27 S\n  [lane lacks: MPTCP]\n== B28 Q\n  x\n");
        assert_eq!(trace.lacking().collect::<Vec<_>>(), [("B27 S", "MPTCP")]);
    }
}
