//! A segment as scripts write it.

use super::{Outcome, PEER_ISN, PEER_PORT, Player, number};
use crate::wire::{self, Segment};

impl Player {
    /// Parses `FLAGS SEQ:END(LEN) …`. For expectations, also which fields were given.
    pub(super) fn parse(&self, text: &str, expected: bool) -> Outcome<(Segment, Given)> {
        let (text, options) = match text.split_once('<') {
            Some((t, o)) => (t, Some(o.trim_end_matches('>'))),
            None => (text, None),
        };
        let ours = self.our_isn.unwrap_or(0);
        let (mine, other) = if expected {
            (ours, PEER_ISN)
        } else {
            (PEER_ISN, ours)
        };
        let mut s = Segment {
            window: 1000,
            src: PEER_PORT,
            dst: self.our_port,
            ..Segment::default()
        };
        let mut given = Given::default();
        let mut words = text.split_whitespace();
        let letters = words.next().ok_or("flags missing")?;
        s.flags = wire::flags(letters).ok_or("unknown flag")?;
        while let Some(w) = words.next() {
            let mut arg = || words.next().ok_or(format!("{w} needs a number"));
            match w {
                "ack" => {
                    s.ack = other.wrapping_add(number::<u32>(arg()?)?);
                    given.ack = true;
                }
                "win" => {
                    s.window = number(arg()?)?;
                    given.window = true;
                }
                "urg" => {
                    s.urgent = number(arg()?)?;
                    given.urgent = true;
                }
                "port" => s.src = number(arg()?)?,
                "ect" => {
                    s.ecn = 2;
                    given.ecn = true;
                }
                "noect" => given.ecn = true,
                "ce" => s.ecn = 3,
                range => {
                    let (a, rest) = range.split_once(':').ok_or(format!("`{range}`?"))?;
                    let (b, len) = rest.split_once('(').ok_or("length missing")?;
                    let (a, b): (i64, i64) = (number(a)?, number(b)?);
                    s.len = number(len.trim_end_matches(')'))?;
                    if b - a != s.len as i64 {
                        return Err("range and length disagree".into());
                    }
                    s.seq = mine.wrapping_add(a as u32);
                    given.range = true;
                }
            }
        }
        for o in options.into_iter().flat_map(|o| o.split(',')) {
            let w: Vec<&str> = o.split_whitespace().collect();
            match w[..] {
                ["mss", n] => s.mss = Some(number(n)?),
                ["wscale", n] => s.wscale = Some(number(n)?),
                ["sackOK"] => s.sack_ok = true,
                ["nots"] => given.no_ts = true,
                ["nosack"] => given.no_sack = true,
                ["ts", val, ecr] => {
                    let ecr = match ecr.strip_prefix("last") {
                        Some(plus) => {
                            let n: i32 = if plus.is_empty() { 0 } else { number(plus)? };
                            self.last_ts.wrapping_add(n as u32)
                        }
                        None => number(ecr)?,
                    };
                    let val = if val == "any" { 0 } else { number(val)? };
                    s.ts = Some((val, ecr));
                }
                ["sack", ref blocks @ ..] => {
                    for b in blocks {
                        let (a, b) = b.split_once(':').ok_or("block")?;
                        let base = if expected { PEER_ISN } else { ours };
                        s.sack
                            .push((base.wrapping_add(number(a)?), base.wrapping_add(number(b)?)));
                    }
                }
                [] => {}
                _ => return Err(format!("option `{o}`?")),
            }
        }
        Ok((s, given))
    }
}

/// Which fields an expectation names.
#[derive(Default)]
pub(super) struct Given {
    pub(super) range: bool,
    pub(super) ack: bool,
    pub(super) window: bool,
    pub(super) urgent: bool,
    pub(super) ecn: bool,
    pub(super) no_ts: bool,
    pub(super) no_sack: bool,
}
