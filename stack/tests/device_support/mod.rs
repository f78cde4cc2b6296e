//! Namespaces, interfaces and frames for the device tests.
//!
//! Each test runs its body in a process of its own, inside a fresh network namespace: `unshare` is
//! asked to start the test binary again with the test's name. Nothing outside the namespace is touched.
#![allow(dead_code, reason = "every test binary uses its part")]
#![allow(
    clippy::disallowed_methods,
    reason = "a test that waits for a kernel needs a clock"
)]

use kcm_stack::device::{
    Checksum, DeviceError, FrameMeta, Gso, GsoKind, NetDevice, OpenOptions, RxFrame, Wait, open,
};
use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Rights a test body needs.
#[derive(Clone, Copy)]
pub(crate) enum Rights {
    /// Any user: root of a user namespace of its own.
    User,
    /// Root of the whole system.
    System,
}

const MARK: &str = "KCM_DEVICE_TEST_NAMESPACE";

/// Longest any body takes, and any wait for a frame.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Runs `body` in a namespace. `test` is the name of the calling test.
pub(crate) fn in_namespace(test: &str, rights: Rights, body: fn()) {
    if std::env::var_os(MARK).is_some() {
        return body();
    }
    let unshare = |program: &OsStr, args: &[&str]| {
        let mut command = Command::new("unshare");
        match rights {
            Rights::User => command.args(["--user", "--map-root-user", "--net"]),
            Rights::System => command.arg("--net"),
        };
        command
            .arg(program)
            .args(args)
            .env(MARK, "1")
            .stdin(Stdio::null());
        command
    };
    let probe = unshare(OsStr::new("ip"), &["link", "set", "lo", "up"]).output();
    if !probe.as_ref().is_ok_and(|output| output.status.success()) {
        let what = match rights {
            Rights::User => "unprivileged user namespaces, util-linux and iproute2",
            Rights::System => "root, util-linux and iproute2",
        };
        return say(&format!("{test}: needs {what}; not exercised"));
    }
    let program = std::env::current_exe().unwrap();
    let output = unshare(program.as_os_str(), &["--exact", test, "--nocapture"])
        .output()
        .unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(
        output.status.success(),
        "{test} in its namespace:\n{}\n{}",
        text[0],
        text[1]
    );
    assert!(
        text[0].contains("1 passed"),
        "{test} did not run:\n{}",
        text[0]
    );
    for line in text[1].lines().filter(|line| line.contains("needs")) {
        say(line);
    }
}

/// Runs `body` in a namespace, where the module is loaded.
pub(crate) fn with_netmap(test: &str, body: fn()) {
    if std::path::Path::new("/dev/netmap").exists() {
        in_namespace(test, Rights::System, body);
    } else {
        say(&format!(
            "{test}: needs the netmap kernel module (/dev/netmap); not exercised"
        ));
    }
}

/// Tells the user something the test harness does not swallow.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs `ip` with words separated by spaces; must succeed.
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(
        output.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A veth pair v0 and v1 with `queues` queues each, both up, no address of any kind.
pub(crate) fn veth(queues: usize) {
    let sysctl = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
    // Without IPv6 the kernel sends nothing on its own.
    let _ = std::fs::write(sysctl, "1");
    let counts = format!("numrxqueues {queues} numtxqueues {queues}");
    ip(&format!(
        "link add v0 {counts} type veth peer name v1 {counts}"
    ));
    ip("link set v0 up");
    ip("link set v1 up");
    let [mut first, mut second] =
        ["packet:v0", "packet:v1"].map(|name| open_one(name, &OpenOptions::default()));
    until_connected(&mut first, &mut second);
    until_connected(&mut second, &mut first);
}

/// Sends until a frame arrives: an interface that came up before its peer gets its queue from a worker
/// of the kernel's, and drops what it is given until then.
fn until_connected(from: &mut dyn NetDevice, to: &mut dyn NetDevice) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        send(from, &[raw(0, 60)]);
        if take(to).unwrap().iter().any(|frame| is_ours(&frame.data)) {
            return;
        }
        assert!(Instant::now() < deadline, "the veth pair does not come up");
        wait_for(to, Wait::Readable, Some(Duration::from_millis(10)));
    }
}

/// Opens a device with one queue.
pub(crate) fn open_one(name: &str, options: &OpenOptions) -> Box<dyn NetDevice> {
    let mut devices = open(name, options).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(devices.len(), 1);
    devices.remove(0)
}

/// A received frame, kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) data: Vec<u8>,
    pub(crate) meta: FrameMeta,
}

impl From<&RxFrame<'_>> for Kept {
    fn from(frame: &RxFrame<'_>) -> Self {
        Self {
            data: frame.data.to_vec(),
            meta: frame.meta,
        }
    }
}

/// What waits to be received now.
pub(crate) fn take(device: &mut dyn NetDevice) -> Result<Vec<Kept>, DeviceError> {
    let mut kept = Vec::new();
    device.receive(usize::MAX, &mut |frames| {
        kept.extend(frames.iter().map(Kept::from))
    })?;
    Ok(kept)
}

/// Waits on the device's descriptor until it has received `count` frames of ours (see [`is_ours`]).
pub(crate) fn expect(device: &mut dyn NetDevice, count: usize) -> Vec<Kept> {
    let mut kept = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while kept.len() < count {
        kept.extend(
            take(device)
                .unwrap()
                .into_iter()
                .filter(|frame| is_ours(&frame.data)),
        );
        if kept.len() < count {
            assert!(
                Instant::now() < deadline,
                "{} of {count} frames after {PATIENCE:?}, {:?}",
                kept.len(),
                device.counters()
            );
            wait(device, Wait::Readable);
        }
    }
    kept
}

/// Sleeps on the device's descriptor, a second at most.
pub(crate) fn wait(device: &dyn NetDevice, wait: Wait) {
    wait_for(device, wait, None);
}

/// Sleeps on the device's descriptor until `limit`, a second at most.
pub(crate) fn wait_for(device: &dyn NetDevice, wait: Wait, limit: Option<Duration>) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let Some((fd, wait)) = device.wait_fd(wait) else {
        return;
    };
    let flags = match wait {
        Wait::Readable => PollFlags::IN,
        Wait::Writable => PollFlags::IN | PollFlags::OUT,
    };
    let limit = limit.map_or(Duration::from_secs(1), |limit| {
        limit.min(Duration::from_secs(1))
    });
    let timeout = Timespec {
        tv_sec: limit.as_secs() as _,
        tv_nsec: limit.subsec_nanos().into(),
    };
    let _ = poll(&mut [PollFd::new(&fd, flags)], Some(&timeout));
}

/// Sends frames, waiting for room, and kicks.
pub(crate) fn send(device: &mut dyn NetDevice, frames: &[Kept]) {
    for frame in frames {
        while device.transmit_parts(&[&frame.data], frame.meta).is_err() {
            device.kick().unwrap();
            wait(device, Wait::Writable);
        }
    }
    device.kick().unwrap();
}

/// Compares frames but for the header length, which is the kernel's hint and not ours.
pub(crate) fn assert_same(got: &Kept, sent: &Kept) {
    let essence = |meta: FrameMeta| (meta.csum, meta.gso.map(|gso| (gso.kind, gso.size, gso.ecn)));
    assert_eq!(
        (got.data.len(), essence(got.meta)),
        (sent.data.len(), essence(sent.meta))
    );
    let differs = got
        .data
        .iter()
        .zip(&sent.data)
        .position(|(got, sent)| got != sent);
    assert_eq!(differs, None, "first byte that differs");
}

/// [`assert_same`] for each pair.
pub(crate) fn assert_all_same(got: &[Kept], sent: &[Kept]) {
    assert_eq!(got.len(), sent.len());
    got.iter()
        .zip(sent)
        .for_each(|(got, sent)| assert_same(got, sent));
}

pub(crate) const MAC_A: [u8; 6] = [0x02, 0xaa, 0, 0, 0, 1];
pub(crate) const MAC_B: [u8; 6] = [0x02, 0xbb, 0, 0, 0, 2];
pub(crate) const IP_A: [u8; 4] = [10, 99, 0, 1];
pub(crate) const IP_B: [u8; 4] = [10, 99, 0, 2];

/// First byte of a TCP or UDP header, from the start of the frame.
pub(crate) const TRANSPORT: usize = 34;

/// A local experimental EtherType (IEEE 802), so that the kernel does not care.
const ETHERTYPE_TEST: [u8; 2] = [0x88, 0xb5];

/// Whether a frame is one that [`raw`], [`udp`] or [`tcp`] made, and not the kernel's own chatter.
pub(crate) fn is_ours(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some(kind) if kind == ETHERTYPE_TEST => true,
        Some([8, 0]) => frame.get(26..28) == Some(&IP_A[..2]),
        _ => false,
    }
}

/// A frame of `len` bytes that carries `number`.
pub(crate) fn raw(number: u32, len: usize) -> Kept {
    let mut data = vec![number as u8; len];
    data[..6].copy_from_slice(&MAC_B);
    data[6..12].copy_from_slice(&MAC_A);
    data[12..14].copy_from_slice(&ETHERTYPE_TEST);
    data[14..18].copy_from_slice(&number.to_be_bytes());
    Kept {
        data,
        meta: FrameMeta::NONE,
    }
}

/// The number of a frame that [`raw`] made.
pub(crate) fn number(frame: &Kept) -> u32 {
    u32::from_be_bytes(frame.data[14..18].try_into().unwrap())
}

fn ipv4(protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend_from_slice(&MAC_B);
    frame.extend_from_slice(&MAC_A);
    frame.extend_from_slice(&[8, 0]);
    let total = (20 + transport.len()) as u16;
    frame.extend_from_slice(&[0x45, 0]);
    frame.extend_from_slice(&total.to_be_bytes());
    frame.extend_from_slice(&[0, 1, 0x40, 0, 64, protocol, 0, 0]);
    frame.extend_from_slice(&IP_A);
    frame.extend_from_slice(&IP_B);
    let sum = !fold(sum(&frame[14..34]));
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend_from_slice(transport);
    frame
}

/// A UDP datagram from A to B whose checksum is left to the device.
pub(crate) fn udp(source: u16, destination: u16, payload: &[u8]) -> Kept {
    let len = (8 + payload.len()) as u16;
    let mut datagram = Vec::new();
    for field in [source, destination, len, pseudo(17, len)] {
        datagram.extend_from_slice(&field.to_be_bytes());
    }
    datagram.extend_from_slice(payload);
    let csum = Checksum::Partial {
        start: TRANSPORT as u16,
        offset: 6,
    };
    Kept {
        data: ipv4(17, &datagram),
        meta: FrameMeta { csum, gso: None },
    }
}

/// A TCP segment from A to B whose checksum is left to the device, to be cut into segments of `mss`
/// bytes if there is one.
pub(crate) fn tcp(seq: u32, payload: &[u8], mss: Option<u16>) -> Kept {
    let mut segment = vec![0x12, 0x34, 0x56, 0x78];
    segment.extend_from_slice(&seq.to_be_bytes());
    segment.extend_from_slice(&[0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff]);
    segment.extend_from_slice(&pseudo(6, (20 + payload.len()) as u16).to_be_bytes());
    segment.extend_from_slice(&[0, 0]);
    segment.extend_from_slice(payload);
    let csum = Checksum::Partial {
        start: TRANSPORT as u16,
        offset: 16,
    };
    let gso = mss.map(|size| Gso {
        kind: GsoKind::TcpV4,
        size,
        hdr_len: 54,
        ecn: false,
    });
    Kept {
        data: ipv4(6, &segment),
        meta: FrameMeta { csum, gso },
    }
}

/// An ICMP echo request from A to B (RFC 792).
pub(crate) fn echo_request(payload: &[u8]) -> Kept {
    let mut message = vec![8, 0, 0, 0, 0, 1, 0, 1];
    message.extend_from_slice(payload);
    let sum = !fold(sum(&message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    Kept {
        data: ipv4(1, &message),
        meta: FrameMeta::NONE,
    }
}

fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| u32::from(*b)))
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn pseudo(protocol: u8, len: u16) -> u16 {
    fold(sum(&IP_A) + sum(&IP_B) + u32::from(protocol) + u32::from(len))
}

/// Whether the transport checksum stands complete and right in a frame from A to B.
pub(crate) fn checksum_is_right(frame: &[u8]) -> bool {
    let transport = &frame[TRANSPORT..];
    fold(u32::from(pseudo(frame[23], transport.len() as u16)) + sum(transport)) == 0xffff
}
