//! An engine for each queue, each in a thread of its own, with one address between them, and the kernel
//! on the other side.
#![allow(
    clippy::disallowed_methods,
    reason = "a test that waits for a kernel needs a clock"
)]

mod device_support;

use device_support::*;
use kcm_stack::device::{
    Capabilities, Counters, DeviceError, FrameMeta, NetDevice, OpenError, OpenOptions, RxFrame,
    TransmitError, Wait, Written, open, pump,
};
use kcm_stack::{
    Belongs, Config, ConnectOptions, Instant, Key, ListenOptions, Shard, Stack, TcpId, shard_of,
};
use rustix::fd::BorrowedFd;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{JoinHandle, scope, spawn};
use std::time::Duration;

/// The engines are A.
const PORT: u16 = 7;
/// Connections that the kernel opens, and each engine.
const CALLS: usize = 24;
const CALLS_EACH: usize = 4;
/// Bytes that go each way on each.
const BYTES: usize = 200_000;

/// A queue whose frames for other engines go to their inboxes.
struct Sorted {
    device: Box<dyn NetDevice>,
    shard: Shard,
    inbox: Receiver<Kept>,
    inboxes: Vec<Sender<Kept>>,
    /// Frames with an owner that another engine got.
    astray: usize,
}

impl NetDevice for Sorted {
    fn capabilities(&self) -> &Capabilities {
        self.device.capabilities()
    }

    fn receive(
        &mut self,
        budget: usize,
        visit: &mut dyn FnMut(&[RxFrame<'_>]),
    ) -> Result<usize, DeviceError> {
        let mut received = 0;
        for frame in self.inbox.try_iter().take(budget) {
            visit(&[RxFrame::new(&frame.data, frame.meta)]);
            received += 1;
        }
        let (inboxes, astray, own) = (&self.inboxes, &mut self.astray, self.shard);
        received += self.device.receive(budget, &mut |frames| {
            for frame in frames {
                let whose = shard_of(frame.data, own.count());
                let is_own = matches!(whose, Belongs::All) || whose == Belongs::To(own.index());
                *astray += usize::from(!is_own);
                for (index, inbox) in (0..).zip(inboxes) {
                    let wanted = matches!(whose, Belongs::All) || whose == Belongs::To(index);
                    if wanted && index != own.index() {
                        inbox.send(Kept::from(frame)).unwrap();
                    }
                }
                if is_own {
                    visit(core::slice::from_ref(frame));
                }
            }
        })?;
        Ok(received)
    }

    fn transmit_with(
        &mut self,
        room: usize,
        write: &mut dyn FnMut(&mut [u8]) -> Option<Written>,
    ) -> Result<bool, TransmitError> {
        self.device.transmit_with(room, write)
    }

    fn transmit_parts(&mut self, parts: &[&[u8]], meta: FrameMeta) -> Result<(), TransmitError> {
        self.device.transmit_parts(parts, meta)
    }

    fn kick(&mut self) -> Result<(), DeviceError> {
        self.device.kick()
    }

    fn wait_fd(&self, wait: Wait) -> Option<(BorrowedFd<'_>, Wait)> {
        self.device.wait_fd(wait)
    }

    fn counters(&self) -> Counters {
        self.device.counters()
    }
}

/// An engine that sends back what it receives, whoever has opened the connection.
struct Echo {
    stack: Stack,
    device: Sorted,
    start: std::time::Instant,
    /// With the bytes that are still to go back, and whether the peer is done.
    connections: Vec<(TcpId, Vec<u8>, bool)>,
    accepted: usize,
}

impl Echo {
    fn now(&self) -> Instant {
        Instant::from_micros(self.start.elapsed().as_micros() as u64)
    }

    /// Whether anything moved.
    fn round(&mut self) -> bool {
        let now = self.now();
        let pumped = pump(&mut self.stack, &mut self.device, now, 256).unwrap();
        while self.stack.poll_event().is_some() {}
        let mut buffer = [0; 1 << 16];
        let stack = &mut self.stack;
        self.connections.retain_mut(|(id, pending, is_done)| {
            if pending.is_empty()
                && let Ok(len) = stack.tcp_recv(now, *id, &mut buffer)
            {
                *is_done = len == 0;
                pending.extend_from_slice(&buffer[..len]);
            }
            if let Ok(sent) = stack.tcp_send(now, *id, &[pending], false) {
                pending.drain(..sent);
            }
            if *is_done && pending.is_empty() {
                stack.tcp_close(now, *id);
            }
            !*is_done || !pending.is_empty()
        });
        pumped.received + pumped.transmitted > 0
    }

    /// Serves the kernel, calls it, asks it by UDP, until told to end.
    fn run(mut self, tcp: SocketAddr, udp: SocketAddr, ended: &AtomicBool) -> Self {
        let listen = ListenOptions {
            backlog: CALLS,
            ..ListenOptions::default()
        };
        let listener = self.stack.tcp_listen((IP_A, PORT).into(), &listen);
        let listener = listener.unwrap();
        for _ in 0..CALLS_EACH {
            let none = ConnectOptions::default();
            let id = self.stack.tcp_connect(self.now(), tcp, &none).unwrap();
            self.connections.push((id, Vec::new(), false));
        }
        let socket = self.stack.udp_bind((IP_A, 0).into(), false).unwrap();
        let question = [self.device.shard.index()];
        let (mut asked, mut answers) = (None, 0);
        while !ended.load(Ordering::Relaxed) {
            let now = self.now();
            // Asked again if the neighbour was slow to be found.
            if answers == 0 && asked.is_none_or(|at| now - at > Duration::from_secs(1)) {
                self.stack
                    .udp_send(now, socket, Some(udp), &[&question])
                    .unwrap();
                asked = Some(now);
            }
            let moved = self.round();
            while let Ok(answer) = self.stack.udp_recv(socket) {
                assert_eq!(*answer.data, question);
                answers += 1;
            }
            while let Some(id) = self.stack.tcp_accept(listener) {
                self.connections.push((id, Vec::new(), false));
                self.accepted += 1;
            }
            if !moved {
                // Inboxes have no descriptor: look at them now and then.
                let soon = Some(Duration::from_millis(1));
                wait_for(&self.device, Wait::Readable, soon);
            }
        }
        assert!(answers >= 1);
        self
    }
}

/// The kernel's end: sends everything and expects it back.
fn kernel_end(stream: TcpStream) {
    let data: Vec<u8> = (0..BYTES).map(|i| (i * 31 / 7) as u8).collect();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut sender = stream.try_clone().unwrap();
    let copy = data.clone();
    let sending = spawn(move || {
        sender.write_all(&copy).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    (&stream).read_to_end(&mut back).unwrap();
    sending.join().unwrap();
    assert!(back == data, "{} of {BYTES} bytes", back.len());
}

/// An engine on each of `queues`, whose other end is the kernel's interface `peer`. How many connections
/// each accepted, and how many frames came to the wrong one.
fn engines(queues: Vec<Box<dyn NetDevice>>, peer: &str) -> (Vec<usize>, usize) {
    ip(&format!("addr add 10.99.0.2/24 dev {peer}"));
    let count = queues.len() as u8;
    let (inboxes, ends): (Vec<_>, Vec<_>) = queues.iter().map(|_| channel()).unzip();
    let start = std::time::Instant::now();
    let shards = (0..count).map(|index| Shard::new(index, count).unwrap());
    let each = queues.into_iter().zip(ends).zip(shards);
    let echoes = each.map(|((device, inbox), shard)| {
        let mut config = Config::new([0; 6], Key([7; 16]));
        device.capabilities().configure(&mut config);
        config.shard = shard;
        let mut stack = Stack::new(&config, Instant::ZERO);
        stack.add_address(IP_A.into(), 24).unwrap();
        Echo {
            stack,
            device: Sorted {
                device,
                shard,
                inbox,
                inboxes: inboxes.clone(),
                astray: 0,
            },
            start,
            connections: Vec::new(),
            accepted: 0,
        }
    });
    let echoes: Vec<Echo> = echoes.collect();
    let server = TcpListener::bind((Ipv4Addr::from(IP_B), 0)).unwrap();
    let tcp = server.local_addr().unwrap();
    let answerer = UdpSocket::bind((Ipv4Addr::from(IP_B), 0)).unwrap();
    answerer.set_read_timeout(Some(PATIENCE)).unwrap();
    let udp = answerer.local_addr().unwrap();
    let ended = AtomicBool::new(false);
    scope(|s| {
        let engines: Vec<_> = echoes
            .into_iter()
            .map(|echo| s.spawn(|| echo.run(tcp, udp, &ended)))
            .collect();
        s.spawn(|| {
            let mut seen = 0_u64;
            while seen.count_ones() < u32::from(count) {
                let mut question = [0];
                let (_, from) = answerer.recv_from(&mut question).unwrap();
                answerer.send_to(&question, from).unwrap();
                seen |= 1 << question[0];
            }
        });
        let called = (0..CALLS_EACH * usize::from(count)).map(|_| server.accept().unwrap().0);
        let called: Vec<JoinHandle<()>> = called.map(|c| spawn(|| kernel_end(c))).collect();
        let calling = (0..CALLS).map(|_| {
            let to = SocketAddr::from((IP_A, PORT));
            spawn(move || kernel_end(TcpStream::connect(to).unwrap()))
        });
        let calling: Vec<JoinHandle<()>> = calling.collect();
        for end in called.into_iter().chain(calling) {
            end.join().unwrap();
        }
        ended.store(true, Ordering::Relaxed);
        let echoes = engines.into_iter().map(|e| e.join().unwrap());
        let told = echoes.map(|e| (e.accepted, e.device.astray));
        let (accepted, astray): (Vec<_>, Vec<_>) = told.unzip();
        assert_eq!(accepted.iter().sum::<usize>(), CALLS);
        (accepted, astray.into_iter().sum())
    })
}

fn several(queues: u16) -> OpenOptions {
    OpenOptions {
        queues: NonZeroU16::new(queues).unwrap(),
        ..OpenOptions::default()
    }
}

#[test]
fn engines_on_packet_queues_share_an_address_and_hand_nothing_over() {
    in_namespace(
        "engines_on_packet_queues_share_an_address_and_hand_nothing_over",
        Rights::User,
        || {
            veth(1);
            let queues = open("packet:v0", &several(3)).unwrap();
            let (accepted, astray) = engines(queues, "v1");
            assert!(accepted.iter().all(|n| *n > 0), "{accepted:?}");
            assert_eq!(astray, 0);
        },
    );
}

#[test]
fn engines_on_tap_queues_share_an_address() {
    in_namespace(
        "engines_on_tap_queues_share_an_address",
        Rights::User,
        || {
            let queues = open("tap:kcm0", &several(3)).unwrap();
            let (accepted, _) = engines(queues, "kcm0");
            assert!(accepted.iter().all(|n| *n > 0), "{accepted:?}");
        },
    );
}

#[test]
fn engines_on_xdp_queues_share_an_address() {
    in_namespace(
        "engines_on_xdp_queues_share_an_address",
        Rights::System,
        || {
            veth(2);
            match open("xdp:v0", &several(2)) {
                Ok(queues) => {
                    let (accepted, _) = engines(queues, "v1");
                    assert!(accepted.iter().all(|n| *n > 0), "{accepted:?}");
                }
                Err(error @ (OpenError::Permission { .. } | OpenError::Missing { .. })) => say(
                    &format!("engines_on_xdp_queues_share_an_address: needs more: {error}"),
                ),
                Err(error) => panic!("{error}"),
            }
        },
    );
}
