//! What a script asks of the stack beside segments: calls, questions about what is so, ICMP.

use std::net::SocketAddr;

use kcm_stack::{
    CongestionControl, ConnectOptions, ListenOptions, Received, RecvError, SockFlag, SockOpts,
};

use super::{OUR_PORT, Outcome, PEER_PORT, Player, number, seconds};
use crate::wire::{self, OUR_IP, PEER_IP};

impl Player {
    pub(super) fn command(&mut self, words: &[&str]) -> Outcome {
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
                        "rcvbuf" => {
                            let bytes = number(rest.next().ok_or("rcvbuf")?)?;
                            o.opts.get_or_insert_default().rcvbuf = Some(bytes);
                        }
                        "maxseg" => {
                            let bytes = number(rest.next().ok_or("maxseg")?)?;
                            o.opts.get_or_insert_default().max_seg = Some(bytes);
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
