//! Ring logic on in-memory regions whose other side the tests play, honestly and not.

use super::super::sys::abi_netmap::{NETMAP_MAX_FRAGS, NS_BUF_CHANGED, NS_MOREFRAG};
use super::super::sys::netmap_region::{BadLayout, RingMemory, Shape, Slot};
use super::super::{Checksum, Gso, GsoKind};
use super::*;
use proptest::prelude::*;
use std::sync::Arc;

const BUF: usize = 256;

/// Two views of one ring of `slots` slots: the user's, and the other side's.
fn ring(kind: RingKind, slots: u32) -> (Cursor, RingMemory) {
    let (user, other) = memories(kind, slots);
    (cursor(user), other)
}

fn memories(kind: RingKind, slots: u32) -> (RingMemory, RingMemory) {
    let shape = Shape {
        ports: 1,
        rings: 1,
        slots,
        buf_size: BUF,
    };
    let region = Region::new(shape.build().unwrap(), 0).unwrap();
    let memory = || region.ring(kind, 0).unwrap().unwrap();
    (memory(), memory())
}

fn cursor(memory: RingMemory) -> Cursor {
    Cursor::new(memory).unwrap()
}

/// Puts bytes into the buffer of a slot, as the other side.
fn write(other: &mut RingMemory, index: u32, bytes: &[u8], flags: u16) {
    let slot = other.slot(index);
    assert!(other.fill(slot, bytes.len(), |buffer| buffer.copy_from_slice(bytes)));
    other.set_slot(
        index,
        Slot {
            len: bytes.len() as u16,
            flags,
            ..slot
        },
    );
}

/// Queues `len` bytes of `value`.
fn put(cursor: &mut Cursor, len: usize, value: u8) -> bool {
    cursor.put(|buffer| {
        buffer[..len].fill(value);
        Some(len)
    })
}

#[test]
fn receive_cursor_runs_around_the_ring() {
    let (mut cursor, mut other) = ring(RingKind::NicRx, 4);
    assert_eq!(cursor.refresh(), Ok(0));
    let mut tail = 0;
    for round in 0..20u8 {
        for n in 0..3 {
            write(&mut other, (tail + n) % 4, &[round; 60], 0);
        }
        tail = (tail + 3) % 4;
        other.set_tail(tail);
        assert_eq!(
            cursor.refresh(),
            Ok(3),
            "a full ring has one slot less than it has slots"
        );
        for ahead in 0..3 {
            assert_eq!(cursor.packet(ahead), Packet::InPlace(&[round; 60]));
        }
        cursor.advance(3);
        assert!(cursor.publish() && !cursor.publish());
        assert_eq!(other.head(), tail);
    }
}

#[test]
fn transmit_cursor_stops_at_tail_and_goes_on_when_it_moves() {
    let (mut cursor, other) = ring(RingKind::NicTx, 4);
    assert_eq!(cursor.avail(), 3);
    for n in 0..3 {
        assert!(put(&mut cursor, 60, n));
    }
    assert_eq!((cursor.avail(), other.head()), (0, 0));
    cursor.publish();
    assert_eq!(other.head(), 3);
    for n in 0..3 {
        assert_eq!(other.bytes(other.slot(n)), Some(&[n as u8; 60][..]));
    }
    other.set_tail(1);
    assert_eq!(cursor.refresh(), Ok(2));
    assert!(put(&mut cursor, 64, 9));
    assert_eq!(other.slot(3).len, 64);
}

#[test]
fn packet_of_several_slots_is_gathered_across_the_wrap() {
    let (mut cursor, mut other) = ring(RingKind::NicRx, 8);
    for _ in 0..6 {
        other.set_tail((cursor.refresh().unwrap() + other.head() + 1) % 8);
        cursor.refresh().unwrap();
        cursor.advance(1);
        cursor.publish();
    }
    for (n, flags) in [(6, NS_MOREFRAG), (7, NS_MOREFRAG), (0, 0)] {
        write(&mut other, n, &[n as u8; 200], flags);
    }
    other.set_tail(0);
    cursor.refresh().unwrap();
    assert_eq!(cursor.packet(0), Packet::Incomplete);
    other.set_tail(1);
    cursor.refresh().unwrap();
    assert_eq!(cursor.packet(0), Packet::Scattered { slots: 3, len: 600 });
    let mut frame = [0; 600];
    cursor.gather(0, 3, &mut frame);
    assert!(
        frame
            .chunks(200)
            .zip([6, 7, 0])
            .all(|(part, n)| part == [n; 200])
    );
}

#[test]
fn packet_that_can_never_be_complete_is_malformed() {
    let (mut cursor, other) = ring(RingKind::NicRx, 8);
    for n in 0..8 {
        other.set_slot(
            n,
            Slot {
                len: 10,
                flags: NS_MOREFRAG,
                ..other.slot(n)
            },
        );
    }
    other.set_tail(6);
    cursor.refresh().unwrap();
    assert_eq!(cursor.packet(0), Packet::Incomplete);
    other.set_tail(7);
    cursor.refresh().unwrap();
    assert_eq!(cursor.packet(0), Packet::Malformed { slots: 7 });
    let (mut cursor, other) = ring(RingKind::NicRx, 128);
    for n in 0..128 {
        other.set_slot(
            n,
            Slot {
                len: 10,
                flags: NS_MOREFRAG,
                ..other.slot(n)
            },
        );
    }
    other.set_tail(100);
    cursor.refresh().unwrap();
    assert_eq!(
        cursor.packet(0),
        Packet::Malformed {
            slots: NETMAP_MAX_FRAGS as u32
        }
    );
}

#[test]
fn slots_that_name_no_buffer_are_refused() {
    let (mut cursor, other) = ring(RingKind::NicRx, 8);
    let good = other.slot(0);
    other.set_tail(1);
    cursor.refresh().unwrap();
    for (buf_idx, len) in [
        (0, 60),
        (1, 60),
        (u32::MAX, 60),
        (1 << 20, 60),
        (good.buf_idx, 257),
    ] {
        other.set_slot(
            0,
            Slot {
                buf_idx,
                len,
                flags: 0,
            },
        );
        assert_eq!(
            cursor.packet(0),
            Packet::Malformed { slots: 1 },
            "{buf_idx} {len}"
        );
    }
    let (mut cursor, other) = ring(RingKind::NicTx, 8);
    other.set_slot(
        0,
        Slot {
            buf_idx: 1 << 20,
            ..good
        },
    );
    assert!(!cursor.put(|_| panic!("nothing to fill")));
    assert!(!cursor.scatter(&[0; 500]));
    assert_eq!(cursor.avail(), 7, "nothing was queued");
}

#[test]
fn tail_that_moves_back_or_out_of_the_ring_is_corrupt() {
    let (mut cursor, other) = ring(RingKind::NicRx, 8);
    other.set_tail(5);
    assert_eq!(cursor.refresh(), Ok(5));
    for tail in [4, 0, 8, u32::MAX] {
        other.set_tail(tail);
        assert_eq!(
            cursor.refresh(),
            Err(DeviceError::Corrupt("ring tail")),
            "{tail}"
        );
    }
    other.set_tail(7);
    assert_eq!(cursor.refresh(), Ok(7));
}

#[test]
fn layout_that_leaves_the_mapping_is_refused() {
    let shape = Shape {
        ports: 1,
        rings: 1,
        slots: 16,
        buf_size: BUF,
    };
    // Offset in the region, four bytes to write there, and the field that is blamed.
    let if_table = 56;
    let first_ring = {
        let map = shape.build().unwrap();
        map.load_u64(if_table).unwrap() as usize
    };
    for (at, value, field) in [
        (24, 1025, "number of rings"),
        (28, u32::MAX, "number of rings"),
        (if_table, 0x7fff_0000, "ring offset"),
        (if_table + 4, 0x8000_0000, "ring offset"),
        (first_ring + 8, 1, "number of slots"),
        (first_ring + 8, 1 << 16, "number of slots"),
        (first_ring + 8, u32::MAX, "number of slots"),
        (first_ring + 12, 64, "buffer size"),
        (first_ring + 12, 1 << 20, "buffer size"),
        (first_ring, 0x7fff_0000, "buffer offset"),
        (first_ring + 4, 0xffff_ffff, "buffer offset"),
    ] {
        let map = shape.build().unwrap();
        map.store_u32(at, value).unwrap();
        let region = Region::new(Arc::clone(&map), 0);
        let refused = region
            .and_then(|region| region.ring(RingKind::NicTx, 0))
            .err();
        let blamed = refused.map(|BadLayout(field)| field);
        // A ring far away can also be blamed for the first field read from it.
        assert!(blamed.is_some(), "{at}: {value:#x} should be a bad {field}");
    }
    assert!(Region::new(shape.build().unwrap(), usize::MAX - 8).is_err());
}

proptest! {
    /// Whatever the other side writes, no call panics or lends bytes outside the buffers.
    #[test]
    fn hostile_slots_and_tails_are_survived(
        steps in prop::collection::vec((any::<u32>(), any::<u16>(), 0u16..0x40, 0u32..40), 1..80),
    ) {
        let (rx_memory, rx_other) = memories(RingKind::NicRx, 16);
        let (tx_memory, tx_other) = memories(RingKind::NicTx, 16);
        let (mut rx, mut tx) = (cursor(rx_memory), cursor(tx_memory));
        let mut frame = vec![0; GATHER_BYTES];
        for (index, (buf_idx, len, flags, tail)) in (0u32..).zip(steps) {
            let buf_idx = if buf_idx % 2 == 0 { buf_idx % 90 } else { buf_idx };
            for other in [&rx_other, &tx_other] {
                other.set_slot(index % 16, Slot { buf_idx, len: len % 400, flags });
                other.set_tail(tail);
            }
            if let Ok(avail) = rx.refresh() {
                prop_assert!(avail < 16);
                let mut ahead = 0;
                while ahead < avail {
                    let slots = match rx.packet(ahead) {
                        Packet::InPlace(bytes) => { prop_assert!(bytes.len() <= BUF); 1 }
                        Packet::Scattered { slots, len } => {
                            rx.gather(ahead, slots, &mut frame[..len]);
                            if tx.avail() >= slots {
                                rx.swap_to(ahead, slots, &mut tx);
                            }
                            slots
                        }
                        Packet::Malformed { slots } => slots,
                        Packet::Incomplete => break,
                    };
                    prop_assert!(slots >= 1 && ahead + slots <= avail);
                    ahead += slots;
                }
                rx.advance(ahead);
                rx.publish();
            }
            if tx.refresh().is_ok_and(|avail| avail >= 3) {
                put(&mut tx, usize::from(len) % (BUF + 1), 1);
                tx.scatter(&frame[..300]);
                tx.publish();
            }
        }
    }

    /// Two honest ports: frames of any size arrive whole, in order, once, through any interleaving.
    #[test]
    fn pair_delivers_everything_in_order(
        slots in 2u32..40,
        vnet_hdr: bool,
        steps in prop::collection::vec((0usize..8, 0usize..8, 14usize..1515), 1..60),
    ) {
        let options = PairOptions { slots, buf_size: BUF, vnet_hdr, ..PairOptions::default() };
        let (mut a, mut b) = pair(&options).unwrap();
        let max = a.capabilities().max_frame_len.min(1514);
        let (mut sent, mut seen) = (0u32, 0u32);
        let mut lens = std::collections::VecDeque::new();
        for (sends, takes, len) in steps {
            let len = len.min(max).max(18);
            for _ in 0..sends {
                let fill = &mut |frame: &mut [u8]| {
                    frame.fill(sent as u8);
                    frame[14..18].copy_from_slice(&sent.to_be_bytes());
                };
                match a.transmit(len, FrameMeta::NONE, fill) {
                    Ok(()) => { lens.push_back(len); sent += 1; }
                    Err(error) => { prop_assert_eq!(error, TransmitError::Full); break; }
                }
            }
            a.kick().unwrap();
            let mut check = Ok(());
            b.receive(takes, &mut |frames| {
                for frame in frames {
                    let number = u32::from_be_bytes(frame.data[14..18].try_into().unwrap());
                    if (Some(frame.data.len()), number) != (lens.pop_front(), seen)
                        || frame.data[18..].iter().any(|byte| *byte != seen as u8)
                    {
                        check = Err(TestCaseError::fail(format!("frame {seen} is {number}")));
                    }
                    seen += 1;
                }
            }).unwrap();
            check?;
        }
        for _ in 0..100 {
            a.kick().unwrap();
            b.receive(1000, &mut |frames| seen += frames.len() as u32).unwrap();
        }
        prop_assert_eq!(seen, sent);
        prop_assert_eq!(b.counters().rx_malformed, 0);
    }
}

#[test]
fn pair_carries_super_frames_and_meta() {
    let options = PairOptions {
        vnet_hdr: true,
        ..PairOptions::default()
    };
    let (mut a, mut b) = pair(&options).unwrap();
    let frame: Vec<u8> = (0..65_535).map(|i: usize| (i / 7) as u8).collect();
    let meta = FrameMeta {
        csum: Checksum::Partial {
            start: 34,
            offset: 16,
        },
        gso: Some(Gso {
            kind: GsoKind::TcpV4,
            size: 1448,
            hdr_len: 66,
            ecn: false,
        }),
    };
    for _ in 0..4 {
        a.transmit_parts(&[&frame[..66], &frame[66..]], meta)
            .unwrap();
    }
    a.kick().unwrap();
    let mut seen = 0;
    b.receive(10, &mut |frames| {
        for got in frames {
            assert_eq!((got.data, got.meta), (&frame[..], meta));
            seen += 1;
        }
    })
    .unwrap();
    assert_eq!(seen, 4);
}

#[test]
fn pair_moves_buffers_not_bytes() {
    let (mut a, mut b) = pair(&PairOptions::default()).unwrap();
    let mut written = core::ptr::null();
    a.transmit(60, FrameMeta::NONE, &mut |frame| written = frame.as_ptr())
        .unwrap();
    a.kick().unwrap();
    b.receive(1, &mut |frames| {
        assert_eq!(frames[0].data.as_ptr(), written)
    })
    .unwrap();
}

#[test]
fn pair_doorbell_rings_for_frames_and_for_room() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let ready = |device: &NetmapDevice| {
        let (fd, _) = device.wait_fd(Wait::Writable).unwrap();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        poll(
            &mut fds,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )
        .unwrap()
            == 1
    };
    let options = PairOptions {
        slots: 4,
        doorbell: true,
        ..PairOptions::default()
    };
    let (mut a, mut b) = pair(&options).unwrap();
    assert!(!ready(&a) && !ready(&b));
    let mut sent = 0;
    while a.transmit_parts(&[&[0; 60]], FrameMeta::NONE).is_ok() {
        sent += 1;
        a.kick().unwrap();
    }
    a.kick().unwrap();
    assert_eq!(a.receive(9, &mut |_| {}), Ok(0));
    assert!(ready(&b) && !ready(&a));
    let mut seen = b.receive(1, &mut |_| {}).unwrap();
    assert!(ready(&a), "a slot was given back");
    a.kick().unwrap();
    a.transmit_parts(&[&[0; 60]], FrameMeta::NONE).unwrap();
    a.kick().unwrap();
    loop {
        let count = b.receive(9, &mut |_| {}).unwrap();
        seen += count;
        if ready(&a) {
            assert_eq!(a.receive(9, &mut |_| {}), Ok(0));
            a.kick().unwrap();
        } else if count == 0 {
            break;
        }
    }
    assert_eq!(seen, sent + 1);
    assert!(!ready(&b));
}

/// A port of the given shape; the other side is the test. The pair's wires lead to rings nobody looks
/// at.
fn port_of(shape: Shape) -> (NetmapDevice, Region) {
    let region = Region::new(shape.build().unwrap(), 0).unwrap();
    let (donor, _) = pair(&PairOptions::default()).unwrap();
    let caps = donor.caps.clone();
    let Ok(device) = NetmapDevice::new(&region, donor.other_side, caps, false) else {
        panic!("an honest region is accepted");
    };
    (device, region)
}

/// A port with NIC and host rings, and the other side's view of all four.
fn port_with_host() -> (NetmapDevice, [RingMemory; 4]) {
    let (device, region) = port_of(Shape {
        ports: 1,
        rings: 1,
        slots: 8,
        buf_size: BUF,
    });
    let kinds = [
        RingKind::NicTx,
        RingKind::HostTx,
        RingKind::NicRx,
        RingKind::HostRx,
    ];
    (
        device,
        kinds.map(|kind| region.ring(kind, 0).unwrap().unwrap()),
    )
}

#[test]
fn several_rings_take_turns_at_being_read() {
    let (mut device, region) = port_of(Shape {
        ports: 1,
        rings: 3,
        slots: 8,
        buf_size: BUF,
    });
    let rings = |kind| (0..3).map(move |n| region.ring(kind, n).unwrap().unwrap());
    let mut rx: Vec<RingMemory> = rings(RingKind::NicRx).collect();
    assert_eq!(device.capabilities().tx_slots, 21);
    for (n, ring) in (0u8..).zip(&mut rx) {
        write(ring, 0, &[2 * n; 60], 0);
        write(ring, 1, &[2 * n + 1; 60], 0);
        ring.set_tail(2);
    }
    let mut seen = Vec::new();
    let mut keep = |frames: &[RxFrame<'_>]| seen.extend(frames.iter().map(|f| f.data[0]));
    for _ in 0..6 {
        assert_eq!(device.receive(1, &mut keep), Ok(1));
    }
    assert_eq!(seen, [0, 2, 4, 1, 3, 5]);
    assert!(
        rx.iter().all(|ring| ring.head() == 2),
        "each ring has its slots back"
    );
}

#[test]
fn transmit_goes_on_with_the_next_ring_when_one_is_full() {
    let (mut device, region) = port_of(Shape {
        ports: 1,
        rings: 3,
        slots: 8,
        buf_size: BUF,
    });
    let heads = || (0..3).map(|n| region.ring(RingKind::NicTx, n).unwrap().unwrap().head());
    let mut sent = 0;
    while device.transmit_parts(&[&[0; 60]], FrameMeta::NONE).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, 21);
    assert!(heads().eq([7, 7, 7]));
    // One slot of the second ring comes back: the next frame goes there.
    region
        .ring(RingKind::NicTx, 1)
        .unwrap()
        .unwrap()
        .set_tail(0);
    device.transmit_parts(&[&[0; 60]], FrameMeta::NONE).unwrap();
    device.kick().unwrap();
    assert!(heads().eq([7, 0, 7]));
}

#[test]
fn forwarded_frames_swap_buffers_between_nic_and_host_rings() {
    let (mut device, [nic_tx, host_tx, mut nic_rx, mut host_rx]) = port_with_host();
    assert!(device.capabilities().forwards);
    write(&mut nic_rx, 0, &[1; 60], 0);
    write(&mut nic_rx, 1, &[2; 200], NS_MOREFRAG);
    write(&mut nic_rx, 2, &[2; 100], 0);
    write(&mut nic_rx, 3, &[3; 60], 0);
    nic_rx.set_tail(4);
    write(&mut host_rx, 0, &[4; 60], 0);
    host_rx.set_tail(1);
    let before = [nic_rx.slot(1), host_tx.slot(0)];
    let mut kinds = Vec::new();
    device
        .receive(10, &mut |frames| {
            for frame in frames {
                kinds.push(frame.data[0]);
                if frame.data[0] != 3 {
                    frame.forward();
                }
            }
        })
        .unwrap();
    assert_eq!(kinds, [1, 2, 3, 4]);
    assert_eq!(device.counters().rx_forwarded, 3);
    device.kick().unwrap();
    assert_eq!((host_tx.head(), nic_tx.head()), (3, 1));
    assert_eq!(host_tx.bytes(host_tx.slot(0)), Some(&[1; 60][..]));
    let moved = host_tx.slot(1);
    assert_eq!((moved.buf_idx, moved.len), (before[0].buf_idx, 200));
    assert_eq!(moved.flags, NS_BUF_CHANGED | NS_MOREFRAG);
    assert_eq!(nic_rx.slot(0).buf_idx, before[1].buf_idx);
    assert_eq!(nic_rx.slot(0).flags, NS_BUF_CHANGED);
    assert_eq!(nic_tx.bytes(nic_tx.slot(0)), Some(&[4; 60][..]));
    let mut all: Vec<u32> = [&nic_tx, &host_tx, &nic_rx, &host_rx]
        .iter()
        .flat_map(|ring| (0..8).map(|n| ring.slot(n).buf_idx))
        .collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 32, "no buffer was lost or doubled");
}

#[test]
fn forward_without_room_is_counted_and_dropped() {
    let (mut device, [_, host_tx, mut nic_rx, _]) = port_with_host();
    for round in 0..2 {
        for n in 0..7 {
            write(&mut nic_rx, (round * 7 + n) % 8, &[1; 60], 0);
        }
        nic_rx.set_tail((round + 1) * 7 % 8);
        device
            .receive(10, &mut |frames| frames.iter().for_each(RxFrame::forward))
            .unwrap();
    }
    let counters = device.counters();
    assert_eq!((counters.rx_forwarded, counters.rx_forward_drops), (7, 7));
    device.kick().unwrap();
    assert_eq!(host_tx.head(), 7);
}
