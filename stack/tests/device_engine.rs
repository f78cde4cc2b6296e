//! The engine on each device, talking TCP with the kernel in both roles.
#![allow(
    clippy::disallowed_methods,
    reason = "a test that waits for a kernel needs a clock"
)]

mod device_support;

use device_support::*;
use kcm_stack::device::{NetDevice, OpenError, OpenOptions, Wait, open, pump};
use kcm_stack::{Config, ConnectOptions, Instant, Key, ListenOptions, Stack, TcpId};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

/// Bytes that go each way.
const BYTES: usize = 8 << 20;

/// Longest that no frame moves; an emulated machine needs minutes for the whole.
const PATIENCE: Duration = Duration::from_secs(20);

/// The engine is A.
const ENGINE_PORT: u16 = 7;

struct Host {
    stack: Stack,
    device: Box<dyn NetDevice>,
    start: std::time::Instant,
    /// How long no frame has moved.
    idle: Duration,
}

impl Host {
    fn new(device: Box<dyn NetDevice>) -> Self {
        let mut config = Config::new([0; 6], Key([7; 16]));
        device.capabilities().configure(&mut config);
        let mut stack = Stack::new(&config, Instant::ZERO);
        stack.add_address(IP_A.into(), 24).unwrap();
        Self {
            stack,
            device,
            start: std::time::Instant::now(),
            idle: Duration::ZERO,
        }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(self.start.elapsed().as_micros() as u64)
    }

    /// Moves frames until nothing moves, then sleeps until something may.
    fn run(&mut self) {
        let now = self.now();
        assert!(
            self.idle < PATIENCE,
            "the transfer stands still: {:?} {:?} {:?}",
            self.device.counters(),
            self.stack.tcp_stats(),
            self.stack.next_deadline(),
        );
        let pumped = pump(&mut self.stack, &mut *self.device, now, 256).unwrap();
        while self.stack.poll_event().is_some() {}
        if pumped.received != 0 || pumped.transmitted != 0 {
            self.idle = Duration::ZERO;
        } else {
            let wake = self.stack.next_deadline().map(|at| at - now);
            let kind = if pumped.is_full {
                Wait::Writable
            } else {
                Wait::Readable
            };
            wait_for(&*self.device, kind, wake);
            // A machine that is held for a while has not waited.
            self.idle += (self.now() - now).min(Duration::from_secs(1));
        }
    }

    /// Sends back what arrives until the peer is done, then closes.
    fn echo(&mut self, id: TcpId) {
        let mut buffer = vec![0; 1 << 18];
        let (mut pending, mut offset, mut is_done) = (Vec::new(), 0, false);
        loop {
            let now = self.now();
            if offset == pending.len()
                && !is_done
                && let Ok(len) = self.stack.tcp_recv(now, id, &mut buffer)
            {
                is_done = len == 0;
                pending = buffer[..len].to_vec();
                offset = 0;
            }
            if offset < pending.len() {
                offset += self
                    .stack
                    .tcp_send(now, id, &[&pending[offset..]], false)
                    .unwrap_or(0);
            }
            if is_done && offset == pending.len() {
                break;
            }
            self.run();
        }
        self.stack
            .tcp_shutdown(self.now(), id, false, true)
            .unwrap();
    }
}

/// The kernel's end: sends everything and expects it back.
fn kernel_end(stream: TcpStream) {
    let data: Vec<u8> = (0..BYTES).map(|i| (i * 31 / 7) as u8).collect();
    let mut sender = stream.try_clone().unwrap();
    let copy = data.clone();
    let sending = spawn(move || {
        sender.write_all(&copy).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    (&stream).read_to_end(&mut back).unwrap();
    sending.join().unwrap();
    assert!(
        back == data,
        "{} of {BYTES} bytes came back, or others",
        back.len()
    );
}

/// Runs the engine until the kernel's end is satisfied.
fn finish(host: &mut Host, kernel: JoinHandle<()>) {
    while !kernel.is_finished() {
        host.run();
    }
    kernel.join().unwrap();
}

/// Echoes over `device`, whose other end is the kernel's interface `peer`.
fn echo_both_ways(device: Box<dyn NetDevice>, peer: &str) {
    ip(&format!("addr add 10.99.0.2/24 dev {peer}"));
    let mut host = Host::new(device);

    let listener = host
        .stack
        .tcp_listen((IP_A, ENGINE_PORT).into(), &ListenOptions::default());
    let listener = listener.unwrap();
    let kernel =
        spawn(|| kernel_end(TcpStream::connect(SocketAddr::from((IP_A, ENGINE_PORT))).unwrap()));
    let accepted = loop {
        match host.stack.tcp_accept(listener) {
            Some(id) => break id,
            None => host.run(),
        }
    };
    host.echo(accepted);
    finish(&mut host, kernel);

    let server = TcpListener::bind((Ipv4Addr::from(IP_B), 0)).unwrap();
    let address = server.local_addr().unwrap();
    let kernel = spawn(move || kernel_end(server.accept().unwrap().0));
    let now = host.now();
    let id = host
        .stack
        .tcp_connect(now, address, &ConnectOptions::default())
        .unwrap();
    while !host.stack.tcp_may_send(id) {
        host.run();
    }
    host.echo(id);
    finish(&mut host, kernel);
}

#[test]
fn packet_device_carries_tcp_with_the_kernel() {
    in_namespace(
        "packet_device_carries_tcp_with_the_kernel",
        Rights::User,
        || {
            veth(1);
            echo_both_ways(open_one("packet:v0", &OpenOptions::default()), "v1");
        },
    );
}

#[test]
fn packet_device_without_offloads_carries_tcp_with_the_kernel() {
    in_namespace(
        "packet_device_without_offloads_carries_tcp_with_the_kernel",
        Rights::User,
        || {
            veth(1);
            let plain = OpenOptions {
                offloads: false,
                ..OpenOptions::default()
            };
            echo_both_ways(open_one("packet:v0", &plain), "v1");
        },
    );
}

#[test]
fn tap_device_carries_tcp_with_the_kernel() {
    in_namespace(
        "tap_device_carries_tcp_with_the_kernel",
        Rights::User,
        || {
            for offloads in [true, false] {
                let options = OpenOptions {
                    offloads,
                    ..OpenOptions::default()
                };
                echo_both_ways(open_one("tap:kcm0", &options), "kcm0");
            }
        },
    );
}

/// The kernel leaves its checksums partial for hardware that a veth does not have.
#[test]
fn xdp_device_carries_tcp_with_the_kernel() {
    in_namespace(
        "xdp_device_carries_tcp_with_the_kernel",
        Rights::System,
        || {
            veth(1);
            match open("xdp:v0", &OpenOptions::default()) {
                Ok(mut devices) => echo_both_ways(devices.remove(0), "v1"),
                Err(error @ (OpenError::Permission { .. } | OpenError::Missing { .. })) => {
                    say(&format!(
                        "xdp_device_carries_tcp_with_the_kernel: needs more: {error}"
                    ));
                }
                Err(error) => panic!("{error}"),
            }
        },
    );
}

#[test]
fn netmap_device_carries_tcp_with_the_kernel() {
    with_netmap("netmap_device_carries_tcp_with_the_kernel", || {
        veth(1);
        // Emulated mode has no place for the super-frames a veth passes on.
        ip("link set v1 gso_max_segs 1");
        echo_both_ways(open_one("netmap:v0", &OpenOptions::default()), "v1");
    });
}
