//! AF_PACKET on a veth pair: both ends are ours, or one is the kernel's.

mod device_support;

use device_support::*;
use kcm_stack::device::{
    Checksum, DeviceError, FrameMeta, Joined, NetDevice, OpenOptions, RxChecksum, TransmitError,
    Wait, open,
};
use kcm_stack::{
    Belongs, Config, IfaceId, Instant, Key, Reuse, SharedPorts, Stack, UdpBindOptions, shard_of,
};
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

fn pair() -> (Box<dyn NetDevice>, Box<dyn NetDevice>) {
    veth(1);
    let options = OpenOptions::default();
    (
        open_one("packet:v0", &options),
        open_one("packet:v1", &options),
    )
}

#[test]
fn frames_of_all_sizes_cross_both_ways_in_order() {
    in_namespace(
        "frames_of_all_sizes_cross_both_ways_in_order",
        Rights::User,
        || {
            let (mut a, mut b) = pair();
            assert_eq!(a.capabilities().mtu, 1500);
            assert_eq!(a.capabilities().rx_checksum, RxChecksum::PerFrame);
            let frames: Vec<Kept> = (0..2000)
                .map(|n| raw(n, 18 + (n as usize * 7) % 1497))
                .collect();
            for _ in 0..3 {
                send(&mut a, &frames);
                assert_all_same(&expect(&mut b, frames.len()), &frames);
                send(&mut b, &frames);
                assert_all_same(&expect(&mut a, frames.len()), &frames);
            }
            assert_eq!(take(&mut a), Ok(vec![]), "own frames do not come back");
            let mut neighbour = open_one("packet:v0", &OpenOptions::default());
            send(&mut neighbour, &frames[..9]);
            assert_all_same(&expect(&mut b, 9), &frames[..9]);
            assert_eq!(
                take(&mut a),
                Ok(vec![]),
                "nor do those of others on this side"
            );
            assert_eq!((a.counters().tx_frames, b.counters().rx_missed), (6000, 0));
        },
    );
}

#[test]
fn partial_checksums_and_super_frames_pass_as_they_are() {
    in_namespace(
        "partial_checksums_and_super_frames_pass_as_they_are",
        Rights::User,
        || {
            let (mut a, mut b) = pair();
            let payload: Vec<u8> = (0..65_481).map(|i| (i / 3) as u8).collect();
            let frames = [
                udp(1000, 2000, b"partial"),
                // Slots, queue and slots again: order must hold.
                tcp(1, &payload[..1000], None),
                tcp(2, &payload, Some(1460)),
                tcp(3, &payload[..100], None),
                tcp(4, &payload[..9000], Some(1460)),
                raw(5, 60),
            ];
            assert_eq!(frames[2].data.len(), 65_535);
            for _ in 0..20 {
                send(&mut a, &frames);
                for (got, sent) in expect(&mut b, frames.len()).iter().zip(&frames) {
                    assert_same(got, sent);
                }
            }
            assert_eq!(b.counters().rx_malformed + b.counters().rx_missed, 0);
        },
    );
}

#[test]
fn kernel_sockets_understand_us_and_we_them() {
    in_namespace(
        "kernel_sockets_understand_us_and_we_them",
        Rights::User,
        || {
            let (mut a, b) = pair();
            drop(b);
            // The kernel is B behind v1; A's address is only in its neighbour table.
            ip("addr add 10.99.0.2/24 dev v1");
            let mac = |m: [u8; 6]| m.map(|b| format!("{b:02x}")).join(":");
            ip(&format!("link set v1 address {}", mac(MAC_B)));
            ip(&format!(
                "neigh replace 10.99.0.1 lladdr {} dev v1",
                mac(a.capabilities().mac)
            ));
            let socket = UdpSocket::bind("10.99.0.2:2000").unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            let mut buffer = [0; 2000];

            // Ours, with the checksum left to the device, and one that is plainly wrong.
            let good = udp(1000, 2000, b"hello kernel");
            let mut wrong = udp(1000, 2000, b"corrupted");
            wrong.meta = FrameMeta::NONE;
            // Forwarding keeps partial checksums unverified on a veth; the socket verifies complete ones.
            send(&mut a, &[wrong, good]);
            let (len, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(
                (&buffer[..len], from.to_string().as_str()),
                (&b"hello kernel"[..], "10.99.0.1:1000")
            );

            // The kernel's: a veth leaves the checksum partial, and the header says so.
            socket.send_to(b"hello engine", "10.99.0.1:1000").unwrap();
            let reply = loop {
                let found = take(&mut a)
                    .unwrap()
                    .into_iter()
                    .find(|f| f.data.get(23) == Some(&17));
                match found {
                    Some(frame) => break frame,
                    None => wait(&a, Wait::Readable),
                }
            };
            assert_eq!(&reply.data[42..], b"hello engine");
            assert_eq!(
                reply.meta.csum,
                Checksum::Partial {
                    start: 34,
                    offset: 6
                }
            );
        },
    );
}

#[test]
fn software_checksums_are_right_where_offload_is_switched_off() {
    in_namespace(
        "software_checksums_are_right_where_offload_is_switched_off",
        Rights::User,
        || {
            let (_, mut b) = pair();
            let mut a = open_one(
                "packet:v0",
                &OpenOptions {
                    offloads: false,
                    ..OpenOptions::default()
                },
            );
            assert_eq!(a.capabilities().max_frame_len, 1514);
            let frames = [udp(1, 2, b"odd"), tcp(1, &[7; 1460], None)];
            send(&mut a, &frames);
            for got in expect(&mut b, 2) {
                assert_eq!(got.meta, FrameMeta::NONE);
                assert!(checksum_is_right(&got.data));
            }
            let large = tcp(1, &[7; 5000], Some(1460));
            assert!(matches!(
                a.transmit_parts(&[&large.data], large.meta),
                Err(TransmitError::NoGso(_))
            ));
        },
    );
}

/// A frame from A to B with the ports where the header of its family ends, and at its end a number.
fn ported(v4: bool, options: usize, protocol: u8, ports: [u16; 2], number: u32) -> Kept {
    let mut data = [&MAC_B[..], &MAC_A].concat();
    if v4 {
        let len = 20 + options as u8 * 4 + 24;
        data.extend([
            8,
            0,
            0x45 + options as u8,
            0,
            0,
            len,
            0,
            1,
            0x40,
            0,
            64,
            protocol,
            0,
            0,
        ]);
        data.extend([IP_A, IP_B].concat());
        data.resize(34 + options * 4, 1);
    } else {
        data.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, protocol, 64]);
        data.resize(54, 0xfd);
    }
    data.extend(ports.map(u16::to_be_bytes).concat());
    data.extend([0; 16]);
    data.extend(number.to_be_bytes());
    Kept {
        data,
        meta: FrameMeta::NONE,
    }
}

/// Frames of every kind that `shard_of` tells apart, each with its place at its end.
fn every_kind() -> Vec<Kept> {
    let mut frames = Vec::new();
    let mut add = |make: &dyn Fn(u32) -> Kept| frames.push(make(frames.len() as u32));
    for n in 0..64u16 {
        let ports = [40_000 + 2 * n, 6379];
        let datagram = [53, 1_000 + n];
        for options in [0, 1, 10] {
            add(&|number| ported(true, options, 6, ports, number));
            add(&|number| ported(true, options, 17, datagram, number));
            add(&|number| ported(true, options, 17, [ports[0], SHARED], number));
        }
        add(&|number| ported(false, 0, 6, ports, number));
        add(&|number| ported(false, 0, 17, datagram, number));
        add(&|number| ported(false, 0, 17, [ports[0], SHARED], number));
    }
    for protocol in [0, 1, 2, 41, 44, 58, 132] {
        add(&|number| ported(true, 0, protocol, [1, 2], number));
        add(&|number| ported(false, 0, protocol, [1, 2], number));
    }
    let patched = |at: usize, bytes: [u8; 2]| {
        move |number| {
            let mut frame = ported(true, 0, 6, [7, 8], number);
            frame.data[at..at + 2].copy_from_slice(&bytes);
            frame
        }
    };
    // First, middle and last fragment; ARP and what is no IP.
    for flags in [0x2000u16, 0x2001, 0x0001, 0x1fff] {
        add(&patched(20, flags.to_be_bytes()));
    }
    for kind in [[8, 6], [0x88, 0xb5], [0, 40]] {
        add(&patched(12, kind));
    }
    // A header that ends behind the frame.
    add(&patched(14, [0x4f, 0]));
    frames
}

/// A port that sockets of several shards share, as of a stack that has bound them.
const SHARED: u16 = 4433;

fn shared_ports(count: u8) -> SharedPorts {
    let config = Config::new(MAC_B, Key([7; 16]));
    let mut stack = Stack::new(&config, Instant::ZERO);
    let options = UdpBindOptions {
        reuse: Reuse::Port,
        ..UdpBindOptions::default()
    };
    let mut ports = SharedPorts::new(0xfeed_beef, count);
    for port in [1_003, 1_010, SHARED] {
        for _ in 0..=count {
            let all = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            stack.udp_bind_with(all, &options).unwrap();
        }
        let shards = (0..count).rev().cycle();
        let bindings = stack.udp_bindings(port).map(|(_, binding)| binding);
        ports = ports.with(port, shards.zip(bindings));
    }
    ports
}

/// Sends frames, and takes each from the queue it is to come to, and once only.
fn assert_sorted(
    sender: &mut Box<dyn NetDevice>,
    queues: &mut [Box<dyn NetDevice>],
    frames: Vec<Kept>,
    whose: impl Fn(&[u8]) -> Belongs,
) {
    let queue_of = |frame: &[u8]| match whose(frame) {
        Belongs::To(index) => usize::from(index),
        Belongs::All => 0,
    };
    send(sender, &frames);
    let mut waiting = frames;
    while let Some(first) = waiting.first() {
        let due = &mut queues[queue_of(&first.data)];
        wait(due, Wait::Readable);
        for (index, queue) in queues.iter_mut().enumerate() {
            // Each comes once, and in order within its queue.
            for frame in take(queue).unwrap() {
                let at = waiting.iter().position(|w| w.data == frame.data);
                // The kernel's own chatter.
                let Some(at) = at else { continue };
                assert_eq!(index, queue_of(&frame.data), "{:02x?}", frame.data);
                waiting.remove(at);
            }
        }
    }
}

#[test]
fn fanout_gives_each_frame_to_the_queue_of_its_shard() {
    in_namespace(
        "fanout_gives_each_frame_to_the_queue_of_its_shard",
        Rights::User,
        || {
            let (mut a, b) = pair();
            drop(b);
            for count in [2, 3, 4, 7] {
                let several = OpenOptions {
                    queues: NonZeroU16::new(count.into()).unwrap(),
                    ..OpenOptions::default()
                };
                let mut queues = open("packet:v1", &several).unwrap();
                assert_eq!(queues.len(), usize::from(count));
                let mut frames = every_kind();
                // Super-frames, whose payload lies apart from their headers.
                frames.extend((1..9).map(|n| tcp(n, &vec![n as u8; 60_000], Some(1460))));
                let by_ports = |frame: &[u8]| shard_of(frame, count);
                assert_sorted(&mut a, &mut queues, frames, by_ports);
                let shared = Arc::new(shared_ports(count));
                queues
                    .iter_mut()
                    .for_each(|q| q.steer(IfaceId::FIRST, &shared));
                let by_flow = |frame: &[u8]| shared.shard_of(frame, IfaceId::FIRST);
                let moved = { every_kind().into_iter() }
                    .filter(|frame| by_flow(&frame.data) != by_ports(&frame.data))
                    .count();
                assert!(moved > 50, "{moved}");
                assert_sorted(&mut a, &mut queues, every_kind(), by_flow);
                let none = Arc::new(SharedPorts::new(0, count));
                queues
                    .iter_mut()
                    .for_each(|q| q.steer(IfaceId::FIRST, &none));
                assert_sorted(&mut a, &mut queues, every_kind(), by_ports);
                // What others on this side send is not received.
                let mut neighbour = open_one("packet:v1", &OpenOptions::default());
                send(&mut neighbour, &every_kind());
                expect(&mut a, 64);
                let is_made = |frame: &Kept| frame.data[6..12] == MAC_A;
                for queue in &mut queues {
                    assert!(!take(queue).unwrap().iter().any(is_made));
                }

                // The same queues as one device, with one descriptor to wait on.
                let mut joined = Joined::new(queues).unwrap();
                let frames: Vec<Kept> = (0..640).map(|n| udp(53, 1000 + n, b"joined")).collect();
                send(&mut a, &frames);
                assert_eq!(expect(&mut joined, 640).len(), 640);
                send(&mut joined, &frames[..10]);
                // Behind what the neighbour has sent.
                let sent = |frame: &Kept| frame.data.ends_with(b"joined");
                let mut back = 0;
                while back < 10 {
                    wait(&a, Wait::Readable);
                    back += take(&mut a).unwrap().iter().filter(|f| sent(f)).count();
                }
            }
        },
    );
}

#[test]
fn jumbo_frames_fit_the_ring() {
    in_namespace("jumbo_frames_fit_the_ring", Rights::User, || {
        veth(1);
        ip("link set v0 mtu 9000");
        ip("link set v1 mtu 9000");
        let jumbo = OpenOptions {
            mtu: Some(9000),
            ..OpenOptions::default()
        };
        let (mut a, mut b) = (open_one("packet:v0", &jumbo), open_one("packet:v1", &jumbo));
        let frames: Vec<Kept> = (0..500).map(|n| raw(n, 9014 - n as usize)).collect();
        send(&mut a, &frames);
        assert_all_same(&expect(&mut b, frames.len()), &frames);
    });
}

#[test]
fn ring_that_overflows_counts_what_it_missed() {
    in_namespace(
        "ring_that_overflows_counts_what_it_missed",
        Rights::User,
        || {
            let (mut a, mut b) = pair();
            let frames: Vec<Kept> = (0..6000).map(|n| raw(n, 60)).collect();
            send(&mut a, &frames);
            let seen = expect(&mut b, 4096);
            assert!(seen.iter().map(number).eq(0..4096));
            assert_eq!(b.counters().rx_missed, 6000 - 4096);
            send(&mut a, &frames[..3]);
            assert_eq!(expect(&mut b, 3), &frames[..3], "the ring goes on");
        },
    );
}

#[test]
fn link_down_and_removal_are_told_apart() {
    in_namespace("link_down_and_removal_are_told_apart", Rights::User, || {
        let (mut a, _b) = pair();
        let until_error = |a: &mut dyn NetDevice| {
            for _ in 0..1000 {
                let _ = a.transmit_parts(&[&raw(1, 60).data], FrameMeta::NONE);
                if let Err(error) = a.kick() {
                    return Some(error);
                }
            }
            None
        };
        ip("link set v0 down");
        assert_eq!(until_error(&mut a), Some(DeviceError::LinkDown));
        ip("link set v0 up");
        // The reader hears of it too, once.
        let heard: Vec<_> = (0..100).filter_map(|_| take(&mut a).err()).collect();
        assert_eq!(heard, [DeviceError::LinkDown]);
        assert_eq!(until_error(&mut a), None, "it works again");
        ip("link del v0");
        let gone = until_error(&mut a).or_else(|| take(&mut a).err());
        assert_eq!(gone, Some(DeviceError::Gone));
    });
}
