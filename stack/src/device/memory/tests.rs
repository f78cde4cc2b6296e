use super::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

fn send(device: &mut MemoryDevice, frame: &[u8]) -> Result<(), TransmitError> {
    device.transmit_parts(&[frame], FrameMeta::NONE)
}

fn take(device: &mut MemoryDevice, budget: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let count = device
        .receive(budget, &mut |batch| {
            frames.extend(batch.iter().map(|f| f.data.to_vec()))
        })
        .unwrap();
    assert_eq!(count, frames.len());
    frames
}

fn numbered(n: u32) -> Vec<u8> {
    let mut frame = vec![0xee; 60];
    frame[14..18].copy_from_slice(&n.to_be_bytes());
    frame
}

#[test]
fn frames_arrive_after_kick_in_order_and_budget_holds() {
    let (mut a, mut b) = MemoryDevice::pair(&MemoryOptions::default()).unwrap();
    for n in 0..50 {
        send(&mut a, &numbered(n)).unwrap();
    }
    assert_eq!(take(&mut b, 100), Vec::<Vec<u8>>::new());
    a.kick().unwrap();
    assert_eq!(take(&mut b, 7), (0..7).map(numbered).collect::<Vec<_>>());
    assert_eq!(take(&mut b, 100), (7..50).map(numbered).collect::<Vec<_>>());
    assert_eq!(take(&mut b, 100), Vec::<Vec<u8>>::new());
    assert_eq!((a.counters().tx_frames, b.counters().rx_frames), (50, 50));
    assert_eq!((a.counters().tx_bytes, b.counters().rx_bytes), (3000, 3000));
}

#[test]
fn full_lane_refuses_and_takes_again_once_the_peer_has_read() {
    let options = MemoryOptions {
        slots: 3,
        ..MemoryOptions::default()
    };
    let (mut a, mut b) = MemoryDevice::pair(&options).unwrap();
    for n in 0..3 {
        send(&mut a, &numbered(n)).unwrap();
    }
    assert_eq!(send(&mut a, &numbered(3)), Err(TransmitError::Full));
    assert_eq!(a.counters().tx_full, 1);
    assert_eq!(take(&mut b, 10).len(), 3);
    send(&mut a, &numbered(3)).unwrap();
    a.kick().unwrap();
    assert_eq!(take(&mut b, 10), [numbered(3)]);
}

#[test]
fn frames_the_capabilities_exclude_are_refused() {
    let (mut a, _b) = MemoryDevice::pair(&MemoryOptions::default()).unwrap();
    let max = 1514;
    for len in [0, 13, 1515, 70_000] {
        assert_eq!(
            send(&mut a, &vec![0; len]),
            Err(TransmitError::BadLength { len, max })
        );
    }
    let gso = Some(crate::device::Gso {
        kind: crate::device::GsoKind::TcpV4,
        size: 1448,
        hdr_len: 66,
        ecn: false,
    });
    let meta = FrameMeta {
        csum: Checksum::Partial {
            start: 34,
            offset: 16,
        },
        gso,
    };
    let error = a.transmit_parts(&[&[0; 1000]], meta);
    assert_eq!(
        error,
        Err(TransmitError::NoGso(crate::device::GsoKind::TcpV4))
    );
}

#[test]
fn largest_super_frames_pass_with_their_meta() {
    let options = MemoryOptions {
        gso: GsoSet::ALL,
        checksum_offload: true,
        ..MemoryOptions::default()
    };
    let (mut a, mut b) = MemoryDevice::pair(&options).unwrap();
    let gso = Some(crate::device::Gso {
        kind: crate::device::GsoKind::TcpV6,
        size: 1440,
        hdr_len: 74,
        ecn: true,
    });
    let meta = FrameMeta {
        csum: Checksum::Partial {
            start: 54,
            offset: 16,
        },
        gso,
    };
    let frame: Vec<u8> = (0..GSO_FRAME_LEN_MAX).map(|i| i as u8).collect();
    for _ in 0..5 {
        a.transmit_parts(&[&frame[..100], &frame[100..]], meta)
            .unwrap();
    }
    a.kick().unwrap();
    let mut seen = 0;
    b.receive(10, &mut |batch| {
        for got in batch {
            assert_eq!((got.data, got.meta), (&frame[..], meta));
            seen += 1;
        }
    })
    .unwrap();
    assert_eq!(seen, 5);
}

#[test]
fn partial_checksum_is_finished_where_there_is_no_offload() {
    let (mut a, mut b) = MemoryDevice::pair(&MemoryOptions::default()).unwrap();
    let meta = FrameMeta {
        csum: Checksum::Partial {
            start: 14,
            offset: 2,
        },
        gso: None,
    };
    let mut frame = [0u8; 18];
    frame[14] = 0x45;
    a.transmit_parts(&[&frame], meta).unwrap();
    a.kick().unwrap();
    b.receive(1, &mut |batch| {
        assert_eq!(batch[0].meta, FrameMeta::NONE);
        assert_eq!(batch[0].data[14..], [0x45, 0, 0xba, 0xff]);
    })
    .unwrap();
}

fn is_ready(device: &MemoryDevice) -> bool {
    let (fd, _) = device.wait_fd(Wait::Readable).unwrap();
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
}

#[test]
fn doorbell_is_level_and_tells_a_starved_sender_of_room() {
    let options = MemoryOptions {
        slots: 2,
        doorbell: true,
        ..MemoryOptions::default()
    };
    let (mut a, mut b) = MemoryDevice::pair(&options).unwrap();
    assert!(!is_ready(&b));
    send(&mut a, &numbered(0)).unwrap();
    send(&mut a, &numbered(1)).unwrap();
    a.kick().unwrap();
    assert!(is_ready(&b));
    assert_eq!(take(&mut b, 1).len(), 1);
    assert!(is_ready(&b), "one frame still waits");
    assert_eq!(send(&mut a, &numbered(2)), Err(TransmitError::Full));
    assert!(take(&mut a, 1).is_empty() && !is_ready(&a));
    assert_eq!(take(&mut b, 1).len(), 1);
    assert!(take(&mut b, 1).is_empty() && !is_ready(&b));
    assert!(is_ready(&a), "room was made");
    assert!(take(&mut a, 1).is_empty());
    assert!(is_ready(&a), "an empty receive does not lose the news");
    send(&mut a, &numbered(2)).unwrap();
    assert!(take(&mut a, 1).is_empty() && !is_ready(&a));
}

#[test]
fn frames_for_a_dropped_peer_vanish() {
    let options = MemoryOptions {
        slots: 2,
        ..MemoryOptions::default()
    };
    let (mut a, b) = MemoryDevice::pair(&options).unwrap();
    drop(b);
    for n in 0..100 {
        send(&mut a, &numbered(n)).unwrap();
    }
}
