//! What stands before a datagram on its way between processes.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use kcm_stack::{Datagram, IfaceId, Instant, UdpSendOptions};

use crate::errno::Errno;
use crate::net::name::{ADDRESS_BYTES, get, put};
use crate::net::udp::options::Wants;

/// A mark, which flags are set, and the fields.
pub(crate) const HEAD_BYTES: usize = 4 + 1 + 1 + 1 + 1 + 1 + 1 + 4 + 8 + 2 * ADDRESS_BYTES;
const MARK: [u8; 4] = *b"kcmu";

const FAR: u8 = 1;
const NEAR: u8 = 2;
const IFACE: u8 = 4;
const TTL: u8 = 8;
const TOS: u8 = 16;

/// What is told of a datagram, or asked for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Head {
    /// Instead of a datagram: an error of the socket.
    pub(crate) error: i32,
    /// Where it is from, or is to go.
    pub(crate) far: Option<SocketAddr>,
    /// The address of ours that it was sent to, or is to be sent from.
    pub(crate) near: Option<IpAddr>,
    pub(crate) iface: Option<IfaceId>,
    pub(crate) ttl: Option<u8>,
    pub(crate) tos: Option<u8>,
    /// What the socket wants to be told.
    pub(crate) wants: Wants,
    /// When it arrived, in microseconds of the engine's time, which is the same for all processes.
    pub(crate) at: u64,
}

impl Head {
    pub(crate) fn of_datagram(datagram: &Datagram, wants: Wants) -> Self {
        Self {
            error: 0,
            far: Some(datagram.from),
            near: Some(datagram.to.ip()),
            iface: Some(datagram.iface),
            ttl: Some(datagram.ttl),
            tos: Some(datagram.tos),
            wants,
            at: datagram.at.as_micros(),
        }
    }

    pub(crate) fn of_error(why: Errno) -> Self {
        Self {
            error: why.0,
            ..Self::default()
        }
    }

    pub(crate) fn to_send(to: Option<SocketAddr>, options: &UdpSendOptions) -> Self {
        Self {
            far: to,
            near: options.source,
            iface: options.iface,
            ttl: options.ttl,
            tos: options.tos,
            ..Self::default()
        }
    }

    /// Where it is to go, and how.
    pub(crate) fn of_send(&self) -> (Option<SocketAddr>, UdpSendOptions) {
        let options = UdpSendOptions {
            source: self.near,
            iface: self.iface,
            ttl: self.ttl,
            tos: self.tos,
        };
        (self.far, options)
    }

    /// The datagram as it came, but for its payload.
    pub(crate) fn to_datagram(self) -> Option<Datagram> {
        let far = self.far?;
        Some(Datagram {
            from: far,
            to: SocketAddr::new(self.near?, 0),
            iface: self.iface?,
            ttl: self.ttl?,
            tos: self.tos?,
            at: Instant::from_micros(self.at),
            data: Box::default(),
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut flags = 0;
        let mut flag = |bit, is_there: bool| flags |= if is_there { bit } else { 0 };
        flag(FAR, self.far.is_some());
        flag(NEAR, self.near.is_some());
        flag(IFACE, self.iface.is_some());
        flag(TTL, self.ttl.is_some());
        flag(TOS, self.tos.is_some());
        let mut bytes = MARK.to_vec();
        let iface = self.iface.map_or(0, |iface| iface.index() as u8);
        bytes.extend_from_slice(&[
            flags,
            iface,
            self.ttl.unwrap_or(0),
            self.tos.unwrap_or(0),
            self.wants.bits(),
            0,
        ]);
        bytes.extend_from_slice(&self.error.to_ne_bytes());
        bytes.extend_from_slice(&self.at.to_ne_bytes());
        let nowhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        put(&mut bytes, self.far.unwrap_or(nowhere));
        put(
            &mut bytes,
            SocketAddr::new(self.near.unwrap_or(nowhere.ip()), 0),
        );
        bytes
    }

    /// The head, and the payload behind it.
    pub(crate) fn before(&self, payload: &[u8]) -> Vec<u8> {
        let mut message = self.encode();
        message.extend_from_slice(payload);
        message
    }

    /// `None` for what begins otherwise.
    pub(crate) fn parse(message: &[u8]) -> Option<(Self, &[u8])> {
        let (head, payload) = message.split_at_checked(HEAD_BYTES)?;
        let (mark, rest) = head.split_first_chunk::<4>()?;
        let (bytes, rest) = rest.split_first_chunk::<6>()?;
        let (error, rest) = rest.split_first_chunk::<4>()?;
        let (at, addresses) = rest.split_first_chunk::<8>()?;
        let (far, near) = addresses.split_at_checked(ADDRESS_BYTES)?;
        if *mark != MARK {
            return None;
        }
        let [flags, iface, ttl, tos, wants, _] = *bytes;
        let has = |bit| flags & bit != 0;
        let head = Self {
            error: i32::from_ne_bytes(*error),
            far: get(far).filter(|_| has(FAR)),
            near: get(near).map(|near| near.ip()).filter(|_| has(NEAR)),
            iface: IfaceId::from_index(iface.into()).filter(|_| has(IFACE)),
            ttl: has(TTL).then_some(ttl),
            tos: has(TOS).then_some(tos),
            wants: Wants::of_bits(wants),
            at: u64::from_ne_bytes(*at),
        };
        Some((head, payload))
    }
}
