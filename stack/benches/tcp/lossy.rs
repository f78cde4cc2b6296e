//! Goodput through a bad link, engine to kernel beside kernel to kernel, and what an engine's flow
//! takes of a queue it shares with a kernel's.
//!
//! Two senders, an engine (10.0.0.1) and a kernel in a network namespace of its own (10.0.0.3), and a
//! receiving kernel in another (10.0.0.2), meet in a switch that runs here: all frames to the receiver
//! pass one queue, one rate and the faults of [`LinkFaults`]. Every interface carries single segments,
//! as a wire would; both senders use CUBIC.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant as Wall};

use kcm_stack::device::{
    Fault, LinkFaults, Loss, NetDevice, OpenOptions, TransmitError, Wait, open, pump,
};
use kcm_stack::{Config, ConnectOptions, Instant, Key, Stack};

use crate::pair::median;
use crate::report::{Row, row};

const ENGINE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const RECEIVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const SENDER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
const PORT: u16 = 5000;

/// 100 Mbit/s, slow enough for one thread to carry on a busy machine without being the bottleneck.
const RATE_BYTES_PER_S: u64 = 12_500_000;

/// 20 ms at that rate.
const QUEUE_BYTES: usize = 250_000;

const LOSSES: [f64; 4] = [0.0001, 0.001, 0.01, 0.05];
const DELAYS_MS: [u64; 2] = [0, 10];

/// Child processes in namespaces of their own find their part here.
const ROLE: &str = "KCM_TCP_BENCH_ROLE";

/// Runs as a child of this benchmark, if it is one.
pub(crate) fn is_child() -> bool {
    match std::env::var(ROLE).as_deref() {
        Ok("receiver") => receiver(),
        Ok("sender") => sender(),
        _ => return false,
    }
    true
}

pub(crate) fn run(quick: bool) -> Vec<Row> {
    let (rounds, goodput_time, fairness_time) = if quick {
        (1, Duration::from_millis(300), Duration::from_secs(1))
    } else {
        (5, Duration::from_secs(2), Duration::from_secs(6))
    };
    // Goodput includes slow start; two flows need time to find their shares.
    let (whole, settled) = ([Duration::ZERO, goodput_time], [fairness_time; 2]);
    let mut lab = Lab::new();
    let mut rows = Vec::new();
    for delay_ms in DELAYS_MS {
        for loss in LOSSES {
            let mut ratios = Vec::new();
            let (mut ours, mut kernels) = (Vec::new(), Vec::new());
            for round in 0..rounds {
                let faults = faults(loss, delay_ms);
                let engine = lab.measure(&faults, round, whole, &[From::Engine])[0];
                let kernel = lab.measure(&faults, round, whole, &[From::Kernel])[0];
                ratios.push(engine / kernel);
                ours.push(engine);
                kernels.push(kernel);
            }
            // The median of single ratios is noise where a run sees few losses: compare medians.
            let (ours, kernels) = (median(ours), median(kernels));
            let ratio = ours / kernels;
            ratios.sort_by(f64::total_cmp);
            rows.push(row(
                format!(
                    "goodput, {}% loss, {delay_ms} ms, engine : kernel, cubic",
                    loss * 100.0
                ),
                "≥ 0.9 ×",
                format!(
                    "{ratio:.2} × ({ours:.1} : {kernels:.1} Mbit/s; rounds {:.2} to {:.2})",
                    ratios[0],
                    ratios[ratios.len() - 1]
                ),
                ratio >= 0.9,
            ));
        }
    }
    let shares = (0..rounds).map(|round| {
        let both = [From::Engine, From::Kernel];
        let got = lab.measure(&faults(0.0, 10), round, settled, &both);
        got[0] / (got[0] + got[1])
    });
    let share = median(shares.collect());
    rows.push(row(
        "fairness: engine's share beside a kernel flow, one queue, 10 ms".into(),
        "0.4 to 0.6",
        format!("{share:.2}"),
        (0.4..=0.6).contains(&share),
    ));
    rows
}

fn faults(loss: f64, delay_ms: u64) -> LinkFaults {
    LinkFaults {
        loss: Loss::Random(loss),
        delay: Duration::from_millis(delay_ms),
        rate: Some(RATE_BYTES_PER_S),
        queue_bytes: QUEUE_BYTES,
        ..LinkFaults::default()
    }
}

#[derive(Clone, Copy, PartialEq)]
enum From {
    Engine,
    Kernel,
}

/// The namespaces and who is in them.
struct Lab {
    receiver: Peer,
    sender: Peer,
}

impl Lab {
    fn new() -> Self {
        prepare_kernel();
        veth("e0", "e1");
        veth("s0", "s1");
        veth("r0", "r1");
        let sender = Peer::start("sender", "s0", SENDER);
        let receiver = Peer::start("receiver", "r0", RECEIVER);
        Self { receiver, sender }
    }

    /// Mbit/s that the receiver counts of each flow, all of them at once.
    fn measure(
        &mut self,
        faults: &LinkFaults,
        seed: u64,
        [warm_up, time]: [Duration; 2],
        from: &[From],
    ) -> Vec<f64> {
        let is_over = AtomicBool::new(false);
        let is_open = Barrier::new(2);
        let Self { receiver, sender } = self;
        scope(|scope| {
            scope.spawn(|| switch(faults, seed, &is_open, &is_over));
            // A first SYN that finds no switch costs a second.
            is_open.wait();
            receiver.say(&format!(
                "{} {} {}",
                from.len(),
                warm_up.as_millis(),
                time.as_millis()
            ));
            if from.contains(&From::Kernel) {
                sender.say("go");
            }
            if from.contains(&From::Engine) {
                scope.spawn(|| engine_sends(&is_over));
            }
            let answer = receiver.hear();
            if from.contains(&From::Kernel) {
                sender.hear();
            }
            // What is on its way ends before the next round.
            sleep(Duration::from_millis(100));
            is_over.store(true, Relaxed);
            let mut flows: Vec<(IpAddr, f64)> = answer
                .split(' ')
                .filter_map(|flow| {
                    let (peer, bytes) = flow.split_once('=')?;
                    let mbit = bytes.parse::<f64>().ok()? * 8.0 / time.as_secs_f64() / 1e6;
                    Some((peer.parse().ok()?, mbit))
                })
                .collect();
            flows.sort_by_key(|flow| flow.0);
            flows.into_iter().map(|flow| flow.1).collect()
        })
    }
}

/// A child in a namespace of its own; a line is a message.
struct Peer {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Peer {
    fn start(role: &str, interface: &str, address: Ipv4Addr) -> Self {
        let mut child = Command::new("unshare")
            .arg("--net")
            .arg(std::env::current_exe().expect("own path"))
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare");
        let to = child.stdin.take().expect("piped");
        let from = BufReader::new(child.stdout.take().expect("piped"));
        let mut peer = Self { child, to, from };
        peer.hear();
        ip(&format!("link set {interface} netns {}", peer.child.id()));
        peer.say(&format!("{interface} {address}"));
        peer.hear();
        peer
    }

    fn say(&mut self, line: &str) {
        writeln!(self.to, "{line}").expect("a child that listens");
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.from
            .read_line(&mut line)
            .expect("a child that answers");
        line.trim().to_owned()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The child's half of [`Peer::start`].
fn set_up() -> impl Iterator<Item = String> {
    prepare_kernel();
    answer("here");
    let mut lines = std::io::stdin().lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    if let Some((interface, address)) = first.split_once(' ') {
        ip(&format!("addr add {address}/24 dev {interface}"));
        ip(&format!("link set {interface} up"));
    }
    answer("up");
    lines
}

fn answer(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// Accepts so many flows, reads from each at once, and counts what each brings in a time that begins
/// with the last of them and a warm-up.
fn receiver() {
    let lines = set_up();
    let listener = TcpListener::bind((RECEIVER, PORT)).expect("bind");
    for line in lines {
        let mut numbers = line.split(' ').map(|n| n.parse().expect("a number"));
        let mut next = || numbers.next().expect("flows, warm-up and time");
        let flows = next();
        let [warm_up, time] = [next(), next()].map(Duration::from_millis);
        let counted: Vec<String> = scope(|scope| {
            let begin = Arc::new(OnceLock::new());
            let counting: Vec<_> = (0..flows)
                .map(|_| {
                    let (stream, peer) = listener.accept().expect("accept");
                    let begin = Arc::clone(&begin);
                    let count = scope.spawn(move || count_for(stream, &begin, time));
                    (peer.ip(), count)
                })
                .collect();
            let _ = begin.set(Wall::now() + warm_up);
            let text = counting
                .into_iter()
                .map(|(peer, count)| format!("{peer}={}", count.join().unwrap_or_default()));
            text.collect()
        });
        answer(&counted.join(" "));
    }
}

fn count_for(mut stream: TcpStream, begin: &OnceLock<Wall>, time: Duration) -> u64 {
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    let _ = stream.set_read_timeout(Some(Duration::from_millis(10)));
    loop {
        let n = stream.read(&mut buffer).unwrap_or(0);
        match begin.get() {
            // Closing with bytes unread resets the flow: the sender is done, too.
            Some(begin) if begin.elapsed() >= time => return bytes,
            Some(begin) if *begin <= Wall::now() => bytes += n as u64,
            _ => {}
        }
    }
}

/// Sends until the receiver has enough.
fn sender() {
    let data = vec![5; 1 << 18];
    for _ in set_up() {
        let _ = send_by_cubic(&data);
        answer("done");
    }
}

/// The default is the machine's, often BBR, and not always a namespace's to choose: asked for here.
fn send_by_cubic(data: &[u8]) -> rustix::io::Result<()> {
    use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_tcp_congestion(&socket, "cubic")?;
    connect(&socket, &SocketAddrV4::new(RECEIVER, PORT))?;
    loop {
        rustix::io::write(&socket, data)?;
    }
}

/// The engine as a sender, on `e0`.
fn engine_sends(is_over: &AtomicBool) {
    let mut device = open_device("e0");
    let mut config = Config::new([0; 6], Key([7; 16]));
    device.capabilities().configure(&mut config);
    config.tso_bytes = 0;
    let start = Wall::now();
    let now = || Instant::ZERO + start.elapsed();
    let mut stack = Stack::new(&config, Instant::ZERO);
    stack.add_address(ENGINE.into(), 24).expect("address");
    let to = SocketAddr::from((RECEIVER, PORT));
    let id = stack.tcp_connect(now(), to, &ConnectOptions::default());
    let id = id.expect("connect");
    let data = vec![5; 1 << 18];
    while !is_over.load(Relaxed) {
        let at = now();
        let pumped = pump(&mut stack, &mut device, at, 256).expect("device");
        while stack.poll_event().is_some() {}
        while stack
            .tcp_send(at, id, &[&data], false)
            .is_ok_and(|n| n == data.len())
        {}
        if pumped.received == 0 && pumped.transmitted == 0 && !stack.has_output() {
            sleep_on(&[&device], stack.next_deadline().map(|due| due - at));
        }
    }
}

/// Joins the two senders and the receiver until all is over.
fn switch(faults: &LinkFaults, seed: u64, is_open: &Barrier, is_over: &AtomicBool) {
    let start = Wall::now();
    let mut senders = ["e1", "s1"].map(open_device);
    let mut receiver = Fault::new(open_device("r1"), seed, faults.clone(), faults.clone());
    is_open.wait();
    // Where answers go: the sender's address, learned from what it sends.
    let mut known: [Option<[u8; 6]>; 2] = [None; 2];
    while !is_over.load(Relaxed) {
        let now = Instant::ZERO + start.elapsed();
        receiver.advance(now);
        let mut moved = 0;
        for (sender, known) in senders.iter_mut().zip(&mut known) {
            moved += sender
                .receive(256, &mut |frames| {
                    for frame in frames {
                        *known = frame.data.get(6..12).and_then(|mac| mac.try_into().ok());
                        let sent = receiver.transmit_parts(&[frame.data], frame.meta);
                        assert!(!is_broken(&sent), "{sent:?}");
                    }
                })
                .expect("device");
        }
        receiver.kick().expect("device");
        moved += receiver
            .receive(256, &mut |frames| {
                for frame in frames {
                    for (sender, known) in senders.iter_mut().zip(&known) {
                        let to = frame.data.get(..6);
                        let is_group = to.is_some_and(|to| to[0] & 1 != 0);
                        if is_group || known.is_some_and(|mac| to == Some(&mac[..])) {
                            let sent = sender.transmit_parts(&[frame.data], frame.meta);
                            assert!(!is_broken(&sent), "{sent:?}");
                        }
                    }
                }
            })
            .expect("device");
        senders
            .iter_mut()
            .for_each(|sender| sender.kick().expect("device"));
        if moved == 0 {
            let due = receiver.next_deadline().map(|due| due - now);
            sleep_on(&[&senders[0], &senders[1], &receiver], due);
        }
    }
}

fn is_broken(sent: &Result<(), TransmitError>) -> bool {
    matches!(sent, Err(TransmitError::Device(_)))
}

fn open_device(interface: &str) -> Box<dyn NetDevice> {
    let mut devices = open(&format!("packet:{interface}"), &OpenOptions::default()).expect("open");
    devices.remove(0)
}

/// Until a frame arrives, `due` has passed, or a moment to see whether all is over.
fn sleep_on(devices: &[&dyn NetDevice], due: Option<Duration>) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Duration::from_millis(20).min(due.unwrap_or(Duration::MAX));
    let fds: Vec<_> = devices
        .iter()
        .filter_map(|device| device.wait_fd(Wait::Readable))
        .collect();
    let mut polled: Vec<_> = fds
        .iter()
        .map(|(fd, _)| PollFd::new(fd, PollFlags::IN))
        .collect();
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: limit.subsec_nanos().into(),
    };
    let _ = poll(&mut polled, Some(&timeout));
}

/// Nothing remembered from one round to the next, and no chatter of IPv6.
fn prepare_kernel() {
    for (name, value) in [
        ("ipv4/tcp_no_metrics_save", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
    ] {
        let _ = std::fs::write(format!("/proc/sys/net/{name}"), value);
    }
}

/// A pair of interfaces that carry single segments.
fn veth(a: &str, b: &str) {
    ip(&format!("link add {a} type veth peer name {b}"));
    for end in [a, b] {
        ip(&format!("link set {end} gso_max_segs 1"));
        ip(&format!("link set {end} up"));
    }
}

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status();
    assert!(status.is_ok_and(|s| s.success()), "ip {words}");
}
