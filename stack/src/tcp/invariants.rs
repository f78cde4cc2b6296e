//! Relations that hold between events; for simulations.

use super::Engine;
use super::conn::{Busy, Conn, Flags, NONE};
use super::recovery::Phase;
use super::state::State;
use super::undo::Frto;
use crate::limits;

impl Engine {
    /// Checks every invariant that must hold between calls; for simulations.
    pub(crate) fn check_invariants(&self) {
        let mut dirty: Vec<u32> = Vec::new();
        for e in &self.egress {
            dirty.extend(&e.dirty);
        }
        let n = dirty.len();
        dirty.sort_unstable();
        assert_eq!(
            dirty
                .iter()
                .collect::<std::collections::BTreeSet<_>>()
                .len(),
            n
        );
        for &i in &dirty {
            let c = &self.conns[i];
            assert!(c.flags.has(Flags::DIRTY));
            if c.busy != NONE {
                c.check_invariants(&self.busy[c.busy]);
            }
        }
    }
}

impl Conn {
    /// Relations between the variables that hold between events; for simulations.
    pub(crate) fn check_invariants(&self, b: &Busy) {
        b.board.check_invariants();
        assert!(self.snd_una.at_or_before(self.snd_nxt), "SND.UNA ≤ SND.NXT");
        if let Some(front) = b.board.front() {
            assert_eq!(
                front.start, self.snd_una,
                "the scoreboard starts at SND.UNA"
            );
            assert_eq!(
                b.board.back().map(|s| s.end),
                Some(self.snd_nxt),
                "and ends at SND.NXT"
            );
        } else if self.state != State::Closed {
            // A reset connection keeps what it received, and forgets what was in flight.
            assert_eq!(self.snd_una, self.snd_nxt, "no flight without entries");
        }
        assert!(
            b.episode.frto == Frto::Off || b.phase == Phase::Loss,
            "F-RTO asks about a timeout"
        );
        assert!(
            self.state == State::Closed
                || self.flags.has(Flags::BLACK_HOLE) == b.mtu_search.is_some(),
            "a search follows a black hole"
        );
        assert!(
            self.window.cwnd > 0,
            "a closed congestion window never opens"
        );
        if self.state.is_synchronized() {
            assert!(
                self.rcv_wup.at_or_before(self.rcv_nxt),
                "ACKs do not run ahead"
            );
            assert!(
                b.rx.len() as u32 <= limits::RCVBUF_BYTES_MAX,
                "receive queue within limits"
            );
        }
    }
}
