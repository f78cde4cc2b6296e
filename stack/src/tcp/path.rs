//! What IP says about the path of a connection: errors, its MTU, no way at all.

use super::demux::Entry;
use super::seq::Seq;
use super::state::State;
use super::{Engine, Tcb, mss};
use crate::addr::FourTuple;
use crate::error::Cause;
use crate::time::Instant;

impl Engine {
    /// An ICMP error quoted a segment of ours (RFC 5927: only if it names bytes in flight).
    pub(crate) fn icmp_error(
        &mut self,
        tuple: &FourTuple,
        seq: Seq,
        cause: Cause,
        hard: bool,
        now: Instant,
    ) {
        let tag = self.demux.hash(tuple);
        let Some(Entry::Conn(i)) = self.find(tag, tuple, None) else {
            return;
        };
        let mut t = self.tcb(i, now);
        if !seq.between(t.c.snd_una, t.c.snd_nxt) {
            t.env.stats.icmp_out_of_window += 1;
        } else if hard && matches!(t.c.state, State::SynSent | State::SynReceived) {
            t.die(cause);
        } else {
            // RFC 1122 §4.2.3.9: synchronized connections only note it.
            t.c.soft_error = Some(cause);
        }
        self.settle(i, now);
    }

    /// The path to `tuple.remote` carries at most `mtu` bytes.
    pub(crate) fn path_mtu_shrank(
        &mut self,
        tuple: &FourTuple,
        seq: Seq,
        mtu: u16,
        now: Instant,
    ) -> bool {
        let tag = self.demux.hash(tuple);
        let Some(Entry::Conn(i)) = self.find(tag, tuple, None) else {
            return false;
        };
        let mut t = self.tcb(i, now);
        let plausible = seq.between(t.c.snd_una, t.c.snd_nxt);
        if plausible {
            let before = t.c.mss;
            // Whoever claims more than the link carries is lying.
            let mtu = mtu.min(t.link().mtu);
            mss::sync(t.c, mtu);
            t.limit_mtu_search(mss::ceiling(t.c, mtu));
            if t.c.mss < before {
                // Everything larger is lost for a known reason: resend, without blaming
                // congestion (RFC 1191 §6.5).
                let max = u32::from(t.c.mss);
                t.b.board.mark_lost(|s| s.end.since(s.start) > max);
            }
        } else {
            t.env.stats.icmp_out_of_window += 1;
        }
        self.settle(i, now);
        plausible
    }
}

impl Tcb<'_> {
    /// A segment could not be handed to the link.
    pub(crate) fn unreachable(&mut self, cause: Cause) {
        if matches!(self.c.state, State::SynSent | State::SynReceived) {
            self.die(cause);
        } else {
            self.c.soft_error = Some(cause);
        }
    }
}
