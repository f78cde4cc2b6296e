//! A device with fewer queues than there are engines, and with host rings (`netmap:eth0*`): what is not ours
//! passes between network and host, and the rest comes to the engine it belongs to, once.

use kcm_stack::device::pump_on;
use kcm_stack::{Config, Key, Shard, Stack, UdpId, shard_of_udp};

use super::*;

/// The numbers of frames that were lent, and whether they were passed on.
type Seen = Arc<Mutex<Vec<(u8, bool)>>>;

/// A port that lends its frames once, and passes on those that are marked.
struct Port {
    capabilities: Capabilities,
    frames: Vec<Vec<u8>>,
    seen: Seen,
}

impl NetDevice for Port {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn receive(
        &mut self,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<usize, DeviceError> {
        let count = self.frames.len().min(budget);
        let taken: Vec<_> = self.frames.drain(..count).collect();
        let lent = taken.iter().map(|data| RxFrame::new(data, FrameMeta::NONE));
        let lent: Vec<_> = lent.collect();
        visit(&lent);
        let seen = lent.iter().map(|f| (number(f.data), f.is_forwarded()));
        self.seen.lock().expect("in no handler").extend(seen);
        Ok(count)
    }

    fn transmit_with(
        &mut self,
        _room: usize,
        _write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
    ) -> Result<bool, TransmitError> {
        Err(TransmitError::Full)
    }

    fn kick(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn wait_fd(&self, _wait: Wait) -> Option<(BorrowedFd<'_>, Wait)> {
        None
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OURS: [u8; 4] = [10, 9, 0, 2];
const NOT_OURS: [u8; 4] = [10, 9, 0, 3];
const ENGINES: u8 = 2;

/// A UDP datagram whose payload is its number.
fn datagram(to: [u8; 4], port: u16, number: u8) -> Vec<u8> {
    let mut ip = [
        [0x45, 0, 0, 29],
        [0, 0, 0, 0],
        [64, 17, 0, 0],
        [10, 9, 0, 1],
        to,
    ]
    .concat();
    let words = ip
        .chunks_exact(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]));
    let sum: u32 = words.sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let udp = [5000, port, 9, 0].map(u16::to_be_bytes).concat();
    [&MAC[..], &[2, 0, 0, 0, 0, 1, 8, 0], &ip, &udp, &[number]].concat()
}

fn arp(number: u8) -> Vec<u8> {
    [&[0xff; 12][..], &[8, 6], &[0; 30], &[number]].concat()
}

fn number(frame: &[u8]) -> u8 {
    frame.last().copied().unwrap_or_default()
}

/// A port of the UDP sockets of an engine.
fn port_of(engine: u8) -> u16 {
    let mut ports = 7000..8000;
    let is_its = |port: &u16| shard_of_udp(*port, ENGINES) == engine;
    ports.find(is_its).expect("they are spread evenly")
}

fn engine(index: u8) -> (Stack, UdpId) {
    let mut config = Config::new(MAC, Key([index; 16]));
    config.shard = Shard::new(index, ENGINES).expect("there is such a one");
    let mut stack = Stack::new(&config, Instant::ZERO);
    stack.add_address(OURS.into(), 24).expect("a good address");
    let local = (OURS, port_of(index)).into();
    let socket = stack.udp_bind(local, false).expect("it is free");
    (stack, socket)
}

/// The numbers of the datagrams that an engine has got.
fn got((stack, socket): &mut (Stack, UdpId)) -> Vec<u8> {
    core::iter::from_fn(|| stack.udp_recv(*socket).ok())
        .map(|datagram| number(&datagram.data))
        .collect()
}

#[test]
fn host_rings_and_engines_each_get_their_own() {
    let seen = Seen::new(Mutex::ranked(Rank::Any, Vec::new()));
    let frames = vec![
        datagram(OURS, port_of(0), 1),
        datagram(OURS, port_of(1), 2),
        datagram(NOT_OURS, port_of(0), 3),
        datagram(NOT_OURS, port_of(1), 4),
        arp(5),
        datagram(OURS, port_of(1), 6),
    ];
    let port = Port {
        capabilities: Capabilities {
            mtu: 1500,
            max_frame_len: 1514,
            mac: MAC,
            tx_checksum: false,
            rx_checksum: kcm_stack::device::RxChecksum::Unverified,
            tx_gso: Default::default(),
            rx_gro: false,
            tx_slots: 8,
            forwards: true,
        },
        frames,
        seen: seen.clone(),
    };
    let parts = Spread::over(vec![Box::new(port)], ENGINES);
    let mut parts = parts.unwrap_or_else(|_| panic!("there are descriptors left"));
    let mut engines = [engine(0), engine(1)];
    // Whichever engine looks first has the frames of both, and the other finds its own.
    for (part, (stack, _)) in parts.iter_mut().zip(&mut engines).rev() {
        let done = pump_on(stack, IfaceId::FIRST, part, Instant::ZERO, 64);
        assert!(done.is_ok());
    }
    assert_eq!(engines.each_mut().map(got), [vec![1], vec![2, 6]]);
    // The host hears of ARP too, and gets nothing of ours.
    let passed = [
        (1, false),
        (2, false),
        (3, true),
        (4, true),
        (5, true),
        (6, false),
    ];
    assert_eq!(*seen.lock().expect("in no handler"), passed);
}
