use super::*;
use crate::device::{Gso, GsoKind, GsoSet, MemoryDevice, MemoryOptions};

const MS: Duration = Duration::from_millis(1);

/// A faulty sender and the perfect device that hears it.
fn link(seed: u64, faults: LinkFaults) -> (Fault<MemoryDevice>, MemoryDevice) {
    let options = MemoryOptions {
        slots: 100_000,
        ..MemoryOptions::default()
    };
    let (a, b) = MemoryDevice::pair(&options).unwrap();
    (Fault::new(a, seed, LinkFaults::default(), faults), b)
}

fn numbered(n: u32) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[14..18].copy_from_slice(&n.to_be_bytes());
    frame
}

fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes(frame[14..18].try_into().unwrap())
}

fn send(device: &mut impl NetDevice, numbers: Range<u32>) {
    for n in numbers {
        device
            .transmit_parts(&[&numbered(n)], FrameMeta::NONE)
            .unwrap();
    }
    device.kick().unwrap();
}

fn take(device: &mut impl NetDevice) -> Vec<u32> {
    let mut seen = Vec::new();
    device
        .receive(usize::MAX, &mut |b| {
            seen.extend(b.iter().map(|f| number(f.data)))
        })
        .unwrap();
    seen
}

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

#[test]
fn perfect_link_passes_everything_at_once() {
    let (mut a, mut b) = link(1, LinkFaults::default());
    send(&mut a, 0..100);
    assert_eq!(take(&mut b), (0..100).collect::<Vec<_>>());
    assert_eq!(a.next_deadline(), None);
}

#[test]
fn random_loss_comes_close_to_its_probability_and_repeats_with_its_seed() {
    let run = |seed| {
        let (mut a, mut b) = link(
            seed,
            LinkFaults {
                loss: Loss::Random(0.1),
                ..LinkFaults::default()
            },
        );
        send(&mut a, 0..10_000);
        let seen = take(&mut b);
        assert_eq!(a.tx_faults_seen().lost as usize, 10_000 - seen.len());
        seen
    };
    let seen = run(7);
    // Three standard deviations of a binomial with n = 10 000 and p = 0.1 are 90.
    assert!((8_910..=9_090).contains(&seen.len()), "{}", seen.len());
    assert_eq!(seen, run(7));
    assert_ne!(seen, run(8));
}

#[test]
fn burst_loss_has_runs_of_the_expected_length() {
    let loss = Loss::Burst {
        start: 0.01,
        stop: 0.2,
    };
    let (mut a, mut b) = link(
        3,
        LinkFaults {
            loss,
            ..LinkFaults::default()
        },
    );
    send(&mut a, 0..50_000);
    let seen = take(&mut b);
    let runs: Vec<u32> = seen
        .windows(2)
        .map(|w| w[1] - w[0] - 1)
        .filter(|gap| *gap > 0)
        .collect();
    let mean = f64::from(runs.iter().sum::<u32>()) / runs.len() as f64;
    assert!(
        (4.0..6.0).contains(&mean),
        "mean run {mean}, expected 1 / stop = 5"
    );
}

#[test]
fn tail_loss_takes_the_last_frames_of_each_group() {
    let loss = Loss::Tail {
        probability: 1.0,
        frames: 2,
    };
    let (mut a, mut b) = link(
        1,
        LinkFaults {
            loss,
            ..LinkFaults::default()
        },
    );
    send(&mut a, 0..5);
    send(&mut a, 5..6);
    send(&mut a, 6..9);
    assert_eq!(take(&mut b), [0, 1, 2, 6]);
}

#[test]
fn nth_loss_takes_exactly_those() {
    let loss = Loss::Nth(vec![0, 3]);
    let (mut a, mut b) = link(
        1,
        LinkFaults {
            loss,
            ..LinkFaults::default()
        },
    );
    send(&mut a, 0..5);
    assert_eq!(take(&mut b), [1, 2, 4]);
}

#[test]
fn delay_holds_until_the_deadline_and_keeps_order_with_jitter() {
    let faults = LinkFaults {
        delay: 10 * MS,
        jitter: 5 * MS,
        ..LinkFaults::default()
    };
    let (mut a, mut b) = link(1, faults);
    a.advance(at(100));
    send(&mut a, 0..50);
    assert_eq!(take(&mut b), []);
    let first = a.next_deadline().unwrap();
    assert!((at(110)..=at(115)).contains(&first));
    a.advance(Instant::from_micros(first.as_micros() - 1));
    assert_eq!(take(&mut b), []);
    a.advance(first);
    let mut seen = take(&mut b);
    assert!(!seen.is_empty() && seen.len() < 50);
    a.advance(at(115));
    seen.extend(take(&mut b));
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
}

#[test]
fn reordered_frame_is_overtaken() {
    let faults = LinkFaults {
        reorder: 0.2,
        reorder_by: 3 * MS,
        ..LinkFaults::default()
    };
    let (mut a, mut b) = link(5, faults);
    let mut seen = Vec::new();
    for n in 0..100 {
        a.advance(at(u64::from(n)));
        send(&mut a, n..n + 1);
        seen.extend(take(&mut b));
    }
    a.advance(at(200));
    seen.extend(take(&mut b));
    let late = seen.windows(2).filter(|w| w[1] < w[0]).count() as u64;
    assert!(late > 5 && late <= a.tx_faults_seen().reordered);
    seen.sort_unstable();
    assert_eq!(seen, (0..100).collect::<Vec<_>>());
}

#[test]
fn duplicates_arrive_twice_next_to_each_other() {
    let (mut a, mut b) = link(
        1,
        LinkFaults {
            duplicate: 1.0,
            ..LinkFaults::default()
        },
    );
    send(&mut a, 0..3);
    assert_eq!(take(&mut b), [0, 0, 1, 1, 2, 2]);
}

#[test]
fn corruption_flips_one_bit() {
    let (mut a, mut b) = link(
        1,
        LinkFaults {
            corrupt: 1.0,
            ..LinkFaults::default()
        },
    );
    send(&mut a, 0..20);
    let mut flipped = Vec::new();
    b.receive(99, &mut |batch| {
        flipped.extend(
            batch
                .iter()
                .map(|f| f.data.iter().map(|b| b.count_ones()).sum::<u32>()),
        );
    })
    .unwrap();
    let expected: Vec<bool> = (0..20).map(|_| true).collect();
    let one_off: Vec<bool> = flipped
        .iter()
        .zip(0u32..)
        .map(|(ones, n)| ones.abs_diff(n.count_ones()) == 1)
        .collect();
    assert_eq!(one_off, expected);
}

#[test]
fn corruption_of_an_unfinished_checksum_is_noticed_by_the_receiver() {
    let options = MemoryOptions {
        checksum_offload: true,
        gso: GsoSet::ALL,
        ..MemoryOptions::default()
    };
    let (a, mut b) = MemoryDevice::pair(&options).unwrap();
    let faults = LinkFaults {
        corrupt: 1.0,
        ..LinkFaults::default()
    };
    let mut a = Fault::new(a, 1, LinkFaults::default(), faults);
    let csum = Checksum::Partial {
        start: 14,
        offset: 16,
    };
    a.transmit_parts(&[&[0x11; 60]], FrameMeta { csum, gso: None })
        .unwrap();
    let gso = Some(Gso {
        kind: GsoKind::TcpV4,
        size: 1000,
        hdr_len: 54,
        ecn: false,
    });
    a.transmit_parts(&[&[0x11; 6000]], FrameMeta { csum, gso })
        .unwrap();
    a.kick().unwrap();
    let mut metas = Vec::new();
    b.receive(9, &mut |batch| metas.extend(batch.iter().map(|f| f.meta)))
        .unwrap();
    assert_eq!(metas, [FrameMeta::NONE]);
    assert_eq!(
        (a.tx_faults_seen().corrupted, a.tx_faults_seen().lost),
        (1, 1)
    );
}

#[test]
fn rate_spaces_frames_and_a_full_queue_drops() {
    // 60-byte frames at 60 kB/s: one a millisecond; the queue holds five.
    let faults = LinkFaults {
        rate: Some(60_000),
        queue_bytes: 300,
        ..LinkFaults::default()
    };
    let (mut a, mut b) = link(1, faults);
    send(&mut a, 0..10);
    for ms in 1..=5 {
        a.advance(at(ms));
        assert_eq!(take(&mut b), [ms as u32 - 1], "at {ms} ms");
    }
    a.advance(at(100));
    assert_eq!(take(&mut b), []);
    assert_eq!(a.tx_faults_seen().queue_drops, 5);
    send(&mut a, 10..11);
    assert_eq!(a.next_deadline(), Some(at(101)));
}

#[test]
fn small_mtu_swallows_large_frames_and_measures_segments_of_super_frames() {
    let options = MemoryOptions {
        checksum_offload: true,
        gso: GsoSet::ALL,
        ..MemoryOptions::default()
    };
    let (a, mut b) = MemoryDevice::pair(&options).unwrap();
    let faults = LinkFaults {
        mtu: Some(1000),
        ..LinkFaults::default()
    };
    let mut a = Fault::new(a, 1, LinkFaults::default(), faults);
    let gso = |size| FrameMeta {
        csum: Checksum::Partial {
            start: 34,
            offset: 16,
        },
        gso: Some(Gso {
            kind: GsoKind::TcpV4,
            size,
            hdr_len: 54,
            ecn: false,
        }),
    };
    for (len, meta) in [
        (1014, FrameMeta::NONE),
        (1015, FrameMeta::NONE),
        (9000, gso(960)),
        (9000, gso(961)),
        (200, gso(1400)),
    ] {
        a.transmit_parts(&[&vec![0; len]], meta).unwrap();
    }
    a.kick().unwrap();
    let mut lens = Vec::new();
    b.receive(9, &mut |batch| {
        lens.extend(batch.iter().map(|f| f.data.len()))
    })
    .unwrap();
    assert_eq!(lens, [1014, 9000, 200]);
    assert_eq!(a.tx_faults_seen().mtu_drops, 2);
}

#[test]
fn nothing_passes_in_a_blackout() {
    let faults = LinkFaults {
        blackouts: vec![at(10)..at(20)],
        ..LinkFaults::default()
    };
    let (mut a, mut b) = link(1, faults);
    for (ms, n) in [(9, 0), (10, 1), (19, 2), (20, 3)] {
        a.advance(at(ms));
        send(&mut a, n..n + 1);
    }
    assert_eq!(take(&mut b), [0, 3]);
    assert_eq!(a.tx_faults_seen().blackout_drops, 2);
}

#[test]
fn received_frames_suffer_too_and_budget_holds() {
    let (mut a, b) = MemoryDevice::pair(&MemoryOptions::default()).unwrap();
    let rx = LinkFaults {
        delay: 2 * MS,
        loss: Loss::Nth(vec![1]),
        ..LinkFaults::default()
    };
    let mut b = Fault::new(b, 1, rx, LinkFaults::default());
    send(&mut a, 0..40);
    assert_eq!(take(&mut b), []);
    assert_eq!(b.next_deadline(), Some(at(2)));
    b.advance(at(2));
    let mut seen = Vec::new();
    assert_eq!(
        b.receive(2, &mut |f| seen.extend(f.iter().map(|f| number(f.data)))),
        Ok(2)
    );
    assert_eq!(seen, [0, 2]);
    assert_eq!(take(&mut b), (3..40).collect::<Vec<_>>());
}

#[test]
fn full_inner_device_loses_nothing() {
    let options = MemoryOptions {
        slots: 2,
        ..MemoryOptions::default()
    };
    let (a, mut b) = MemoryDevice::pair(&options).unwrap();
    let mut a = Fault::new(a, 1, LinkFaults::default(), LinkFaults::default());
    send(&mut a, 0..7);
    let mut seen = Vec::new();
    for _ in 0..7 {
        seen.extend(take(&mut b));
        a.kick().unwrap();
    }
    assert_eq!(seen, (0..7).collect::<Vec<_>>());
}

#[test]
fn held_frames_are_bounded() {
    let (mut a, _b) = link(
        1,
        LinkFaults {
            delay: 1000 * MS,
            ..LinkFaults::default()
        },
    );
    let limit = HELD_FRAMES_MAX as u32;
    for n in 0..limit {
        a.transmit_parts(&[&numbered(n)], FrameMeta::NONE).unwrap();
    }
    let more = a.transmit_parts(&[&numbered(limit)], FrameMeta::NONE);
    assert_eq!(more, Err(TransmitError::Full), "until a kick");
    a.kick().unwrap();
    send(&mut a, limit..limit + 10);
    assert_eq!(a.tx_faults_seen().queue_drops, 10);
}
