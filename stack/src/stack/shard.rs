//! Several stacks with the addresses of one: which of them a frame, a connection or a port belongs to.
//!
//! A pure function of ports, so that whoever has a frame, a program in the kernel included, comes to the
//! same answer as whoever opens a socket. TCP goes by both ports, in the same way seen from either end;
//! UDP by the local one, so that a socket without a peer has one home. What has no ports concerns
//! everybody.

use smoltcp::wire::IpProtocol;

use crate::addr::{Endpoint, Ip};
use crate::ip::ETHERNET;
use crate::limits::SHARDS_MAX;

/// Which of several stacks with the same addresses this is. Each is given the frames that
/// [`shard_of`] names it for, and those that concern all of them. It chooses local ports whose packets
/// come back to it; it answers for its own flows, and what the host as a whole is asked (ARP, echo,
/// neighbour discovery, memberships of its own addresses) only as the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: u8,
    count: u8,
}

impl Default for Shard {
    fn default() -> Self {
        Self::ONLY
    }
}

impl Shard {
    /// A stack that shares its addresses with no other.
    pub const ONLY: Self = Self { index: 0, count: 1 };

    /// The `index`th of `count`, counted from zero; `None` if there is no such one, or for more than
    /// [`SHARDS_MAX`].
    pub const fn new(index: u8, count: u8) -> Option<Self> {
        if index < count && count <= SHARDS_MAX {
            Some(Self { index, count })
        } else {
            None
        }
    }

    /// Which one, counted from zero.
    pub const fn index(self) -> u8 {
        self.index
    }

    /// Of how many.
    pub const fn count(self) -> u8 {
        self.count
    }

    /// Whether it answers what the host as a whole is asked.
    pub const fn speaks_for_host(self) -> bool {
        self.index == 0
    }

    /// Whether a TCP connection belongs to it.
    pub const fn has_flow(self, local_port: u16, remote_port: u16) -> bool {
        self.count == 1 || shard_of_flow(local_port, remote_port, self.count) == self.index
    }

    /// Whether a UDP port belongs to it.
    pub const fn has_udp(self, local_port: u16) -> bool {
        self.count == 1 || shard_of_udp(local_port, self.count) == self.index
    }
}

/// How a stack treats what concerns none of its sockets, where another stack has, or had, the same
/// addresses on the same link: each gets the frames of both, and a reset or an ICMP error by one would end
/// the other's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strangers {
    /// It is answered, as by any host.
    #[default]
    Answered,
    /// Another stack finishes what it has begun: a segment that finds no connection and opens none may be
    /// its, and is not answered.
    Spared,
    /// Another stack speaks for the host, or nobody does any more: nothing is answered but whose the addresses
    /// are.
    Ignored,
}

/// Whom a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belongs {
    /// The shard of this index.
    To(u8),
    /// Every one of them.
    All,
}

/// UDP port of DHCP's client. The first shard runs it, so the port has to belong there.
pub(crate) const UDP_OF_FIRST: u16 = crate::dhcp::CLIENT_PORT;

/// Spreads consecutive numbers, and numbers of one parity (Linux connects from even ports), over any
/// count: the fractional part of a multiple of the golden ratio fills the unit interval evenly.
pub(crate) const GOLDEN: u32 = 0x9e37_79b1;

/// Zero to zero.
const fn spread(key: u16, count: u8) -> u8 {
    let fraction = (key as u32).wrapping_mul(GOLDEN) >> 16;
    ((fraction * count as u32) >> 16) as u8
}

/// The shard, of `count`, of a TCP connection.
pub const fn shard_of_flow(local_port: u16, remote_port: u16, count: u8) -> u8 {
    spread(local_port ^ remote_port, count)
}

/// The shard, of `count`, of the UDP sockets on a port.
pub const fn shard_of_udp(local_port: u16, count: u8) -> u8 {
    spread(local_port ^ UDP_OF_FIRST, count)
}

/// What a frame says of whom it is for. Nothing in it is verified.
enum Address {
    Useless,
    /// It has no ports.
    Everybody,
    Ports {
        is_tcp: bool,
        src: u16,
        dst: u16,
    },
}

fn address(frame: &[u8]) -> Address {
    let (protocol, ports_at) = match field(frame, 12) {
        Some([0x08, 0x00]) => {
            let (Some([version_ihl]), Some([high, low])) = (field(frame, 14), field(frame, 20))
            else {
                return Address::Useless;
            };
            // More fragments, or an offset.
            if u16::from_be_bytes([high, low]) & 0x3fff != 0 {
                return Address::Everybody;
            }
            (
                field(frame, 23),
                ETHERNET + usize::from(version_ihl & 15) * 4,
            )
        }
        Some([0x86, 0xdd]) => (field(frame, 20), ETHERNET + 40),
        Some([0x08, 0x06]) => return Address::Everybody,
        _ => return Address::Useless,
    };
    let Some([protocol]) = protocol else {
        return Address::Useless;
    };
    let is_tcp = match IpProtocol::from(protocol) {
        IpProtocol::Tcp => true,
        IpProtocol::Udp => false,
        _ => return Address::Everybody,
    };
    let Some([a, b, c, d]) = field(frame, ports_at) else {
        return Address::Useless;
    };
    let (src, dst) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Address::Ports { is_tcp, src, dst }
}

/// Whom, of `count`, a received Ethernet frame is for. Nothing in it is verified; one that is of no use
/// to anybody goes to the first, to be counted.
pub fn shard_of(frame: &[u8], count: u8) -> Belongs {
    if count <= 1 {
        return Belongs::To(0);
    }
    match address(frame) {
        Address::Useless => Belongs::To(0),
        Address::Everybody => Belongs::All,
        Address::Ports { is_tcp, src, dst } => Belongs::To(match is_tcp {
            true => shard_of_flow(dst, src, count),
            false => shard_of_udp(dst, count),
        }),
    }
}

/// Sender and receiver of a UDP datagram that came in one frame; nothing is verified.
pub(crate) fn datagram_of(frame: &[u8]) -> Option<(Endpoint, Endpoint)> {
    let Address::Ports {
        is_tcp: false,
        src,
        dst,
    } = address(frame)
    else {
        return None;
    };
    let v4 = |at| Some(Ip::v4(u32::from_be_bytes(field(frame, at)?).into()));
    let v6 = |at| Some(Ip::v6(field::<16>(frame, at)?.into()));
    let (from, to) = match frame.get(12)? {
        0x08 => (v4(26)?, v4(30)?),
        _ => (v6(22)?, v6(38)?),
    };
    let at = |ip, port| Endpoint { ip, port };
    Some((at(from, src), at(to, dst)))
}

/// The `N` bytes at `at`.
fn field<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TCP: u8 = 6;
    const UDP: u8 = 17;

    /// An Ethernet frame with the ports where a header of the family puts them.
    fn frame(v4: bool, options: usize, protocol: u8, src: u16, dst: u16) -> Vec<u8> {
        let mut f = vec![0; 12];
        if v4 {
            f.extend([
                0x08,
                0x00,
                0x45 + options as u8,
                0,
                0,
                48,
                1,
                2,
                0x40,
                0,
                64,
                protocol,
            ]);
            f.resize(ETHERNET + 20 + options * 4, 0);
        } else {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, protocol, 64]);
            f.resize(ETHERNET + 40, 0);
        }
        f.extend(src.to_be_bytes());
        f.extend(dst.to_be_bytes());
        f.extend([0; 16]);
        f
    }

    proptest! {
        /// Who opens a socket and who finds a frame on the wire agree, and both ends of a connection.
        #[test]
        fn frames_belong_where_their_flow_does(
            (v4, options, count) in (any::<bool>(), 0..=10usize, 1..=SHARDS_MAX),
            (local, remote) in any::<(u16, u16)>(),
        ) {
            let tcp = shard_of(&frame(v4, options, TCP, remote, local), count);
            prop_assert_eq!(tcp, Belongs::To(shard_of_flow(local, remote, count)));
            prop_assert_eq!(tcp, shard_of(&frame(v4, options, TCP, local, remote), count));
            let udp = shard_of(&frame(v4, options, UDP, remote, local), count);
            prop_assert_eq!(udp, Belongs::To(shard_of_udp(local, count)));
            prop_assert!(shard_of_flow(local, remote, count) < count);
            prop_assert!(shard_of_udp(local, count) < count);
            prop_assert_eq!(shard_of_udp(UDP_OF_FIRST, count), 0);
        }

        #[test]
        fn any_bytes_belong_to_someone(
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
            kind in 0..6u16,
            count in any::<u8>(),
        ) {
            let mut bytes = bytes;
            if let Some(place) = bytes.get_mut(12..14) {
                let kinds = [0x0800, 0x86dd, 0x0806, 0x8100, 0x88a8, 0u16];
                place.copy_from_slice(&kinds[usize::from(kind)].to_be_bytes());
            }
            if let Belongs::To(index) = shard_of(&bytes, count) {
                prop_assert!(index < count.max(1));
            }
        }

        /// Cut short anywhere, a frame is still somebody's.
        #[test]
        fn truncated_frames_are_counted_by_the_first(v4 in any::<bool>(), keep in 0..38usize) {
            let whole = frame(v4, 0, TCP, 1, 2);
            let cut = shard_of(&whole[..keep.min(ETHERNET + if v4 { 23 } else { 43 })], 4);
            prop_assert_eq!(cut, Belongs::To(0));
        }
    }

    #[test]
    fn what_has_no_ports_concerns_all() {
        let first_fragment = {
            let mut f = frame(true, 0, UDP, 1, 2);
            f[20] = 0x20;
            f
        };
        let last_fragment = {
            let mut f = frame(true, 0, TCP, 1, 2);
            f[21] = 100;
            f
        };
        let mut arp = frame(true, 0, 0, 0, 0);
        arp[13] = 6;
        let mut all = vec![first_fragment, last_fragment, arp];
        // ICMP, IGMP; hop-by-hop options, fragment, ICMPv6.
        all.extend([1, 2].map(|p| frame(true, 0, p, 1, 2)));
        all.extend([0, 44, 58].map(|p| frame(false, 0, p, 1, 2)));
        for f in all {
            assert_eq!(shard_of(&f, 3), Belongs::All, "{f:?}");
            assert_eq!(shard_of(&f, 1), Belongs::To(0));
        }
        // VLAN tags, and what is no IP.
        for kind in [[0x81, 0], [0x88, 0xa8], [0x88, 0xcc]] {
            let mut f = frame(true, 0, TCP, 1, 2);
            f[12..14].copy_from_slice(&kind);
            assert_eq!(shard_of(&f, 3), Belongs::To(0));
        }
    }

    #[test]
    fn ports_as_hosts_choose_them_spread_evenly() {
        for (step, count) in [1u16, 2, 4, 7]
            .into_iter()
            .flat_map(|s| [2, 3, 4, 8].map(|c| (s, c)))
        {
            for port in [80, 6379, 11211, 40_001] {
                let mut flows = vec![0u32; usize::from(count)];
                let mut ports = flows.clone();
                for n in 0..2_000u16 {
                    let other = 32_768 + n * step;
                    flows[usize::from(shard_of_flow(port, other, count))] += 1;
                    ports[usize::from(shard_of_udp(other, count))] += 1;
                }
                let fair = 2_000 / u32::from(count);
                let even = |n: &u32| n.abs_diff(fair) < fair / 4;
                assert!(
                    flows.iter().all(even),
                    "step {step}, port {port}: {flows:?}"
                );
                assert!(ports.iter().all(even), "step {step}: {ports:?}");
            }
        }
    }

    #[test]
    fn there_are_as_many_as_there_are() {
        assert_eq!(Shard::new(0, 1), Some(Shard::ONLY));
        assert!(Shard::new(SHARDS_MAX - 1, SHARDS_MAX).is_some());
        for (index, count) in [(0, 0), (1, 1), (0, SHARDS_MAX + 1)] {
            assert_eq!(Shard::new(index, count), None);
        }
    }
}
