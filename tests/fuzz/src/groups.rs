//! Multicast groups of sockets that choose whom they hear, under queries of any kind: a datagram reaches
//! whoever wants it and nobody else, reports end, and nothing is left of groups that nobody is in.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use kcm_stack::{
    Config, FilterMode, Instant, Key, Received, Reuse, SourceChange, Stack, UdpBindOptions, UdpId,
    UdpOpts,
};

use crate::bpf_gen::Source;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SOCKETS: usize = 4;
const HOSTS: u8 = 5;
const GROUPS: u8 = 2;
/// Reports, each said a few times, of each group; queries add one answer for each group.
const DEADLINES_MAX: usize = 1_000;

struct World {
    six: bool,
    now: Instant,
    stack: Stack,
    sockets: Vec<UdpId>,
}

impl World {
    fn new(six: bool) -> Self {
        let now = Instant::from_millis(1_000);
        let mut stack = Stack::new(&Config::new(MAC, Key([7; 16])), now);
        let own = ip(six, 99);
        stack.add_address(own, 24).expect("room for one");
        let any: IpAddr = if six { [0; 16].into() } else { [0; 4].into() };
        let options = UdpBindOptions {
            reuse: Reuse::Address,
            ..UdpBindOptions::default()
        };
        let sockets = (0..SOCKETS).map(|n| {
            let id = stack
                .udp_bind_with(SocketAddr::new(any, 5_000), &options)
                .expect("a port that is shared");
            let opts = UdpOpts {
                multicast_all: n == 0,
                ..UdpOpts::default()
            };
            stack.udp_set_opts(id, opts).expect("no interface is named");
            id
        });
        let sockets = sockets.collect();
        Self {
            six,
            now,
            stack,
            sockets,
        }
    }

    fn flush(&mut self) {
        let mut frame = vec![0; self.stack.frame_bytes_max()];
        while self.stack.poll_transmit(self.now, &mut frame).is_some() {}
        while self.stack.poll_event().is_some() {}
        self.stack.check_invariants();
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..DEADLINES_MAX {
            match self.stack.next_deadline().filter(|due| *due <= end) {
                Some(due) => self.now = self.now.max(due),
                None => {
                    self.now = end;
                    return;
                }
            }
            self.stack.handle_timeout(self.now);
            self.flush();
        }
        panic!("time stands still at {:?}", self.now);
    }

    fn arrive(&mut self, src: IpAddr, dst: IpAddr, protocol: u8, options: &[u8], data: &[u8]) {
        let mut frame = vec![1, 0, 0x5e, 0, 0, 1, 2, 9, 9, 9, 9, 9];
        if dst.is_ipv6() {
            frame[..2].fill(0x33);
        }
        let length = (options.len() + data.len()) as u16;
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend([8, 0, 0x45 + options.len() as u8 / 4, 0]);
                frame.extend((20 + length).to_be_bytes());
                frame.extend([0, 0, 0, 0, 1, protocol, 0, 0]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
                frame.extend(options);
                let sum = sum(&frame[14..]);
                frame[24..26].copy_from_slice(&sum);
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let next = if options.is_empty() { protocol } else { 0 };
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
                frame.extend(length.to_be_bytes());
                frame.extend([next, 1]);
                frame.extend(src.octets());
                frame.extend(dst.octets());
                frame.extend(options);
            }
            _ => unreachable!("both are of one family"),
        }
        frame.extend(data);
        let checksum_ok = true;
        self.stack
            .handle_frame(self.now, &frame, Received { checksum_ok });
        self.flush();
    }

    fn join(&mut self, source: &mut Source<'_>) {
        let id = self.sockets[usize::from(source.byte()) % SOCKETS];
        let to = group(self.six, source.byte() % GROUPS);
        let host = ip(self.six, source.byte() % HOSTS);
        let stack = &mut self.stack;
        let mut change = |change| stack.udp_change_source(id, to, None, host, change);
        let _ = match source.byte() % 8 {
            0 => change(SourceChange::Leave),
            1 => change(SourceChange::Block),
            2 => change(SourceChange::Unblock),
            3 => stack.udp_join(id, to, None),
            4 => stack.udp_leave(id, to, None),
            5 => {
                let mode = source.pick(&[FilterMode::Include, FilterMode::Exclude]);
                let count = source.byte() % 12;
                let list: Vec<_> = (0..count)
                    .map(|_| ip(self.six, source.byte() % HOSTS))
                    .collect();
                stack.udp_set_filter(id, to, None, mode, &list)
            }
            _ => change(SourceChange::Join),
        };
        self.flush();
    }

    /// A query of any version, of any group, and of any senders, of which some may be missing.
    fn query(&mut self, source: &mut Source<'_>) {
        let (six, version) = (self.six, source.byte() % 3);
        let count = source.byte() % 8;
        let to = match source.byte() % 3 {
            0 => None,
            n => Some(group(six, n % GROUPS)),
        };
        let time = source.byte();
        let mut data = match six {
            true => vec![130, 0, 0, 0, time, 0, 0, 0],
            false => vec![0x11, if version == 0 { 0 } else { time }, 0, 0],
        };
        let mut put = |ip: Option<IpAddr>| match ip {
            Some(IpAddr::V4(ip)) => data.extend(ip.octets()),
            Some(IpAddr::V6(ip)) => data.extend(ip.octets()),
            None => data.resize(data.len() + if six { 16 } else { 4 }, 0),
        };
        put(to);
        if version == 2 {
            data.extend([2, 125, 0, count]);
            for _ in 0..count {
                let ip = ip(six, source.byte() % HOSTS);
                match ip {
                    IpAddr::V4(ip) => data.extend(ip.octets()),
                    IpAddr::V6(ip) => data.extend(ip.octets()),
                }
            }
            if source.byte() & 7 == 0 {
                data.truncate(data.len() - usize::from(source.byte()) % data.len());
            }
        }
        let (from, all, alert): (IpAddr, IpAddr, &[u8]) = match six {
            true => (
                [0xfe80, 0, 0, 0, 0, 0, 0, 0x99].into(),
                [0xff02, 0, 0, 0, 0, 0, 0, 1].into(),
                &[58, 0, 5, 2, 0, 0, 1, 0],
            ),
            false => (ip(six, 98), [224, 0, 0, 1].into(), &[0x94, 4, 0, 0]),
        };
        if data.len() >= 4 {
            let mut summed = Vec::new();
            if let (IpAddr::V6(from), IpAddr::V6(all)) = (from, all) {
                summed.extend(from.octets());
                summed.extend(all.octets());
                summed.extend([0, data.len() as u8, 0, 58]);
            }
            summed.extend(&data);
            data[2..4].copy_from_slice(&sum(&summed));
        }
        self.arrive(from, all, if six { 58 } else { 2 }, alert, &data);
    }

    /// A datagram to a group reaches those in it that want its sender, and the one that hears what others
    /// joined if one of them does.
    fn hear(&mut self, source: &mut Source<'_>) {
        let host = ip(self.six, source.byte() % HOSTS);
        let to = group(self.six, source.byte() % GROUPS);
        let mut wants = Vec::new();
        for id in &self.sockets {
            let filter = self.stack.udp_filter(*id, to, None).ok();
            let wanted = |(mode, list): (FilterMode, Vec<IpAddr>)| {
                list.contains(&host) == (mode == FilterMode::Include)
            };
            wants.push(filter.map(wanted));
        }
        let any = wants.contains(&Some(true));
        self.arrive(host, to, 17, &[], &[0, 53, 0x13, 0x88, 0, 9, 0, 0, 7]);
        for (n, (id, wants)) in self.sockets.iter().zip(wants).enumerate() {
            let heard = self.stack.udp_recv(*id).is_ok();
            assert_eq!(heard, wants.unwrap_or(n == 0 && any), "socket {n}");
        }
    }
}

fn ip(six: bool, host: u8) -> IpAddr {
    match six {
        true => [0xfd00, 0, 0, 0, 0, 0, 0, 1 + u16::from(host)].into(),
        false => [10, 0, 0, 1 + host].into(),
    }
}

fn group(six: bool, n: u8) -> IpAddr {
    match six {
        true => [0xff05, 0, 0, 0, 0, 0, 1, 3 + u16::from(n)].into(),
        false => [239, 1, 2, 3 + n].into(),
    }
}

/// The Internet checksum.
fn sum(bytes: &[u8]) -> [u8; 2] {
    let word = |c: &[u8]| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// Plays one input.
pub fn fuzz_one(data: &[u8]) {
    let mut source = Source(data);
    let mut world = World::new(source.byte() & 1 == 1);
    while !source.0.is_empty() {
        match source.byte() % 6 {
            0..=2 => world.join(&mut source),
            3 => world.query(&mut source),
            4 => world.hear(&mut source),
            _ => world.wait(Duration::from_millis(1 << (source.byte() % 16))),
        }
    }
    for id in core::mem::take(&mut world.sockets) {
        world.stack.udp_close(id);
    }
    // Beyond the longest time that a query may give, and that an older router is remembered.
    world.wait(Duration::from_secs(10_000));
    assert_eq!(world.stack.next_deadline(), None);
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_datagram_reaches_whoever_wants_it_whatever_routers_ask() {
        crate::run_seeded(super::fuzz_one, 9, 4_000, 400);
    }
}
