//! Seventh and eighth of SEGMENT ARRIVES: segment text and FIN; and when to acknowledge them.

use super::Tcb;
use super::conn::{COPIED_UNIT, Flags};
use super::input::Answer;
use super::reassembly::Range;
use super::segment::{Control, Segment};
use super::seq::Seq;
use super::state::State;
use crate::events::Ready;
use crate::limits::{ACK_HOLD, DELAYED_ACK, INITIAL_WINDOW_SEGMENTS, QUICKACKS, RCVBUF_BYTES_MAX};
use crate::time::Instant;

impl Tcb<'_> {
    /// URG, text and FIN of an acceptable segment.
    pub(crate) fn text_and_fin(&mut self, seg: &Segment<'_>) -> Answer {
        self.note_ecn(seg);
        if seg.has(Control::URG) && self.c.state.may_recv() {
            self.urgent_arrives(seg);
        }
        let fin = seg.has(Control::FIN);
        if seg.payload.is_empty() && !fin {
            return Answer::Nothing;
        }
        if !self.c.state.may_recv() {
            // After the peer's FIN nothing new may come; repeated text was acknowledged before.
            if seg.end().at_or_before(self.c.rcv_nxt) {
                self.note_duplicate(seg);
            }
            if !matches!(self.c.state, State::Closed) {
                self.c.flags.set(Flags::ACK_NOW);
            }
            return Answer::Nothing;
        }
        if self.c.flags.has(Flags::RECV_SHUTDOWN)
            && !self.c.is_owned()
            && !seg.payload.is_empty()
            && seg.end().after(self.c.rcv_nxt + u32::from(fin))
        {
            // Data for a reader that is gone (RFC 9293 §3.6.1, RFC 1122 §4.2.2.13).
            self.env.stats.data_after_close += 1;
            self.c.state = State::Closed;
            self.notify(Ready::CLOSED);
            return Answer::Reset;
        }
        if seg.seq.before(self.c.rcv_nxt) {
            self.note_duplicate(seg);
        }
        // Trim to the window.
        let mut payload = seg.payload;
        let mut start = seg.seq;
        if start.before(self.c.rcv_nxt) {
            let old = self.c.rcv_nxt.since(start).min(payload.len() as u32);
            payload = &payload[old as usize..];
            start += old;
        }
        let room = self.c.receive_window();
        let offset = start.since(self.c.rcv_nxt);
        let mut fin = fin;
        let fits = room.saturating_sub(offset).min(payload.len() as u32);
        if (fits as usize) < payload.len() {
            payload = &payload[..fits as usize];
            fin = false;
        }
        let whole_dup = payload.is_empty() && !fin;
        if whole_dup {
            self.c.flags.set(Flags::ACK_NOW);
            return Answer::Nothing;
        }
        if offset == 0 {
            self.in_order(start, payload, fin);
        } else {
            self.out_of_order(start, offset, payload, fin);
        }
        Answer::Nothing
    }

    fn in_order(&mut self, start: Seq, payload: &[u8], fin: bool) {
        let had_holes = !self.b.reasm.is_empty();
        if !payload.is_empty() {
            if !self.b.rx.write(&mut self.env.pool, 0, payload) {
                self.env.stats.memory_drops += 1;
                self.c.flags.set(Flags::ACK_NOW);
                return;
            }
            let mut next = start + payload.len() as u32;
            if had_holes {
                next = self.b.reasm.take_contiguous(next);
            }
            let n = next.since(self.c.rcv_nxt);
            // A FIN kept in the ranges occupies a number but no byte.
            self.advance_to(next, n);
            self.after_text(payload.len());
        }
        if fin && self.c.rcv_nxt == start + payload.len() as u32 {
            self.fin_in_order();
        } else if had_holes || self.b.fin_at.is_some() {
            self.take_remembered_fin();
            self.c.flags.set(Flags::ACK_NOW);
        }
    }

    fn advance_to(&mut self, next: Seq, n: u32) {
        self.b.rx.commit(n as usize);
        self.c.rcv_nxt = next;
        self.c.bytes_received += u64::from(n);
        self.catch_urgent_byte();
    }

    /// A FIN that arrived before the text in front of it is remembered as its sequence number.
    fn take_remembered_fin(&mut self) {
        if self.b.fin_at == Some(self.c.rcv_nxt) {
            self.fin_in_order();
        }
    }

    fn out_of_order(&mut self, start: Seq, offset: u32, payload: &[u8], fin: bool) {
        self.env.stats.out_of_order += 1;
        self.owe_duplicate_ack();
        let end = start + payload.len() as u32;
        if fin {
            self.b.fin_at = Some(end);
        }
        if payload.is_empty() {
            return;
        }
        let range = Range { start, end };
        if !self.b.reasm.has_room_for(range) {
            self.env.stats.reassembly_drops += 1;
            return;
        }
        if !self
            .b
            .rx
            .write(&mut self.env.pool, offset as usize, payload)
        {
            self.env.stats.memory_drops += 1;
            return;
        }
        if self.b.reasm.insert(range) && self.c.flags.has(Flags::SACK) {
            self.b.dsack.get_or_insert(range);
        }
    }

    fn owe_duplicate_ack(&mut self) {
        // A peer without SACK counts duplicates; with SACK one ACK tells all.
        if self.c.flags.has(Flags::ACK_NOW) && !self.c.flags.has(Flags::SACK) {
            self.b.dup_acks_owed = self.b.dup_acks_owed.saturating_add(1);
        }
        self.c.flags.set(Flags::ACK_NOW);
        self.c.flags.clear(Flags::PINGPONG);
        self.c.quick_acks = self.c.quick_acks.max(2);
    }

    /// The header-prediction path: exactly the next bytes.
    pub(crate) fn in_order_text(&mut self, payload: &[u8]) {
        if !self.b.rx.write(&mut self.env.pool, 0, payload) {
            self.env.stats.memory_drops += 1;
            self.c.flags.set(Flags::ACK_NOW);
            return;
        }
        let n = payload.len() as u32;
        self.b.rx.commit(payload.len());
        self.c.rcv_nxt += n;
        self.c.bytes_received += u64::from(n);
        self.after_text(payload.len());
    }

    /// Acknowledgment policy and wake-up after new in-order text.
    fn after_text(&mut self, len: usize) {
        if len >= usize::from(self.c.rcv_mss) {
            // GRO hands over trains of segments: one segment is at most the MSS we advertised.
            self.c.rcv_mss = (len.min(usize::from(self.link().mtu) - 40)) as u16;
        }
        self.tune_receive_rtt();
        let lowat = self.c.opts().rcvlowat as usize;
        if self.b.rx.len() >= lowat {
            self.notify(Ready::READABLE);
        }
        self.schedule_ack();
    }

    /// RFC 9293 §3.8.6.3 and RFC 5681 §4.2, with Linux's quick ACKs.
    fn schedule_ack(&mut self) {
        let unacked = self.c.rcv_nxt.since(self.c.rcv_wup);
        let quick = self.c.flags.has(Flags::QUICKACK)
            || self.c.quick_acks > 0 && !self.c.flags.has(Flags::PINGPONG);
        if unacked > u32::from(self.c.rcv_mss) || !self.b.reasm.is_empty() {
            self.c.flags.set(Flags::ACK_NOW);
        } else if quick {
            self.prompt_ack();
        } else if self.b.timers.delayed_ack == Instant::FAR_FUTURE {
            self.b.timers.delayed_ack = self.now + DELAYED_ACK;
        }
    }

    /// An ACK that is due at once, but no peer waits for while it may be on its way with an answer.
    pub(crate) fn prompt_ack(&mut self) {
        if !self.env.config.hold_acks || self.c.flags.has(Flags::QUICKACK) {
            self.c.flags.set(Flags::ACK_NOW);
            return;
        }
        self.b.holds_ack = true;
        self.b.timers.delayed_ack = self.b.timers.delayed_ack.min(self.now + ACK_HOLD);
    }

    /// Eighth: the FIN bit.
    fn fin_in_order(&mut self) {
        self.b.fin_at = None;
        self.b.reasm.clear();
        self.c.rcv_nxt += 1;
        self.c.flags.set(Flags::FIN_RECEIVED);
        self.c.flags.clear(Flags::PINGPONG);
        self.c.quick_acks = self.c.quick_acks.max(1);
        match self.c.state {
            State::Established => self.prompt_ack(),
            _ => self.c.flags.set(Flags::ACK_NOW),
        }
        self.c.state = match self.c.state {
            State::Established => State::CloseWait,
            State::FinWait1 => State::Closing,
            State::FinWait2 => {
                self.b.timers.fin_wait = Instant::FAR_FUTURE;
                State::TimeWait
            }
            other => other,
        };
        self.notify(Ready::READABLE | Ready::READ_CLOSED);
        if self.c.state == State::TimeWait {
            self.notify(Ready::CLOSED);
        }
    }

    /// RFC 3168 §6.1.3: echo CE until the sender confirms with CWR.
    fn note_ecn(&mut self, seg: &Segment<'_>) {
        if !self.c.flags.has(Flags::ECN) {
            return;
        }
        if seg.has(Control::CWR) {
            self.c.flags.clear(Flags::ECN_ECHO);
        }
        if seg.ce && !seg.payload.is_empty() {
            self.env.stats.ecn_ce += 1;
            if !self.c.flags.has(Flags::ECN_ECHO) {
                self.c.flags.set(Flags::ECN_ECHO | Flags::ACK_NOW);
                self.c.quick_acks = self.c.quick_acks.max(QUICKACKS / 8);
            }
        }
    }

    /// RFC 6093: the pointer names the byte after the urgent one, as every stack has it.
    fn urgent_arrives(&mut self, seg: &Segment<'_>) {
        if seg.urgent == 0 {
            return;
        }
        let at = seg.seq + (u32::from(seg.urgent) - 1);
        if at.before(self.c.rcv_nxt - self.b.rx.len() as u32) {
            return;
        }
        if self.b.urgent.rcv_at.is_some_and(|old| at.at_or_before(old)) {
            return;
        }
        self.b.urgent.rcv_at = Some(at);
        self.b.urgent.byte = None;
        self.b.urgent.taken = false;
        self.notify(Ready::URGENT);
        self.catch_urgent_byte();
        // The byte may be in this very segment, not yet queued; it is caught as it goes in order.
    }

    /// Picks the urgent byte out of the stream once it is in order.
    fn catch_urgent_byte(&mut self) {
        let Some(at) = self.b.urgent.rcv_at else {
            return;
        };
        if self.b.urgent.byte.is_some() || !at.before(self.c.rcv_nxt) {
            return;
        }
        let first = self.c.rcv_nxt - self.b.rx.len() as u32;
        let mut byte = [0];
        if self.b.rx.copy_to(at.since(first) as usize, &mut byte) == 1 {
            self.b.urgent.byte = Some(byte[0]);
            self.notify(Ready::URGENT | Ready::READABLE);
        }
    }

    /// Window to advertise: free buffer, nothing rather than crumbs (RFC 9293 §3.8.6.2.2), and
    /// never less than promised.
    pub(crate) fn select_window(&self) -> u32 {
        let current = self.c.receive_window();
        let mut free = self.c.rcvbuf.saturating_sub(self.b.rx.len() as u32);
        if self.env.pool.under_pressure() {
            free = free.min(4 * u32::from(self.c.rcv_mss));
        }
        let worthwhile = u32::from(self.c.rcv_mss).min(self.c.rcvbuf / 2);
        if free < worthwhile {
            return current;
        }
        let unit = 1u32 << self.c.rcv_wscale;
        // Round down, so that the peer never sees more than there is.
        let max = u32::from(u16::MAX) << self.c.rcv_wscale;
        (free & !(unit - 1)).min(max).max(current)
    }

    /// After the application took bytes: tell the peer if the window opened by enough.
    pub(crate) fn maybe_update_window(&mut self) {
        if !self.c.state.may_recv() {
            return;
        }
        let current = self.c.receive_window();
        let unacked = self.c.rcv_nxt.since(self.c.rcv_wup);
        if self.b.timers.delayed_ack != Instant::FAR_FUTURE
            && self.b.rx.len() == 0
            && unacked > u32::from(self.c.rcv_mss)
        {
            self.c.flags.set(Flags::ACK_NOW);
        }
        let new = self.select_window();
        if new > current && new >= 2 * current.max(1) {
            // While the old window still takes a peer's first flight, the news can wait for company.
            match current / INITIAL_WINDOW_SEGMENTS >= u32::from(self.c.rcv_mss) {
                true => self.prompt_ack(),
                false => self.c.flags.set(Flags::ACK_NOW),
            }
        }
    }

    /// Receiver-side RTT: the time one window of data takes to arrive.
    fn tune_receive_rtt(&mut self) {
        let t = &mut self.b.tuning;
        match t.rtt_seq {
            Some(end) if self.c.rcv_nxt.before(end) => return,
            Some(_) => {
                let us = self.now.since(t.rtt_at).as_micros().clamp(1, 60_000_000) as u32;
                t.rtt_us = if t.rtt_us == 0 { us } else { t.rtt_us.min(us) };
            }
            None => {}
        }
        t.rtt_seq = Some(self.c.rcv_nxt + self.c.receive_window().max(1));
        t.rtt_at = self.now;
    }

    /// Grows the receive buffer when the application keeps up with a window per round trip.
    pub(crate) fn tune_rcvbuf(&mut self, copied: u32) {
        if self.c.opts().rcvbuf.is_some() {
            return;
        }
        let t = &mut self.b.tuning;
        let units = u16::try_from(copied / COPIED_UNIT).unwrap_or(u16::MAX);
        self.c.copied = self.c.copied.saturating_add(units);
        let rtt = if self.c.rtt.srtt_us > 0 && t.rtt_us > 0 {
            self.c.rtt.srtt_us.min(t.rtt_us)
        } else {
            self.c.rtt.srtt_us.max(t.rtt_us)
        };
        let now_ms = self.now.as_millis() as u16;
        let elapsed_ms = now_ms.wrapping_sub(self.c.copied_since_ms);
        if rtt == 0 || u32::from(elapsed_ms) < rtt.div_ceil(1_000) {
            return;
        }
        // Twice what one round consumed lets the sender double again.
        let want = u32::from(self.c.copied) * COPIED_UNIT * 4;
        self.c.copied = 0;
        self.c.copied_since_ms = now_ms;
        let scale_max = u32::from(u16::MAX) << self.c.rcv_wscale;
        if want > self.c.rcvbuf && !self.env.pool.under_pressure() {
            self.c.rcvbuf = want.min(RCVBUF_BYTES_MAX).min(scale_max).max(self.c.rcvbuf);
        }
    }
}
