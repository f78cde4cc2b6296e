//! Bulk throughput of two engines on one core, beside unmodified smoltcp sockets in the same run.

use std::cell::RefCell;
use std::hint::black_box;
use std::time::Duration;

use kcm_stack::{ConnectOptions, ListenOptions, SockOpts, Stack};
use smoltcp::iface::{Config, Interface, SocketSet, SocketStorage};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr};

use crate::pair::{Batch, Clock, CpuTime, at, median, stack};
use crate::report::{Row, row};

/// What a round carries.
const BYTES: usize = 400 << 20;

/// Rounds take turns, so that a slow moment of the machine hits all cases.
pub(crate) fn run(quick: bool) -> Vec<Row> {
    let (rounds, bytes) = if quick { (1, BYTES / 20) } else { (7, BYTES) };
    let turns = |case: fn(usize) -> f64, other: fn(usize) -> f64| {
        let (mut gbit, mut ratios) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let (ours, others) = (case(bytes), other(bytes));
            gbit.push(ours);
            ratios.push(ours / others);
        }
        (median(gbit), median(ratios))
    };
    let line = |name: &str, bar, least: f64, (gbit, ratio): (f64, f64)| {
        row(
            format!("bulk, two engines on one core, {name}"),
            bar,
            format!("{gbit:.1} Gbit/s, {ratio:.2} × smoltcp"),
            gbit >= least && ratio >= 1.0,
        )
    };
    const MTU_BAR: &str = "≥ 25 Gbit/s, ≥ 1 × smoltcp";
    const TSO_BAR: &str = "≥ 40 Gbit/s, ≥ 1 × smoltcp at MTU 1500";
    vec![
        line(
            "MTU 1500",
            MTU_BAR,
            25.0,
            turns(|n| ours(n, 0, false), |n| smoltcp_sockets(n, false)),
        ),
        line(
            "MTU 1500, checksums left to the device",
            MTU_BAR,
            25.0,
            turns(|n| ours(n, 0, true), |n| smoltcp_sockets(n, true)),
        ),
        line(
            "TSO, checksums left to the device",
            TSO_BAR,
            40.0,
            turns(|n| ours(n, 63 << 10, true), |n| smoltcp_sockets(n, true)),
        ),
    ]
}

/// Gbit/s of the engine.
fn ours(bytes: usize, tso: u32, offload: bool) -> f64 {
    let mut clock = Clock::new();
    let mut pair = [0, 1].map(|i| {
        stack(i, |c| {
            c.tso_bytes = tso;
            c.tcp.rcvbuf = 1 << 20;
            c.checksums.tx_offload = offload;
            c.checksums.rx_verified = offload;
        })
    });
    // As much buffer as smoltcp gets below.
    let opts = Some(SockOpts {
        sndbuf: Some(1 << 20),
        ..SockOpts::DEFAULT
    });
    let options = ConnectOptions {
        opts,
        ..ConnectOptions::default()
    };
    let l = pair[1]
        .tcp_listen(
            at(1, 80),
            &ListenOptions {
                backlog: 1,
                ..Default::default()
            },
        )
        .expect("listen");
    let c = pair[0]
        .tcp_connect(clock.0, at(1, 80), &options)
        .expect("connect");
    let mut batch = Batch::default();
    let mut exchange = |pair: &mut [Stack; 2], clock: &mut Clock| {
        let now = clock.tick(20);
        let [a, b] = pair;
        batch.fill(a, now, 64);
        batch.deliver(b, now);
        batch.fill(b, now, 64);
        batch.deliver(a, now);
        a.handle_timeout(now);
        b.handle_timeout(now);
    };
    let mut server = None;
    while server.is_none() {
        exchange(&mut pair, &mut clock);
        server = pair[1].tcp_accept(l);
    }
    let server = server.expect("accepted");
    let data = vec![5u8; 256 << 10];
    let mut sink = vec![0u8; 256 << 10];
    let mut got = 0;
    let t = CpuTime::now();
    while got < bytes {
        while pair[0]
            .tcp_send(clock.0, c, &[&data], false)
            .is_ok_and(|n| n == data.len())
        {}
        exchange(&mut pair, &mut clock);
        while let Ok(n) = pair[1].tcp_recv(clock.0, server, &mut sink) {
            got += n;
            black_box(&mut sink);
        }
        while pair[0].poll_event().is_some() || pair[1].poll_event().is_some() {}
    }
    got as f64 * 8.0 / t.elapsed().as_secs_f64() / 1e9
}

/// Frame buffers go around; neither side pays for allocation.
const FRAME: usize = 1514;
type Frame = (Box<[u8; FRAME]>, usize);

thread_local! {
    #[allow(clippy::vec_box, reason = "buffers move by their pointer")]
    static SPARE: RefCell<Vec<Box<[u8; FRAME]>>> = const { RefCell::new(Vec::new()) };
}

/// One direction of frames for smoltcp.
struct Wire {
    rx: Vec<Frame>,
    tx: Vec<Frame>,
    offload: bool,
}

struct Rx(Frame);
struct Tx<'a>(&'a mut Wire);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let (buf, len) = self.0;
        let r = f(&buf[..len]);
        SPARE.with_borrow_mut(|s| s.push(buf));
        r
    }
}

impl TxToken for Tx<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        let mut buf = spare.unwrap_or_else(|| Box::new([0; FRAME]));
        let r = f(&mut buf[..len]);
        self.0.tx.push((buf, len));
        r
    }
}

impl Device for Wire {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx, Tx<'_>)> {
        let f = self.rx.pop()?;
        Some((Rx(f), Tx(self)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Tx<'_>> {
        (self.tx.len() < 64).then_some(Tx(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut c = DeviceCapabilities::default();
        c.medium = Medium::Ethernet;
        c.max_transmission_unit = FRAME;
        if self.offload {
            c.checksum = smoltcp::phy::ChecksumCapabilities::ignored();
        }
        c
    }
}

/// Gbit/s of smoltcp's sockets.
fn smoltcp_sockets(bytes: usize, offload: bool) -> f64 {
    let mut now = Duration::from_secs(1);
    let time = |d: Duration| smoltcp::time::Instant::from_micros(d.as_micros() as i64);
    let mut wires = [0, 1].map(|_| Wire {
        rx: vec![],
        tx: vec![],
        offload,
    });
    let mut ifaces = [0u8, 1].map(|i| {
        let mac = EthernetAddress([2, 0, 0, 0, 0, i + 1]);
        let mut f = Interface::new(
            Config::new(mac.into()),
            &mut wires[usize::from(i)],
            time(now),
        );
        f.update_ip_addrs(|a| {
            a.push(IpCidr::new(IpAddress::v4(10, 0, 0, i + 1), 8))
                .expect("address");
        });
        f
    });
    let mut sets = [0, 1].map(|_| {
        let buf = || tcp::SocketBuffer::new(vec![0; 1 << 20].leak());
        let mut set = SocketSet::new(Box::leak(Box::new([SocketStorage::EMPTY])).as_mut_slice());
        let h = set.add(tcp::Socket::new(buf(), buf()));
        (set, h)
    });
    let h1 = sets[1].1;
    sets[1]
        .0
        .get_mut::<tcp::Socket>(h1)
        .listen(80)
        .expect("listen");
    let h0 = sets[0].1;
    let remote = (IpAddress::v4(10, 0, 0, 2), 80);
    sets[0]
        .0
        .get_mut::<tcp::Socket>(h0)
        .connect(ifaces[0].context(), remote, 4000)
        .expect("connect");
    let data = vec![5u8; 256 << 10];
    let mut sink = vec![0u8; 256 << 10];
    let mut got = 0;
    let mut t = CpuTime::now();
    while got < bytes {
        now += Duration::from_micros(20);
        let s = sets[0].0.get_mut::<tcp::Socket>(h0);
        if s.may_send() {
            if got == 0 {
                t = CpuTime::now();
            }
            while s.can_send() && s.send_slice(&data).is_ok_and(|n| n > 0) {}
        }
        for i in 0..2 {
            ifaces[i].poll(time(now), &mut wires[i], &mut sets[i].0);
            let mut frames = std::mem::take(&mut wires[i].tx);
            frames.reverse();
            wires[1 - i].rx = frames;
        }
        let s = sets[1].0.get_mut::<tcp::Socket>(h1);
        while s.can_recv() {
            got += s.recv_slice(&mut sink).expect("recv");
            black_box(&mut sink);
        }
    }
    got as f64 * 8.0 / t.elapsed().as_secs_f64() / 1e9
}
