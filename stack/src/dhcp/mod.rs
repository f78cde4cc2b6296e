//! DHCP client (RFC 2131, RFC 2132) as a state machine: messages and the time in, messages, the lease
//! and the next deadline out. `stack/dhcp.rs` gives it an interface; nothing here knows one.

#[cfg(test)]
mod tests;

use core::net::Ipv4Addr;
use core::time::Duration;

use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress};

use crate::limits::{DHCP_LEASE_MIN, DHCP_RETRY_MAX};
use crate::secret::{Key, Rng};
use crate::time::Instant;

pub(crate) const CLIENT_PORT: u16 = 68;
pub(crate) const SERVER_PORT: u16 = 67;

/// RFC 2131 §4.1: the first wait for an answer; it doubles up to [`DHCP_RETRY_MAX`].
const RETRY: Duration = Duration::from_secs(4);
/// Requests unanswered before an offer is given up.
const REQUESTS_MAX: u32 = 4;
/// RFC 2131 §4.4.5: least time between attempts to extend a lease.
const EXTEND_RETRY_MIN: Duration = Duration::from_secs(60);
/// Some servers and relays expect messages of BOOTP's size (RFC 1542 §2.1).
const MESSAGE_BYTES_MIN: usize = 300;
/// Subnet mask, router, DNS servers.
const WANTED: [u8; 3] = [1, 3, 6];
const OPTION_ROUTER: u8 = 3;

/// An address we may use for a while, and what came with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhcpLease {
    /// Our address.
    pub address: Ipv4Addr,
    /// Length of its prefix.
    pub prefix_len: u8,
    /// Default router.
    pub router: Option<Ipv4Addr>,
    /// DNS servers, at most three.
    pub dns: Vec<Ipv4Addr>,
    /// The server that gave it.
    pub server: Ipv4Addr,
    /// When it ends; `FAR_FUTURE` if never.
    pub until: Instant,
}

/// States of RFC 2131 figure 5. INIT passes at once into SELECTING.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Selecting,
    Requesting {
        server: Ipv4Addr,
        address: Ipv4Addr,
    },
    Bound {
        renew_at: Instant,
        rebind_at: Instant,
    },
    /// Asking the server that gave the lease.
    Renewing {
        rebind_at: Instant,
    },
    /// Asking every server.
    Rebinding,
}

/// A message to send from [`CLIENT_PORT`] to [`SERVER_PORT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    /// The lease's address, or nothing yet.
    pub(crate) src: Ipv4Addr,
    pub(crate) dst: Ipv4Addr,
    pub(crate) bytes: Vec<u8>,
}

/// What happened to the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is new, or extended.
    Granted(DhcpLease),
    /// It may not be used any more.
    Lost(DhcpLease),
}

/// A client for one interface.
#[derive(Debug)]
pub(crate) struct Client {
    mac: EthernetAddress,
    state: State,
    lease: Option<DhcpLease>,
    xid: u32,
    /// When this attempt to get or extend a lease began.
    since: Instant,
    /// Messages of this state sent so far.
    tries: u32,
    next_at: Instant,
    rng: Rng,
}

impl Client {
    pub(crate) fn new(mac: EthernetAddress, key: Key, now: Instant) -> Self {
        let mut client = Self {
            mac,
            state: State::Selecting,
            lease: None,
            xid: 0,
            since: now,
            tries: 0,
            next_at: now,
            rng: Rng::new(key),
        };
        client.enter(State::Selecting, now);
        client
    }

    pub(crate) fn lease(&self) -> Option<&DhcpLease> {
        self.lease.as_ref()
    }

    pub(crate) const fn next_deadline(&self) -> Instant {
        self.next_at
    }

    fn enter(&mut self, state: State, now: Instant) {
        // A request answers an offer, so it keeps the offer's number (RFC 2131 §4.4.1).
        if !matches!(state, State::Requesting { .. }) {
            self.xid = self.rng.next_u64() as u32;
            self.since = now;
        }
        self.next_at = match state {
            State::Bound { renew_at, .. } => renew_at,
            _ => now,
        };
        self.tries = 0;
        self.state = state;
    }

    /// What is due: call until both are `None`, in any order of what comes.
    pub(crate) fn poll(&mut self, now: Instant) -> (Option<Message>, Option<Change>) {
        if now < self.next_at {
            return (None, None);
        }
        let until = self.lease.as_ref().map(|l| l.until);
        if until.is_some_and(|until| until <= now) {
            self.enter(State::Selecting, now);
            return (None, self.lease.take().map(Change::Lost));
        }
        match self.state {
            State::Bound { rebind_at, .. } => self.enter(State::Renewing { rebind_at }, now),
            State::Renewing { rebind_at } if rebind_at <= now => self.enter(State::Rebinding, now),
            State::Requesting { .. } if self.tries >= REQUESTS_MAX => {
                self.enter(State::Selecting, now);
            }
            _ => {}
        }
        let end = match self.state {
            State::Renewing { rebind_at } => Some(rebind_at),
            State::Rebinding => until,
            _ => None,
        };
        self.next_at = match end {
            // Half of what remains, but not more often than once a minute.
            Some(end) => {
                let half = end.since(now) / 2;
                (now + half.max(EXTEND_RETRY_MIN)).min(end)
            }
            None => {
                let wait = RETRY * (1 << self.tries.min(4));
                // Randomised by a second either way, so that a power cut is not followed by a flood.
                let jitter = self.rng.below(2_000_000);
                (now + wait.min(DHCP_RETRY_MAX)).plus_us(jitter.saturating_sub(1_000_000))
            }
        };
        self.tries += 1;
        (Some(self.message(now)), None)
    }

    fn message(&self, now: Instant) -> Message {
        let nowhere = Ipv4Addr::UNSPECIFIED;
        let ours = self.lease.as_ref().map_or(nowhere, |l| l.address);
        let (message_type, src, dst, server, wanted) = match self.state {
            State::Selecting => (DhcpMessageType::Discover, nowhere, None, None, None),
            State::Requesting { server, address } => {
                let request = DhcpMessageType::Request;
                (request, nowhere, None, Some(server), Some(address))
            }
            State::Bound { .. } | State::Renewing { .. } => {
                let server = self.lease.as_ref().map(|l| l.server);
                (DhcpMessageType::Request, ours, server, None, None)
            }
            State::Rebinding => (DhcpMessageType::Request, ours, None, None, None),
        };
        Message {
            src,
            dst: dst.unwrap_or(Ipv4Addr::BROADCAST),
            bytes: self.compose(message_type, src, server, wanted, now),
        }
    }

    fn compose(
        &self,
        message_type: DhcpMessageType,
        client_ip: Ipv4Addr,
        server_identifier: Option<Ipv4Addr>,
        requested_ip: Option<Ipv4Addr>,
        now: Instant,
    ) -> Vec<u8> {
        let nowhere = Ipv4Addr::UNSPECIFIED;
        let asks = message_type != DhcpMessageType::Release;
        let repr = DhcpRepr {
            message_type,
            transaction_id: self.xid,
            secs: now.since(self.since).as_secs().min(0xffff) as u16,
            client_hardware_address: self.mac,
            client_ip,
            your_ip: nowhere,
            server_ip: nowhere,
            router: None,
            subnet_mask: None,
            relay_agent_ip: nowhere,
            // We hear what comes to our hardware address before we have another.
            broadcast: false,
            requested_ip,
            client_identifier: Some(self.mac),
            server_identifier,
            parameter_request_list: asks.then_some(&WANTED),
            dns_servers: None,
            max_size: asks.then_some(1500),
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let mut bytes = vec![0; repr.buffer_len().max(MESSAGE_BYTES_MIN)];
        let mut packet = DhcpPacket::new_unchecked(&mut bytes[..]);
        // The buffer is as long as the message says; there is nothing to fail.
        let _ = repr.emit(&mut packet);
        bytes
    }

    /// Gives the lease back.
    pub(crate) fn release(&mut self, now: Instant) -> Option<(Message, DhcpLease)> {
        let lease = self.lease.take()?;
        self.xid = self.rng.next_u64() as u32;
        let release = DhcpMessageType::Release;
        let bytes = self.compose(release, lease.address, Some(lease.server), None, now);
        let message = Message {
            src: lease.address,
            dst: lease.server,
            bytes,
        };
        Some((message, lease))
    }

    /// A message came to [`CLIENT_PORT`]. What is not an answer to ours is ignored.
    pub(crate) fn arrives(&mut self, bytes: &[u8], now: Instant) -> Option<Change> {
        let packet = DhcpPacket::new_checked(bytes).ok()?;
        let m = DhcpRepr::parse(&packet).ok()?;
        if m.transaction_id != self.xid || m.client_hardware_address != self.mac {
            return None;
        }
        let router = packet
            .options()
            .find(|o| o.kind == OPTION_ROUTER)
            .and_then(|o| o.data.first_chunk::<4>().map(|a| Ipv4Addr::from(*a)));
        match (&self.state, m.message_type) {
            (State::Selecting, DhcpMessageType::Offer) => {
                let server = m.server_identifier.filter(is_usable)?;
                let address = Some(m.your_ip).filter(is_usable)?;
                self.enter(State::Requesting { server, address }, now);
                None
            }
            (State::Requesting { server, .. }, DhcpMessageType::Ack) => {
                let server = *server;
                self.granted(&m, server, router, now)
            }
            (State::Renewing { .. } | State::Rebinding, DhcpMessageType::Ack) => {
                let server = m.server_identifier.filter(is_usable);
                let server = server.or_else(|| self.lease.as_ref().map(|l| l.server))?;
                self.granted(&m, server, router, now)
            }
            (
                State::Requesting { .. } | State::Renewing { .. } | State::Rebinding,
                DhcpMessageType::Nak,
            ) => {
                self.enter(State::Selecting, now);
                self.lease.take().map(Change::Lost)
            }
            _ => None,
        }
    }

    fn granted(
        &mut self,
        m: &DhcpRepr<'_>,
        server: Ipv4Addr,
        router: Option<Ipv4Addr>,
        now: Instant,
    ) -> Option<Change> {
        let address = Some(m.your_ip).filter(is_usable)?;
        let mask = m.subnet_mask.map_or(u32::MAX << 8, Ipv4Addr::to_bits);
        let prefix_len = mask.leading_ones();
        if mask.checked_shl(prefix_len).unwrap_or(0) != 0 {
            return None;
        }
        let seconds = |s: u32| Duration::from_secs(s.into());
        // An endless lease needs no renewal; a very short one would keep everyone busy.
        let length = m.lease_duration.filter(|s| *s != u32::MAX).map(seconds);
        let length = length.map(|l| l.max(DHCP_LEASE_MIN));
        let (renew_at, rebind_at, until) = match length {
            None => (
                Instant::FAR_FUTURE,
                Instant::FAR_FUTURE,
                Instant::FAR_FUTURE,
            ),
            Some(length) => {
                let asked = |s: Option<u32>| s.map(seconds);
                let rebind = asked(m.rebind_duration).filter(|r| *r < length);
                let rebind = rebind.unwrap_or(length * 7 / 8);
                let renew = asked(m.renew_duration).filter(|r| *r < rebind);
                let renew = renew.unwrap_or((length / 2).min(rebind));
                (now + renew, now + rebind, now + length)
            }
        };
        let lease = DhcpLease {
            address,
            prefix_len: prefix_len as u8,
            router: router.filter(is_usable),
            dns: m.dns_servers.iter().flatten().copied().collect(),
            server,
            until,
        };
        self.lease = Some(lease.clone());
        self.enter(
            State::Bound {
                renew_at,
                rebind_at,
            },
            now,
        );
        Some(Change::Granted(lease))
    }
}

/// An address a host may have.
fn is_usable(a: &Ipv4Addr) -> bool {
    !a.is_unspecified() && !a.is_multicast() && !a.is_broadcast() && !a.is_loopback()
}
