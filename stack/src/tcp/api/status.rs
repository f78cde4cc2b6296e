//! What a socket is and how it is doing: options, readiness, errors, TCP_INFO.

use core::time::Duration;

use crate::addr::Endpoint;
use crate::error::{Cause, SocketError};
use crate::events::Ready;
use crate::limits;
use crate::stack::TcpId;
use crate::tcp::conn::{Conn, Flags, NONE};
use crate::tcp::info::TcpInfo;
use crate::tcp::sockopt::{SockFlag, SockOpts};
use crate::tcp::state::State;
use crate::tcp::{Engine, mss};
use crate::time::Instant;

impl Engine {
    pub(crate) fn state(&self, id: TcpId) -> Option<State> {
        self.conn(id).map(|c| c.state)
    }

    pub(crate) fn addresses(&self, id: TcpId) -> Option<(Endpoint, Endpoint)> {
        self.conn(id).map(|c| (c.local(), c.remote()))
    }

    /// SO_ERROR: reads and clears.
    pub(crate) fn take_error(&mut self, id: TcpId) -> Option<Cause> {
        let i = self.index(id)?;
        let c = &mut self.conns[i];
        let error = c.error.take().or_else(|| c.soft_error.take());
        if error.is_some() {
            c.flags.set(Flags::ERROR_TAKEN);
        }
        error
    }

    /// The level behind READABLE, WRITABLE, READ_CLOSED, CLOSED, ERROR and URGENT.
    pub(crate) fn ready(&mut self, id: TcpId) -> Ready {
        let Some(i) = self.index(id) else {
            return Ready::NONE;
        };
        let pressure = self.env.pool.under_pressure();
        let c = &self.conns[i];
        let busy = self.busy_of(c);
        let (rx, tx) = busy.map_or((0, 0), |b| (b.rx.len(), b.tx.len() as u32));
        let mut r = Ready::NONE;
        let eof = c.flags.any(Flags::FIN_RECEIVED | Flags::RECV_SHUTDOWN);
        let closed = c.state == State::Closed;
        if rx >= c.opts().rcvlowat as usize || eof || closed {
            r.insert(Ready::READABLE);
        }
        if eof {
            r.insert(Ready::READ_CLOSED);
        }
        if closed || eof && c.flags.has(Flags::FIN_QUEUED) {
            r.insert(Ready::CLOSED);
        }
        if c.error.is_some() {
            r.insert(Ready::ERROR);
        }
        let sndbuf = c.sndbuf();
        let room = c.state.may_send() && tx + tx / 2 <= sndbuf && !pressure;
        if room || closed || c.flags.has(Flags::FIN_QUEUED) {
            r.insert(Ready::WRITABLE);
        } else {
            // Whoever asks and hears "no" wants the edge.
            self.conns[i].flags.set(Flags::WANTS_WRITE);
        }
        let c = &self.conns[i];
        if self
            .busy_of(c)
            .is_some_and(|b| b.urgent.rcv_at.is_some() && !b.urgent.taken)
        {
            r.insert(Ready::URGENT);
        }
        r
    }

    /// (bytes to read, bytes not yet acknowledged, bytes not yet sent): FIONREAD, SIOCOUTQ,
    /// SIOCOUTQNSD.
    pub(crate) fn queues(&self, id: TcpId) -> Option<(usize, usize, usize)> {
        let c = self.conn(id)?;
        Some(self.busy_of(c).map_or((0, 0, 0), |b| {
            let unsent = b.tx.len().saturating_sub(c.flight() as usize);
            (b.rx.len(), b.tx.len(), unsent)
        }))
    }

    pub(crate) fn set_flag(
        &mut self,
        id: TcpId,
        f: SockFlag,
        on: bool,
        now: Instant,
    ) -> Result<(), SocketError> {
        let i = self.index(id).ok_or(SocketError::BadHandle)?;
        let c = &mut self.conns[i];
        c.flags.put(f.flag(), on);
        if f == SockFlag::QuickAck {
            c.quick_acks = if on { limits::QUICKACKS } else { 0 };
            c.flags.put(Flags::PINGPONG, !on);
        }
        if f == SockFlag::KeepAlive {
            c.probes = 0;
        }
        self.settle(i, now);
        Ok(())
    }

    pub(crate) fn flag(&self, id: TcpId, f: SockFlag) -> Option<bool> {
        self.conn(id).map(|c| c.flags.has(f.flag()))
    }

    pub(crate) fn opts(&self, id: TcpId) -> Option<&SockOpts> {
        self.conn(id).map(Conn::opts)
    }

    pub(crate) fn set_opts(
        &mut self,
        id: TcpId,
        opts: SockOpts,
        now: Instant,
    ) -> Result<(), SocketError> {
        let i = self.index(id).ok_or(SocketError::BadHandle)?;
        let c = &mut self.conns[i];
        let mtu = self.env.links[c.iface.index()].mtu;
        if let Some(n) = opts.rcvbuf {
            // A promised window is never taken back (RFC 9293 §3.8.6).
            c.rcvbuf = n
                .min(limits::RCVBUF_BYTES_MAX)
                .max(2 * u32::from(c.rcv_mss));
        }
        let max_seg_changed = opts.max_seg != c.opts().max_seg;
        c.opts = (opts != SockOpts::DEFAULT).then(|| Box::new(opts));
        if max_seg_changed {
            mss::sync(c, mtu);
        }
        if !c.has_model() && c.busy != NONE {
            self.busy[c.busy].cc.bbr = None;
        }
        self.settle(i, now);
        Ok(())
    }

    pub(crate) fn info(&self, id: TcpId, now: Instant) -> Option<TcpInfo> {
        let c = self.conn(id)?;
        let b = self.busy_of(c);
        let ms = |then: u32| {
            Duration::from_millis(u64::from((now.as_millis() as u32).wrapping_sub(then)))
        };
        let us = |n: u32| Duration::from_micros(u64::from(n));
        Some(TcpInfo {
            state: c.state,
            local: c.local().to_std(),
            remote: c.remote().to_std(),
            congestion: c.opts().congestion,
            timestamps: c.flags.has(Flags::TIMESTAMPS),
            sack: c.flags.has(Flags::SACK),
            window_scale: c.flags.has(Flags::WINDOW_SCALE),
            ecn: c.flags.has(Flags::ECN),
            snd_wscale: c.snd_wscale,
            rcv_wscale: c.rcv_wscale,
            rto: Duration::from_micros(c.rtt.backed_off_us(b.map_or(0, |b| b.backoff))),
            retransmits: b.map_or(0, |b| b.retries),
            probes: c.probes,
            backoff: b.map_or(0, |b| b.backoff),
            snd_mss: c.mss,
            rcv_mss: c.rcv_mss,
            unacked: c.flight(),
            sacked: b.map_or(0, |b| b.board.sacked_bytes()),
            lost: b.map_or(0, |b| b.board.lost_bytes()),
            retrans: b.map_or(0, |b| b.board.retrans_bytes()),
            total_retrans: c.total_retrans,
            rtt: us(c.rtt.srtt_us),
            rttvar: us(c.rtt.rttvar_us),
            min_rtt: (c.rtt.min_us != u32::MAX).then(|| us(c.rtt.min_us)),
            snd_ssthresh: (c.window.ssthresh < limits::CWND_BYTES_MAX).then_some(c.window.ssthresh),
            snd_cwnd: c.window.cwnd,
            snd_wnd: c.snd_wnd,
            rcv_wnd: c.receive_window(),
            rcv_space: c.rcvbuf,
            bytes_acked: c.bytes_acked,
            bytes_received: c.bytes_received,
            segs_in: c.segs_in,
            segs_out: c.segs_out,
            notsent_bytes: b.map_or(0, |b| (b.tx.len() as u32).saturating_sub(c.flight())),
            last_data_sent: ms(c.last_send_ms),
            last_recv: ms(c.last_recv_ms),
            reordering_seen: c.flags.has(Flags::REORDERING)
                || b.is_some_and(|b| b.rack.reordering_seen),
        })
    }
}
