//! IPv6 extension headers (RFC 8200 §4).

use smoltcp::wire::{IpProtocol, Ipv6FragmentHeader};

use super::output::IPV6;
use super::reassembly::FRAGMENT_HEADER;

/// A fragment header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FragmentHeader {
    /// Where in the packet the header before it names it as the next.
    pub(crate) next_header_at: usize,
    /// In bytes.
    pub(crate) offset: usize,
    pub(crate) more: bool,
    pub(crate) ident: u32,
}

/// What follows the headers a host may skip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extensions {
    pub(crate) protocol: IpProtocol,
    /// Where in the packet it begins; behind the fragment header, if there is one.
    pub(crate) at: usize,
    pub(crate) fragment: Option<FragmentHeader>,
}

/// More headers than any honest packet has.
const HEADERS_MAX: usize = 8;

impl Extensions {
    /// Walks the chain of a packet whose fixed header is whole, up to the upper layer or the first
    /// fragment header. An atomic fragment is a whole packet (RFC 6946). `None` for chains that make
    /// no sense, and for routing headers with segments left: we are no router.
    pub(crate) fn walk(packet: &[u8]) -> Option<Self> {
        let mut next_header_at = 6;
        let mut at = IPV6;
        for _ in 0..HEADERS_MAX {
            let protocol = IpProtocol::from(*packet.get(next_header_at)?);
            let bytes = packet.get(at..)?;
            let len = match protocol {
                IpProtocol::HopByHop | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Route => {
                    let &[_, units, _, left, ..] = bytes else {
                        return None;
                    };
                    if protocol == IpProtocol::Ipv6Route && left != 0 {
                        return None;
                    }
                    (usize::from(units) + 1) * 8
                }
                IpProtocol::Ipv6Frag => {
                    let fields = bytes.get(2..FRAGMENT_HEADER)?;
                    let header = Ipv6FragmentHeader::new_checked(fields).ok()?;
                    if header.frag_offset() != 0 || header.more_frags() {
                        let fragment = FragmentHeader {
                            next_header_at,
                            offset: usize::from(header.frag_offset()) * 8,
                            more: header.more_frags(),
                            ident: header.ident(),
                        };
                        return Some(Self {
                            protocol: bytes[0].into(),
                            at: at + FRAGMENT_HEADER,
                            fragment: Some(fragment),
                        });
                    }
                    FRAGMENT_HEADER
                }
                _ => {
                    return Some(Self {
                        protocol,
                        at,
                        fragment: None,
                    });
                }
            };
            next_header_at = at;
            at += len;
        }
        None
    }

    /// Whether a first fragment shows all headers up to the upper layer's (RFC 7112 §5), which a
    /// filter on the way has to see. `data` follows the fragment header and begins with `protocol`.
    pub(crate) fn is_chain_whole(mut protocol: IpProtocol, data: &[u8]) -> bool {
        let mut at = 0;
        for _ in 0..HEADERS_MAX {
            let (header, next) = match protocol {
                IpProtocol::HopByHop | IpProtocol::Ipv6Opts | IpProtocol::Ipv6Route => {
                    let Some(&[next, units]) = data.get(at..at + 2) else {
                        return false;
                    };
                    ((usize::from(units) + 1) * 8, next)
                }
                // smoltcp's names end here; no next header and the unknown have nothing to show.
                IpProtocol::Tcp => return data.len() >= at + 20,
                IpProtocol::Udp | IpProtocol::Icmpv6 => return data.len() >= at + 8,
                _ => return true,
            };
            at += header;
            protocol = next.into();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fixed header followed by `chain`.
    fn packet(first: u8, chain: &[u8]) -> Vec<u8> {
        let mut p = vec![0; IPV6];
        p[6] = first;
        p.extend_from_slice(chain);
        p
    }

    #[test]
    fn skippable_headers_are_skipped_and_fragments_found() {
        let udp = |at| {
            Some(Extensions {
                protocol: IpProtocol::Udp,
                at,
                fragment: None,
            })
        };
        assert_eq!(Extensions::walk(&packet(17, &[])), udp(40));
        let hop = [17, 0, 1, 4, 0, 0, 0, 0];
        assert_eq!(Extensions::walk(&packet(0, &hop)), udp(48));
        let atomic = [17, 0, 0, 0, 1, 2, 3, 4];
        assert_eq!(Extensions::walk(&packet(44, &atomic)), udp(48));
        let chain = [
            &[44, 0, 1, 4, 0, 0, 0, 0][..],
            &[17, 0, 0x05, 0xa9, 1, 2, 3, 4],
        ]
        .concat();
        let fragment = FragmentHeader {
            next_header_at: 40,
            offset: 0x05a8,
            more: true,
            ident: 0x0102_0304,
        };
        assert_eq!(
            Extensions::walk(&packet(0, &chain)),
            Some(Extensions {
                protocol: IpProtocol::Udp,
                at: 56,
                fragment: Some(fragment),
            })
        );
    }

    #[test]
    fn chains_that_end_early_or_never_are_refused() {
        let bad = None;
        for len in 1..8 {
            // A header that is longer than the packet leaves nothing for the next.
            let p = packet(44, &[17, 0, 0x05, 0xa9, 1, 2, 3, 4][..len]);
            assert_eq!(Extensions::walk(&p), bad, "{len}");
        }
        assert_eq!(
            Extensions::walk(&packet(43, &[17, 0, 0, 1, 0, 0, 0, 0])),
            bad
        );
        assert_eq!(Extensions::walk(&packet(0, &[0; 8 * 9])), bad);
        assert_eq!(
            Extensions::walk(&packet(0, &[17, 9, 0, 0, 0, 0, 0, 0])),
            bad
        );
        assert!(!Extensions::is_chain_whole(IpProtocol::Udp, &[0; 7]));
        assert!(Extensions::is_chain_whole(IpProtocol::Udp, &[0; 8]));
        assert!(!Extensions::is_chain_whole(
            IpProtocol::HopByHop,
            &[17, 0, 0, 0, 0, 0, 0, 0]
        ));
        assert!(!Extensions::is_chain_whole(IpProtocol::HopByHop, &[0; 8]));
    }
}
