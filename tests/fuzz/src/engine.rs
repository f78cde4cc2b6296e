//! The TCP/IP engine under hostile frames and odd calls: two stacks, and an input that says what happens
//! to each frame between them and what the programs on both sides do meanwhile.
//!
//! Properties: no panic, no overflow, the engine's own invariants after every step, no more stream bytes
//! than allowed, and time that moves on.

use core::net::{IpAddr, SocketAddr};
use core::time::Duration;
use std::collections::VecDeque;

use kcm_stack::{
    Config, CongestionControl, ConnectOptions, EcnMode, Instant, Key, ListenOptions, ListenerId,
    Received, SockFlag, SockOpts, Stack, TcpId,
};

/// Steps of one input; an input of libFuzzer's 4 KiB has no more.
const STEPS_MAX: usize = 4_096;
/// Deadlines run in one step: each of the connections' timers a few times over.
const DEADLINES_MAX: usize = 10_000;
/// Frames that arrive at one time while time passes; nobody writes or reads meanwhile.
const FLIGHT_MAX: usize = 1_000;
const STREAM_BYTES_MAX: usize = 1 << 20;
const CONNECTIONS_MAX: usize = 16;
/// Frames remembered, so that old ones come again.
const SEEN_MAX: usize = 64;

const MAC: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

fn address(side: usize, six: bool) -> IpAddr {
    let host = 1 + side as u8;
    if six {
        [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host].into()
    } else {
        [10, 0, 0, host].into()
    }
}

/// The bytes of the input, zeros after their end.
struct Input<'a>(core::slice::Iter<'a, u8>);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or(0)
    }

    fn below(&mut self, n: usize) -> usize {
        let word = usize::from(self.byte()) << 8 | usize::from(self.byte());
        word % n.max(1)
    }

    fn is_empty(&self) -> bool {
        self.0.len() == 0
    }
}

/// A listener for both families, and a UDP socket.
fn listen(stack: &mut Stack) -> ListenerId {
    let options = ListenOptions {
        backlog: 4,
        ..ListenOptions::default()
    };
    let dns = SocketAddr::new([0; 4].into(), 53);
    stack.udp_bind(dns, false).expect("a free port");
    let any = SocketAddr::new([0; 16].into(), 80);
    stack.tcp_listen(any, &options).expect("a free port")
}

struct World {
    now: Instant,
    stacks: [Stack; 2],
    listeners: [ListenerId; 2],
    ids: [Vec<TcpId>; 2],
    /// Frames on their way, with the side they go to.
    flying: VecDeque<(usize, Vec<u8>)>,
    seen: VecDeque<(usize, Vec<u8>)>,
    /// Longer frames vanish.
    frame_bytes_max: usize,
}

impl World {
    fn new(input: &mut Input<'_>) -> Self {
        let now = Instant::from_millis(1_000);
        let features = input.byte();
        let stacks = [0, 1].map(|side| {
            let mut config = Config::new(MAC[side], Key([side as u8; 16]));
            config.tcp.sack = features & 1 == 0;
            config.tcp.timestamps = features & 2 == 0;
            config.tcp.window_scaling = features & 4 == 0;
            config.tcp.ecn = [EcnMode::Active, EcnMode::Off][usize::from(features >> 3 & 1)];
            config.tcp.stream_bytes_max = STREAM_BYTES_MAX;
            let mut stack = Stack::new(&config, now);
            for six in [false, true] {
                let prefix_len = if six { 64 } else { 24 };
                stack
                    .add_address(address(side, six), prefix_len)
                    .expect("room for two");
                stack.add_neighbor(address(1 - side, six), MAC[1 - side], now);
            }
            stack
        });
        let [mut a, mut b] = stacks;
        let listeners = [listen(&mut a), listen(&mut b)];
        Self {
            now,
            stacks: [a, b],
            listeners,
            ids: [Vec::new(), Vec::new()],
            flying: VecDeque::new(),
            seen: VecDeque::new(),
            frame_bytes_max: usize::MAX,
        }
    }

    /// Everyone says what there is to say.
    fn flush(&mut self) {
        for side in 0..2 {
            let stack = &mut self.stacks[side];
            let mut frame = vec![0; stack.frame_bytes_max()];
            while let Some(sent) = stack.poll_transmit(self.now, &mut frame) {
                let bytes = frame[..sent.len].to_vec();
                self.seen.push_back((1 - side, bytes.clone()));
                if bytes.len() <= self.frame_bytes_max {
                    self.flying.push_back((1 - side, bytes));
                }
            }
            while stack.poll_event().is_some() {}
            stack.check_invariants();
            assert!(stack.stream_bytes() <= STREAM_BYTES_MAX);
            while let Some(id) = self.stacks[side].tcp_accept(self.listeners[side]) {
                self.ids[side].push(id);
            }
        }
        let excess = self.seen.len().saturating_sub(SEEN_MAX);
        self.seen.drain(..excess);
    }

    fn arrive(&mut self, to: usize, frame: &[u8]) {
        // Damage is meant to reach the layers above the checksums.
        let checksum_ok = true;
        self.stacks[to].handle_frame(self.now, frame, Received { checksum_ok });
    }

    /// Time passes; what is sent meanwhile arrives if anybody hears it.
    fn wait(&mut self, time: Duration, is_heard: bool) {
        let end = self.now + time;
        for _ in 0..DEADLINES_MAX {
            let due = self.stacks.iter().filter_map(Stack::next_deadline).min();
            let Some(due) = due.filter(|due| *due <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(due);
            let now = self.now;
            self.stacks
                .iter_mut()
                .for_each(|stack| stack.handle_timeout(now));
            self.flush();
            if !is_heard {
                self.flying.clear();
            }
            for _ in 0..FLIGHT_MAX {
                let Some((to, frame)) = self.flying.pop_front() else {
                    break;
                };
                self.arrive(to, &frame);
                self.flush();
            }
        }
        panic!("time stands still at {:?}", self.now);
    }

    fn call(&mut self, input: &mut Input<'_>) {
        let side = usize::from(input.byte() & 1);
        let now = self.now;
        let open = self.ids[side].len();
        let what = input.byte() % 12;
        if what == 0 && open < CONNECTIONS_MAX {
            let six = input.byte() & 1 == 1;
            let options = ConnectOptions {
                opts: Some(SockOpts {
                    congestion: [
                        CongestionControl::Cubic,
                        CongestionControl::NewReno,
                        CongestionControl::Bbr,
                    ][input.below(3)],
                    ..SockOpts::DEFAULT
                }),
                ..ConnectOptions::default()
            };
            let to = SocketAddr::new(address(1 - side, six), 80);
            let id = self.stacks[side].tcp_connect(now, to, &options);
            self.ids[side].extend(id);
        }
        if open == 0 {
            return;
        }
        let at = input.below(open);
        let id = self.ids[side][at];
        let stack = &mut self.stacks[side];
        let mut room = [0; 20_000];
        match what {
            1..=3 => {
                let len = input.below(room.len());
                let more = input.byte() & 7 == 0;
                let _ = stack.tcp_send(now, id, &[&room[..len]], more);
            }
            4 | 5 => {
                let _ = stack.tcp_recv(now, id, &mut room);
            }
            6 => {
                let _ = stack.tcp_send_urgent(now, id, b"!");
            }
            7 => {
                let _ = stack.tcp_recv_urgent(now, id, false);
            }
            8 => {
                let flag = [
                    SockFlag::Cork,
                    SockFlag::NoDelay,
                    SockFlag::KeepAlive,
                    SockFlag::OobInline,
                ][input.below(4)];
                let _ = stack.tcp_set_flag(now, id, flag, input.byte() & 1 == 1);
            }
            9 => {
                let _ = stack.tcp_shutdown(now, id, false, true);
            }
            10 => {
                self.ids[side].swap_remove(at);
                stack.tcp_close(now, id);
            }
            11 => {
                self.ids[side].swap_remove(at);
                stack.tcp_abort(now, id);
            }
            _ => {}
        }
    }

    /// A frame as it was sent, with bytes changed as the input says.
    fn damaged(&self, input: &mut Input<'_>) -> Option<(usize, Vec<u8>)> {
        let (to, mut frame) = self.seen.get(input.below(self.seen.len()))?.clone();
        for _ in 0..input.byte() & 7 {
            // Headers are where decisions are made.
            let at = input.below(frame.len().min(96));
            let value = input.byte();
            *frame.get_mut(at)? = value;
        }
        if input.byte() & 15 == 0 {
            frame.truncate(input.below(frame.len() + 1));
        }
        mend(&mut frame);
        Some((to, frame))
    }
}

/// Makes the checksum of an IPv4 header true: it is not among those a device verifies.
fn mend(frame: &mut [u8]) {
    let Some(packet) = frame
        .get_mut(14..)
        .filter(|p| p.len() >= 20 && p[0] >> 4 == 4)
    else {
        return;
    };
    let len = (usize::from(packet[0] & 15) * 4).clamp(20, packet.len());
    packet[10..12].fill(0);
    let word = |c: &[u8]| u32::from(c[0]) << 8 | u32::from(*c.get(1).unwrap_or(&0));
    let mut sum: u32 = packet[..len].chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// Plays one input.
pub fn fuzz_one(data: &[u8]) {
    let mut input = Input(data.iter());
    let mut world = World::new(&mut input);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        world.flush();
        match input.byte() % 9 {
            0..=2 => world.call(&mut input),
            3 | 4 => {
                for _ in 0..=input.byte() & 15 {
                    if let Some((to, frame)) = world.flying.pop_front() {
                        world.arrive(to, &frame);
                    }
                    world.flush();
                }
            }
            5 => drop(world.flying.pop_front()),
            6 => {
                if let Some((to, frame)) = world.damaged(&mut input) {
                    world.arrive(to, &frame);
                }
            }
            7 => world.frame_bytes_max = 100 + input.below(1_500),
            _ => {
                let time = input.byte();
                let ms = 1 << (time % 21);
                world.wait(Duration::from_millis(ms), time & 64 > 0);
            }
        }
    }
    world.flush();
}

#[cfg(test)]
mod tests {
    #[test]
    fn generated_inputs_break_nothing() {
        crate::run_seeded(super::fuzz_one, 1, 3_000, 1_500);
    }
}
