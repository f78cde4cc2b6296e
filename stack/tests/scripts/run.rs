//! Plays one script.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use kcm_stack::{
    Config, CongestionControl, ConnectOptions, EcnMode, Instant, Key, ListenOptions, ListenerId,
    Received, RecvError, SockFlag, SockOpts, Stack, TcpId,
};

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

    /// Parses `FLAGS SEQ:END(LEN) …`. For expectations, also which fields were given.
    fn parse(&self, text: &str, expected: bool) -> Outcome<(Segment, Given)> {
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

    fn command(&mut self, words: &[&str]) -> Outcome {
        let now = self.now;
        match *words {
            ["listen", ref rest @ ..] => {
                let mut o = ListenOptions {
                    backlog: 8,
                    ..ListenOptions::default()
                };
                let mut rest = rest.iter();
                while let Some(w) = rest.next() {
                    match *w {
                        "backlog" => o.backlog = number(rest.next().ok_or("backlog")?)?,
                        "defer" => {
                            let seconds = number(rest.next().ok_or("seconds")?)?;
                            o.defer_accept = kcm_stack::defer_repeats(seconds);
                        }
                        _ => return Err("listen option".into()),
                    }
                }
                let local = SocketAddr::from((OUR_IP, OUR_PORT));
                self.listener = Some(
                    self.stack
                        .tcp_listen(local, &o)
                        .map_err(|e| e.to_string())?,
                );
            }
            ["nothing"] => {}
            ["flood", n] => self.flood(number(n)?)?,
            ["unlisten"] => self
                .stack
                .tcp_unlisten(now, self.listener.ok_or("no listener")?),
            ["connect"] => {
                let local = Some(SocketAddr::from((OUR_IP, OUR_PORT)));
                let o = ConnectOptions {
                    local,
                    ..ConnectOptions::default()
                };
                let remote = SocketAddr::from((PEER_IP, PEER_PORT));
                self.conn = Some(
                    self.stack
                        .tcp_connect(now, remote, &o)
                        .map_err(|e| e.to_string())?,
                );
            }
            ["accept"] => {
                let l = self.listener.ok_or("no listener")?;
                self.conn = Some(self.stack.tcp_accept(l).ok_or("nothing to accept")?);
            }
            ["noaccept"] => {
                let l = self.listener.ok_or("no listener")?;
                if self.stack.tcp_accept(l).is_some() {
                    return Err("a connection was there".into());
                }
            }
            ["established", ref rest @ ..] => self.establish(rest)?,
            ["send", n, ref rest @ ..] => {
                let data = vec![0x55; number(n)?];
                let sent = self
                    .stack
                    .tcp_send(now, self.conn()?, &[&data], rest == ["more"]);
                if sent != Ok(data.len()) {
                    return Err(format!("{sent:?}"));
                }
            }
            ["sendfails", why] => {
                let sent = self.stack.tcp_send(now, self.conn()?, &[b"x"], false);
                let seen = sent.map_or_else(|e| format!("{e:?}"), |n| n.to_string());
                if seen != why {
                    return Err(seen);
                }
            }
            ["sendoob", n] => {
                let data = vec![0x55; number(n)?];
                self.stack
                    .tcp_send_urgent(now, self.conn()?, &data)
                    .map_err(|e| format!("{e:?}"))?;
            }
            ["recv", what] => {
                let mut buf = vec![0; 1 << 20];
                let id = self.conn()?;
                let seen = match self.stack.tcp_recv(now, id, &mut buf) {
                    Ok(0) => "eof".into(),
                    Ok(n) => n.to_string(),
                    Err(RecvError::WouldBlock) => "block".into(),
                    Err(RecvError::Failed(c)) => format!("{c:?}"),
                    Err(e) => format!("{e:?}"),
                };
                if seen != what {
                    return Err(format!("recv gave {seen}"));
                }
            }
            ["read", n] => {
                let mut buf = vec![0; number(n)?];
                let id = self.conn()?;
                if self.stack.tcp_recv(now, id, &mut buf) != Ok(buf.len()) {
                    return Err("fewer bytes".into());
                }
            }
            ["recvoob", what] => {
                let id = self.conn()?;
                let seen = match self.stack.tcp_recv_urgent(now, id, false) {
                    Ok(b) => b.to_string(),
                    Err(e) => format!("{e:?}"),
                };
                if seen != what {
                    return Err(seen);
                }
            }
            ["atmark", what] => {
                if self.stack.tcp_at_mark(self.conn()?).to_string() != what {
                    return Err("mark".into());
                }
            }
            ["shutdown", how] => {
                let (r, w) = (how.contains('r'), how.contains('w'));
                self.stack
                    .tcp_shutdown(now, self.conn()?, r, w)
                    .map_err(|e| e.to_string())?;
            }
            ["close"] => self.stack.tcp_close(now, self.conn()?),
            ["abort"] => self.stack.tcp_abort(now, self.conn()?),
            [
                "nodelay" | "cork" | "quickack" | "keepalive" | "oobinline",
                on,
            ] => {
                let flag = match words[0] {
                    "nodelay" => SockFlag::NoDelay,
                    "cork" => SockFlag::Cork,
                    "quickack" => SockFlag::QuickAck,
                    "keepalive" => SockFlag::KeepAlive,
                    _ => SockFlag::OobInline,
                };
                let id = self.conn()?;
                self.stack
                    .tcp_set_flag(now, id, flag, on == "on")
                    .map_err(|e| e.to_string())?;
            }
            ["opt", ref rest @ ..] => self.set_option(rest)?,
            ["icmp", ref rest @ ..] => self.icmp(rest)?,
            ["state", name] => {
                let seen = self
                    .stack
                    .tcp_state(self.conn()?)
                    .map_or("gone".into(), |s| format!("{s:?}"));
                if seen != name {
                    return Err(seen);
                }
            }
            ["error", name] => {
                let seen = self
                    .stack
                    .tcp_take_error(self.conn()?)
                    .map_or("none".into(), |c| format!("{c:?}"));
                if seen != name {
                    return Err(seen);
                }
            }
            ["flows", n] => {
                if self.stack.flow_count() != number::<usize>(n)? {
                    return Err(format!("{} flows", self.stack.flow_count()));
                }
            }
            ["none", d] => {
                self.advance(self.now + seconds(d)?);
                if let Some((_, s, _)) = self.sent.front() {
                    return Err(format!("unexpected {}", self.describe(s)));
                }
                self.last_event = self.now;
            }
            ["info", field, value] => {
                let i = self.stack.tcp_info(now, self.conn()?).ok_or("gone")?;
                let mss = u32::from(i.snd_mss);
                let seen = match field {
                    "cwnd" => i.snd_cwnd / mss,
                    "ssthresh" => i.snd_ssthresh.unwrap_or(0) / mss,
                    "unacked" => i.unacked,
                    "lost" => i.lost,
                    "sacked" => i.sacked,
                    "retrans" => i.retrans,
                    "total_retrans" => i.total_retrans,
                    "backoff" => u32::from(i.backoff),
                    "mss" => mss,
                    "ecn" => u32::from(i.ecn),
                    "rtt_ms" => i.rtt.as_millis() as u32,
                    _ => return Err("unknown field".into()),
                };
                if seen != number::<u32>(value)? {
                    return Err(format!("{field} is {seen}"));
                }
            }
            _ => return Err("unknown command".into()),
        }
        Ok(())
    }

    /// The handshake most stories begin with, MSS 1460 and window scale 7 on both sides.
    fn establish(&mut self, how: &[&str]) -> Outcome {
        let mut options = String::from("mss 1460,wscale 7");
        if self.config.tcp.sack {
            options.push_str(",sackOK");
        }
        let ts = self.config.tcp.timestamps;
        let (ts0, ts1) = if ts {
            (",ts 1 0", " <ts 1 last>")
        } else {
            ("", "")
        };
        if how == ["active"] {
            self.script(&["connect", "> S 0:0(0)"])?;
            let syn_ack = if ts { ",ts 1 last" } else { "" };
            self.script(&[
                &format!("< S. 0:0(0) ack 1 win 65535 <{options}{syn_ack}>"),
                "> . 1:1(0) ack 1",
            ])
        } else {
            let syn = format!("< S 0:0(0) win 65535 <{options}{ts0}>");
            let rtt = if let ["rtt", s] = how { s } else { "0" };
            let ack = format!("+{rtt} < . 1:1(0) ack 1{ts1}");
            self.script(&["listen", &syn, "> S. 0:0(0) ack 1", &ack, "accept"])
        }
    }

    /// SYNs from so many other ports, whose SYN-ACKs nobody waits for.
    fn flood(&mut self, syns: u16) -> Outcome {
        for n in 0..syns {
            let (syn, _) = self.parse(&format!("S 0:0(0) port {}", 10_000 + n), false)?;
            self.stack
                .handle_frame(self.now, &syn.to_frame(), Received::default());
        }
        self.flush();
        self.sent.clear();
        Ok(())
    }

    fn set_option(&mut self, words: &[&str]) -> Outcome {
        let id = self.conn()?;
        let mut o: SockOpts = self.stack.tcp_opts(id).ok_or("gone")?.clone();
        match *words {
            ["keepidle", s] => o.keep_idle = seconds(s)?,
            ["keepintvl", s] => o.keep_interval = seconds(s)?,
            ["keepcnt", n] => o.keep_count = number(n)?,
            ["usertimeout", s] => o.user_timeout = Some(seconds(s)?),
            ["syncnt", n] => o.syn_retries = number(n)?,
            ["maxseg", n] => o.max_seg = Some(number(n)?),
            ["rcvbuf", n] => o.rcvbuf = Some(number(n)?),
            ["sndbuf", n] => o.sndbuf = Some(number(n)?),
            ["pacing", n] => o.pacing_rate = Some(number(n)?),
            ["reno"] => o.congestion = CongestionControl::NewReno,
            ["cubic"] => o.congestion = CongestionControl::Cubic,
            ["bbr"] => o.congestion = CongestionControl::Bbr,
            _ => return Err("unknown option".into()),
        }
        self.stack
            .tcp_set_opts(self.now, id, o)
            .map_err(|e| e.to_string())
    }

    fn icmp(&mut self, words: &[&str]) -> Outcome {
        let (_, frame) = self
            .last_ours
            .clone()
            .ok_or("no segment of ours to quote")?;
        let mut quote = frame[14..14 + 28].to_vec();
        let (kind, code, mtu) = match *words {
            ["port", ..] => (3, 3, 0),
            ["host", ..] => (3, 1, 0),
            ["net", ..] => (3, 0, 0),
            ["admin", ..] => (3, 13, 0),
            ["proto", ..] => (3, 2, 0),
            ["ttl", ..] => (11, 0, 0),
            ["frag", mtu, ..] => (3, 4, number::<u16>(mtu)?),
            _ => return Err("unknown kind".into()),
        };
        if let [.., "seq", n] = words {
            let seq = self.our_isn.unwrap_or(0).wrapping_add(number::<u32>(n)?);
            quote[24..28].copy_from_slice(&seq.to_be_bytes());
        }
        let mut body = vec![kind, code, 0, 0, 0, 0];
        body.extend(mtu.to_be_bytes());
        body.extend(quote);
        let mut s: u32 = body
            .chunks(2)
            .map(|c| u32::from(c[0]) << 8 | u32::from(c[1]))
            .sum();
        while s > 0xffff {
            s = (s & 0xffff) + (s >> 16);
        }
        body[2..4].copy_from_slice(&(!(s as u16)).to_be_bytes());
        self.stack
            .handle_frame(self.now, &wire::frame(1, 0, &body), Received::default());
        Ok(())
    }
}

/// Which fields an expectation names.
#[derive(Default)]
struct Given {
    range: bool,
    ack: bool,
    window: bool,
    urgent: bool,
    ecn: bool,
    no_ts: bool,
    no_sack: bool,
}
