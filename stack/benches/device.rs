//! Frames per second of each packet device: 64-byte frames, and 64 KiB super-frames where the device
//! takes them. In-memory devices run on one core; the others cross a veth pair, or a TAP interface, in
//! a network namespace of their own, sender and receiver taking turns in one thread, so the kernel's
//! share is included.
//!
//! ```text
//! cargo bench -p kcm-stack --bench device [-- FILTER]
//! ```
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use kcm_stack::device::netmap::{self, PairOptions};
use kcm_stack::device::{
    Checksum, FrameMeta, Gso, GsoKind, GsoSet, MemoryDevice, MemoryOptions, NetDevice, OpenOptions,
    XdpMode, open,
};
use std::io::{Write as _, stdout};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Set in the process that runs inside the namespace.
const MARK: &str = "KCM_DEVICE_BENCH_NAMESPACE";

/// Frames queued between two kicks.
const BURST: usize = 64;

/// Time per line, after a tenth of it to warm up.
const RUN: Duration = Duration::from_millis(500);

/// Lines repeat this often; the median counts.
const RUNS: usize = 5;

type Pair = (Box<dyn NetDevice>, Box<dyn NetDevice>);

fn main() {
    let filter = std::env::args()
        .skip(1)
        .find(|arg| !arg.starts_with('-'))
        .unwrap_or_default();
    if std::env::var_os(MARK).is_some() {
        return in_kernel(&filter);
    }
    say("device                          frame B     Mframes/s min/median/max     Gb/s");
    in_memory(&filter);
    let program = std::env::current_exe().ok();
    let status = program.and_then(|program| {
        Command::new("unshare")
            .arg("--net")
            .arg(program)
            .arg(&filter)
            .env(MARK, "1")
            .stderr(Stdio::inherit())
            .status()
            .ok()
    });
    if !status.is_some_and(|status| status.success()) {
        say("packet, tap, xdp: need root (a network namespace), util-linux and iproute2");
    }
}

fn in_memory(filter: &str) {
    let plain = MemoryOptions::default();
    let offload = MemoryOptions {
        gso: GsoSet::ALL,
        checksum_offload: true,
        ..MemoryOptions::default()
    };
    let slots = PairOptions::default();
    let vnet = PairOptions {
        vnet_hdr: true,
        ..PairOptions::default()
    };
    let memory = |options: &MemoryOptions| {
        MemoryDevice::pair(options)
            .ok()
            .map(|(a, b)| -> Pair { (Box::new(a), Box::new(b)) })
    };
    let region = |options: &PairOptions| {
        netmap::pair(options)
            .ok()
            .map(|(a, b)| -> Pair { (Box::new(a), Box::new(b)) })
    };
    line(filter, "mem: pair", 64, memory(&plain));
    line(filter, "mem: pair, offloads", 65_535, memory(&offload));
    line(filter, "netmap region", 64, region(&slots));
    line(filter, "netmap region, 1514 B", 1514, region(&slots));
    line(filter, "netmap region, vnet_hdr", 64, region(&vnet));
    line(filter, "netmap region, vnet_hdr", 65_535, region(&vnet));
}

fn in_kernel(filter: &str) {
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let ip = |words: &str| {
        let status = Command::new("ip").args(words.split(' ')).status();
        status.is_ok_and(|status| status.success())
    };
    let made =
        ip("link add v0 type veth peer name v1") && ip("link set v0 up") && ip("link set v1 up");
    if !made {
        return say("packet, tap, xdp: need iproute2");
    }
    let options = OpenOptions::default();
    let pair = |a: &str, b: &str, options: &OpenOptions| -> Option<Pair> {
        let one = |name: &str| match open(name, options) {
            Ok(mut devices) => devices.pop(),
            Err(error) => {
                say(&format!("needs more: {error}"));
                None
            }
        };
        Some((one(a)?, one(b)?))
    };
    line(
        filter,
        "packet: -> packet:",
        64,
        pair("packet:v0", "packet:v1", &options),
    );
    line(
        filter,
        "packet: -> packet:",
        1514,
        pair("packet:v0", "packet:v1", &options),
    );
    line(
        filter,
        "packet: -> packet:, TSO",
        65_535,
        pair("packet:v0", "packet:v1", &options),
    );
    line(
        filter,
        "tap: -> packet:",
        64,
        pair("tap:kcm0", "packet:kcm0", &options),
    );
    line(filter, "packet: -> tap:", 64, tap_reversed(&pair, &options));
    line(
        filter,
        "tap: -> packet:, TSO",
        65_535,
        pair("tap:kcm0", "packet:kcm0", &options),
    );
    line(
        filter,
        "packet: -> tap:, TSO",
        65_535,
        tap_reversed(&pair, &options),
    );
    for (mode, name) in [(XdpMode::Any, "any mode"), (XdpMode::Copy, "copy")] {
        let options = OpenOptions {
            xdp_mode: mode,
            ..OpenOptions::default()
        };
        let xdp = pair("xdp:v0", "xdp:v1", &options);
        line(filter, &format!("xdp: -> xdp:, {name}"), 64, xdp);
    }
    line(
        filter,
        "xdp: -> packet:",
        64,
        pair("xdp:v0", "packet:v1", &options),
    );
    line(
        filter,
        "packet: -> xdp:",
        64,
        pair("packet:v0", "xdp:v1", &options),
    );
}

fn tap_reversed(
    pair: &dyn Fn(&str, &str, &OpenOptions) -> Option<Pair>,
    options: &OpenOptions,
) -> Option<Pair> {
    // The TAP must exist before a packet socket can be bound to it.
    pair("tap:kcm0", "packet:kcm0", options).map(|(tap, packet)| (packet, tap))
}

/// Measures one pair and prints its line.
fn line(filter: &str, name: &str, len: usize, pair: Option<Pair>) {
    let Some((mut from, mut to)) = pair.filter(|_| name.contains(filter)) else {
        return;
    };
    let mut rates: Vec<f64> = (0..RUNS)
        .map(|_| {
            rate(&mut *from, &mut *to, len, RUN / 10);
            rate(&mut *from, &mut *to, len, RUN)
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    let median = rates[RUNS / 2];
    let gbit = median * len as f64 * 8.0 / 1e9;
    let [min, median, max] = [rates[0], median, rates[RUNS - 1]].map(|rate| rate / 1e6);
    say(&format!(
        "{name:30} {len:8}     {min:8.3} /{median:8.3} /{max:8.3}     {gbit:8.2}"
    ));
}

/// Frames per second that arrived with their number intact.
fn rate(from: &mut dyn NetDevice, to: &mut dyn NetDevice, len: usize, time: Duration) -> f64 {
    let frame = frame(len);
    let meta = if len > 1514 {
        let gso = Some(Gso {
            kind: GsoKind::TcpV4,
            size: 1460,
            hdr_len: 54,
            ecn: false,
        });
        FrameMeta {
            csum: Checksum::Partial {
                start: 34,
                offset: 16,
            },
            gso,
        }
    } else {
        FrameMeta::NONE
    };
    let (mut sent, mut received, mut wrong) = (0u64, 0u64, 0u64);
    let start = Instant::now();
    while start.elapsed() < time {
        for _ in 0..BURST {
            let queued = from.transmit(frame.len(), meta, &mut |place| {
                place.copy_from_slice(&frame);
                if let Some(number) = place.get_mut(54..62) {
                    number.copy_from_slice(&sent.to_be_bytes());
                }
            });
            if queued.is_err() {
                break;
            }
            sent += 1;
        }
        let kicked = from.kick();
        let taken = to.receive(4 * BURST, &mut |frames| {
            for frame in frames {
                // The kernel's own frames have another type or length.
                wrong += u64::from(frame.data.len() != len);
            }
            received += frames.len() as u64;
        });
        if kicked.is_err() || taken.is_err() {
            break;
        }
    }
    received.saturating_sub(wrong) as f64 / start.elapsed().as_secs_f64()
}

/// An IPv4 frame of `len` bytes: TCP when it is to be segmented, else of a protocol nobody serves.
fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0; len];
    let protocol = if len > 1514 { 6 } else { 253 };
    let head = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame[..16].copy_from_slice(&head);
    frame[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
    frame[22..34].copy_from_slice(&[64, protocol, 0, 0, 10, 99, 0, 1, 10, 99, 0, 2]);
    if len > 1514 {
        frame[46] = 0x50;
    }
    frame
}

fn say(line: &str) {
    let _ = writeln!(stdout(), "{line}");
}
