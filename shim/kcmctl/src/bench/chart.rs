//! The table as a chart: a bar for each row, each group to a scale of its own. SVG 1.1, without scripts
//! or fonts of its own.

use std::fmt::Write;

use super::headline::{Group, Row, Unit};
use super::report::{Machine, human, ratio, spread};
use crate::figures::times;

/// Pixels.
const WIDTH: u32 = 860;
const MARGIN: u32 = 20;
const NAMES: u32 = 190;
const BARS: u32 = 340;
const ROW: u32 = 22;
const BAR: u32 = 14;

/// What the rows are set against, and KCM's own.
const PLAIN: &str = "#9aa5b1";
const OURS: &str = "#2563a8";

pub(super) fn svg(groups: &[Group], machine: &Machine) -> String {
    let mut body = String::new();
    let mut y = MARGIN + 16;
    text(&mut body, (MARGIN, y), "title", "kcmctl bench");
    y += ROW;
    text(&mut body, (MARGIN, y), "note", &machine.line());
    for group in groups {
        y += ROW + 12;
        let title = format!("{} ({})", group.title, direction(group));
        text(&mut body, (MARGIN, y), "group", &title);
        for row in &group.rows {
            y += ROW;
            draw(&mut body, group, row, y);
        }
    }
    let height = y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\">\n\
         <style>text {{ font: 13px sans-serif; fill: #1f2933 }} .title {{ font-size: 18px; font-weight: bold }} \
         .group {{ font-weight: bold }} .note {{ font-size: 12px; fill: #616e7c }}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{body}</svg>\n"
    )
}

/// Name, bar and figures of one row, whose text stands on `y`.
fn draw(body: &mut String, group: &Group, row: &Row, y: u32) {
    text(body, (MARGIN + 10, y), "", row.name.trim());
    let Some(figure) = spread(group, row).map(|s| s.median) else {
        return text(body, (MARGIN + NAMES, y), "note", "failed");
    };
    let alike = group.rows.iter().filter(|other| other.unit == row.unit);
    let largest = alike
        .filter_map(|other| spread(group, other))
        .map(|s| s.median)
        .fold(0.0, f64::max);
    let share = if largest > 0.0 { figure / largest } else { 0.0 };
    let width = (f64::from(BARS) * share).max(1.0);
    let is_ours = group.parts[row.part].is_shimmed;
    let colour = if is_ours { OURS } else { PLAIN };
    let (x, top) = (MARGIN + NAMES, y + 3 - BAR);
    // A String takes whatever is written.
    let _ = writeln!(
        body,
        "<rect x=\"{x}\" y=\"{top}\" width=\"{width:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>"
    );
    let mut label = human(figure, row.unit);
    if let Some(name) = row.against.first()
        && let Some(ratio) = ratio(group, row, name)
    {
        let _ = write!(label, ", {} {name}", times(ratio));
    }
    text(body, (x + width as u32 + 8, y), "", &label);
}

/// What a longer bar means in a group.
fn direction(group: &Group) -> &'static str {
    match group.rows.first().map(|row| row.unit) {
        Some(Unit::PerSecond) => "longer is better",
        _ => "shorter is better",
    }
}

fn text(body: &mut String, (x, y): (u32, u32), class: &str, words: &str) {
    let class = match class {
        "" => String::new(),
        class => format!(" class=\"{class}\""),
    };
    let _ = writeln!(
        body,
        "<text x=\"{x}\" y=\"{y}\"{class}>{}</text>",
        escaped(words)
    );
}

fn escaped(words: &str) -> String {
    words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
