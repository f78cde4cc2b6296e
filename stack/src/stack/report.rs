//! What others say about our packets: ICMP errors, and neighbours that do not answer.

use smoltcp::wire::IpProtocol;

use super::Stack;
use crate::error::Cause;
use crate::ip::icmp::{self, Report, ReportKind};
use crate::ip::{ETHERNET, pmtu};
use crate::time::Instant;

impl Stack {
    pub(super) fn icmp_report(&mut self, r: &Report, now: Instant) {
        match (r.kind, r.protocol) {
            (ReportKind::PacketTooBig { mtu }, IpProtocol::Tcp) => {
                let dst = r.tuple.remote.ip;
                let believed = mtu.max(pmtu::floor(dst));
                // The connection vouches for the quote before the path cache believes it.
                if self.tcp.path_mtu_shrank(&r.tuple, r.seq, believed, now) {
                    self.ip.learn_pmtu(dst, mtu, now);
                }
            }
            (ReportKind::PacketTooBig { mtu }, IpProtocol::Udp) => {
                self.ip.learn_pmtu(r.tuple.remote.ip, mtu, now);
                self.udp.icmp_error(&r.tuple, Cause::MessageTooBig);
            }
            (ReportKind::Unreachable { cause, hard }, IpProtocol::Tcp) => {
                self.tcp.icmp_error(&r.tuple, r.seq, cause, hard, now);
            }
            // Linux's icmp_err_convert: of the others a socket hears only if it asks (IP_RECVERR).
            (
                ReportKind::Unreachable {
                    cause: cause @ (Cause::Refused | Cause::ProtocolUnreachable | Cause::Prohibited),
                    hard: true,
                },
                IpProtocol::Udp,
            ) => self.udp.icmp_error(&r.tuple, cause),
            _ => {}
        }
    }

    /// A frame of ours whose neighbour never answered: as if a router had said so.
    pub(super) fn undeliverable(&mut self, frame: &[u8], now: Instant) {
        let kind = ReportKind::Unreachable {
            cause: Cause::HostUnreachable,
            hard: true,
        };
        if let Some(report) = icmp::quoted_packet(&frame[ETHERNET..], kind) {
            self.icmp_report(&report, now);
        }
    }
}
