//! `kcmctl trace PID`: messages as they pass.

use std::fmt::Write;

use serde_json::json;

use crate::explain::clock;
use crate::tracer::{Filter, Seen, Tracer};
use crate::wire::request;
use crate::{Outcome, out};

const HEADINGS: &str = "            TIME  MUX  KCM  PSOCK  DIR   LENGTH  FIRST BYTES";

pub(crate) fn trace(
    pid: u32,
    filter: &Filter,
    bytes: u64,
    count: Option<u64>,
    as_json: bool,
) -> Outcome<()> {
    let mut tracer = Tracer::start(pid, request::MESSAGES, filter, bytes)?;
    if !as_json {
        out::print(&format!("{}\n", out::cut(HEADINGS, out::columns())))?;
    }
    let (mut left, mut lost) = (count.unwrap_or(u64::MAX), 0);
    while left > 0 {
        let Some(all) = tracer.next()? else {
            out::complain(&format!("process {pid} has ended"));
            break;
        };
        let columns = out::columns();
        let mut text = String::new();
        for seen in all.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            if seen.lost > lost && !as_json {
                let _ = writeln!(text, "{} messages are missing here", seen.lost - lost);
            }
            lost = seen.lost;
            match as_json {
                true => _ = writeln!(text, "{}", line_json(seen)),
                false => _ = writeln!(text, "{}", out::cut(&line(seen), columns)),
            }
            left -= 1;
        }
        out::print(&text)?;
    }
    Ok(())
}

/// One message in a line: its bytes as numbers, then as text.
fn line(seen: &Seen) -> String {
    let direction = if seen.is_rx { "RX" } else { "TX" };
    let mut line = format!(
        "{}  {:>3}  {:>3}  {:>5}  {direction:<3}  {:>7} ",
        clock(seen.time, 6),
        seen.mux,
        seen.kcm,
        seen.psock,
        seen.len
    );
    for byte in &seen.bytes {
        let _ = write!(line, " {byte:02x}");
    }
    if seen.len > seen.bytes.len() as u64 && !seen.bytes.is_empty() {
        line += " …";
    }
    line + "  " + &printable(&seen.bytes)
}

/// Bytes as text, a point for each that is no printable ASCII.
fn printable(bytes: &[u8]) -> String {
    let shown = |byte: &u8| match byte {
        b' '..=b'~' => char::from(*byte),
        _ => '.',
    };
    bytes.iter().map(shown).collect()
}

fn line_json(seen: &Seen) -> serde_json::Value {
    let hex = seen.bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    json!({
        "time_ns": seen.time,
        "mux": seen.mux,
        "kcm": seen.kcm,
        "psock": seen.psock,
        "direction": if seen.is_rx { "rx" } else { "tx" },
        "length": seen.len,
        "bytes": hex,
        "lost": seen.lost,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_shows_numbers_and_text() {
        let seen = Seen {
            is_frame: false,
            time: 1_000_002_000,
            is_rx: true,
            len: 4,
            mux: 0,
            kcm: 1,
            psock: 2,
            inode: 0,
            lost: 0,
            bytes: b"a\x1b".to_vec(),
        };
        assert_eq!(
            line(&seen),
            "00:00:01.000002Z    0    1      2  RX         4  61 1b …  a."
        );
        assert_eq!(HEADINGS.find("FIRST"), line(&seen).find("61"));
    }
}
