//! AF_XDP on one end of a veth pair, a packet socket on the other.

mod device_support;

use device_support::*;
use kcm_stack::device::{NetDevice, OpenError, OpenOptions, RxChecksum, XdpMode, open};
use std::num::NonZeroU16;

/// The device under test, or a word about what is missing.
fn open_xdp(options: &OpenOptions) -> Option<Vec<Box<dyn NetDevice>>> {
    match open("xdp:v0", options) {
        Ok(devices) => Some(devices),
        Err(error @ (OpenError::Permission { .. } | OpenError::Missing { .. })) => {
            say(&format!(
                "device_xdp: needs what this machine lacks: {error}"
            ));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn copy_mode() -> OpenOptions {
    OpenOptions {
        xdp_mode: XdpMode::Copy,
        ..OpenOptions::default()
    }
}

#[test]
fn frames_of_all_sizes_cross_both_ways() {
    in_namespace(
        "frames_of_all_sizes_cross_both_ways",
        Rights::System,
        || {
            veth(1);
            for options in [OpenOptions::default(), copy_mode()] {
                let mut peer = open_one("packet:v1", &OpenOptions::default());
                let Some(mut devices) = open_xdp(&options) else {
                    return;
                };
                let xdp = &mut devices[0];
                assert_eq!(xdp.capabilities().rx_checksum, RxChecksum::MaybePartial);
                let frames: Vec<Kept> = (0..1500)
                    .map(|n| raw(n, 18 + (n as usize * 7) % 1497))
                    .collect();
                // More rounds than the rings have entries: every chunk goes around.
                for _ in 0..4 {
                    send(xdp, &frames);
                    assert_all_same(&expect(&mut peer, frames.len()), &frames);
                    send(&mut peer, &frames);
                    assert_all_same(&expect(xdp, frames.len()), &frames);
                }
                let counters = xdp.counters();
                assert_eq!((counters.tx_frames, counters.rx_frames), (6000, 6000));
                assert_eq!(
                    (
                        counters.rx_malformed,
                        counters.tx_malformed,
                        counters.rx_missed
                    ),
                    (0, 0, 0)
                );
            }
        },
    );
}

#[test]
fn checksums_are_computed_before_frames_leave() {
    in_namespace(
        "checksums_are_computed_before_frames_leave",
        Rights::System,
        || {
            veth(1);
            let mut peer = open_one("packet:v1", &OpenOptions::default());
            let Some(mut devices) = open_xdp(&OpenOptions::default()) else {
                return;
            };
            send(
                &mut devices[0],
                &[udp(1, 2, b"odd"), tcp(1, &[7; 1460], None)],
            );
            assert!(
                expect(&mut peer, 2)
                    .iter()
                    .all(|frame| checksum_is_right(&frame.data))
            );
        },
    );
}

#[test]
fn each_queue_has_its_own_socket() {
    in_namespace("each_queue_has_its_own_socket", Rights::System, || {
        veth(2);
        let mut peer = open_one("packet:v1", &OpenOptions::default());
        let two = OpenOptions {
            queues: NonZeroU16::new(2).unwrap(),
            ..OpenOptions::default()
        };
        let Some(mut queues) = open_xdp(&two) else {
            return;
        };
        assert_eq!(queues.len(), 2);
        let frames: Vec<Kept> = (0..256)
            .map(|n| udp(1000 + n, 2000, &n.to_be_bytes()))
            .collect();
        send(&mut peer, &frames);
        let mut seen = [0; 2];
        while seen[0] + seen[1] < 256 {
            for (count, queue) in seen.iter_mut().zip(&mut queues) {
                *count += take(queue)
                    .unwrap()
                    .iter()
                    .filter(|frame| is_ours(&frame.data))
                    .count();
            }
        }
        for (n, queue) in (0..).zip(&mut queues) {
            send(queue, &[raw(n, 60)]);
            assert_eq!(expect(&mut peer, 1), [raw(n, 60)]);
        }
    });
}

#[test]
fn queues_beyond_those_asked_for_are_read_too() {
    in_namespace(
        "queues_beyond_those_asked_for_are_read_too",
        Rights::System,
        || {
            veth(3);
            let mut peer = open_one("packet:v1", &OpenOptions::default());
            let frames: Vec<Kept> = (0..256)
                .map(|n| udp(1000 + n, 2000, &n.to_be_bytes()))
                .collect();
            for queues in [1, 2] {
                let fewer = OpenOptions {
                    queues: NonZeroU16::new(queues).unwrap(),
                    ..OpenOptions::default()
                };
                let Some(mut devices) = open_xdp(&fewer) else {
                    return;
                };
                assert_eq!(devices.len(), usize::from(queues));
                send(&mut peer, &frames);
                let mut seen = 0;
                while seen < 256 {
                    for device in &mut devices {
                        let got = take(device).unwrap();
                        seen += got.iter().filter(|frame| is_ours(&frame.data)).count();
                    }
                }
                send(&mut devices[0], &[raw(1, 60)]);
                assert_eq!(expect(&mut peer, 1), [raw(1, 60)]);
            }
        },
    );
}

#[test]
fn kernel_has_the_interface_back_when_the_device_is_dropped() {
    in_namespace(
        "kernel_has_the_interface_back_when_the_device_is_dropped",
        Rights::System,
        || {
            veth(1);
            let mut peer = open_one("packet:v1", &OpenOptions::default());
            let mut kernel_side = open_one("packet:v0", &OpenOptions::default());
            let Some(mut devices) = open_xdp(&OpenOptions::default()) else {
                return;
            };
            send(&mut peer, &[raw(1, 60)]);
            assert_eq!(expect(&mut devices[0], 1), [raw(1, 60)]);
            drop(devices);
            send(&mut peer, &[raw(2, 60)]);
            assert_eq!(
                expect(&mut kernel_side, 1),
                [raw(2, 60)],
                "and never saw frame 1"
            );
        },
    );
}

#[test]
fn refusals_say_what_to_do() {
    in_namespace("refusals_say_what_to_do", Rights::System, || {
        veth(1);
        let Some(devices) = open_xdp(&OpenOptions::default()) else {
            return;
        };
        let error = |options: &OpenOptions| open("xdp:v0", options).err().unwrap();
        assert!(matches!(
            error(&OpenOptions::default()),
            OpenError::Busy { .. }
        ));
        drop(devices);
        let seventeen = OpenError::SurplusQueues {
            device: "xdp:v2".into(),
            have: 17,
            most: 16,
        };
        ip(
            "link add v2 numrxqueues 17 numtxqueues 17 type veth peer name v3 numrxqueues 17 numtxqueues 17",
        );
        ip("link set v2 up");
        let many = open("xdp:v2", &OpenOptions::default()).err();
        assert_eq!(many, Some(seventeen));
        let nine = OpenOptions {
            queues: NonZeroU16::new(9).unwrap(),
            ..OpenOptions::default()
        };
        assert_eq!(
            error(&nine),
            OpenError::Queues {
                device: "xdp:v0".into(),
                have: 1,
                want: 9
            }
        );
        let zero_copy = OpenOptions {
            xdp_mode: XdpMode::ZeroCopy,
            ..OpenOptions::default()
        };
        assert!(
            matches!(error(&zero_copy), OpenError::Missing { .. }),
            "{:?}",
            error(&zero_copy)
        );
        ip("link set v0 mtu 9000");
        let max = 3826;
        let expected = OpenError::MtuTooLarge {
            device: "xdp:v0".into(),
            have: 9000,
            max,
        };
        assert_eq!(error(&OpenOptions::default()), expected);
        ip("link set v0 mtu 3000");
        ip("link set v1 mtu 3000");
        let Some(mut devices) = open_xdp(&OpenOptions::default()) else {
            return;
        };
        let mut peer = open_one("packet:v1", &OpenOptions::default());
        send(&mut peer, &[raw(1, 3014)]);
        assert_eq!(expect(&mut devices[0], 1), [raw(1, 3014)]);
    });
}
