//! Runs: full segments of one connection that leave one after the other at one time. What follows the
//! first of them differs in sequence number, identification and checksum only, and how many may follow
//! is known with it: neither the connection nor the way of each is looked at again.
//!
//! Whatever works on a connection ends the run ([`Engine::tcb`]), and so does the passing of time.

use super::conn::{Flags, NONE};
use super::recovery::Phase;
use super::segment::{Control, Plan};
use super::{CHECKSUM_AT, Engine, Tcb};
use crate::checksum::Sum;
use crate::ip::{ETHERNET, IpLayer, sum_without_ident};
use crate::limits::SENT_SEGMENTS_MAX;
use crate::stack::Transmit;
use crate::time::Instant;

/// The longest head of a segment in a run: Ethernet, IPv6, TCP with timestamps.
const HEAD_BYTES: usize = ETHERNET + 40 + 32;

/// Where the sequence number is in a TCP header.
const SEQ_AT: usize = 4;

/// Segments that may leave as the last one did.
#[derive(Debug)]
pub(super) struct Run {
    conn: u32,
    /// How many may still follow.
    left: u32,
    now: Instant,
    /// [`changes`](crate::ip::neighbor::NeighborCache::changes) of the neighbours its way depends on.
    neighbors: u64,
    transmit: Transmit,
    /// What the first frame began with, and some of its payload.
    head: [u8; HEAD_BYTES],
    /// Where TCP begins in a frame, and the payload.
    tcp_at: usize,
    payload_at: usize,
    /// Of the IPv4 header, but for its identification; `None` for IPv6.
    ip_sum: Option<u32>,
    /// Of the pseudo header, where the device does not finish checksums.
    pseudo: Option<Sum>,
}

/// How a run would begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Start {
    pub(super) conn: u32,
    pub(super) left: u32,
    pub(super) now: Instant,
    pub(super) neighbors: u64,
    pub(super) tcp_at: usize,
    pub(super) payload_at: usize,
}

impl Run {
    /// What follows `frame`; `None` where that is too short to be worth it.
    pub(super) fn behind(
        frame: &[u8],
        transmit: Transmit,
        start: &Start,
        pseudo: Option<Sum>,
    ) -> Option<Self> {
        let mut head = *frame.first_chunk()?;
        let &Start { tcp_at, .. } = start;
        if pseudo.is_some() {
            head[tcp_at + CHECKSUM_AT..][..2].fill(0);
        }
        Some(Self {
            conn: start.conn,
            left: start.left,
            now: start.now,
            neighbors: start.neighbors,
            transmit,
            ip_sum: sum_without_ident(&head[ETHERNET..tcp_at]),
            head,
            tcp_at,
            payload_at: start.payload_at,
            pseudo,
        })
    }
}

impl Engine {
    /// The next segment of the run, if it is of this connection and still goes on.
    #[inline(always)]
    pub(super) fn run_on(
        &mut self,
        ip: &mut IpLayer,
        i: u32,
        out: &mut [u8],
        now: Instant,
    ) -> Option<Transmit> {
        let run = self.run.as_mut()?;
        let c = &mut self.conns[i];
        if run.left == 0 || run.conn != i || run.now != now || c.busy == NONE {
            return None;
        }
        if ip.neighbors.changes() != run.neighbors {
            return None;
        }
        let b = &mut self.busy[c.busy];
        let frame = out.get_mut(..run.transmit.len)?;
        *frame.first_chunk_mut()? = run.head;
        if let Some(sum) = run.ip_sum {
            ip.identify(&mut frame[ETHERNET..], sum);
        }
        let (headers, payload) = frame.split_at_mut(run.payload_at);
        headers[run.tcp_at + SEQ_AT..][..4].copy_from_slice(&c.snd_nxt.0.to_be_bytes());
        b.tx.copy_to(c.flight() as usize, payload);
        let bytes = payload.len() as u32;
        if let Some(pseudo) = run.pseudo {
            let transport = &mut frame[run.tcp_at..];
            let sum = pseudo.bytes(transport).finish();
            transport[CHECKSUM_AT..][..2].copy_from_slice(&sum);
        }
        b.board.push_alike(bytes);
        c.snd_nxt += bytes;
        c.segs_out = c.segs_out.wrapping_add(1);
        self.env.stats.segments_out += 1;
        run.left -= 1;
        Some(run.transmit)
    }
}

impl Tcb<'_> {
    /// How many segments may follow the one just planned that are its like, without another look at
    /// what decided about it. Not the last of the queue, which pushes.
    #[inline(always)]
    pub(super) fn run_length(&self, plan: &Plan) -> u32 {
        let mss = u32::from(self.c.mss);
        let is_full = plan.data_len as u32 == mss && plan.control == Control::ACK;
        let is_new = plan.seq + mss == self.c.snd_nxt;
        if !is_full || !is_new || self.unsent() <= mss {
            return 0;
        }
        self.run_room()
    }

    fn run_room(&self) -> u32 {
        let (c, b) = (&*self.c, &*self.b);
        let mss = u32::from(c.mss);
        let is_plain = b.phase == Phase::Open
            && b.board.lost_bytes() == b.board.retrans_bytes()
            && b.board.len() > 1
            && b.reasm.is_empty()
            && b.dsack.is_none()
            && b.urgent.snd_up.is_none()
            && !c.flags.any(Flags::OUTPUT);
        let is_paced = b.cc.bbr.is_some() || c.opts().pacing_rate.is_some();
        if !is_plain || is_paced || self.link().tso_bytes > 0 {
            return 0;
        }
        let window = c.snd_limit().since(c.snd_nxt);
        let congestion = c.window.cwnd.saturating_sub(self.pipe());
        let bytes = (self.unsent() - 1).min(window).min(congestion);
        let entries = SENT_SEGMENTS_MAX.saturating_sub(b.board.len());
        (bytes / mss).min(entries as u32)
    }
}
