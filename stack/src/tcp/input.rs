//! SEGMENT ARRIVES (RFC 9293 §3.10.7) with the checks of RFC 5961 and RFC 7323.
//!
//! Order as in the RFC: sequence number, RST, SYN, ACK, URG, text, FIN. The ACK field is taken in
//! `ack.rs`, text and FIN in `receive.rs`.

use super::conn::{Flags, TS_RECENT_TICK_MS, stamp, ts_recent_clock};
use super::options::{Options, Timestamps};
use super::reassembly::Range;
use super::recovery::{Episode, Phase};
use super::scoreboard::elapsed;
use super::segment::{Control, Segment};
use super::state::State;
use super::{Tcb, mss};
use crate::error::Cause;
use crate::events::Ready;
use crate::limits;

/// TS.Recent older than 24 days is no evidence (RFC 7323 §5.5).
const PAWS_IDLE: u16 = (24 * 24 * 3_600_000 / TS_RECENT_TICK_MS) as u16;

/// What the engine must answer beyond what the connection sends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Answer {
    Nothing,
    /// The segment belongs to no state we have: RST by the rules for CLOSED.
    Reset,
}

impl Tcb<'_> {
    /// Processes one segment addressed to this connection.
    pub(crate) fn segment_arrives(&mut self, seg: &Segment<'_>) -> Answer {
        self.c.segs_in = self.c.segs_in.wrapping_add(1);
        match self.c.state {
            State::Closed | State::TimeWait => Answer::Reset,
            State::SynSent => self.syn_sent(seg),
            _ => self.synchronized(seg),
        }
    }

    /// §3.10.7.3.
    fn syn_sent(&mut self, seg: &Segment<'_>) -> Answer {
        let acks = seg.has(Control::ACK);
        let iss = self.c.snd_una;
        if acks && (seg.ack.at_or_before(iss) || seg.ack.after(self.c.snd_nxt)) {
            self.env.stats.bad_ack += 1;
            return if seg.has(Control::RST) {
                Answer::Nothing
            } else {
                Answer::Reset
            };
        }
        let o = Options::parse(seg.options, true);
        if acks
            && let (Some(ts), true) = (o.timestamps, self.c.flags.has(Flags::TIMESTAMPS))
            && ts.ecr.wrapping_sub(self.c.ts_now(self.now)) as i32 > 0
        {
            // RFC 7323 §5: the echo is from the future, so the segment is not an answer to us.
            self.env.stats.paws_rejected += 1;
            return Answer::Reset;
        }
        if seg.has(Control::RST) {
            if acks {
                self.die(Cause::Refused);
            }
            return Answer::Nothing;
        }
        if !seg.has(Control::SYN) {
            return Answer::Nothing;
        }
        self.adopt_syn(seg, &o);
        if acks {
            self.accept_handshake_ack(seg, &o);
            self.c.flags.put(
                Flags::ECN,
                self.c.flags.has(Flags::ECN) && seg.has(Control::ECE) && !seg.has(Control::CWR),
            );
            self.establish();
            self.prompt_ack();
            if !seg.payload.is_empty() || seg.has(Control::FIN) {
                let rest = Segment {
                    seq: seg.seq + 1,
                    control: Control(seg.control.0 & !Control::SYN.0),
                    ..*seg
                };
                return self.text_and_fin(&rest);
            }
        } else {
            // Simultaneous open (Figure 7): our SYN again, now with an ACK.
            self.c.state = State::SynReceived;
            self.c.flags.clear(Flags::ECN);
            self.c.flags.set(Flags::SEND_SYN);
        }
        Answer::Nothing
    }

    /// Takes over what the peer's SYN says.
    fn adopt_syn(&mut self, seg: &Segment<'_>, o: &Options) {
        self.c.rcv_nxt = seg.seq + 1;
        self.c.rcv_wup = self.c.rcv_nxt;
        self.c.snd_wl1 = seg.seq;
        // The window of a SYN is never scaled (RFC 7323 §2.2).
        self.c.snd_wnd = u32::from(seg.window);
        self.c.max_window = self.c.snd_wnd;
        let keep = [
            (Flags::TIMESTAMPS, o.timestamps.is_some()),
            (Flags::SACK, o.sack_permitted),
            (Flags::WINDOW_SCALE, o.window_scale.is_some()),
        ];
        for (flag, offered) in keep {
            if !offered {
                self.c.flags.clear(flag);
            }
        }
        if self.c.flags.has(Flags::WINDOW_SCALE) {
            self.c.snd_wscale = o.window_scale.unwrap_or(0);
        } else {
            self.c.rcv_wscale = 0;
            self.c.snd_wscale = 0;
        }
        if let (Some(ts), true) = (o.timestamps, self.c.flags.has(Flags::TIMESTAMPS)) {
            self.store_ts_recent(ts);
        }
        let default = if self.c.remote_ip.is_v4() {
            limits::MSS_DEFAULT_V4
        } else {
            limits::MSS_DEFAULT_V6
        };
        self.c.peer_mss = o.mss.unwrap_or(default).max(limits::MSS_MIN);
        let mtu = self.link().mtu;
        mss::sync(self.c, mtu);
        self.c.rcv_mss = self.c.mss.min(limits::MSS_DEFAULT_V4);
        self.c.quick_acks = limits::QUICKACKS;
        // The echo of our first SYN says that none was lost (RFC 3522).
        let first = self.b.episode.retrans_ts;
        let by_echo = |ts: Timestamps| first.is_some_and(|at| (ts.ecr.wrapping_sub(at) as i32) < 0);
        let was_needless = seg.has(Control::ACK) && o.timestamps.is_some_and(by_echo);
        let sent_again = if was_needless {
            0
        } else {
            self.c.total_retrans
        };
        self.c.open_window(sent_again);
    }

    /// Our SYN is acknowledged: takes it off the flight, with its RTT sample.
    fn accept_handshake_ack(&mut self, seg: &Segment<'_>, o: &Options) {
        let now = stamp(self.now);
        let mut rtt = self.c.echoed_rtt_us(o, self.now);
        self.b.board.ack(seg.ack, |s| {
            if !s.ever_retransmitted() {
                rtt = Some(elapsed(now, s.at));
            }
        });
        self.c.sample_handshake(rtt, self.now);
        self.c.snd_una = seg.ack;
        self.b.episode = Episode::default();
        self.b.backoff = 0;
        self.b.retries = 0;
        self.b.stalled_since = None;
        self.b.timers.stop_rexmit();
    }

    fn establish(&mut self) {
        self.c.state = State::Established;
        self.env.stats.established += 1;
        self.c.last_recv_ms = self.now.as_millis() as u32;
        self.notify(Ready::CONNECTED | Ready::WRITABLE);
        if self.c.flags.has(Flags::FIN_QUEUED) {
            // shutdown(SHUT_WR) before the handshake finished.
            self.c.state = State::FinWait1;
        }
    }

    /// §3.10.7.4.
    fn synchronized(&mut self, seg: &Segment<'_>) -> Answer {
        if self.fast_path(seg) {
            return Answer::Nothing;
        }
        let o = Options::parse(seg.options, seg.has(Control::SYN));
        if self.c.state == State::SynReceived
            && seg.has(Control::SYN)
            && seg.seq + 1 == self.c.rcv_nxt
        {
            if !seg.has(Control::ACK) {
                // The peer's SYN again: our SYN-ACK was lost.
                self.c.flags.set(Flags::SEND_SYN);
                return Answer::Nothing;
            }
        } else {
            if !self.passes_paws(seg, &o) {
                self.env.stats.paws_rejected += 1;
                if !seg.has(Control::RST) {
                    self.note_duplicate(seg);
                    self.limited_ack();
                }
                return Answer::Nothing;
            }
            if !self.sequence_acceptable(seg) {
                self.env.stats.out_of_window += 1;
                if !seg.has(Control::RST) {
                    if seg.has(Control::SYN) {
                        self.challenge_ack();
                    } else {
                        self.note_duplicate(seg);
                        self.out_of_window_ack(seg);
                    }
                }
                return Answer::Nothing;
            }
            if seg.has(Control::RST) {
                return self.reset_arrives(seg);
            }
            if seg.has(Control::SYN) {
                // RFC 5961 §4.2: never a reason to tear down.
                self.challenge_ack();
                return Answer::Nothing;
            }
        }
        if !seg.has(Control::ACK) {
            return Answer::Nothing;
        }
        if self.c.state == State::SynReceived {
            if !(seg.ack.after(self.c.snd_una) && seg.ack.at_or_before(self.c.snd_nxt)) {
                return Answer::Reset;
            }
            self.accept_handshake_ack(seg, &o);
            self.c.snd_wnd = self.scaled_window(seg);
            self.c.max_window = self.c.max_window.max(self.c.snd_wnd);
            self.c.snd_wl1 = seg.seq;
            self.establish();
        }
        if let Some(ts) = o.timestamps
            && self.c.flags.has(Flags::TIMESTAMPS)
            && seg.seq.at_or_before(self.c.rcv_wup)
            && (!self.c.flags.has(Flags::TS_RECENT)
                || ts.val.wrapping_sub(self.c.ts_recent) as i32 >= 0)
        {
            self.store_ts_recent(ts);
        }
        if !self.ack_arrives(seg, &o) {
            return Answer::Nothing;
        }
        if matches!(self.c.state, State::Closed | State::TimeWait) && seg.seq_len() == 0 {
            return Answer::Nothing;
        }
        self.text_and_fin(seg)
    }

    /// Header prediction (Van Jacobson): the next in-order data segment or a pure ACK in a
    /// connection where nothing is out of the ordinary.
    fn fast_path(&mut self, seg: &Segment<'_>) -> bool {
        let plain = Control::ACK.0;
        if self.c.state != State::Established
            || seg.control.0 & !Control::PSH.0 != plain
            || seg.seq != self.c.rcv_nxt
            || seg.ce
            || self.b.phase != Phase::Open
            || !self.b.reasm.is_empty()
            || self.b.fin_at.is_some()
            || self.b.urgent.rcv_at.is_some()
            || self.c.flags.any(Flags::RECV_SHUTDOWN)
            || self.scaled_window(seg) != self.c.snd_wnd
            || seg.payload.len() as u32 > self.c.receive_window()
            || self.b.board.sacked_bytes() != 0
            || self.b.dup_acks != 0
        {
            return false;
        }
        if self.c.flags.has(Flags::TIMESTAMPS) {
            // Exactly the aligned timestamps option, or the slow path.
            let [1, 1, 8, 10, rest @ ..] = seg.options else {
                return false;
            };
            let Some((b, &[])) = rest.split_first_chunk::<8>() else {
                return false;
            };
            let val = u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
            let newer = val.wrapping_sub(self.c.ts_recent) as i32;
            if newer < 0 {
                return false;
            }
            // RFC 7323 §4.3: the oldest unacknowledged segment's is echoed.
            if newer > 0 && self.c.rcv_nxt == self.c.rcv_wup {
                self.store_ts_recent(Timestamps { val, ecr: 0 });
            }
        } else if !seg.options.is_empty() {
            return false;
        }
        let advances = seg.ack.after(self.c.snd_una) && seg.ack.at_or_before(self.c.snd_nxt);
        if !advances && (seg.ack != self.c.snd_una || seg.payload.is_empty()) {
            return false;
        }
        self.c.last_recv_ms = self.now.as_millis() as u32;
        self.c.probes = 0;
        if advances {
            self.in_order_ack(seg.ack);
        }
        if !seg.payload.is_empty() {
            self.in_order_text(seg.payload);
        }
        true
    }

    /// RFC 7323 §5.3 R1.
    fn passes_paws(&self, seg: &Segment<'_>, o: &Options) -> bool {
        let (Some(ts), true) = (
            o.timestamps,
            self.c.flags.has(Flags::TIMESTAMPS | Flags::TS_RECENT),
        ) else {
            return true;
        };
        if seg.has(Control::RST) || ts.val.wrapping_sub(self.c.ts_recent) as i32 >= 0 {
            return true;
        }
        ts_recent_clock(self.now).wrapping_sub(self.c.ts_recent_at) > PAWS_IDLE
    }

    /// §3.10.7.4 first: the segment overlaps the receive window. As in Linux the left edge is what
    /// we last acknowledged, so that a zero window still admits ACKs, RSTs and URG.
    fn sequence_acceptable(&self, seg: &Segment<'_>) -> bool {
        let window = self.c.receive_window();
        seg.end().at_or_after(self.c.rcv_wup) && seg.seq.at_or_before(self.c.rcv_nxt + window)
    }

    /// RFC 5961 §3.2: only the exact sequence number resets; anything else is asked to prove
    /// itself.
    fn reset_arrives(&mut self, seg: &Segment<'_>) -> Answer {
        let exact = seg.seq == self.c.rcv_nxt;
        // Linux also accepts the right edge of what we reported by SACK: a peer that lost its
        // state answers our latest ACK with it.
        let after_sacked = self.b.reasm.highest() == Some(seg.seq);
        if exact || after_sacked {
            let cause = match self.c.state {
                State::SynReceived => Cause::Refused,
                State::CloseWait => Cause::BrokenPipe,
                _ => Cause::Reset,
            };
            self.env.stats.resets_in += 1;
            self.die(cause);
        } else {
            self.challenge_ack();
        }
        Answer::Nothing
    }

    /// RFC 5961 §7: a budget over all connections.
    pub(crate) fn challenge_ack(&mut self) {
        if self.env.challenge.take(self.now) {
            self.env.stats.challenge_acks += 1;
            self.c.flags.set(Flags::ACK_NOW);
        }
    }

    /// An ACK for a segment that cannot be accepted, rate-limited so that two confused ends do not
    /// answer each other forever.
    pub(crate) fn limited_ack(&mut self) {
        if self.now >= self.b.invalid_ack_at {
            self.b.invalid_ack_at = self.now + limits::INVALID_ACK_INTERVAL;
            self.c.flags.set(Flags::ACK_NOW);
        }
    }

    /// Duplicates of data and window probes are answered at once; empty segments at a limited
    /// rate.
    fn out_of_window_ack(&mut self, seg: &Segment<'_>) {
        if seg.payload.is_empty() && !seg.has(Control::FIN) {
            let keepalive = seg.seq + 1 == self.c.rcv_nxt;
            if keepalive {
                self.c.flags.set(Flags::ACK_NOW);
            } else {
                self.limited_ack();
            }
        } else {
            self.c.flags.set(Flags::ACK_NOW);
        }
    }

    /// Remembers a duplicate for D-SACK (RFC 2883).
    pub(crate) fn note_duplicate(&mut self, seg: &Segment<'_>) {
        if self.c.flags.has(Flags::SACK)
            && !seg.payload.is_empty()
            && seg.seq.before(self.c.rcv_nxt)
        {
            let end = seg.end().earlier(self.c.rcv_nxt);
            self.b.dsack = Some(Range {
                start: seg.seq,
                end,
            });
        }
    }

    pub(crate) fn scaled_window(&self, seg: &Segment<'_>) -> u32 {
        u32::from(seg.window) << self.c.snd_wscale
    }

    pub(crate) fn store_ts_recent(&mut self, ts: Timestamps) {
        self.c.ts_recent = ts.val;
        self.c.ts_recent_at = ts_recent_clock(self.now);
        self.c.flags.set(Flags::TS_RECENT);
    }

    /// Ends the connection; the cause waits for the application.
    pub(crate) fn die(&mut self, cause: Cause) {
        self.c.error = Some(cause);
        self.c.state = State::Closed;
        self.c.flags.clear(Flags::ACK_NOW | Flags::SEND_SYN);
        self.notify(Ready::ERROR | Ready::CLOSED | Ready::READABLE | Ready::WRITABLE);
    }

    pub(crate) fn notify(&mut self, ready: Ready) {
        self.c.events.insert(ready);
    }
}
