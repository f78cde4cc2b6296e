//! The netmap module itself: pipes, VALE ports, and a veth in emulated mode. Runs where `/dev/netmap`
//! exists; ring logic without it is tested beside the code.
#![allow(
    clippy::disallowed_methods,
    reason = "a test that waits for a kernel needs a clock"
)]

mod device_support;

use device_support::*;
use kcm_stack::device::{
    FrameMeta, NetDevice, OpenError, OpenOptions, RxFrame, TransmitError, Wait, open,
};
use std::time::{Duration, Instant};

fn open_both(a: &str, b: &str, options: &OpenOptions) -> (Box<dyn NetDevice>, Box<dyn NetDevice>) {
    (open_one(a, options), open_one(b, options))
}

/// Sends while the peer reads: a ring holds fewer frames than there are.
fn cross(from: &mut dyn NetDevice, to: &mut dyn NetDevice, frames: &[Kept]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let (mut sent, mut seen) = (0, Vec::new());
    while seen.len() < frames.len() {
        while let Some(frame) = frames.get(sent) {
            match from.transmit_parts(&[&frame.data], frame.meta) {
                Ok(()) => sent += 1,
                Err(TransmitError::Full) => break,
                Err(error) => panic!("{error}"),
            }
            // A bridge drops what its reader has no room for.
            if sent - seen.len() >= 64 {
                break;
            }
        }
        from.kick().unwrap();
        let arrived = take(to).unwrap();
        if arrived.is_empty() {
            assert!(
                Instant::now() < deadline,
                "{} of {}",
                seen.len(),
                frames.len()
            );
            wait(to, Wait::Readable);
        }
        seen.extend(arrived.into_iter().filter(|frame| is_ours(&frame.data)));
    }
    assert_all_same(&seen, frames);
}

fn mixed(count: u32) -> Vec<Kept> {
    (0..count)
        .map(|n| raw(n, 60 + (n as usize * 7) % 1455))
        .collect()
}

#[test]
fn pipe_ends_exchange_frames_in_order() {
    with_netmap("pipe_ends_exchange_frames_in_order", || {
        let options = OpenOptions::default();
        let (mut master, mut slave) = open_both("netmap:kcmtest{1", "netmap:kcmtest}1", &options);
        for _ in 0..3 {
            cross(&mut master, &mut slave, &mixed(3000));
            cross(&mut slave, &mut master, &mixed(3000));
        }
        assert_eq!(
            slave.counters().rx_malformed + master.counters().rx_malformed,
            0
        );
    });
}

#[test]
fn pipe_carries_frames_of_several_slots() {
    with_netmap("pipe_carries_frames_of_several_slots", || {
        let jumbo = OpenOptions {
            mtu: Some(9000),
            ..OpenOptions::default()
        };
        let (mut master, mut slave) = open_both("netmap:kcmtest{2", "netmap:kcmtest}2", &jumbo);
        let frames: Vec<Kept> = (0..500)
            .map(|n| raw(n, 60 + (n as usize * 97) % 8900))
            .collect();
        cross(&mut master, &mut slave, &frames);
        cross(&mut slave, &mut master, &frames);
    });
}

#[test]
fn full_pipe_refuses_and_becomes_writable() {
    with_netmap("full_pipe_refuses_and_becomes_writable", || {
        let options = OpenOptions::default();
        let (mut master, mut slave) = open_both("netmap:kcmtest{3", "netmap:kcmtest}3", &options);
        let mut sent = 0;
        while master
            .transmit_parts(&[&raw(sent, 60).data], FrameMeta::NONE)
            .is_ok()
        {
            sent += 1;
            assert!(sent < 100_000);
        }
        let mut seen: Vec<u32> = expect(&mut slave, 100).iter().map(number).collect();
        // Slots go back to the other end with the receive that finds nothing more.
        assert_eq!(take(&mut slave), Ok(vec![]));
        wait(&master, Wait::Writable);
        master
            .transmit_parts(&[&raw(sent, 60).data], FrameMeta::NONE)
            .unwrap();
        master.kick().unwrap();
        while seen.last() != Some(&sent) {
            seen.extend(expect(&mut slave, 1).iter().map(number));
        }
        assert!(seen.into_iter().eq(0..=sent));
    });
}

#[test]
fn vale_ports_exchange_frames() {
    with_netmap("vale_ports_exchange_frames", || {
        let plain = OpenOptions {
            offloads: false,
            ..OpenOptions::default()
        };
        let (mut a, mut b) = open_both("valekcm:a", "valekcm:b", &plain);
        assert_ne!(a.capabilities().mac, b.capabilities().mac);
        cross(&mut a, &mut b, &mixed(2000));
        cross(&mut b, &mut a, &mixed(2000));
    });
}

#[test]
fn vale_ports_with_offloads_pass_super_frames_whole() {
    with_netmap("vale_ports_with_offloads_pass_super_frames_whole", || {
        let (mut a, mut b) = open_both("valekcm:c", "valekcm:d", &OpenOptions::default());
        assert!(
            a.capabilities().tx_gso.tcp_v4,
            "the module takes a virtio_net_hdr"
        );
        let payload: Vec<u8> = (0..65_000).map(|i| (i / 3) as u8).collect();
        let frames = [
            udp(1, 2, b"x"),
            tcp(1, &payload, Some(1460)),
            tcp(2, &payload[..3000], Some(1000)),
        ];
        for _ in 0..10 {
            cross(&mut a, &mut b, &frames);
        }
    });
}

#[test]
fn veth_in_emulated_mode_exchanges_frames() {
    with_netmap("veth_in_emulated_mode_exchanges_frames", || {
        veth(1);
        let mut peer = open_one("packet:v1", &OpenOptions::default());
        let mut device = open_one("netmap:v0", &OpenOptions::default());
        cross(&mut device, &mut peer, &mixed(1000));
        cross(&mut peer, &mut device, &mixed(1000));
        let error = open("netmap:v0-7", &OpenOptions::default()).err().unwrap();
        assert!(
            matches!(error, OpenError::Queues { .. } | OpenError::Busy { .. }),
            "{error}"
        );
        let error = open("netmap:nothere", &OpenOptions::default())
            .err()
            .unwrap();
        assert!(matches!(error, OpenError::NoInterface { .. }), "{error}");
    });
}

/// Two cursors on one ring would pass each other's slots to the kernel.
#[test]
fn rings_have_one_user() {
    with_netmap("rings_have_one_user", || {
        veth(1);
        let options = OpenOptions::default();
        for name in ["valekcm:e", "netmap:v0", "netmap:kcmtest{4"] {
            let held = open_one(name, &options);
            let error = open(name, &options).err().unwrap();
            assert!(matches!(error, OpenError::Busy { .. }), "{error}");
            drop(held);
            open_one(name, &options);
        }
    });
}

#[test]
fn state_of_the_interface_is_explained() {
    with_netmap("state_of_the_interface_is_explained", || {
        veth(1);
        let device = || "netmap:v0".to_owned();
        let other_mtu = OpenOptions {
            mtu: Some(9000),
            ..OpenOptions::default()
        };
        let refusal = |options| open(&device(), options).err().unwrap();
        let expected = OpenError::Mtu {
            device: device(),
            have: 1500,
            want: 9000,
        };
        assert_eq!(refusal(&other_mtu), expected);
        ip("link set v0 down");
        let expected = OpenError::LinkDown { device: device() };
        assert_eq!(refusal(&OpenOptions::default()), expected);
    });
}

/// Frames that are not ours pass between the wire and the kernel's own stack.
#[test]
fn host_rings_keep_the_kernel_connected() {
    with_netmap("host_rings_keep_the_kernel_connected", || {
        veth(1);
        let mac = |m: [u8; 6]| m.map(|b| format!("{b:02x}")).join(":");
        ip(&format!("link set v0 address {}", mac(MAC_B)));
        ip("addr add 10.99.0.2/24 dev v0");
        ip(&format!(
            "neigh replace 10.99.0.1 lladdr {} dev v0",
            mac(MAC_A)
        ));
        let mut peer = open_one("packet:v1", &OpenOptions::default());
        let mut device = open_one("netmap:v0*", &OpenOptions::default());
        assert!(device.capabilities().forwards);
        let deadline = Instant::now() + Duration::from_secs(20);
        // The kernel's answer to a ping needs no offload, which netmap could not pass.
        loop {
            send(&mut peer, &[echo_request(b"through both stacks")]);
            let pass_on = &mut |frames: &[RxFrame<'_>]| frames.iter().for_each(RxFrame::forward);
            device.receive(100, pass_on).unwrap();
            device.kick().unwrap();
            let frames = take(&mut peer).unwrap();
            let is_reply = |frame: &Kept| {
                frame.data.get(34) == Some(&0)
                    && frame.data.get(42..) == Some(b"through both stacks")
            };
            if frames.iter().any(is_reply) {
                break;
            }
            assert!(Instant::now() < deadline, "{:?}", device.counters());
            wait(&device, Wait::Readable);
        }
        assert!(device.counters().rx_forwarded >= 2);
        assert_eq!(device.counters().rx_forward_drops, 0);
    });
}
