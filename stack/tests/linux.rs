//! The engine against Linux: the kernel's TCP behind a TAP interface, and between the two a link that
//! loses, doubles, reorders, corrupts and falls silent. Seeds are fixed; the kernel's timing is not, and
//! decides nothing.
#![allow(
    clippy::disallowed_methods,
    reason = "a test that waits for a kernel needs a clock"
)]

mod device_support;
mod linux_support;

use device_support::{Rights, in_namespace, ip, open_one, veth};
use kcm_stack::device::{LinkFaults, Loss, OpenOptions};
use kcm_stack::{
    CongestionControl, ConnectOptions, ListenOptions, Ready, RecvError, SockFlag, SockOpts, State,
    TcpId,
};
use linux_support::{Host, Stream, field, kernel_sockets};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

const ENGINE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 1));
const KERNEL_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 2));
const ENGINE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1));
const KERNEL_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2));
const ENGINE_PORT: u16 = 7;

/// Bytes each way of a bulk transfer: some three thousand segments, so that every fault strikes.
const BYTES: u64 = 4 << 20;

/// Where the stream of each side starts.
const ENGINE_SEED: u64 = 1;
const KERNEL_SEED: u64 = 2;

fn faults() -> LinkFaults {
    LinkFaults {
        loss: Loss::Random(0.01),
        duplicate: 0.005,
        reorder: 0.01,
        reorder_by: Duration::from_millis(3),
        corrupt: 0.005,
        delay: Duration::from_micros(500),
        ..LinkFaults::default()
    }
}

/// An engine behind a TAP interface without offloads: every segment is a frame, every checksum is real.
fn host(seed: u64) -> Host {
    let plain = OpenOptions {
        offloads: false,
        ..OpenOptions::default()
    };
    let device = open_one("tap:kcm0", &plain);
    ip("addr add 10.99.0.2/24 dev kcm0");
    ip("addr add fd99::2/64 dev kcm0 nodad");
    Host::new(device, seed, &faults(), &[(ENGINE_V4, 24), (ENGINE_V6, 64)])
}

/// Who sends the first FIN.
#[derive(Clone, Copy, PartialEq)]
enum Closes {
    Engine,
    Kernel,
}

/// The kernel's end of a bulk transfer: streams both ways, then looks at what TCP_INFO says.
fn kernel_bulk(stream: TcpStream, closes: Closes) {
    let mut sender = stream.try_clone().unwrap();
    let sending = spawn(move || {
        let mut data = Stream::new(KERNEL_SEED);
        let mut buffer = [0; 1 << 16];
        for _ in 0..BYTES / buffer.len() as u64 {
            data.fill(&mut buffer);
            sender.write_all(&buffer).unwrap();
        }
    });
    let mut expected = Stream::new(ENGINE_SEED);
    let mut buffer = vec![0; 1 << 16];
    let mut left = BYTES as usize;
    while left > 0 {
        let len = left.min(buffer.len());
        let n = (&stream).read(&mut buffer[..len]).unwrap();
        assert!(n > 0, "the engine's stream ends {left} bytes early");
        expected.check(&buffer[..n]);
        left -= n;
    }
    sending.join().unwrap();
    check_kernel_info(&stream);
    if closes == Closes::Kernel {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    assert_eq!((&stream).read(&mut buffer).unwrap(), 0, "end of stream");
}

/// What the kernel has seen of the connection, once everything it sent is acknowledged.
fn check_kernel_info(stream: &TcpStream) {
    let port = stream.local_addr().unwrap().port();
    let filter = format!("sport = {port}");
    let line = loop {
        let lines = kernel_sockets(&filter);
        assert_eq!(lines.len(), 1, "{lines:?}");
        // The SYN counts as a byte.
        if field(&lines[0], "bytes_acked").is_some_and(|n| n >= BYTES as f64) {
            break lines[0].clone();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let number = |name| field(&line, name).unwrap_or_else(|| panic!("no {name} in {line}"));
    let of_both = [BYTES as f64, BYTES as f64 + 1.0];
    // A listener that closes first may have its FIN in already.
    assert!(
        line.starts_with("ESTAB") || line.starts_with("CLOSE-WAIT"),
        "{line}"
    );
    assert!(of_both.contains(&number("bytes_acked")), "{line}");
    assert!(of_both.contains(&number("bytes_received")), "{line}");
    assert_eq!(number("wscale"), 7.0, "ours: {line}");
    // 1500 without the headers and the twelve bytes of timestamps.
    let mss = if line.contains("fd99::") {
        1428.0
    } else {
        1448.0
    };
    assert_eq!(number("mss"), mss, "{line}");
    // A link of 500 µs each way, and recovery from 1 % loss.
    assert!((1.0..10_000.0).contains(&number("rtt")), "{line}");
    assert!(number("bytes_retrans") > 0.0, "{line}");
    assert!(number("cwnd") >= 1.0, "{line}");
}

/// The engine's end: streams both ways, with a silence of a second after a quarter.
fn engine_bulk(host: &mut Host, id: TcpId, closes: Closes) {
    let mut outgoing = Stream::new(ENGINE_SEED);
    let mut incoming = Stream::new(KERNEL_SEED);
    let mut buffer = vec![0; 1 << 16];
    let (mut chunk, mut offset, mut sent, mut received) = (Vec::new(), 0, 0, 0);
    let mut is_silenced = false;
    while sent < BYTES || received < BYTES {
        let now = host.now();
        if offset == chunk.len() && sent < BYTES {
            chunk.resize((BYTES - sent).min(1 << 16) as usize, 0);
            outgoing.fill(&mut chunk);
            offset = 0;
        }
        if let Ok(n) = host.stack.tcp_send(now, id, &[&chunk[offset..]], false) {
            offset += n;
            sent += n as u64;
        }
        match host.stack.tcp_recv(now, id, &mut buffer) {
            Ok(n) => {
                assert!(n > 0, "the kernel's stream ends at {received}");
                incoming.check(&buffer[..n]);
                received += n as u64;
            }
            Err(RecvError::WouldBlock) => {}
            Err(error) => panic!("{error} after {received} bytes"),
        }
        if !is_silenced && sent.min(received) > BYTES / 4 {
            is_silenced = true;
            let silence = LinkFaults {
                blackouts: vec![now..now + Duration::from_secs(1)],
                ..faults()
            };
            host.set_faults(&silence);
        }
        host.run();
    }
    check_engine_info(host, id);
    if closes == Closes::Engine {
        host.stack
            .tcp_shutdown(host.now(), id, false, true)
            .unwrap();
    }
    loop {
        match host.stack.tcp_recv(host.now(), id, &mut buffer) {
            Ok(0) => break,
            Err(RecvError::WouldBlock) => drop(host.run()),
            other => panic!("{other:?} instead of end of stream"),
        }
    }
    host.stack.tcp_close(host.now(), id);
}

fn check_engine_info(host: &Host, id: TcpId) {
    let info = host.stack.tcp_info(host.now(), id).unwrap();
    assert!(
        matches!(info.state, State::Established | State::CloseWait),
        "{info:?}"
    );
    assert!(
        info.sack && info.timestamps && info.window_scale,
        "{info:?}"
    );
    assert!(info.total_retrans > 0, "{info:?}");
    assert!(
        (BYTES..=BYTES + 1).contains(&info.bytes_received),
        "{info:?}"
    );
    let rtt = Duration::from_millis(1)..Duration::from_secs(10);
    assert!(rtt.contains(&info.rtt), "{info:?}");
    let silenced =
        host.device.rx_faults_seen().blackout_drops + host.device.tx_faults_seen().blackout_drops;
    assert!(silenced > 0, "the silence cost nothing");
}

/// With a frame for each segment there are enough for every fault to strike, both ways.
fn every_fault_struck(host: &Host) {
    for seen in [host.device.rx_faults_seen(), host.device.tx_faults_seen()] {
        let struck = [seen.lost, seen.duplicated, seen.reordered, seen.corrupted];
        assert!(
            struck.iter().all(|n| *n > 0),
            "a fault never struck: {seen:?}"
        );
    }
}

/// Runs until neither side has a connection, and TIME-WAIT is over on ours.
fn end(host: &mut Host, kernel: JoinHandle<()>) {
    while !kernel.is_finished() {
        host.run();
    }
    kernel.join().unwrap();
    // An end that has all it wants may still owe the other its last ACK.
    while !kernel_sockets("")
        .iter()
        .all(|line| line.starts_with("TIME-WAIT"))
    {
        host.run();
    }
    // The engine's clock runs ahead: retransmissions of its last FIN, and 60 s of TIME-WAIT.
    for _ in 0..100 {
        host.run();
        host.skip(Duration::from_secs(2));
    }
    assert_eq!(host.stack.flow_count(), 0, "a connection is left");
    assert_eq!(host.stack.stream_bytes(), 0, "bytes are left");
    host.stack.check_invariants();
}

/// A connection the kernel opens; its end streams in a thread.
fn kernel_connects(host: &mut Host, local: IpAddr) -> (TcpId, JoinHandle<()>) {
    let listener = host
        .stack
        .tcp_listen((local, ENGINE_PORT).into(), &ListenOptions::default())
        .unwrap();
    let kernel = spawn(move || {
        let stream = TcpStream::connect(SocketAddr::from((local, ENGINE_PORT))).unwrap();
        kernel_bulk(stream, Closes::Kernel);
    });
    let id = loop {
        match host.stack.tcp_accept(listener) {
            Some(id) => break id,
            None => host.run(),
        };
    };
    (id, kernel)
}

/// The same, opened by the engine.
fn engine_connects(
    host: &mut Host,
    remote: IpAddr,
    congestion: CongestionControl,
    closes: Closes,
) -> (TcpId, JoinHandle<()>) {
    let server = TcpListener::bind((remote, 0)).unwrap();
    let address = server.local_addr().unwrap();
    let kernel = spawn(move || kernel_bulk(server.accept().unwrap().0, closes));
    let options = ConnectOptions {
        opts: Some(SockOpts {
            congestion,
            ..SockOpts::DEFAULT
        }),
        ..ConnectOptions::default()
    };
    let now = host.now();
    let id = host.stack.tcp_connect(now, address, &options).unwrap();
    while !host.stack.tcp_may_send(id) {
        host.run();
    }
    (id, kernel)
}

/// Both stream through all faults.
fn through_faults(mut host: Host, (id, kernel): (TcpId, JoinHandle<()>), closes: Closes) {
    engine_bulk(&mut host, id, closes);
    every_fault_struck(&host);
    end(&mut host, kernel);
}

#[test]
fn bulk_through_faults_engine_listens_ipv4() {
    in_namespace(
        "bulk_through_faults_engine_listens_ipv4",
        Rights::User,
        || {
            let mut host = host(1);
            let both = kernel_connects(&mut host, ENGINE_V4);
            through_faults(host, both, Closes::Kernel);
        },
    );
}

#[test]
fn bulk_through_faults_engine_listens_ipv6() {
    in_namespace(
        "bulk_through_faults_engine_listens_ipv6",
        Rights::User,
        || {
            let mut host = host(2);
            let both = kernel_connects(&mut host, ENGINE_V6);
            through_faults(host, both, Closes::Kernel);
        },
    );
}

#[test]
fn bulk_through_faults_engine_connects_ipv4() {
    in_namespace(
        "bulk_through_faults_engine_connects_ipv4",
        Rights::User,
        || {
            let mut host = host(3);
            let both = engine_connects(
                &mut host,
                KERNEL_V4,
                CongestionControl::Cubic,
                Closes::Engine,
            );
            through_faults(host, both, Closes::Engine);
        },
    );
}

#[test]
fn bulk_through_faults_engine_connects_ipv6() {
    in_namespace(
        "bulk_through_faults_engine_connects_ipv6",
        Rights::User,
        || {
            let mut host = host(4);
            let both =
                engine_connects(&mut host, KERNEL_V6, CongestionControl::Bbr, Closes::Engine);
            through_faults(host, both, Closes::Engine);
        },
    );
}

/// How a short connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    EngineCloses,
    KernelCloses,
    EngineResets,
    KernelResets,
}

const ENDINGS: [Ending; 4] = [
    Ending::EngineCloses,
    Ending::KernelCloses,
    Ending::EngineResets,
    Ending::KernelResets,
];

/// Connections that live at once, half of them opened by each side.
const SHORT: usize = 64;

/// Bytes of one message of a short connection; three segments.
const MESSAGE: usize = 4000;

/// The kernel's end of a short connection: its number, a message there and the same one back.
fn kernel_short(mut stream: TcpStream, number: u8) {
    let mut message = [0; MESSAGE];
    Stream::new(number.into()).fill(&mut message);
    message[0] = number;
    stream.write_all(&message).unwrap();
    let ending = ENDINGS[usize::from(number) % ENDINGS.len()];
    let mut back = [0; MESSAGE];
    if ending == Ending::KernelResets {
        // Linux resets a connection that is closed with unread bytes.
        stream.peek(&mut back).unwrap();
        return;
    }
    stream.read_exact(&mut back).unwrap();
    assert!(back == message, "connection {number} brought other bytes");
    match ending {
        Ending::KernelCloses => {
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut back).unwrap(), 0);
        }
        Ending::KernelResets => unreachable!("returned above"),
        Ending::EngineCloses => assert_eq!(stream.read(&mut back).unwrap(), 0),
        // A reset that is lost is not repeated: writing asks for another.
        Ending::EngineResets => loop {
            match stream.write_all(b"?") {
                Ok(()) => std::thread::sleep(Duration::from_millis(50)),
                Err(error) => {
                    let expected = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
                    assert!(expected.contains(&error.kind()), "{error}");
                    break;
                }
            }
        },
    }
}

/// The engine's end: echoes a message and ends as its first byte says. `true` when it is done.
fn engine_short(host: &mut Host, id: TcpId, have: &mut Vec<u8>, ready: Ready) -> bool {
    let now = host.now();
    let mut buffer = [0; MESSAGE];
    let outcome = host.stack.tcp_recv(now, id, &mut buffer);
    let ending = |have: &[u8]| ENDINGS[usize::from(have[0]) % ENDINGS.len()];
    match outcome {
        Ok(0) => {
            assert_eq!(have.len(), MESSAGE, "{:?}", ready);
            host.stack.tcp_close(now, id);
            return true;
        }
        // Complete and answered: the kernel asks whether it is to be reset.
        Ok(_) if have.len() == MESSAGE => {}
        Ok(n) => {
            have.extend_from_slice(&buffer[..n]);
            if have.len() == MESSAGE {
                assert_eq!(host.stack.tcp_send(now, id, &[have], false), Ok(MESSAGE));
                if ending(have) == Ending::EngineCloses {
                    host.stack.tcp_close(now, id);
                    return true;
                }
            }
        }
        Err(RecvError::WouldBlock) => {}
        Err(error) => {
            assert_eq!(ending(have), Ending::KernelResets, "{error}");
            host.stack.tcp_close(now, id);
            return true;
        }
    }
    let is_answered = host
        .stack
        .tcp_queues(id)
        .is_some_and(|(_, unacked, _)| unacked == 0);
    if have.len() == MESSAGE && is_answered && ending(have) == Ending::EngineResets {
        host.stack.tcp_abort(now, id);
        return true;
    }
    false
}

#[test]
fn every_short_connection_ends() {
    in_namespace("every_short_connection_ends", Rights::User, || {
        let mut host = host(5);
        // A kernel's reset that is lost is not repeated: keepalive asks for another.
        let opts = Some(SockOpts {
            keep_idle: Duration::from_secs(1),
            keep_interval: Duration::from_secs(1),
            ..SockOpts::DEFAULT
        });
        let flags = vec![SockFlag::KeepAlive];
        let listener = host
            .stack
            .tcp_listen(
                (ENGINE_V4, ENGINE_PORT).into(),
                &ListenOptions {
                    backlog: SHORT,
                    opts: opts.clone(),
                    flags: flags.clone(),
                    ..ListenOptions::default()
                },
            )
            .unwrap();
        let server = TcpListener::bind((KERNEL_V6, 0)).unwrap();
        let address = server.local_addr().unwrap();
        let kernel = spawn(move || {
            let connecting = (0..SHORT / 2).map(|number| {
                spawn(move || {
                    let stream = TcpStream::connect((ENGINE_V4, ENGINE_PORT)).unwrap();
                    kernel_short(stream, number as u8);
                })
            });
            let mut all: Vec<_> = connecting.collect();
            for number in SHORT / 2..SHORT {
                let stream = server.accept().unwrap().0;
                all.push(spawn(move || kernel_short(stream, number as u8)));
            }
            all.into_iter().for_each(|one| one.join().unwrap());
        });
        let options = ConnectOptions {
            opts,
            flags,
            ..ConnectOptions::default()
        };
        let mut open: BTreeMap<TcpId, Vec<u8>> = BTreeMap::new();
        for _ in SHORT / 2..SHORT {
            let now = host.now();
            let id = host.stack.tcp_connect(now, address, &options);
            open.insert(id.unwrap(), Vec::new());
        }
        let mut ended = 0;
        while ended < SHORT {
            let changes: BTreeMap<_, _> = host.run().into_iter().collect();
            while let Some(id) = host.stack.tcp_accept(listener) {
                open.insert(id, Vec::new());
            }
            open.retain(|id, have| {
                let ready = changes.get(id).copied().unwrap_or_default();
                let is_done = engine_short(&mut host, *id, have, ready);
                ended += usize::from(is_done);
                !is_done
            });
        }
        end(&mut host, kernel);
    });
}

/// The same on a veth pair: super-frames and partial checksums instead of faults on each segment, and a
/// silence in between.
#[test]
fn bulk_on_a_veth_with_offloads() {
    in_namespace("bulk_on_a_veth_with_offloads", Rights::User, || {
        veth(1);
        let device = open_one("packet:v0", &OpenOptions::default());
        ip("addr add 10.99.0.2/24 dev v1");
        let mut host = Host::new(device, 6, &faults(), &[(ENGINE_V4, 24)]);
        let (id, kernel) =
            engine_connects(&mut host, KERNEL_V4, CongestionControl::Bbr, Closes::Kernel);
        engine_bulk(&mut host, id, Closes::Kernel);
        end(&mut host, kernel);
    });
}
