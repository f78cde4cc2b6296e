//! Segments in: which connection, embryo, TIME-WAIT record or listener each belongs to, and the reset for
//! those that belong to none.

use smoltcp::wire::IpProtocol;

use super::conn::NONE;
use super::demux::Entry;
use super::input::Answer;
use super::options;
use super::segment::{Control, Plan, Segment};
use super::seq::Seq;
use super::state::State;
use super::timewait::Verdict;
use super::{CHECKSUM_AT, Engine};
use crate::addr::{Endpoint, FourTuple, Ip};
use crate::ip::iface::IfaceId;
use crate::ip::{IpLayer, IpMeta};
use crate::stack::Strangers;
use crate::time::Instant;

impl Engine {
    /// One TCP packet for one of our addresses, checksum already judged.
    #[allow(clippy::too_many_arguments, reason = "the fields of one parsed packet")]
    pub(crate) fn packet_arrives(
        &mut self,
        ip: &mut IpLayer,
        arrival: IfaceId,
        src: Ip,
        dst: Ip,
        bytes: &[u8],
        ce: bool,
        now: Instant,
    ) {
        let Some(seg) = Segment::parse(bytes, ce) else {
            self.env.stats.malformed += 1;
            return;
        };
        self.env.stats.segments_in += 1;
        let tuple = FourTuple {
            local: Endpoint {
                ip: dst,
                port: seg.dst_port,
            },
            remote: Endpoint {
                ip: src,
                port: seg.src_port,
            },
        };
        if self.train != NONE {
            let c = &self.conns[self.train];
            if c.tuple() == tuple && c.hears(Some(arrival)) {
                return self.conn_segment(ip, self.train, arrival, &tuple, &seg, now);
            }
            self.leave_train(now);
        }
        let tag = self.demux.hash(&tuple);
        match self.find(tag, &tuple, Some(arrival)) {
            Some(Entry::Conn(i)) => self.conn_segment(ip, i, arrival, &tuple, &seg, now),
            Some(Entry::Embryo(i)) => self.embryo_segment(ip, i, &tuple, &seg, now),
            Some(Entry::TimeWait(i)) => {
                self.time_wait_segment(ip, i, arrival, &tuple, tag, &seg, now);
            }
            None => self.listener_segment(ip, arrival, &tuple, tag, &seg, None, now),
        }
    }

    /// Hash tag of the flow a segment from `src` to `dst` belongs to.
    pub(crate) fn tag_of(&self, src: Ip, dst: Ip, src_port: u16, dst_port: u16) -> u32 {
        let local = Endpoint {
            ip: dst,
            port: dst_port,
        };
        let remote = Endpoint {
            ip: src,
            port: src_port,
        };
        self.demux.hash(&FourTuple { local, remote })
    }

    /// The flow of a tuple, as a segment that arrives on `arrival` would find it.
    pub(super) fn find(
        &self,
        tag: u32,
        tuple: &FourTuple,
        arrival: Option<IfaceId>,
    ) -> Option<Entry> {
        self.demux.find(tag, |e| match e {
            Entry::Conn(i) => self.conns[i].tuple() == *tuple && self.conns[i].hears(arrival),
            Entry::Embryo(i) => self.embryos[i].tuple == *tuple && self.embryos[i].hears(arrival),
            Entry::TimeWait(i) => self.time_waits.records[i].tuple() == *tuple,
        })
    }

    pub(super) fn conn_segment(
        &mut self,
        ip: &mut IpLayer,
        i: u32,
        arrival: IfaceId,
        tuple: &FourTuple,
        seg: &Segment<'_>,
        now: Instant,
    ) {
        let mut t = self.tcb(i, now);
        let answer = t.segment_arrives(seg);
        if t.progress {
            ip.neighbors.confirm(t.c.neighbor, now);
        }
        if answer == Answer::Reset {
            self.reset_reply(ip, arrival, tuple, seg, now);
        }
        if self.is_batch && self.conns[i].state == State::Established {
            // More of the same flow may follow at once: it is settled when it ends.
            self.train = i;
        } else {
            self.train = NONE;
            self.settle(i, now);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "as packet_arrives")]
    fn time_wait_segment(
        &mut self,
        ip: &mut IpLayer,
        i: u32,
        arrival: IfaceId,
        tuple: &FourTuple,
        tag: u32,
        seg: &Segment<'_>,
        now: Instant,
    ) {
        match self.time_waits.records[i].arrives(seg, now) {
            Verdict::Ignore => {}
            Verdict::Acknowledge => {
                let r = self.time_waits.records[i];
                if self.env.challenge.take(now) {
                    let mut plan = Plan::bare(r.snd_nxt, r.rcv_nxt, Control::ACK);
                    plan.timestamps = r.has_ts.then(|| options::Timestamps {
                        val: (now.as_millis() as u32).wrapping_add(r.ts_offset),
                        ecr: r.ts_recent(),
                    });
                    let via = IpLayer::reply_by(tuple.remote.ip, arrival);
                    self.send_bare(ip, via, tuple, &plan, now);
                }
            }
            Verdict::Reopen { isn } => {
                self.end_time_wait(i);
                self.listener_segment(ip, arrival, tuple, tag, seg, Some(isn), now);
            }
        }
    }

    pub(super) fn end_time_wait(&mut self, i: u32) {
        let tag = self.time_waits.records[i].tag;
        self.demux.remove(tag, Entry::TimeWait(i));
        self.time_waits.remove(i);
    }

    /// As [`Engine::reset_reply`], if the segment cannot be for another stack with the address.
    pub(super) fn reset_stranger(
        &mut self,
        ip: &mut IpLayer,
        arrival: IfaceId,
        tuple: &FourTuple,
        seg: &Segment<'_>,
        now: Instant,
    ) {
        match ip.strangers {
            Strangers::Ignored => {}
            Strangers::Spared if !seg.has(Control::SYN) => self.env.stats.strangers_spared += 1,
            _ => self.reset_reply(ip, arrival, tuple, seg, now),
        }
    }

    /// RFC 9293 §3.10.7.1: the reset for a segment that finds no connection.
    pub(super) fn reset_reply(
        &mut self,
        ip: &mut IpLayer,
        arrival: IfaceId,
        tuple: &FourTuple,
        seg: &Segment<'_>,
        now: Instant,
    ) {
        if seg.has(Control::RST) {
            return;
        }
        self.env.stats.resets_out += 1;
        let plan = if seg.has(Control::ACK) {
            Plan::bare(seg.ack, Seq(0), Control::RST)
        } else {
            Plan::bare(Seq(0), seg.end(), Control::RST.with(Control::ACK))
        };
        let via = IpLayer::reply_by(tuple.remote.ip, arrival);
        self.send_bare(ip, via, tuple, &plan, now);
    }

    /// Sends a segment that belongs to no connection record, over `via` only if that is given.
    pub(super) fn send_bare(
        &mut self,
        ip: &mut IpLayer,
        via: Option<IfaceId>,
        tuple: &FourTuple,
        plan: &Plan,
        now: Instant,
    ) {
        let mut meta = IpMeta::new(tuple.local.ip, tuple.remote.ip, IpProtocol::Tcp);
        meta.iface = via;
        self.env.stats.segments_out += 1;
        ip.send(now, &meta, plan.len(), Some(CHECKSUM_AT), |out| {
            plan.write_header(tuple.local.port, tuple.remote.port, out);
        });
    }
}
