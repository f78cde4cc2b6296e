//! Frames for an engine's addresses are kept from the kernel's own stack, and no others.

mod device_support;

use device_support::*;
use kcm_stack::device::{FrameMeta, OpenOptions, Wait, open};
use std::convert::identity;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

const PORT: u16 = 2000;

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, last)
}

fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, last)
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let sum: u32 = words
        .map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b)))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(folded + (folded >> 16)) as u16
}

/// A datagram of one byte to [`PORT`] at `to`, from the neighbour with address 1.
fn datagram(to: IpAddr, payload: u8) -> Kept {
    let mut udp = vec![3, 232];
    udp.extend_from_slice(&PORT.to_be_bytes());
    udp.extend_from_slice(&[0, 9, 0, 0, payload]);
    let mut frame = [MAC_B, MAC_A].concat();
    match to {
        IpAddr::V4(to) => {
            frame.extend_from_slice(&[8, 0, 0x45, 0, 0, 29, 0, 1, 0x40, 0, 64, 17, 0, 0]);
            frame.extend_from_slice(&v4(1).octets());
            frame.extend_from_slice(&to.octets());
            let sum = checksum(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        IpAddr::V6(to) => {
            let [from, to] = [v6(1), to].map(|address| address.octets());
            let pseudo = [&from[..], &to, &[0, 9, 0, 17], &udp].concat();
            let sum = checksum(&pseudo);
            udp[6..8].copy_from_slice(&sum.to_be_bytes());
            frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 9, 17, 64]);
            frame.extend_from_slice(&from);
            frame.extend_from_slice(&to);
        }
    }
    frame.extend_from_slice(&udp);
    Kept {
        data: frame,
        meta: FrameMeta::NONE,
    }
}

/// Sends within the kernel until its socket hears: a worker of the kernel's brings an address into use.
fn until_heard(socket: &UdpSocket, address: IpAddr) {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let from = UdpSocket::bind((any, 0)).unwrap();
    let port = from.local_addr().unwrap().port();
    let deadline = Instant::now() + PATIENCE;
    let moment = Some(Duration::from_millis(10));
    socket.set_read_timeout(moment).unwrap();
    loop {
        let _ = from.send_to(&[0], (address, PORT));
        if socket
            .recv_from(&mut [0])
            .is_ok_and(|(_, from)| from.port() == port)
        {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{address} does not come into use"
        );
    }
}

#[test]
fn frames_for_an_engine_reach_it_and_not_the_kernel() {
    in_namespace(
        "frames_for_an_engine_reach_it_and_not_the_kernel",
        Rights::System,
        || {
            veth(1);
            ip("link set lo up");
            std::fs::write("/proc/sys/net/ipv6/conf/v1/disable_ipv6", "0").unwrap();
            let mac = MAC_B.map(|b| format!("{b:02x}")).join(":");
            ip(&format!("link set v1 address {mac}"));
            let mut a = open_one("packet:v0", &OpenOptions::default());
            let mut b = open_one("packet:v1", &OpenOptions::default());
            let ingress = b.ingress().unwrap();
            // Not the last of either family, so that a comparison with the wrong one is noticed.
            let kept: [IpAddr; 4] = [v4(2).into(), v6(2).into(), v4(4).into(), v6(4).into()];
            let filter = ingress.keep_from_host(&kept, identity).unwrap();
            assert!(filter.is_some());

            // Of IPv6, each differs from one that is kept in another word.
            let passed = [
                "10.99.0.3",
                "fd01:99::2",
                "fd00:99:1::2",
                "fd00:99::1:0:2",
                "fd00:99::3",
            ];
            let passed = passed.map(|address| address.parse::<IpAddr>().unwrap());

            // Had the kernel the addresses, its socket would hear.
            for address in kept.iter().chain(&passed) {
                match address {
                    IpAddr::V4(address) => ip(&format!("addr add {address}/24 dev v1")),
                    IpAddr::V6(address) => ip(&format!("addr add {address}/64 dev v1 nodad")),
                }
            }
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
            for address in kept.iter().chain(&passed) {
                until_heard(&socket, *address);
            }
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let hear = || {
                let mut payload = [0];
                while payload == [0] {
                    socket.recv(&mut payload).unwrap(); // zeros are until_heard's
                }
                payload[0]
            };
            let to_all: Vec<_> = (1..)
                .zip(kept.iter().chain(&passed))
                .map(|(payload, to)| datagram(*to, payload))
                .collect();
            let mut arrives = |frames: &[Kept]| {
                send(&mut a, frames);
                let mut left: Vec<_> = frames.iter().map(|frame| &frame.data).collect();
                loop {
                    let seen = take(&mut b).unwrap();
                    left.retain(|frame| seen.iter().all(|got| got.data != **frame));
                    if left.is_empty() {
                        return;
                    }
                    wait(&b, Wait::Readable);
                }
            };
            arrives(&to_all);
            let heard: Vec<_> = passed.iter().map(|_| hear()).collect();
            assert_eq!(heard, [5, 6, 7, 8, 9], "only what is not kept");

            // What is the kernel's too stays the kernel's.
            assert!(ingress.keep_from_host(&kept, identity).unwrap().is_none());

            drop(filter);
            arrives(&to_all[..2]);
            assert_eq!([hear(), hear()], [1, 2], "the filter has ended");
        },
    );
}

#[test]
fn other_devices_have_no_kernel_behind_them() {
    let memory = open("mem:", &OpenOptions::default()).unwrap();
    assert!(memory.iter().all(|device| device.ingress().is_none()));
}
