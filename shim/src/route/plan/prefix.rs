//! Addresses with prefix lengths.

use std::fmt;
use std::net::IpAddr;

/// An address and how many of its leading bits name the network. Bits behind them are kept: an
/// interface's own address is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) ip: IpAddr,
    pub(crate) len: u8,
}

impl Prefix {
    /// Parses `ADDRESS/LENGTH`, or an address alone, which is a prefix of full length.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (ip, len) = match text.split_once('/') {
            Some((ip, len)) => (ip, Some(len)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().ok()?;
        let len = match len {
            // u8's parser takes a sign.
            Some(len) if len.bytes().all(|b| b.is_ascii_digit()) => len.parse().ok()?,
            Some(_) => return None,
            None => width(ip),
        };
        (len <= width(ip)).then_some(Self { ip, len })
    }

    /// Whether `ip` lies in the network.
    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        let shift = u32::from(width(self.ip) - self.len);
        match (self.ip, ip) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let differ = net.to_bits() ^ ip.to_bits();
                differ.checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let differ = net.to_bits() ^ ip.to_bits();
                differ.checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }

    /// Whether it names one address.
    pub(crate) fn is_host(&self) -> bool {
        self.len == width(self.ip)
    }
}

/// Bits of an address of the family.
fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.len)
    }
}
