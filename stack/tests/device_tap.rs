//! A TAP interface and, on the kernel's side of it, a packet socket: what one writes the other reads.

mod device_support;

use device_support::*;
use kcm_stack::device::{DeviceError, NetDevice, OpenOptions, RxChecksum, open};
use std::num::NonZeroU16;

fn tap_and_packet(offloads: bool) -> (Box<dyn NetDevice>, Box<dyn NetDevice>) {
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let tap = open_one(
        "tap:kcm0",
        &OpenOptions {
            offloads,
            ..OpenOptions::default()
        },
    );
    let packet = open_one("packet:kcm0", &OpenOptions::default());
    (tap, packet)
}

#[test]
fn frames_of_all_sizes_cross_both_ways() {
    in_namespace("frames_of_all_sizes_cross_both_ways", Rights::User, || {
        let (mut tap, mut packet) = tap_and_packet(true);
        assert_ne!(tap.capabilities().mac, packet.capabilities().mac);
        let frames: Vec<Kept> = (0..400)
            .map(|n| raw(n, 18 + (n as usize * 7) % 1497))
            .collect();
        send(&mut tap, &frames);
        assert_all_same(&expect(&mut packet, frames.len()), &frames);
        send(&mut packet, &frames);
        assert_all_same(&expect(&mut tap, frames.len()), &frames);
    });
}

#[test]
fn partial_checksums_and_super_frames_pass_as_they_are() {
    in_namespace(
        "partial_checksums_and_super_frames_pass_as_they_are",
        Rights::User,
        || {
            let (mut tap, mut packet) = tap_and_packet(true);
            assert_eq!(tap.capabilities().rx_checksum, RxChecksum::PerFrame);
            let payload: Vec<u8> = (0..65_481).map(|i| (i / 3) as u8).collect();
            let frames = [
                udp(1, 2, b"x"),
                tcp(1, &payload, Some(1460)),
                tcp(2, &payload[..3000], Some(1000)),
            ];
            for _ in 0..10 {
                send(&mut tap, &frames);
                assert_all_same(&expect(&mut packet, 3), &frames);
                send(&mut packet, &frames);
                assert_all_same(&expect(&mut tap, 3), &frames);
            }
        },
    );
}

/// What a super-frame means, checked by the kernel's own segmentation.
#[test]
fn super_frame_reaches_a_plain_neighbour_as_right_segments() {
    in_namespace(
        "super_frame_reaches_a_plain_neighbour_as_right_segments",
        Rights::User,
        || {
            let (mut tap, mut packet) = tap_and_packet(false);
            let payload: Vec<u8> = (0..65_481).map(|i| (i / 3) as u8).collect();
            send(
                &mut packet,
                &[tcp(1000, &payload, Some(1460)), udp(1, 2, b"last")],
            );
            let count = payload.len().div_ceil(1460);
            let mut frames = expect(&mut tap, count + 1);
            assert!(frames.iter().all(|frame| checksum_is_right(&frame.data)));
            frames.pop();
            let mut rebuilt = Vec::new();
            for frame in &frames {
                assert_eq!(frame.meta.gso, None);
                let seq = u32::from_be_bytes(frame.data[38..42].try_into().unwrap());
                assert_eq!(seq as usize, 1000 + rebuilt.len());
                rebuilt.extend_from_slice(&frame.data[54..]);
            }
            assert!(rebuilt == payload);
        },
    );
}

#[test]
fn several_queues_share_the_interface() {
    in_namespace("several_queues_share_the_interface", Rights::User, || {
        let queues = OpenOptions {
            queues: NonZeroU16::new(3).unwrap(),
            ..OpenOptions::default()
        };
        let mut taps = open("tap:kcm0", &queues).unwrap();
        assert_eq!(taps.len(), 3);
        let mut packet = open_one("packet:kcm0", &OpenOptions::default());
        for (n, tap) in (0..).zip(&mut taps) {
            send(tap, &[raw(n, 60)]);
            assert_eq!(expect(&mut packet, 1), [raw(n, 60)]);
        }
        let frames: Vec<Kept> = (0..300)
            .map(|n| udp(1000 + n, 2000, &n.to_be_bytes()))
            .collect();
        send(&mut packet, &frames);
        let mut seen = 0;
        while seen < 300 {
            for tap in &mut taps {
                seen += take(tap)
                    .unwrap()
                    .iter()
                    .filter(|frame| is_ours(&frame.data))
                    .count();
            }
        }
        assert_eq!(seen, 300);
    });
}

#[test]
fn link_that_is_set_down_is_reported() {
    in_namespace("link_that_is_set_down_is_reported", Rights::User, || {
        let (mut tap, packet) = tap_and_packet(true);
        drop(packet);
        ip("link set kcm0 down");
        let failed = tap.transmit_parts(&[&raw(1, 60).data], Default::default());
        assert_eq!(failed, Err(DeviceError::LinkDown.into()));
        ip("link set kcm0 up");
        send(&mut tap, &[raw(2, 60)]);
        ip("link del kcm0");
        assert_eq!(take(&mut tap), Err(DeviceError::Gone));
    });
}
