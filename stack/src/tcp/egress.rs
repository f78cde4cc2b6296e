//! Segments out: whose turn it is, and the frame its segment travels in.

use std::collections::VecDeque;

use smoltcp::wire::{EthernetAddress, IpProtocol};

use super::conn::Flags;
use super::run::{Run, Start};
use super::segment::Plan;
use super::state::State;
use super::{CHECKSUM_AT, Engine, Tcb, mss};
use crate::error::Cause;
use crate::ip::iface::IfaceId;
use crate::ip::{IpLayer, IpMeta, NextHop};
use crate::limits::EGRESS_QUANTUM_FRAMES;
use crate::stack::{Gso, Transmit};
use crate::time::Instant;

/// Connections that may have something to send on one interface.
#[derive(Debug, Default)]
pub(super) struct Egress {
    pub(super) dirty: VecDeque<u32>,
    /// Frames the connection at the front has sent in its turn.
    quantum: u32,
}

/// What became of a connection's turn to send.
enum Sent {
    Nothing,
    Frame(Transmit),
    /// A frame, and nothing is left.
    Last(Transmit),
    /// Held for a neighbour, looped back or dropped: look for the next.
    Elsewhere,
    /// It is another interface's from now on.
    Moved(IfaceId),
}

impl Engine {
    pub(crate) fn has_output(&self) -> bool {
        self.egress.iter().any(|e| !e.dirty.is_empty())
    }

    pub(crate) fn has_output_on(&self, iface: IfaceId) -> bool {
        let e = self.egress.get(iface.index());
        e.is_some_and(|e| !e.dirty.is_empty())
    }

    /// Composes the next frame of some connection that leaves by `iface` into `out`.
    pub(crate) fn poll_transmit(
        &mut self,
        ip: &mut IpLayer,
        iface: IfaceId,
        out: &mut [u8],
        now: Instant,
    ) -> Option<Transmit> {
        let here = iface.index();
        while let Some(&i) = self.egress.get(here)?.dirty.front() {
            let transmit = self.conn_transmit(ip, i, out, now);
            let egress = &mut self.egress[here];
            match transmit {
                Sent::Nothing => self.ends_turn(here, i, now),
                Sent::Last(t) => {
                    self.ends_turn(here, i, now);
                    return Some(t);
                }
                Sent::Frame(t) => {
                    egress.quantum += 1;
                    if egress.quantum >= EGRESS_QUANTUM_FRAMES && egress.dirty.len() > 1 {
                        egress.quantum = 0;
                        egress.dirty.rotate_left(1);
                    }
                    return Some(t);
                }
                Sent::Elsewhere => {}
                Sent::Moved(to) => {
                    egress.dirty.pop_front();
                    egress.quantum = 0;
                    self.egress[to.index()].dirty.push_back(i);
                }
            }
        }
        None
    }

    /// The connection at the front of an interface's list has nothing more to send.
    fn ends_turn(&mut self, here: usize, i: u32, now: Instant) {
        let egress = &mut self.egress[here];
        egress.dirty.pop_front();
        egress.quantum = 0;
        self.conns[i].flags.clear(Flags::DIRTY);
        self.settle_quietly(i, now);
    }

    fn conn_transmit(&mut self, ip: &mut IpLayer, i: u32, out: &mut [u8], now: Instant) -> Sent {
        if self.conns[i].state == State::Closed {
            return Sent::Nothing;
        }
        if ip.has_several()
            && let Some(to) = self.moves(ip, i, now)
        {
            return Sent::Moved(to);
        }
        if let Some(transmit) = self.run_on(ip, i, out, now) {
            return Sent::Frame(transmit);
        }
        let mut t = self.tcb(i, now);
        let mut plan = Plan::new();
        if !t.next_segment(&mut plan) {
            return Sent::Nothing;
        }
        t.env.stats.segments_out += 1;
        let left = t.run_length(&plan);
        let is_cut = plan.data_len > usize::from(t.c.mss) && !t.is_mtu_probe(&plan);
        let is_last = t.has_said_all();
        let Tcb { c, b, .. } = t;
        let opts = c.opts();
        let meta = IpMeta {
            src: c.local_ip,
            dst: c.remote_ip,
            protocol: IpProtocol::Tcp,
            tos: opts.tos & !3 | plan.ecn,
            hop_limit: opts.hop_limit,
            iface: c.bound,
            dont_fragment: true,
            loops: false,
        };
        let mut neighbor = c.neighbor;
        let hop = ip.next_hop(&mut neighbor, meta.dst, c.bound, now);
        c.neighbor = neighbor;
        let offset = meta.transport_offset();
        let frame = &mut out[..offset + plan.len()];
        let transport = &mut frame[offset..];
        b.tx.copy_to(plan.data_offset, &mut transport[plan.header_len()..]);
        plan.write_header(c.local_port, c.remote_port, transport);
        let mss = c.mss;
        let (iface, to) = match hop {
            NextHop::Link(iface, mac) => (iface, mac),
            NextHop::Local(iface) => (iface, ip.mac_of(iface)),
            NextHop::Pending(iface, _) => (iface, EthernetAddress([0; 6])),
            NextHop::NoRoute => {
                let mut t = self.tcb(i, now);
                t.unreachable(Cause::NetUnreachable);
                return Sent::Elsewhere;
            }
        };
        ip.write_headers(frame, &meta, iface, to, plan.len());
        let transport = &mut frame[offset..];
        match hop {
            NextHop::Link(..) => {
                let checksum = ip.fill_checksum(iface, &meta, transport, CHECKSUM_AT);
                let gso = is_cut.then(|| Gso {
                    segment_bytes: mss,
                    header_bytes: (offset + plan.header_len()) as u16,
                    ipv6: !meta.src.is_v4(),
                });
                let transmit = Transmit {
                    iface,
                    len: frame.len(),
                    checksum,
                    gso,
                };
                if left > 0 {
                    let start = Start {
                        conn: i,
                        left,
                        now,
                        neighbors: ip.neighbors.changes(),
                        tcp_at: offset,
                        payload_at: offset + plan.header_len(),
                    };
                    let pseudo = checksum.is_none().then(|| meta.pseudo(plan.len()));
                    self.run = Run::behind(frame, transmit, &start, pseudo);
                }
                match is_last {
                    true => Sent::Last(transmit),
                    false => Sent::Frame(transmit),
                }
            }
            _ => {
                ip.fill_full_checksum(&meta, transport, CHECKSUM_AT);
                match hop {
                    NextHop::Pending(_, r) => ip.neighbors.hold(r, frame),
                    _ => ip.loop_back(iface, frame),
                }
                Sent::Elsewhere
            }
        }
    }

    /// Routes may have changed: the interface a connection moves to, with the segment size its path
    /// allows.
    fn moves(&mut self, ip: &IpLayer, i: u32, now: Instant) -> Option<IfaceId> {
        let c = &mut self.conns[i];
        let to = ip.egress_of(c.neighbor, c.remote_ip, c.bound)?;
        if to == c.iface {
            return None;
        }
        c.iface = to;
        mss::sync(c, ip.path_mtu(c.remote_ip, c.bound, now));
        Some(to)
    }
}
