use super::*;
use crate::device::netmap::{self, PairOptions};
use crate::device::{
    BorrowedFd, Counters, Fault, GsoSet, LinkFaults, Loss, MemoryDevice, MemoryOptions, Wait,
};
use crate::{ConnectOptions, Key, ListenOptions};
use core::time::Duration;

const A: [u8; 4] = [10, 0, 0, 1];
const B: [u8; 4] = [10, 0, 0, 2];

fn stack(device: &dyn NetDevice, address: [u8; 4]) -> Stack {
    let mut config = Config::new([0; 6], Key([address[3]; 16]));
    device.capabilities().configure(&mut config);
    let mut stack = Stack::new(&config, Instant::ZERO);
    stack.add_address(address.into(), 24).unwrap();
    stack
}

/// Sends `bytes` from an engine on `a` to one on `b`, in virtual time; what arrived must be the same.
fn transfer(mut a: impl NetDevice, mut b: impl NetDevice, bytes: usize) {
    let data: Vec<u8> = (0..bytes).map(|i| (i * 31 / 7) as u8).collect();
    let (mut client, mut server) = (stack(&a, A), stack(&b, B));
    let mut now = Instant::ZERO;
    let listener = server
        .tcp_listen((B, 80).into(), &ListenOptions::default())
        .unwrap();
    let id = client
        .tcp_connect(now, (B, 80).into(), &ConnectOptions::default())
        .unwrap();
    let (mut accepted, mut sent, mut arrived) = (None, 0, Vec::new());
    let mut buffer = vec![0; 1 << 16];
    while arrived.len() < data.len() {
        assert!(
            now < Instant::from_millis(600_000),
            "stuck at {} of {bytes}",
            arrived.len()
        );
        let moved = pump(&mut client, &mut a, now, 256).unwrap();
        let moved_back = pump(&mut server, &mut b, now, 256).unwrap();
        sent += client
            .tcp_send(now, id, &[&data[sent..]], false)
            .unwrap_or(0);
        accepted = accepted.or_else(|| server.tcp_accept(listener));
        if let Some(peer) = accepted {
            while let Ok(len) = server.tcp_recv(now, peer, &mut buffer) {
                arrived.extend_from_slice(&buffer[..len]);
            }
        }
        if moved.received + moved.transmitted + moved_back.received + moved_back.transmitted == 0 {
            let deadlines = [
                client.next_deadline(),
                server.next_deadline(),
                a.next_deadline(),
                b.next_deadline(),
            ];
            let next = deadlines.into_iter().flatten().min();
            now = next.unwrap_or(now).max(now + Duration::from_micros(10));
        }
    }
    assert!(arrived == data);
}

#[test]
fn transfer_over_memory() {
    let (a, b) = MemoryDevice::pair(&MemoryOptions::default()).unwrap();
    transfer(a, b, 1 << 20);
}

#[test]
fn transfer_over_memory_with_offloads() {
    let options = MemoryOptions {
        gso: GsoSet::ALL,
        checksum_offload: true,
        ..MemoryOptions::default()
    };
    let (a, b) = MemoryDevice::pair(&options).unwrap();
    transfer(a, b, 4 << 20);
}

#[test]
fn transfer_over_a_netmap_region() {
    for vnet_hdr in [false, true] {
        let options = PairOptions {
            vnet_hdr,
            slots: 256,
            ..PairOptions::default()
        };
        let (a, b) = netmap::pair(&options).unwrap();
        transfer(a, b, 2 << 20);
    }
}

#[test]
fn transfer_survives_a_bad_link() {
    let faults = || LinkFaults {
        loss: Loss::Random(0.02),
        duplicate: 0.02,
        reorder: 0.02,
        reorder_by: Duration::from_millis(2),
        corrupt: 0.01,
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(1),
        rate: Some(12_500_000),
        queue_bytes: 100_000,
        ..LinkFaults::default()
    };
    for seed in 0..3 {
        let (a, b) = MemoryDevice::pair(&MemoryOptions::default()).unwrap();
        let a = Fault::new(a, seed, faults(), faults());
        transfer(a, b, 300_000);
    }
}

#[test]
fn one_round_serves_several_interfaces() {
    let (near, far) = MemoryDevice::pair(&MemoryOptions::default()).unwrap();
    let (near2, far2) = MemoryDevice::pair(&MemoryOptions::default()).unwrap();
    let mut host = stack(&near, A);
    let second = host
        .add_interface(&near2.capabilities().interface())
        .unwrap();
    host.add_address_on(second, [10, 0, 1, 1].into(), 24)
        .unwrap();
    let mut devices: Vec<(IfaceId, Box<dyn NetDevice>)> =
        vec![(IfaceId::FIRST, Box::new(near)), (second, Box::new(near2))];
    let mut peers = [(stack(&far, B), far), (stack(&far2, [10, 0, 0, 3]), far2)];
    peers[1].0.add_address([10, 0, 1, 3].into(), 24).unwrap();
    let mut now = Instant::ZERO;
    let remotes = [(B, 80).into(), ([10, 0, 1, 3], 80).into()];
    let ids = remotes.map(|remote| {
        host.tcp_connect(now, remote, &ConnectOptions::default())
            .unwrap()
    });
    for (peer, _) in &mut peers {
        let any = ([0, 0, 0, 0], 80).into();
        peer.tcp_listen(any, &ListenOptions::default()).unwrap();
    }
    for _ in 0..10 {
        now += Duration::from_millis(1);
        pump_all(&mut host, &mut devices, now, 64).unwrap();
        for (peer, device) in &mut peers {
            pump(peer, device, now, 64).unwrap();
        }
    }
    assert!(ids.into_iter().all(|id| host.tcp_may_send(id)));
}

#[test]
fn only_the_pseudo_sum_alone_counts_as_partial() {
    // UDP from 10.0.0.1 to 10.0.0.2, ports 1 and 2, length 10.
    let mut frame = vec![0u8; 14 + 20 + 10];
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14] = 0x45;
    frame[17] = 30;
    frame[23] = 17;
    frame[26..30].copy_from_slice(&A);
    frame[30..34].copy_from_slice(&B);
    frame[35] = 1;
    frame[37] = 2;
    frame[39] = 10;
    assert_eq!(is_partial(&frame), Some(false));
    let pseudo: u16 = 0x0a00 + 1 + 0x0a00 + 2 + 17 + 10;
    frame[40..42].copy_from_slice(&pseudo.to_be_bytes());
    assert_eq!(is_partial(&frame), Some(true));
    // Padding behind the packet does not count.
    frame.extend_from_slice(&[0; 16]);
    assert_eq!(is_partial(&frame), Some(true));
    frame[23] = 1;
    assert_eq!(is_partial(&frame), None);
    for len in 0..40 {
        assert_eq!(is_partial(&frame[..len]), None);
    }
}

#[test]
fn frames_go_to_whom_they_concern() {
    let (device, _) = MemoryDevice::pair(&MemoryOptions::default()).unwrap();
    let stack = stack(&device, A);
    let v4 = |to: [u8; 4]| {
        let mut frame = vec![0u8; 60];
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[30..34].copy_from_slice(&to);
        frame
    };
    assert_eq!(audience(&stack, &v4(A)), Audience::Us);
    assert_eq!(audience(&stack, &v4(B)), Audience::Others);
    let mut group = v4(A);
    group[0] = 0xff;
    assert_eq!(audience(&stack, &group), Audience::Everyone);
    let mut arp = v4(B);
    arp[13] = 6;
    assert_eq!(audience(&stack, &arp), Audience::Everyone);
    let mut v6 = vec![0u8; 60];
    v6[12..14].copy_from_slice(&[0x86, 0xdd]);
    assert_eq!(audience(&stack, &v6), Audience::Others);
    for len in 0..13 {
        assert_eq!(audience(&stack, &v4(A)[..len]), Audience::Others);
    }
}

/// A device whose interface was removed.
struct Gone(MemoryDevice);

impl NetDevice for Gone {
    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }

    fn receive(
        &mut self,
        _: usize,
        _: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<usize, DeviceError> {
        Err(DeviceError::Gone)
    }

    fn transmit_with(
        &mut self,
        room: usize,
        write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
    ) -> Result<bool, TransmitError> {
        match write(&mut vec![0; room]) {
            Some(_) => Err(DeviceError::Gone.into()),
            None => Ok(false),
        }
    }

    fn kick(&mut self) -> Result<(), DeviceError> {
        Err(DeviceError::Gone)
    }

    fn wait_fd(&self, _: Wait) -> Option<(BorrowedFd<'_>, Wait)> {
        None
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }
}

#[test]
fn connections_over_a_device_that_is_gone_time_out() {
    let (device, _) = MemoryDevice::pair(&MemoryOptions::default()).unwrap();
    let mut device = Gone(device);
    let mut client = stack(&device, A);
    let mut now = Instant::ZERO;
    let id = client
        .tcp_connect(now, (B, 80).into(), &ConnectOptions::default())
        .unwrap();
    while client.tcp_take_error(id).is_none() {
        assert!(now < Instant::from_millis(600_000), "it waits for ever");
        let round = pump(&mut client, &mut device, now, 256);
        assert_eq!(round, Err(DeviceError::Gone));
        let next = client.next_deadline().unwrap_or(now);
        now = next.max(now + Duration::from_millis(1));
    }
}
