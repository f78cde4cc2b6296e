//! Segments that leave in a run are those that leave when each is decided for itself.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kcm_stack::{
    Config, ConnectOptions, Instant, Key, ListenOptions, Received, SockFlag, SockOpts, Stack, TcpId,
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// What the two stacks and their devices are like.
#[derive(Debug, Clone, Copy)]
struct Setting {
    ipv6: bool,
    offload: bool,
    timestamps: bool,
}

impl Setting {
    fn ip(self, side: u8) -> IpAddr {
        match self.ipv6 {
            true => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(side)]),
            false => IpAddr::from([10, 0, 0, side]),
        }
    }

    fn stack(self, side: u8) -> Stack {
        let now = Instant::from_millis(1);
        let mut config = Config::new([2, 0, 0, 0, 0, side], Key([side; 16]));
        config.checksums.tx_offload = self.offload;
        config.checksums.rx_verified = self.offload;
        config.tcp.timestamps = self.timestamps;
        let mut stack = Stack::new(&config, now);
        stack.add_address(self.ip(side), 24).unwrap();
        let other = 3 - side;
        stack.add_neighbor(self.ip(other), [2, 0, 0, 0, 0, other], now);
        stack.add_neighbor(self.ip(9), OTHER_MAC, now);
        stack
    }
}

/// What happens in the middle of a burst, after so many segments.
#[derive(Debug, Clone, Copy)]
enum Event {
    Nothing,
    /// The receiver's ACKs of what it has so far.
    Ack,
    /// The peer has another Ethernet address.
    Moved,
    /// There is another way to the peer, through a router.
    Rerouted,
    Time,
    /// More to send, and a FIN.
    Close,
    Urgent,
    TypeOfService,
    /// Something in the other direction, to be acknowledged.
    Answer,
    Abort,
}

/// One connection: its ends and the time.
struct Pair {
    setting: Setting,
    now: Instant,
    ends: [Stack; 2],
    sender: TcpId,
    receiver: TcpId,
}

fn take(from: &mut Stack, now: Instant) -> Option<Vec<u8>> {
    let mut frame = vec![0xee; from.frame_bytes_max()];
    let sent = from.poll_transmit(now, &mut frame)?;
    frame.truncate(sent.len);
    // What the frame says beside its bytes is compared with them.
    frame.extend(format!("{sent:?}").bytes());
    Some(frame)
}

/// A frame without what [`take`] put behind it.
fn bare(frame: &[u8]) -> &[u8] {
    let packet = &frame[14..];
    let word = |at| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let len = match packet[0] >> 4 {
        4 => word(2),
        _ => 40 + word(4),
    };
    &frame[..14 + len]
}

impl Pair {
    fn new(setting: Setting) -> Self {
        let mut ends = [setting.stack(1), setting.stack(2)];
        let now = Instant::from_millis(2);
        let at = SocketAddr::new(setting.ip(2), 80);
        let listening = ListenOptions {
            backlog: 1,
            ..ListenOptions::default()
        };
        let listener = ends[1].tcp_listen(at, &listening).unwrap();
        let options = ConnectOptions::default();
        let sender = ends[0].tcp_connect(now, at, &options).unwrap();
        for _ in 0..2 {
            for side in 0..2 {
                while let Some(frame) = take(&mut ends[side], now) {
                    ends[1 - side].handle_frame(now, bare(&frame), Received::default());
                }
            }
        }
        let receiver = ends[1].tcp_accept(listener).unwrap();
        Self {
            setting,
            now,
            ends,
            sender,
            receiver,
        }
    }

    fn happens(&mut self, event: Event) {
        let (now, id) = (self.now, self.sender);
        let [ours, theirs] = &mut self.ends;
        match event {
            Event::Nothing => {}
            Event::Ack | Event::Answer => {
                if matches!(event, Event::Answer) {
                    theirs
                        .tcp_send(now, self.receiver, &[b"yes"], false)
                        .unwrap();
                }
                while let Some(frame) = take(theirs, now) {
                    ours.handle_frame(now, bare(&frame), Received::default());
                }
            }
            Event::Moved => ours.add_neighbor(self.setting.ip(2), OTHER_MAC, now),
            Event::Rerouted => {
                let prefix_len = if self.setting.ipv6 { 128 } else { 32 };
                let router = Some(self.setting.ip(9));
                ours.add_route(self.setting.ip(2), prefix_len, router)
                    .unwrap();
            }
            Event::Time => self.now += Duration::from_millis(1),
            Event::Close => ours.tcp_close(now, id),
            Event::Urgent => drop(ours.tcp_send_urgent(now, id, b"!")),
            Event::TypeOfService => {
                let opts = SockOpts {
                    tos: 0x20,
                    ..SockOpts::DEFAULT
                };
                ours.tcp_set_opts(now, id, opts).unwrap();
            }
            Event::Abort => ours.tcp_abort(now, id),
        }
    }
}

/// Every frame the sender sends of some rounds of bulk, with an event in the middle of one; in
/// `each_alone`, every segment is decided for itself. With it, what the receiver read.
fn frames(setting: Setting, event: Event, each_alone: bool) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut pair = Pair::new(setting);
    // The last segment is full, too.
    let mss = pair.ends[0]
        .tcp_info(pair.now, pair.sender)
        .unwrap()
        .snd_mss;
    let text: Vec<u8> = (0..40 * u32::from(mss))
        .map(|i| (i / 7 * 31) as u8)
        .collect();
    let (mut sent, mut read) = (Vec::new(), Vec::new());
    for round in 0..6 {
        // The last rounds empty the queue.
        if round < 4 {
            let _ = pair.ends[0].tcp_send(pair.now, pair.sender, &[&text], false);
        }
        let mut n = 0;
        loop {
            if each_alone {
                // Sets what is set already: work on the connection, to no other effect.
                let _ = pair.ends[0].tcp_set_flag(pair.now, pair.sender, SockFlag::NoDelay, false);
            }
            if (round, n) == (3, 5) {
                pair.happens(event);
            }
            let Some(frame) = take(&mut pair.ends[0], pair.now) else {
                break;
            };
            // To whoever has the address now.
            let mut heard = bare(&frame).to_vec();
            heard[..6].copy_from_slice(&MAC);
            pair.ends[1].handle_frame(pair.now, &heard, Received::default());
            sent.push(frame);
            n += 1;
            pair.ends[0].check_invariants();
        }
        let mut buffer = [0; 4_000];
        while let Ok(n @ 1..) = pair.ends[1].tcp_recv(pair.now, pair.receiver, &mut buffer) {
            read.extend_from_slice(&buffer[..n]);
        }
        pair.happens(Event::Ack);
        pair.now += Duration::from_millis(3);
    }
    sent.push(format!("{:?}", pair.ends[0].tcp_info(pair.now, pair.sender)).into_bytes());
    sent.push(format!("{:?}", pair.ends[0].tcp_stats()).into_bytes());
    (sent, read)
}

#[test]
fn a_run_is_what_its_segments_are() {
    let events = [
        Event::Nothing,
        Event::Ack,
        Event::Moved,
        Event::Rerouted,
        Event::Time,
        Event::Close,
        Event::Urgent,
        Event::TypeOfService,
        Event::Answer,
        Event::Abort,
    ];
    for bits in 0..8 {
        let setting = Setting {
            ipv6: bits & 1 != 0,
            offload: bits & 2 != 0,
            timestamps: bits & 4 != 0,
        };
        for event in events {
            let (runs, read) = frames(setting, event, false);
            let (alone, read_alone) = frames(setting, event, true);
            let context = || format!("{setting:?} {event:?}");
            assert_eq!(runs.len(), alone.len(), "{}", context());
            for (n, (a, b)) in runs.iter().zip(&alone).enumerate() {
                assert!(a == b, "frame {n} of {}:\n{a:02x?}\n{b:02x?}", context());
            }
            assert!(read == read_alone && read.len() > 30_000, "{}", context());
        }
    }
}
