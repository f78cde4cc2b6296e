//! The connection record in two parts: `Conn`, kept while the connection exists, and `Busy`, lent
//! from a pool while bytes are in flight, unread or out of order.
//!
//! Variable names are those of RFC 9293 §3.3.1.

use core::hint::black_box;
use core::time::Duration;

use super::buffer::{BlockPool, RecvQueue, SendQueue};
use super::cc::{CcState, CongestionControl, Sampler, Window};
use super::mtu_search::MtuSearch;
use super::options::Options;
use super::rack::{Rack, Widening};
use super::reassembly::Reassembly;
use super::recovery::{Episode, Phase, TailProbe};
use super::rto::RttEstimate;
use super::scoreboard::{Scoreboard, Stamp};
use super::seq::Seq;
use super::sockopt::SockOpts;
use super::state::State;
use crate::addr::{Endpoint, FourTuple, Ip};
use crate::error::Cause;
use crate::events::Ready;
use crate::ip::iface::IfaceId;
use crate::ip::neighbor::NeighborRef;
use crate::limits;
use crate::time::Instant;

/// A set of one-bit facts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Flags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:expr;)*) => {
        impl Flags {
            $($(#[$doc])* pub(crate) const $name: Self = Self(1 << $bit);)*
        }
    };
}

flags! {
    /// Timestamps negotiated (RFC 7323).
    TIMESTAMPS = 0;
    /// SACK negotiated.
    SACK = 1;
    /// Window scaling negotiated.
    WINDOW_SCALE = 2;
    /// ECN negotiated (RFC 3168).
    ECN = 3;
    /// The application holds the handle.
    OWNED = 4;
    /// The application will read no more.
    RECV_SHUTDOWN = 5;
    /// A FIN follows the queued data.
    FIN_QUEUED = 6;
    /// The peer's FIN is in order.
    FIN_RECEIVED = 7;
    /// An ACK must go out now.
    ACK_NOW = 8;
    /// In the egress list.
    DIRTY = 9;
    /// In the event list.
    EVENT_QUEUED = 10;
    /// TCP_NODELAY.
    NODELAY = 11;
    /// TCP_CORK.
    CORK = 12;
    /// MSG_MORE on the last send.
    MORE = 13;
    /// SO_KEEPALIVE.
    KEEPALIVE = 14;
    /// SO_OOBINLINE.
    OOB_INLINE = 15;
    /// The application found the send buffer full and waits for WRITABLE.
    WANTS_WRITE = 16;
    /// Filed in the demultiplexing table.
    FILED = 17;
    /// Reordering was seen on this path (RACK).
    REORDERING = 18;
    /// CE arrived; ECE goes out until CWR answers.
    ECN_ECHO = 19;
    /// The window was cut for ECE; the next new segment carries CWR.
    ECN_CWR = 20;
    /// Interactive: delay ACKs in the hope of data (Linux's pingpong mode).
    PINGPONG = 21;
    /// The path swallowed full-sized segments; the MSS was lowered, and is searched for.
    BLACK_HOLE = 22;
    /// TS.Recent holds a value.
    TS_RECENT = 23;
    /// A keepalive probe must go out.
    PROBE_KEEPALIVE = 24;
    /// A zero-window probe must go out.
    PROBE_WINDOW = 25;
    /// A tail loss probe must go out.
    PROBE_TAIL = 26;
    /// A RST must go out, then the connection is gone.
    SEND_RST = 27;
    /// TCP_QUICKACK is held on by the application.
    QUICKACK = 28;
    /// Waiting in a listener's accept queue.
    IN_ACCEPT_QUEUE = 29;
    /// SYN must be (re)transmitted.
    SEND_SYN = 30;
    /// An error was reported once; later sends get EPIPE.
    ERROR_TAKEN = 31;
}

impl Flags {
    /// Each of these alone asks for a segment.
    pub(crate) const OUTPUT: Self = Self(
        Self::ACK_NOW.0
            | Self::SEND_SYN.0
            | Self::SEND_RST.0
            | Self::PROBE_KEEPALIVE.0
            | Self::PROBE_WINDOW.0
            | Self::PROBE_TAIL.0,
    );

    pub(crate) const fn has(self, f: Self) -> bool {
        self.0 & f.0 == f.0
    }

    pub(crate) const fn any(self, f: Self) -> bool {
        self.0 & f.0 != 0
    }

    pub(crate) fn set(&mut self, f: Self) {
        self.0 |= f.0;
    }

    pub(crate) fn clear(&mut self, f: Self) {
        self.0 &= !f.0;
    }

    pub(crate) fn put(&mut self, f: Self, on: bool) {
        if on { self.set(f) } else { self.clear(f) }
    }
}

impl core::ops::BitOr for Flags {
    type Output = Self;
    fn bitor(self, o: Self) -> Self {
        Self(self.0 | o.0)
    }
}

/// Stands for "no entry" in 32-bit slab references.
pub(crate) const NONE: u32 = u32::MAX;

/// The record an idle connection consists of: three cache lines.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Conn {
    pub(crate) local_ip: Ip,
    pub(crate) remote_ip: Ip,
    pub(crate) local_port: u16,
    pub(crate) remote_port: u16,
    pub(crate) flags: Flags,
    pub(crate) state: State,
    /// What the send window is shifted by.
    pub(crate) snd_wscale: u8,
    /// What our advertised window is shifted by.
    pub(crate) rcv_wscale: u8,
    /// Keepalive or zero-window probes unanswered.
    pub(crate) probes: u8,
    /// Largest payload of a segment we send, options deducted.
    pub(crate) mss: u16,
    /// The peer's MSS option.
    pub(crate) peer_mss: u16,

    pub(crate) snd_una: Seq,
    pub(crate) snd_nxt: Seq,
    pub(crate) snd_wnd: u32,
    pub(crate) snd_wl1: Seq,
    /// Largest window the peer ever offered.
    pub(crate) max_window: u32,
    pub(crate) rcv_nxt: Seq,
    /// RCV.NXT when we last sent an ACK.
    pub(crate) rcv_wup: Seq,
    /// Window advertised with that ACK.
    pub(crate) rcv_wnd: u32,
    /// Receive buffer limit, grown by auto-tuning.
    pub(crate) rcvbuf: u32,

    pub(crate) ts_recent: u32,
    /// When TS.Recent was set, on [`ts_recent_clock`].
    pub(crate) ts_recent_at: u16,
    /// [`COPIED_UNIT`]s the application read since `copied_since_ms`. Here and not with the buffers: a
    /// reader that keeps up has none between two segments.
    pub(crate) copied: u16,
    /// Added to the millisecond clock in timestamps we send.
    pub(crate) ts_offset: u32,

    pub(crate) window: Window,
    pub(crate) rtt: RttEstimate,

    /// Millisecond clock at the last segment received and sent; they wrap after 49 days.
    pub(crate) last_recv_ms: u32,
    pub(crate) last_send_ms: u32,
    pub(crate) bytes_acked: u64,
    pub(crate) bytes_received: u64,
    pub(crate) segs_in: u32,
    pub(crate) segs_out: u32,
    pub(crate) total_retrans: u32,

    /// Tag in the demultiplexing table.
    pub(crate) tag: u32,
    pub(crate) generation: u32,
    pub(crate) neighbor: NeighborRef,
    /// The interface its packets leave by, as last looked up.
    pub(crate) iface: IfaceId,
    /// The only interface it uses (SO_BINDTODEVICE).
    pub(crate) bound: Option<IfaceId>,
    /// When the minimum of the round trip was last measured, on [`min_rtt_clock`].
    pub(crate) min_rtt_at: u8,
    /// RACK's, while nothing is in flight.
    pub(crate) widening: Widening,
    /// Index of the `Busy` state, or `NONE`.
    pub(crate) busy: u32,
    /// Estimate of the peer's segment size, which paces our ACKs.
    pub(crate) rcv_mss: u16,
    pub(crate) quick_acks: u8,
    /// Readiness bits not yet collected by the application.
    pub(crate) events: Ready,
    pub(crate) error: Option<Cause>,
    /// Last ICMP error that did not end the connection.
    pub(crate) soft_error: Option<Cause>,
    /// Millisecond clock; it wraps after a minute.
    pub(crate) copied_since_ms: u16,
    /// Options that differ from the defaults.
    pub(crate) opts: Option<Box<SockOpts>>,
}

impl Conn {
    /// Reads a field of each cache line, to bring them in.
    pub(crate) fn warm(&self) {
        black_box(self.flags);
        black_box(self.max_window);
        black_box(self.busy);
    }

    pub(crate) const fn local(&self) -> Endpoint {
        Endpoint {
            ip: self.local_ip,
            port: self.local_port,
        }
    }

    pub(crate) const fn remote(&self) -> Endpoint {
        Endpoint {
            ip: self.remote_ip,
            port: self.remote_port,
        }
    }

    pub(crate) const fn tuple(&self) -> FourTuple {
        FourTuple {
            local: self.local(),
            remote: self.remote(),
        }
    }

    /// Whether it takes segments that arrive on `iface`; `None` asks for the tuple alone.
    pub(crate) fn hears(&self, iface: Option<IfaceId>) -> bool {
        self.bound.is_none() || iface.is_none() || self.bound == iface
    }

    pub(crate) fn opts(&self) -> &SockOpts {
        self.opts.as_deref().unwrap_or(&SockOpts::DEFAULT)
    }

    /// Send buffer in bytes: two windows, so that the ACK clock never starves. Three where the window is
    /// still full while a hole holds another back.
    pub(crate) fn sndbuf(&self) -> u32 {
        self.opts().sndbuf.unwrap_or_else(|| {
            let windows = 2 + u32::from(self.has_model());
            let windows = self.window.cwnd.saturating_mul(windows);
            windows.clamp(limits::SNDBUF_BYTES, limits::SNDBUF_BYTES_MAX)
        })
    }

    /// One measurement of the round trip.
    pub(crate) fn sample_rtt(&mut self, rtt_us: u32, now: Instant) {
        let at = min_rtt_clock(now);
        let is_old = at.wrapping_sub(self.min_rtt_at) >= MIN_RTT_AGE;
        if is_old || rtt_us <= self.rtt.min_us {
            self.rtt.min_us = u32::MAX;
            self.min_rtt_at = at;
        }
        self.rtt.sample(rtt_us);
    }

    /// The round trip by the echo of our timestamp, which alone is unambiguous once something was sent
    /// again (RFC 7323 §4). `None` for an echo that cannot be ours.
    pub(crate) fn echoed_rtt_us(&self, o: &Options, now: Instant) -> Option<u32> {
        let ts = o.timestamps.filter(|_| self.flags.has(Flags::TIMESTAMPS))?;
        let ms = self.ts_now(now).wrapping_sub(ts.ecr);
        (ts.ecr != 0 && ms < 1 << 20).then(|| ms.max(1) * 1_000)
    }

    /// The handshake is complete. `rtt_us`: its round trip, if it is known which SYN was answered.
    pub(crate) fn sample_handshake(&mut self, rtt_us: Option<u32>, now: Instant) {
        match rtt_us {
            Some(rtt) => self.sample_rtt(rtt, now),
            None => self.rtt.fall_back(),
        }
    }

    /// The window data begins with, after a handshake in which `sent_again` SYNs of ours were. RFC 5681
    /// §3.1 allows one segment after the first of them, Linux after the second.
    pub(crate) fn open_window(&mut self, sent_again: u32) {
        let mss = u32::from(self.mss);
        self.window = Window::initial(mss);
        if sent_again > 1 {
            self.window.cwnd = mss;
        }
    }

    /// Whether the window follows BBR's model, which has its own answer to loss.
    pub(crate) fn has_model(&self) -> bool {
        self.opts().congestion == CongestionControl::Bbr
    }

    /// Bytes of sequence space sent and not acknowledged.
    pub(crate) fn flight(&self) -> u32 {
        self.snd_nxt.since(self.snd_una)
    }

    /// What remains of the window we last advertised.
    pub(crate) fn receive_window(&self) -> u32 {
        (self.rcv_wup + self.rcv_wnd).since(self.rcv_nxt)
    }

    pub(crate) fn snd_limit(&self) -> Seq {
        self.snd_una + self.snd_wnd
    }

    pub(crate) fn ts_now(&self, now: Instant) -> u32 {
        (now.as_millis() as u32).wrapping_add(self.ts_offset)
    }

    pub(crate) fn is_owned(&self) -> bool {
        self.flags.has(Flags::OWNED)
    }

    /// Time since the last segment arrived.
    pub(crate) fn quiet(&self, now: Instant) -> Duration {
        Duration::from_millis(u64::from(
            (now.as_millis() as u32).wrapping_sub(self.last_recv_ms),
        ))
    }
}

/// What the retransmission timer is armed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Rexmit {
    #[default]
    Off,
    /// RFC 6298.
    Rto,
    /// RFC 8985 §7: tail loss probe.
    Tlp,
    /// RFC 8985 §6: reordering window.
    Reorder,
    /// RFC 9293 §3.8.6.1: zero-window probe.
    Persist,
}

/// State of a connection with something going on. In this order in memory: what every exchange
/// touches first, what only loss, urgent data and the like touch last.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(crate) struct Busy {
    pub(crate) tx: SendQueue,
    pub(crate) rx: RecvQueue,
    pub(crate) board: Scoreboard,
    pub(crate) timers: Timers,
    pub(crate) phase: Phase,
    /// Duplicate ACKs in a row, without SACK.
    pub(crate) dup_acks: u8,
    /// How often the timeout is doubled.
    pub(crate) backoff: u8,
    /// The flight reached the window since the last round began.
    pub(crate) cwnd_limited: bool,
    /// ACKs owed for out-of-order segments to a peer without SACK, which counts them.
    pub(crate) dup_acks_owed: u8,
    /// The cork timer ran out: one partial segment may go.
    pub(crate) uncork_once: bool,
    /// An ACK waits for something to carry it.
    pub(crate) holds_ack: bool,
    /// The engine's list of those names it.
    pub(crate) is_held: bool,
    /// SND.NXT when the current round trip began.
    pub(crate) round_end: Option<Seq>,
    /// End of the last small segment sent (Minshall's variant of Nagle).
    pub(crate) small_end: Option<Seq>,
    /// When the oldest unacknowledged byte was first sent.
    pub(crate) stalled_since: Option<Instant>,
    /// Pacing: no data before this time.
    pub(crate) pace_at: Instant,
    /// How late its timer has been of late, in microseconds.
    pub(crate) pace_late_us: u16,
    /// Timeouts of what is unacknowledged now.
    pub(crate) retries: u8,
    /// The first of these.
    pub(crate) timed_out_at: Stamp,
    pub(crate) rack: Rack,
    pub(crate) rate: Sampler,
    pub(crate) tuning: RcvTuning,
    pub(crate) reasm: Reassembly,
    pub(crate) tail: TailProbe,
    /// Sequence number of a FIN that arrived ahead of the text before it.
    pub(crate) fin_at: Option<Seq>,
    /// A duplicate to report first in the next SACK option (RFC 2883).
    pub(crate) dsack: Option<super::reassembly::Range>,
    pub(crate) urgent: Urgent,
    pub(crate) cc: CcState,
    /// When ACKs for unacceptable segments may go out again.
    pub(crate) invalid_ack_at: Instant,
    pub(crate) episode: Episode,
    /// After a black hole.
    pub(crate) mtu_search: Option<Box<MtuSearch>>,
}

/// Deadlines; `FAR_FUTURE` is off.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timers {
    pub(crate) rexmit: Instant,
    pub(crate) rexmit_kind: Rexmit,
    pub(crate) delayed_ack: Instant,
    pub(crate) cork: Instant,
    pub(crate) pace: Instant,
    /// FIN-WAIT-2 of an orphan.
    pub(crate) fin_wait: Instant,
}

impl Default for Timers {
    fn default() -> Self {
        let off = Instant::FAR_FUTURE;
        Self {
            rexmit: off,
            rexmit_kind: Rexmit::Off,
            delayed_ack: off,
            cork: off,
            pace: off,
            fin_wait: off,
        }
    }
}

impl Timers {
    pub(crate) fn arm_rexmit(&mut self, kind: Rexmit, at: Instant) {
        self.rexmit = at;
        self.rexmit_kind = kind;
    }

    pub(crate) fn stop_rexmit(&mut self) {
        self.arm_rexmit(Rexmit::Off, Instant::FAR_FUTURE);
    }

    pub(crate) fn earliest(&self) -> Instant {
        self.rexmit
            .min(self.delayed_ack)
            .min(self.cork)
            .min(self.pace)
            .min(self.fin_wait)
    }
}

/// Urgent data in both directions (RFC 6093: one byte, pointer after it).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Urgent {
    /// Sequence just past the urgent byte we send.
    pub(crate) snd_up: Option<Seq>,
    /// Sequence of the urgent byte announced by the peer, not yet passed by the reader.
    pub(crate) rcv_at: Option<Seq>,
    /// The urgent byte, once arrived.
    pub(crate) byte: Option<u8>,
    /// MSG_OOB has read it.
    pub(crate) taken: bool,
}

/// Receive buffer auto-tuning (Linux's dynamic right-sizing).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RcvTuning {
    /// Receiver-side RTT: time for a window to arrive.
    pub(crate) rtt_us: u32,
    pub(crate) rtt_seq: Option<Seq>,
    pub(crate) rtt_at: Instant,
}

impl Busy {
    /// Whether the connection can do without this state.
    pub(crate) fn is_idle(&self) -> bool {
        self.tx.len() == 0
            && self.rx.is_vacant()
            && self.board.is_empty()
            && self.reasm.is_empty()
            && self.timers.earliest() == Instant::FAR_FUTURE
            && self.urgent.byte.is_none()
            && self.urgent.rcv_at.is_none()
            && self.dsack.is_none()
            && self.dup_acks_owed == 0
            && self.fin_at.is_none()
            && self.cc.bbr.is_none()
            && self.mtu_search.is_none()
    }

    /// Reads one field of each cache line that an exchange touches, to bring them in.
    pub(crate) fn warm(&self) {
        black_box(self.tx.len());
        black_box(self.rx.len());
        black_box(self.board.sacked_bytes());
        black_box(self.timers.rexmit);
        black_box(self.pace_at);
        black_box(self.tuning.rtt_us);
        black_box(self.reasm.is_empty());
        black_box(self.cc.bbr.is_some());
        black_box(self.cc.peek());
    }

    /// Returns every block; keeps the allocations of queues for the next borrower.
    pub(crate) fn reset(&mut self, pool: &mut BlockPool) {
        self.tx.reset(pool);
        self.rx.reset(pool);
        self.board.clear();
        self.reasm.clear();
        *self = Self {
            tx: core::mem::take(&mut self.tx),
            rx: core::mem::take(&mut self.rx),
            board: core::mem::take(&mut self.board),
            reasm: core::mem::take(&mut self.reasm),
            ..Self::default()
        };
    }
}

/// What [`Conn::copied`] counts: 65 535 of them are more than a receive buffer ever holds.
pub(crate) const COPIED_UNIT: u32 = 256;

/// Ticks of 128 s, which wrap after 97 days: longer than TS.Recent is believed by a factor of four.
pub(crate) const fn ts_recent_clock(now: Instant) -> u16 {
    (now.as_millis() / TS_RECENT_TICK_MS) as u16
}

/// A tick of [`ts_recent_clock`].
pub(crate) const TS_RECENT_TICK_MS: u64 = 128_000;

/// Ticks of 30 s.
const fn min_rtt_clock(now: Instant) -> u8 {
    (now.as_millis() / 30_000) as u8
}

/// Ticks of [`min_rtt_clock`] after which a minimum says nothing about the path of today (RFC 8985 §6.2
/// step 1); Linux's tcp_min_rtt_wlen is 300 s, too.
const MIN_RTT_AGE: u8 = 10;

/// The low 32 bits of the microsecond clock, as the scoreboard keeps it.
pub(crate) const fn stamp(now: Instant) -> Stamp {
    now.as_micros() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warming_reads_every_line_of_a_record_and_none_twice() {
        use core::mem::offset_of;
        let record = [
            offset_of!(Conn, flags),
            offset_of!(Conn, max_window),
            offset_of!(Conn, busy),
        ];
        assert_eq!(record.map(|at| at / 64), [0, 1, 2]);
        assert_eq!(size_of::<Conn>(), 3 * 64);
    }

    #[test]
    fn a_minimum_of_the_round_trip_is_believed_for_five_minutes() {
        let end = Endpoint {
            ip: core::net::IpAddr::from([10, 0, 0, 1]).into(),
            port: 1,
        };
        let tuple = FourTuple {
            local: end,
            remote: end,
        };
        let mut c = crate::tcp::handshake::new_conn(&tuple, 0, Seq(0), None);
        c.sample_rtt(100, Instant::from_millis(1_000));
        c.sample_rtt(900, Instant::from_millis(290_000));
        assert_eq!(c.rtt.min_us, 100);
        c.sample_rtt(700, Instant::from_millis(310_000));
        assert_eq!(c.rtt.min_us, 700, "the path of today is longer");
        c.sample_rtt(800, Instant::from_millis(320_000));
        assert_eq!(c.rtt.min_us, 700);
    }
}
