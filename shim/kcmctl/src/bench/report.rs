//! The table, and the same as JSON.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::headline::{Group, Row, Unit};
use crate::figures::{self, Spread, times};
use crate::out;

/// Where and when it was measured.
pub(super) struct Machine {
    kernel: String,
    cpu: String,
    cpus: usize,
    load: f64,
    date: String,
}

impl Machine {
    pub(super) fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            (name.trim() == "model name").then(|| value.trim())
        });
        let load = read("/proc/loadavg");
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            kernel: out::clean(read("/proc/sys/kernel/osrelease").trim().as_bytes()),
            cpu: out::clean(model.unwrap_or(std::env::consts::ARCH).as_bytes()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            load: load
                .split(' ')
                .next()
                .and_then(|l| l.parse().ok())
                .unwrap_or(0.0),
            date: date(now.map_or(0, |since| since.as_secs())),
        }
    }

    /// In a line.
    pub(super) fn line(&self) -> String {
        let Self {
            kernel,
            cpu,
            cpus,
            load,
            date,
        } = self;
        format!("{date}, Linux {kernel}, {cpus} CPUs ({cpu}), load {load:.1} at the start")
    }
}

/// The day, in UTC, so many seconds after 1970 began: days are counted from the March that a four
/// century cycle begins with.
fn date(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, (month + 2) % 12 + 1);
    let year = year + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}

/// A row's figures, round by round.
fn rounds<'g>(group: &'g Group, row: &'g Row) -> impl Iterator<Item = Option<f64>> + 'g {
    let results = &group.parts[row.part].results;
    results
        .iter()
        .map(|result| result.as_ref()?.get(row.field)?.as_f64())
}

pub(super) fn spread(group: &Group, row: &Row) -> Option<Spread> {
    Spread::of(rounds(group, row).flatten().collect())
}

/// The median of the rounds' ratios of a row to the one called `name`.
pub(super) fn ratio(group: &Group, row: &Row, name: &str) -> Option<f64> {
    let other = group.rows.iter().find(|other| other.name == name)?;
    figures::ratio(rounds(group, row), rounds(group, other))
}

/// A figure in at most eight characters.
pub(super) fn human(value: f64, unit: Unit) -> String {
    match unit {
        Unit::PerSecond => format!("{}/s", out::short(value)),
        Unit::Micros => format!("{value:.1} us"),
        Unit::Bytes if value >= 1024.0 => format!("{:.1} KiB", value / 1024.0),
        Unit::Bytes => format!("{value:.0} B"),
        Unit::Count => format!("{value:.0}"),
        Unit::Millis => format!("{value:.1} ms"),
    }
}

pub(super) fn table(groups: &[Group], machine: &Machine, columns: Option<usize>) -> String {
    let mut table = out::Table::new(&["<WORK", "MEDIAN", "RATIO", "<TO", "<RANGE"]);
    for group in groups {
        table.row([group.title.clone()]);
        for row in &group.rows {
            let figures = spread(group, row);
            let human = |value: f64| human(value, row.unit);
            let (median, range) = match figures {
                None => ("failed".to_owned(), String::new()),
                Some(s) if s.min < s.max => (
                    human(s.median),
                    format!("{} .. {}", human(s.min), human(s.max)),
                ),
                Some(s) => (human(s.median), String::new()),
            };
            let ratios: Vec<_> = row
                .against
                .iter()
                .map(|name| {
                    (
                        ratio(group, row, name).map_or("-".to_owned(), times),
                        (*name).to_owned(),
                    )
                })
                .collect();
            let mut ratios = ratios.into_iter();
            let (first, to) = ratios.next().unwrap_or_default();
            table.row([format!("  {}", row.name), median, first, to, range]);
            for (ratio, to) in ratios {
                table.row([String::new(), String::new(), ratio, to]);
            }
        }
    }
    let mut text = table.text(columns);
    text += &out::wrapped(&machine.line(), 2, columns);
    let note =
        "Loopback TCP; ratios are medians of rounds that take turns: compare these, not the rates.";
    text + &out::wrapped(note, 2, columns)
}

pub(super) fn json(groups: &[Group], machine: &Machine) -> Value {
    let row = |group: &Group, row: &Row| {
        let ratios = row
            .against
            .iter()
            .map(|name| json!({ "to": name, "ratio": ratio(group, row, name) }));
        let figures = spread(group, row);
        json!({
            "name": row.name.trim(),
            "field": row.field,
            "min": figures.map(|s| s.min),
            "median": figures.map(|s| s.median),
            "max": figures.map(|s| s.max),
            "ratios": ratios.collect::<Vec<_>>(),
        })
    };
    let groups = groups.iter().map(|group| {
        json!({
            "title": group.title,
            "rounds": group.rounds,
            "rows": group.rows.iter().map(|r| row(group, r)).collect::<Vec<_>>(),
            "failures": group.failures,
        })
    });
    json!({
        "date": machine.date,
        "kernel": machine.kernel,
        "cpu": machine.cpu,
        "cpus": machine.cpus,
        "load": machine.load,
        "library": env!("CARGO_PKG_VERSION"),
        "groups": groups.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(951_782_400), "2000-02-29");
        assert_eq!(date(1_795_325_775), "2026-11-22");
        assert_eq!(date(4_107_542_400), "2100-03-01");
    }

    #[test]
    fn figures_stay_short() {
        assert_eq!(human(30_100_000.0, Unit::PerSecond), "30.1M/s");
        assert_eq!(human(1229.0, Unit::Bytes), "1.2 KiB");
    }
}
