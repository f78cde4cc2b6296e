//! Plays one script.

mod command;
mod segment;

use std::collections::VecDeque;
use std::time::Duration;

use kcm_stack::{Config, EcnMode, Instant, Key, ListenerId, Received, Stack, TcpId};

use crate::wire::{self, OUR_IP, PEER_IP, PEER_MAC, Segment};

const OUR_PORT: u16 = 80;
const PEER_PORT: u16 = 5000;
const PEER_ISN: u32 = 0xffff_f000; // wraps early
/// Deadlines in one wait; the longest, of keepalive and its probes, has a few dozen.
const STEPS_MAX: u32 = 100_000;
const TOLERANCE: Duration = Duration::from_millis(2);

type Outcome<T = ()> = Result<T, String>;

pub(crate) struct Player {
    stack: Stack,
    now: Instant,
    sent: VecDeque<(Instant, Segment, Vec<u8>)>,
    last_event: Instant,
    last_ours: Option<(Segment, Vec<u8>)>,
    last_ts: u32,
    listener: Option<ListenerId>,
    conn: Option<TcpId>,
    our_isn: Option<u32>,
    our_port: u16,
    /// Options the peer negotiates in `established`.
    config: Config,
}

/// Runs a script; the error starts with its line number.
pub(crate) fn run(text: &str) -> Outcome {
    let mut config = Config::new(wire::OUR_MAC, Key([9; 16]));
    config.tcp.timestamps = false;
    let mut lines = text
        .lines()
        .enumerate()
        .map(|(n, l)| (n + 1, l.split('#').next().unwrap_or("").trim()))
        .filter(|(_, l)| !l.is_empty())
        .peekable();
    while let Some((n, l)) = lines.next_if(|(_, l)| l.starts_with("config ")) {
        configure(&mut config, l).map_err(|e| format!("{n}: {e}"))?;
    }
    let mut p = Player::new(config);
    for (n, l) in lines {
        p.line(l).map_err(|e| format!("{n}: `{l}`: {e}"))?;
    }
    p.flush();
    match p.sent.front() {
        Some((_, s, _)) => Err(format!("end: unexpected {}", p.describe(s))),
        None => Ok(()),
    }
}

fn configure(c: &mut Config, line: &str) -> Outcome {
    let words: Vec<&str> = line.split_whitespace().collect();
    let on = words.get(2) == Some(&"on");
    match words[1..] {
        ["sack", _] => c.tcp.sack = on,
        ["ts", _] => c.tcp.timestamps = on,
        ["wscale", _] => c.tcp.window_scaling = on,
        ["cookies", _] => c.tcp.syn_cookies = on,
        ["ecn", mode] => {
            c.tcp.ecn = match mode {
                "off" => EcnMode::Off,
                "passive" => EcnMode::Passive,
                _ => EcnMode::Active,
            }
        }
        ["rcvbuf", n] => c.tcp.rcvbuf = number(n)?,
        _ => return Err(format!("unknown setting in `{line}`")),
    }
    Ok(())
}

fn number<T: std::str::FromStr>(s: &str) -> Outcome<T> {
    s.parse().map_err(|_| format!("not a number: `{s}`"))
}

fn seconds(s: &str) -> Outcome<Duration> {
    number::<f64>(s).map(Duration::from_secs_f64)
}

impl Player {
    pub(crate) fn new(config: Config) -> Self {
        let now = Instant::from_millis(10_000);
        let mut stack = Stack::new(&config, now);
        stack.add_address(OUR_IP.into(), 24).unwrap();
        stack.add_neighbor(PEER_IP.into(), PEER_MAC, now);
        Self {
            stack,
            now,
            sent: VecDeque::new(),
            last_event: now,
            last_ours: None,
            last_ts: 0,
            listener: None,
            conn: None,
            our_isn: None,
            our_port: OUR_PORT,
            config,
        }
    }

    fn describe(&self, s: &Segment) -> String {
        s.describe(self.our_isn.unwrap_or(0), PEER_ISN)
    }

    fn flush(&mut self) {
        let mut buf = vec![0; self.stack.frame_bytes_max()];
        while let Some(t) = self.stack.poll_transmit(self.now, &mut buf) {
            if let Some(s) = Segment::of_frame(&buf[..t.len]) {
                if s.flags & 2 != 0 {
                    self.our_isn = Some(s.seq);
                    self.our_port = s.src;
                }
                self.sent.push_back((self.now, s, buf[..t.len].to_vec()));
            }
        }
        self.stack.check_invariants();
    }

    /// State of the connection and its error, the flows that exist, and what was sent and not yet
    /// expected.
    pub(crate) fn outcome(&mut self) -> (String, Vec<String>) {
        self.flush();
        let sent = core::mem::take(&mut self.sent);
        let state = self.conn.and_then(|id| self.stack.tcp_state(id));
        let mut state = state.map_or("no connection".into(), |s| format!("{s:?}"));
        if let Some(cause) = self.conn.and_then(|id| self.stack.tcp_take_error(id)) {
            state = format!("{state} ({cause:?})");
        }
        let mut sent: Vec<String> = sent.iter().map(|(_, s, _)| self.describe(s)).collect();
        sent.iter_mut()
            .for_each(|s| s.truncate(s.find(" win").unwrap_or(s.len())));
        (format!("{state}, {} flows", self.stack.flow_count()), sent)
    }

    /// Lets time pass, timer by timer.
    fn advance(&mut self, to: Instant) {
        self.flush();
        let mut steps = 0;
        while let Some(d) = self.stack.next_deadline().filter(|d| *d <= to) {
            steps += 1;
            assert!(steps < STEPS_MAX, "time stands still at {d:?}");
            self.now = self.now.max(d);
            self.stack.handle_timeout(self.now);
            self.flush();
        }
        self.now = to;
        self.stack.handle_timeout(to);
        self.flush();
    }

    pub(crate) fn line(&mut self, line: &str) -> Outcome {
        let (delay, rest) = match line.strip_prefix('+') {
            Some(l) => {
                let (d, rest) = l.split_once(' ').ok_or("a time and a command")?;
                (Some(seconds(d)?), rest.trim())
            }
            None => (None, line),
        };
        if let Some(expect) = rest.strip_prefix("> ") {
            return self.expect(delay, expect);
        }
        if let Some(d) = delay {
            self.advance(self.last_event + d);
        }
        self.last_event = self.now;
        if let Some(segment) = rest.strip_prefix("< ") {
            let s = self.parse(segment, false)?.0;
            self.stack
                .handle_frame(self.now, &s.to_frame(), Received::default());
            self.flush();
            return Ok(());
        }
        self.command(&rest.split_whitespace().collect::<Vec<_>>())?;
        self.flush();
        Ok(())
    }

    fn expect(&mut self, delay: Option<Duration>, text: &str) -> Outcome {
        let due = self.last_event + delay.unwrap_or_default();
        if self.sent.is_empty() {
            self.advance(due + TOLERANCE);
        }
        let (at, s, frame) = self.sent.pop_front().ok_or("nothing was sent")?;
        let (want, given) = self.parse(text, true)?;
        let seen = self.describe(&s);
        let off = if at > due { at - due } else { due - at };
        let early_allowed = TOLERANCE * 5 / 2; // `<` lines play after the tolerance of `>`
        if off > if at > due { TOLERANCE } else { early_allowed } {
            return Err(format!(
                "sent at {:?} after the last event: {seen}",
                at - self.last_event
            ));
        }
        let optional_psh = want.flags & 8 == 0;
        let flags = if optional_psh { s.flags & !8 } else { s.flags };
        let wrong = flags != want.flags
            || given.range && (s.seq, s.len) != (want.seq, want.len)
            || given.ack && s.ack != want.ack
            || given.window && s.window != want.window
            || given.urgent && s.urgent != want.urgent
            || given.ecn && s.ecn != want.ecn
            || want.mss.is_some() && s.mss != want.mss
            || want.wscale.is_some() && s.wscale != want.wscale
            || want.sack_ok && !s.sack_ok
            || want.ts.is_some_and(|w| s.ts.is_none_or(|t| t.1 != w.1))
            || given.no_ts && s.ts.is_some()
            || given.no_sack && (s.sack_ok || !s.sack.is_empty())
            || !want.sack.is_empty() && s.sack != want.sack;
        if wrong {
            return Err(format!("sent instead: {seen}"));
        }
        if let Some((val, _)) = s.ts {
            self.last_ts = val;
        }
        self.last_event = at;
        self.last_ours = Some((s, frame));
        Ok(())
    }

    fn conn(&self) -> Outcome<TcpId> {
        self.conn.ok_or_else(|| "no connection".into())
    }

    fn script(&mut self, lines: &[&str]) -> Outcome {
        lines
            .iter()
            .try_for_each(|l| self.line(l).map_err(|e| format!("`{l}`: {e}")))
    }
}
