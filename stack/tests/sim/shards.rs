//! Several stacks with the addresses of one behind a switch that knows `shard_of`, and a peer that is to
//! notice nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kcm_stack::{
    Belongs, Cause, Config, ConnectOptions, IfaceId, Instant, Key, ListenOptions, ListenerId,
    Received, RecvError, Shard, SocketError, Stack, Strangers, TcpId, UdpOpts, shard_of,
    shard_of_flow, shard_of_udp,
};

use crate::link::{Link, LinkConfig, Watchdog};
use crate::net::{MAC, ip, ip6};
use crate::world::World;

const HOST: usize = 0;
const PEER: usize = 1;
const SOON: Duration = Duration::from_secs(20);
/// Of [`questions`].
const RESOLUTION: usize = 2;

struct Shards {
    now: Instant,
    /// Side 0.
    shards: Vec<Stack>,
    /// Side 1.
    peer: Stack,
    /// By the side that sends.
    links: [Link; 2],
    /// What the host sent.
    tap: Vec<Vec<u8>>,
    buf: Vec<u8>,
    watchdog: Watchdog,
    /// They know nothing of each other, and each hears everything.
    are_strangers: bool,
}

impl Shards {
    /// Two stacks of different processes: one that leaves its addresses, and its heir.
    fn heirs(link: &LinkConfig, seed: u64) -> Self {
        let [mut w, other] = [seed, seed ^ 99].map(|seed| Self::new(1, link, seed));
        w.shards.extend(other.shards);
        w.are_strangers = true;
        w
    }

    fn new(count: u8, link: &LinkConfig, seed: u64) -> Self {
        let now = Instant::from_millis(1_000);
        let stack = |side: usize, shard| {
            let mut key = [side as u8; 16];
            key[8..].copy_from_slice(&seed.to_le_bytes());
            let mut config = Config::new(MAC[side], Key(key));
            config.shard = shard;
            let mut s = Stack::new(&config, now);
            s.add_address(ip(side), 24).unwrap();
            s.add_address(ip6(side), 64).unwrap();
            s
        };
        let shard = |index| stack(HOST, Shard::new(index, count).unwrap());
        Self {
            now,
            shards: (0..count).map(shard).collect(),
            peer: stack(PEER, Shard::ONLY),
            links: [0, 1].map(|side| Link::new(link.clone(), seed ^ side)),
            tap: Vec::new(),
            buf: vec![0; 2_000],
            watchdog: Watchdog::default(),
            are_strangers: false,
        }
    }

    fn count(&self) -> u8 {
        match self.are_strangers {
            true => 1,
            false => self.shards.len() as u8,
        }
    }

    /// The switch: a frame goes to the shard it belongs to, or to all `but` the one it came from.
    fn give(&mut self, frame: &[u8], but: Option<usize>, received: Received) {
        let whose = shard_of(frame, self.count());
        for (index, shard) in self.shards.iter_mut().enumerate() {
            if Some(index) != but && matches!(whose, Belongs::All)
                || whose == Belongs::To(index as u8)
                || self.are_strangers
            {
                shard.handle_frame(self.now, frame, received);
            }
        }
    }

    fn flush(&mut self) {
        while self.shards.iter().any(Stack::has_output) {
            for index in 0..self.shards.len() {
                let shard = &mut self.shards[index];
                while let Some(t) = shard.poll_transmit(self.now, &mut self.buf) {
                    self.links[HOST].send(self.now, &self.buf[..t.len]);
                    self.tap.push(self.buf[..t.len].to_vec());
                }
                while let Some((_, frame)) = self.shards[index].take_stray() {
                    let own = Belongs::To(index as u8);
                    assert_ne!(shard_of(&frame, self.count()), own);
                    self.give(&frame, Some(index), Received { checksum_ok: true });
                }
                self.shards[index].check_invariants();
            }
        }
        while let Some(t) = self.peer.poll_transmit(self.now, &mut self.buf) {
            self.links[PEER].send(self.now, &self.buf[..t.len]);
        }
    }

    /// What the host sends within a second of receiving `frame`.
    fn answers(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.run_for(Duration::from_secs(5));
        self.tap.clear();
        self.give(frame, None, Received::default());
        self.run_for(Duration::from_secs(1));
        core::mem::take(&mut self.tap)
    }

    /// A listener on the port in every shard.
    fn listen(&mut self, addr: IpAddr, port: u16) -> Vec<ListenerId> {
        let options = ListenOptions {
            backlog: 4_000,
            ..ListenOptions::default()
        };
        let on = SocketAddr::new(addr, port);
        let each = self.shards.iter_mut();
        each.map(|s| s.tcp_listen(on, &options).unwrap()).collect()
    }
}

impl World for Shards {
    fn now(&self) -> Instant {
        self.now
    }

    fn step(&mut self, until: Instant) -> bool {
        self.flush();
        let arrivals = self.links.iter().filter_map(Link::next_arrival);
        let deadlines = self.shards.iter().chain([&self.peer]);
        let deadlines = deadlines.filter_map(Stack::next_deadline);
        let Some(next) = arrivals.chain(deadlines).min().filter(|n| *n <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        self.watchdog.step(self.now);
        while let Some(frame) = self.links[PEER].arrive(self.now) {
            self.give(&frame, None, Received::default());
        }
        while let Some(frame) = self.links[HOST].arrive(self.now) {
            self.peer
                .handle_frame(self.now, &frame, Received::default());
        }
        for stack in self.shards.iter_mut().chain([&mut self.peer]) {
            stack.handle_timeout(self.now);
        }
        self.flush();
        true
    }
}

/// One end of a connection: `None` is the peer's.
type End = (Option<usize>, TcpId);

impl Shards {
    fn stack(&mut self, at: Option<usize>) -> &mut Stack {
        match at {
            Some(index) => &mut self.shards[index],
            None => &mut self.peer,
        }
    }

    fn say(&mut self, (at, id): End, text: &str) {
        let now = self.now;
        let sent = self.stack(at).tcp_send(now, id, &[text.as_bytes()], false);
        assert_eq!(sent, Ok(text.len()));
    }

    /// What has arrived, if it is as long as `text`.
    fn hears(&mut self, (at, id): End, text: &str) -> bool {
        let (now, mut buf) = (self.now, [0; 64]);
        match self.stack(at).tcp_recv(now, id, &mut buf) {
            Ok(n) => {
                assert_eq!(&buf[..n], text.as_bytes());
                true
            }
            Err(RecvError::WouldBlock) => false,
            Err(e) => panic!("{e:?}"),
        }
    }
}

/// Opens `each` connections from every shard to the peer and as many to the host as there are from all
/// shards together, in both families; each end tells the other its name.
fn connections(count: u8, each: usize, link: &LinkConfig) {
    let mut w = Shards::new(count, link, u64::from(count));
    let (to_peer, to_host) = (7_000, 8_000);
    let options = ListenOptions {
        backlog: 4_000,
        ..ListenOptions::default()
    };
    let any = SocketAddr::new("::".parse().unwrap(), to_peer);
    let at_peer = w.peer.tcp_listen(any, &options).unwrap();
    let at_host = w.listen("::".parse().unwrap(), to_host);
    let mut callers: Vec<End> = Vec::new();
    let none = ConnectOptions::default();
    for n in 0..each {
        let addr = |side| if n % 3 == 0 { ip6(side) } else { ip(side) };
        for index in 0..w.shards.len() {
            let (now, remote) = (w.now, SocketAddr::new(addr(PEER), to_peer));
            let id = w.shards[index].tcp_connect(now, remote, &none).unwrap();
            let (local, remote) = w.shards[index].tcp_addresses(id).unwrap();
            let home = shard_of_flow(local.port(), remote.port(), count);
            assert_eq!(usize::from(home), index);
            callers.push((Some(index), id));
            let remote = SocketAddr::new(addr(HOST), to_host);
            callers.push((None, w.peer.tcp_connect(now, remote, &none).unwrap()));
        }
        w.run_for(Duration::from_millis(1));
    }
    let total = callers.len() / 2;
    let mut called: Vec<End> = Vec::new();
    let mut share = vec![0usize; w.shards.len()];
    w.run_until(SOON, "handshakes", |w| {
        while let Some(id) = w.peer.tcp_accept(at_peer) {
            called.push((None, id));
        }
        for (index, l) in at_host.iter().enumerate() {
            while let Some(id) = w.shards[index].tcp_accept(*l) {
                called.push((Some(index), id));
                share[index] += 1;
            }
        }
        called.len() == 2 * total
    });
    let fair = total / share.len();
    assert!(
        share.iter().all(|n| n.abs_diff(fair) < fair / 2),
        "{share:?}"
    );
    // The name of a connection is the caller's address.
    let name = |w: &mut Shards, (at, id): End, caller: bool| {
        let (local, remote) = w.stack(at).tcp_addresses(id).unwrap();
        (if caller { local } else { remote }).to_string()
    };
    for (ends, caller) in [(&callers, true), (&called, false)] {
        for end in ends {
            let text = name(&mut w, *end, caller);
            w.say(*end, &text);
        }
    }
    let both = callers.iter().map(|e| (*e, true));
    let mut waiting: Vec<_> = both.chain(called.iter().map(|e| (*e, false))).collect();
    w.run_until(SOON, "greetings", |w| {
        waiting.retain(|(end, caller)| {
            let text = name(w, *end, *caller);
            !w.hears(*end, &text)
        });
        waiting.is_empty()
    });
    for (at, id) in callers.into_iter().chain(called) {
        let now = w.now;
        w.stack(at).tcp_close(now, id);
    }
    w.run_for(Duration::from_secs(400));
    let resets = |f: &&Vec<u8>| f[12..14] == [8, 0] && f[23] == 6 && f[47] & 4 != 0;
    assert_eq!(w.tap.iter().filter(resets).count(), 0);
    for s in w.shards.iter().chain([&w.peer]) {
        assert_eq!((s.flow_count(), s.stream_bytes()), (0, 0));
    }
}

#[test]
fn thousands_of_connections_both_ways_find_their_shards() {
    for count in [1, 2, 3, 4, 8] {
        connections(count, 1_200 / usize::from(count), &LinkConfig::default());
    }
}

#[test]
fn connections_find_their_shards_over_a_bad_link() {
    let link = LinkConfig {
        loss: 20_000,
        duplicate: 20_000,
        reorder: 50_000,
        corrupt: 5_000,
        ..LinkConfig::default()
    };
    connections(4, 100, &link);
}

/// IPv6's fragment header, which has no checksum.
const FRAGMENT: u8 = 44;

/// A packet from the peer in an Ethernet frame, its lengths and checksums filled in.
fn packet(six: bool, protocol: u8, hops: u8, transport: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if six { [0x86, 0xdd] } else { [8, 0] };
    let mut f = [&MAC[HOST][..], &MAC[PEER], &kind].concat();
    let len = transport.len() as u16;
    let mut sum = checksum_of(transport, 0);
    if six {
        f.extend([0x60, 0, 0, 0]);
        f.extend(len.to_be_bytes());
        f.extend([protocol, hops]);
    } else {
        f.extend([0x45, 0]);
        f.extend((20 + len).to_be_bytes());
        f.extend([0, 9, 0, 0, hops, protocol, 0, 0]);
    }
    let ip_at = f.len();
    for side in [PEER, HOST] {
        match if six { ip6(side) } else { ip(side) } {
            IpAddr::V4(a) => f.extend(a.octets()),
            IpAddr::V6(a) => f.extend(a.octets()),
        }
    }
    if protocol != 1 {
        let pseudo = [&f[ip_at..], &[0, protocol], &len.to_be_bytes()].concat();
        sum = checksum_of(&pseudo, sum);
    }
    let at = f.len()
        + match protocol {
            6 => 16,
            17 => 6,
            _ => 2,
        };
    f.extend(transport);
    if protocol != FRAGMENT {
        f[at..at + 2].copy_from_slice(&fold(sum));
    }
    if !six {
        let sum = fold(checksum_of(&f[14..34], 0));
        f[24..26].copy_from_slice(&sum);
    }
    f
}

fn checksum_of(bytes: &[u8], from: u32) -> u32 {
    let word = |c: &[u8]| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b));
    bytes.chunks(2).map(word).sum::<u32>() + from
}

fn fold(mut sum: u32) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!(sum as u16)).to_be_bytes()
}

fn echo(six: bool, len: usize) -> Vec<u8> {
    let mut m = vec![7; len];
    m[..8].copy_from_slice(&[if six { 128 } else { 8 }, 0, 0, 0, 1, 2, 3, 4]);
    packet(six, if six { 58 } else { 1 }, 64, &m)
}

/// A SYN, or an empty datagram, to a port.
fn knock(six: bool, tcp: bool, port: u16) -> Vec<u8> {
    let mut t = vec![0; if tcp { 20 } else { 8 }];
    t[..2].copy_from_slice(&5_555u16.to_be_bytes());
    t[2..4].copy_from_slice(&port.to_be_bytes());
    if tcp {
        t[12..16].copy_from_slice(&[0x50, 2, 4, 0]);
    } else {
        t[5] = 8;
    }
    packet(six, if tcp { 6 } else { 17 }, 64, &t)
}

/// The same packet in two fragments of IPv4.
fn in_two(frame: &[u8]) -> [Vec<u8>; 2] {
    let payload = &frame[34..];
    [(0, &payload[..16]), (2u16, &payload[16..])].map(|(offset, part)| {
        let mut f = [&frame[..34], part].concat();
        f[16..18].copy_from_slice(&(20 + part.len() as u16).to_be_bytes());
        let more = if offset == 0 { 0x2000 } else { 0 };
        f[20..22].copy_from_slice(&(offset | more).to_be_bytes());
        f[24..26].fill(0);
        let sum = fold(checksum_of(&f[14..34], 0));
        f[24..26].copy_from_slice(&sum);
        f
    })
}

/// Frames that a host answers with one frame each.
/// The first [`RESOLUTION`] ask whose an address is.
fn questions() -> Vec<Vec<u8>> {
    let arp = {
        let mut f = [&[0xff; 6][..], &MAC[PEER], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
        f.extend(MAC[PEER]);
        f.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
        f
    };
    let solicit = {
        let IpAddr::V6(target) = ip6(HOST) else {
            unreachable!()
        };
        let mut m = vec![135, 0, 0, 0, 0, 0, 0, 0];
        m.extend(target.octets());
        m.extend([1, 1]);
        m.extend(MAC[PEER]);
        packet(true, 58, 255, &m)
    };
    let header_chain = {
        // A first fragment that ends before the ports.
        let mut m = vec![17, 0, 0, 1, 0, 0, 0, 1];
        m.extend([0; 4]);
        packet(true, FRAGMENT, 64, &m)
    };
    let mut asked: Vec<Vec<u8>> = vec![arp, solicit, header_chain];
    for six in [false, true] {
        asked.extend([echo(six, 8), echo(six, 1_000)]);
        for port in 1..40 {
            asked.extend([knock(six, true, port), knock(six, false, port)]);
        }
    }
    asked
}

#[test]
fn what_the_host_is_asked_is_answered_once() {
    for count in [2, 3, 4] {
        let mut w = Shards::new(count, &LinkConfig::default(), 5);
        // Neighbours are known, and new addresses have been reported to routers.
        let (peer, mac) = (ip(PEER), MAC[PEER]);
        for s in &mut w.shards {
            s.add_neighbor(peer, mac, w.now);
            s.add_neighbor(ip6(PEER), mac, w.now);
        }
        w.run_for(SOON);
        let reports = w
            .tap
            .iter()
            .filter(|f| f[12..14] == [0x86, 0xdd] && f[20] == 0);
        assert_eq!(reports.count(), 2, "one address, told twice");

        for frame in questions() {
            let answers = w.answers(&frame);
            assert_eq!(
                answers.len(),
                1,
                "{count} shards, {frame:02x?}: {answers:02x?}"
            );
        }
        // Nothing is said of what does not ask.
        let query = |six: bool| {
            let report = if six { 131 } else { 0x16 };
            packet(
                six,
                if six { 58 } else { 2 },
                1,
                &[report, 0, 0, 0, 0, 0, 0, 0],
            )
        };
        for frame in [query(false), query(true), echo(false, 8)[..20].to_vec()] {
            assert_eq!(w.answers(&frame).len(), 0);
        }
    }
}

#[test]
fn fragments_come_to_all_and_are_answered_by_one() {
    for count in [2, 3, 4] {
        let mut w = Shards::new(count, &LinkConfig::default(), 6);
        for s in &mut w.shards {
            s.add_neighbor(ip(PEER), MAC[PEER], w.now);
        }
        for whole in [echo(false, 100), knock(false, true, 9)] {
            let [a, b] = in_two(&whole);
            assert_eq!(w.answers(&a).len(), 0);
            // The pieces are within the time that fragments wait for each other.
            w.tap.clear();
            w.give(&b, None, Received::default());
            w.run_for(Duration::from_secs(1));
            assert_eq!(w.tap.len(), 1, "{count} shards");
            // The second half never comes.
            w.give(&a, None, Received::default());
            w.tap.clear();
            w.run_for(Duration::from_secs(40));
            w.tap.retain(|f| f[12..14] == [8, 0]);
            assert_eq!(w.tap.len(), 1, "{count} shards: {:02x?}", w.tap);
            assert_eq!(w.tap[0][34], 11, "time exceeded");
        }
        // Datagrams larger than the link, both ways, on a port of each shard.
        for port in (1_000..).step_by(7).take(20) {
            let home = usize::from(shard_of_udp(port, count));
            let on = |side| SocketAddr::new(ip(side), port);
            let here = w.shards[home].udp_bind(on(HOST), false).unwrap();
            let there = w.peer.udp_bind(on(PEER), false).unwrap();
            let now = w.now;
            let big = [9; 5_000];
            assert_eq!(
                w.shards[home].udp_send(now, here, Some(on(PEER)), &[&big]),
                Ok(5_000)
            );
            assert_eq!(
                w.peer.udp_send(now, there, Some(on(HOST)), &[&big]),
                Ok(5_000)
            );
            w.run_for(Duration::from_secs(1));
            assert_eq!(*w.shards[home].udp_recv(here).unwrap().data, big);
            assert_eq!(*w.peer.udp_recv(there).unwrap().data, big);
            assert!(w.shards[home].udp_recv(here).is_err() && w.peer.udp_recv(there).is_err());
        }
    }
}

#[test]
fn udp_sockets_live_where_their_port_does() {
    let count = 4;
    let mut w = Shards::new(count, &LinkConfig::default(), 7);
    let any = |port| SocketAddr::new("0.0.0.0".parse().unwrap(), port);
    let server = w.peer.udp_bind(any(53), false).unwrap();
    let mut asked = 0;
    for round in 0..50u8 {
        for index in 0..count {
            let s = &mut w.shards[usize::from(index)];
            let id = s.udp_bind(any(0), false).unwrap();
            let port = s.udp_addresses(id).unwrap().0.port();
            assert_eq!(shard_of_udp(port, count), index);
            let now = w.now;
            let to = Some(SocketAddr::new(ip(PEER), 53));
            s.udp_send(now, id, to, &[&[round, index]]).unwrap();
            w.run_for(Duration::from_millis(10));
            let question = w.peer.udp_recv(server).unwrap();
            assert_eq!(*question.data, [round, index]);
            let now = w.now;
            let answered = w
                .peer
                .udp_send(now, server, Some(question.from), &[&[index]]);
            assert_eq!(answered, Ok(1));
            w.run_for(Duration::from_millis(10));
            let s = &mut w.shards[usize::from(index)];
            assert_eq!(*s.udp_recv(id).unwrap().data, [index]);
            asked += 1;
        }
    }
    assert_eq!(asked, 200);
    assert!(w.peer.udp_recv(server).is_err());
    // A port of another shard is refused, and so is a connection that would be answered elsewhere.
    let home = usize::from(shard_of_udp(9_000, count));
    for (index, s) in w.shards.iter_mut().enumerate() {
        let bound = s.udp_bind(any(9_000), false).map(drop);
        let refused = Err(SocketError::AddressNotAvailable);
        assert_eq!(bound, if index == home { Ok(()) } else { refused });
        let remote = SocketAddr::new(ip(PEER), 80);
        let from_9000 = ConnectOptions {
            local: Some(any(9_000)),
            ..ConnectOptions::default()
        };
        let connected = s.tcp_connect(w.now, remote, &from_9000).map(drop);
        let is_home = usize::from(shard_of_flow(9_000, 80, count)) == index;
        assert_eq!(connected, if is_home { Ok(()) } else { refused });
    }
    let started = w.shards[1].dhcp_start(w.now, IfaceId::FIRST);
    assert_eq!(started, Err(SocketError::InvalidState));
}

#[test]
fn errors_reach_the_shard_they_concern() {
    for count in [2, 4] {
        let mut w = Shards::new(count, &LinkConfig::default(), 8);
        let nobody = SocketAddr::new(ip(PEER), 4_444);
        for index in 0..w.shards.len() {
            let now = w.now;
            let s = &mut w.shards[index];
            let any = SocketAddr::new("0.0.0.0".parse().unwrap(), 0);
            let udp = s.udp_bind(any, false).unwrap();
            s.udp_connect(udp, Some(nobody)).unwrap();
            s.udp_send(now, udp, None, &[b"?"]).unwrap();
            let tcp = s.tcp_connect(now, nobody, &ConnectOptions::default());
            let tcp = tcp.unwrap();
            w.run_for(SOON);
            let s = &mut w.shards[index];
            assert_eq!(s.udp_take_error(udp), Some(Cause::Refused));
            assert_eq!(s.tcp_take_error(tcp), Some(Cause::Refused));
        }
    }
}

#[test]
fn the_host_talks_to_itself_across_shards() {
    let count = 4;
    let mut w = Shards::new(count, &LinkConfig::default(), 9);
    let own = |port| SocketAddr::new(ip(HOST), port);
    let listeners = w.listen(ip(HOST), 80);
    let mut receivers = Vec::new();
    for port in 2_000..2_016 {
        let home = usize::from(shard_of_udp(port, count));
        let id = w.shards[home].udp_bind(own(port), false).unwrap();
        receivers.push((home, id, own(port)));
    }
    for (index, listener) in listeners.into_iter().enumerate() {
        let from = w.shards[index].udp_bind(own(0), false).unwrap();
        for (home, id, to) in &receivers {
            let now = w.now;
            for len in [3, 4_000] {
                let sent = w.shards[index].udp_send(now, from, Some(*to), &[&vec![1; len]]);
                assert_eq!(sent, Ok(len));
                w.run_for(Duration::from_millis(1));
                let got = w.shards[*home].udp_recv(*id);
                assert_eq!(got.map(|d| d.data.len()), Ok(len), "{index} to {home}");
                assert_eq!(w.shards[*home].udp_recv(*id), Err(RecvError::WouldBlock));
            }
        }
        // Nobody there: the shard of that port says so to the one that asked.
        let closed = (3_000..).find(|p| usize::from(shard_of_udp(*p, count)) != index);
        let s = &mut w.shards[index];
        s.udp_connect(from, Some(own(closed.unwrap()))).unwrap();
        s.udp_send(w.now, from, None, &[b"?"]).unwrap();
        w.run_for(Duration::from_millis(1));
        assert_eq!(w.shards[index].udp_take_error(from), Some(Cause::Refused));

        let now = w.now;
        let none = ConnectOptions::default();
        let caller = w.shards[index].tcp_connect(now, own(80), &none).unwrap();
        w.run_for(Duration::from_millis(1));
        let called = w.shards[index].tcp_accept(listener).unwrap();
        w.say((Some(index), caller), "self");
        w.run_for(Duration::from_millis(1));
        assert!(w.hears((Some(index), called), "self"));
    }
    let heard = w.tap.iter().filter(|f| f[..6] == MAC[PEER]);
    assert_eq!(heard.count(), 0, "nothing of it is the network's business");
}

#[test]
fn groups_are_heard_and_reported_by_the_shard_that_joined() {
    let count = 3;
    let mut w = Shards::new(count, &LinkConfig::default(), 10);
    let group: IpAddr = [239, 1, 2, 3].into();
    let any = |port| SocketAddr::new("0.0.0.0".parse().unwrap(), port);
    let port = (5_000..).find(|p| shard_of_udp(*p, count) == 2).unwrap();
    let member = w.shards[2].udp_bind(any(port), false).unwrap();
    w.shards[2].udp_join(member, group, None).unwrap();
    w.run_for(SOON);
    let is_igmp = |f: &&Vec<u8>| f[12..14] == [8, 0] && f[23] == 2;
    assert_eq!(w.tap.iter().filter(is_igmp).count(), 2);
    // From outside, and from a shard that does not hear it.
    let sender = w.peer.udp_bind(any(0), false).unwrap();
    let to = Some(SocketAddr::new(group, port));
    w.peer.udp_send(w.now, sender, to, &[b"out"]).unwrap();
    w.run_for(SOON);
    assert_eq!(*w.shards[2].udp_recv(member).unwrap().data, *b"out");
    let s = &mut w.shards[0];
    let sender = s.udp_bind(any(0), false).unwrap();
    s.udp_set_opts(sender, UdpOpts::default()).unwrap();
    // Once, whether the sender's own shard hears the group or not.
    for joins in [false, true] {
        if joins {
            w.shards[0].udp_join(sender, group, None).unwrap();
        }
        w.shards[0].udp_send(w.now, sender, to, &[b"in"]).unwrap();
        w.run_for(SOON);
        assert_eq!(*w.shards[2].udp_recv(member).unwrap().data, *b"in");
        assert_eq!(w.shards[2].udp_recv(member), Err(RecvError::WouldBlock));
    }
}

#[test]
fn addressing_is_copied_from_one_shard_to_the_others() {
    let mut w = Shards::new(2, &LinkConfig::default(), 11);
    w.shards[0].remove_address(IfaceId::FIRST, ip(HOST));
    let new: IpAddr = [10, 0, 0, 77].into();
    let new6: IpAddr = "fd00::77".parse().unwrap();
    let far = SocketAddr::new([8, 8, 8, 8].into(), 80);
    w.shards[0].add_address(new, 24).unwrap();
    w.shards[0].add_address(new6, 64).unwrap();
    w.shards[0]
        .add_route([0, 0, 0, 0].into(), 0, Some(ip(PEER)))
        .unwrap();
    let wanted = w.shards[0].addressing();
    assert_ne!(w.shards[1].addressing(), wanted);
    w.run_for(SOON);
    w.tap.clear();
    w.shards[1].set_addressing(&wanted).unwrap();
    assert_eq!(w.shards[1].addressing(), wanted);
    w.run_for(SOON);
    assert!(w.tap.is_empty(), "told by the first");
    assert!(!w.shards[1].is_local(ip(HOST)) && w.shards[1].is_local(new6));
    assert_eq!(w.shards[1].source_for(far.ip()), Ok(new));
    let none = ConnectOptions::default();
    w.shards[1].tcp_connect(w.now, far, &none).unwrap();
    w.run_for(Duration::from_secs(1));
    assert!(
        w.tap
            .iter()
            .any(|f| f[12..14] == [8, 0] && f[30..34] == [8; 4])
    );
    // Interfaces of another stack mean nothing.
    let link = kcm_stack::InterfaceConfig::new(MAC[HOST]);
    let second = w.shards[0].add_interface(&link).unwrap();
    w.shards[0]
        .add_address_on(second, [10, 9, 0, 1].into(), 24)
        .unwrap();
    let other = w.shards[0].addressing();
    let set = w.shards[1].set_addressing(&other);
    assert_eq!(set, Err(SocketError::NoInterface));
    assert_eq!(w.shards[1].addressing(), wanted);
}

/// What one stack has begun is finished while another has its addresses, and neither ends what it knows
/// nothing of.
#[test]
fn what_is_left_is_finished_beside_an_heir() {
    let link = LinkConfig {
        loss: 30_000,
        reorder: 30_000,
        ..LinkConfig::default()
    };
    for seed in 0..20 {
        let mut w = Shards::heirs(&link, seed);
        let at_peer = (w.peer).tcp_listen(SocketAddr::new(ip(PEER), 7_000), &Default::default());
        let (at_peer, none) = (at_peer.unwrap(), ConnectOptions::default());
        let open = |w: &mut Shards, index: usize| {
            let (now, remote) = (w.now, SocketAddr::new(ip(PEER), 7_000));
            let id = w.shards[index].tcp_connect(now, remote, &none).unwrap();
            let mut other = None;
            w.run_until(SOON, "a connection", |w| {
                other = other.or_else(|| w.peer.tcp_accept(at_peer));
                other.is_some()
            });
            (id, other.unwrap())
        };
        w.shards[1].set_strangers(Strangers::Ignored); // not there yet
        let (left, heard) = open(&mut w, 0);
        let bytes: Vec<u8> = (0..60_000u32).map(|n| (n >> 3) as u8).collect();
        let now = w.now;
        assert_eq!(
            w.shards[0].tcp_send(now, left, &[&bytes], false),
            Ok(bytes.len())
        );
        w.shards[0].tcp_close(now, left);
        w.shards[0].set_strangers(Strangers::Ignored);
        w.shards[1].set_strangers(Strangers::Spared);
        let (mine, its) = open(&mut w, 1);
        w.say((Some(1), mine), "from the heir");
        w.run_until(SOON, "a greeting", |w| {
            w.hears((None, its), "from the heir")
        });
        let mut got: Vec<u8> = Vec::new();
        w.run_until(Duration::from_secs(200), "what is left", |w| {
            let (now, mut buf) = (w.now, [0; 4_000]);
            loop {
                match w.peer.tcp_recv(now, heard, &mut buf) {
                    Ok(0) => return true,
                    Ok(n) => got.extend_from_slice(&buf[..n]),
                    Err(RecvError::WouldBlock) => return false,
                    Err(why) => panic!("seed {seed}: {why:?}"),
                }
            }
        });
        assert!(got == bytes, "seed {seed}");
        let now = w.now;
        w.peer.tcp_close(now, heard);
        w.run_for(SOON);
        assert!(!w.shards[0].is_unfinished(), "seed {seed}");
        w.say((None, its), "to the heir");
        w.run_until(SOON, "an answer", |w| {
            w.hears((Some(1), mine), "to the heir")
        });
    }
}

/// What a stack has begun needs a neighbour that knows where it is, heir or none.
#[test]
fn who_leaves_its_addresses_still_says_whose_they_are() {
    let mut w = Shards::new(1, &LinkConfig::default(), 5);
    w.shards[0].set_strangers(Strangers::Ignored);
    w.shards[0].add_neighbor(ip6(PEER), MAC[PEER], w.now);
    let mut asked = questions().into_iter();
    for frame in asked.by_ref().take(RESOLUTION) {
        assert_eq!(w.answers(&frame).len(), 1, "{frame:02x?}");
    }
    for frame in asked {
        assert_eq!(w.answers(&frame).len(), 0, "{frame:02x?}");
    }
}

/// A stack that gives its addresses up says what it has left of them, and keeps no TIME-WAIT.
#[test]
fn what_is_left_is_known_and_time_wait_can_be_forgotten() {
    let mut w = Shards::new(1, &LinkConfig::default(), 1);
    let any = SocketAddr::new("::".parse().unwrap(), 7_000);
    let at_peer = w.peer.tcp_listen(any, &ListenOptions::default()).unwrap();
    let mut open = Vec::new();
    for addr in [ip(PEER), ip6(PEER), ip(PEER)] {
        let (now, remote) = (w.now, SocketAddr::new(addr, 7_000));
        let none = ConnectOptions::default();
        let ours = w.shards[0].tcp_connect(now, remote, &none).unwrap();
        w.run_for(Duration::from_secs(1));
        let theirs = w.peer.tcp_accept(at_peer).unwrap();
        let names = w.shards[0].tcp_addresses(ours).unwrap();
        open.push((ours, theirs, names));
    }
    let names = |all: &[(TcpId, TcpId, (SocketAddr, SocketAddr))]| {
        all.iter().map(|(_, _, names)| *names).collect::<Vec<_>>()
    };
    let host = |w: &Shards| {
        let (of, waits) = (w.shards[0].tcp_connections(), w.shards[0].tcp_time_waits());
        (of.collect::<Vec<_>>(), waits.collect::<Vec<_>>())
    };
    assert_eq!(host(&w), (names(&open), vec![]));
    for (ours, theirs, _) in &open[..2] {
        let now = w.now;
        w.shards[0].tcp_close(now, *ours);
        w.run_for(Duration::from_secs(1));
        let now = w.now;
        w.peer.tcp_close(now, *theirs);
        w.run_for(Duration::from_secs(1));
    }
    assert_eq!(host(&w), (names(&open[2..]), names(&open[..2])));
    w.shards[0].tcp_forget_time_waits();
    assert_eq!(host(&w), (names(&open[2..]), vec![]));
    w.run_for(Duration::from_secs(100)); // their timers find nothing any more
    assert_eq!(w.shards[0].flow_count(), 1);
}

/// Of the two, the heir speaks for the host; what it does not know it leaves alone until the other is gone.
#[test]
fn the_heir_answers_for_the_host() {
    let mut w = Shards::heirs(&LinkConfig::default(), 5);
    w.shards[0].set_strangers(Strangers::Ignored);
    w.shards[1].set_strangers(Strangers::Spared);
    for s in &mut w.shards {
        s.add_neighbor(ip(PEER), MAC[PEER], w.now);
        s.add_neighbor(ip6(PEER), MAC[PEER], w.now);
    }
    w.run_for(SOON);
    for frame in questions().into_iter().skip(RESOLUTION) {
        assert_eq!(w.answers(&frame).len(), 1, "{frame:02x?}");
    }
    let mut stray = knock(false, true, 9);
    stray[47] = 0x10; // ACK
    let stray = packet(false, 6, 64, &{
        let mut t = stray[34..].to_vec();
        t[16..18].fill(0);
        t
    });
    assert_eq!(w.answers(&stray).len(), 0);
    assert_eq!(w.shards[1].tcp_stats().strangers_spared, 1);
    w.shards[1].set_strangers(Strangers::Answered);
    assert_eq!(w.answers(&stray).len(), 1);
}
