//! The kernels at both ends: child processes in network namespaces of their own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread::scope;
use std::time::{Duration, Instant as Wall};

use super::{PORT, RECEIVER};

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

/// A child in a namespace of its own; a line is a message.
pub(super) struct Peer {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Peer {
    pub(super) fn start(role: &str, interface: &str, address: Ipv4Addr) -> Self {
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

    pub(super) fn say(&mut self, line: &str) {
        writeln!(self.to, "{line}").expect("a child that listens");
    }

    pub(super) fn hear(&mut self) -> String {
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

/// Sends until the receiver has enough; a line names the congestion control.
fn sender() {
    let data = vec![5; 1 << 18];
    for algorithm in set_up() {
        let _ = send_by(&algorithm, &data);
        answer("done");
    }
}

/// The default is the machine's and not always a namespace's to choose: asked for here.
fn send_by(algorithm: &str, data: &[u8]) -> rustix::io::Result<()> {
    use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_tcp_congestion(&socket, algorithm)?;
    connect(&socket, &SocketAddrV4::new(RECEIVER, PORT))?;
    loop {
        rustix::io::write(&socket, data)?;
    }
}

/// Nothing remembered from one round to the next, and no chatter of IPv6.
pub(super) fn prepare_kernel() {
    for (name, value) in [
        ("ipv4/tcp_no_metrics_save", "1"),
        ("ipv6/conf/default/disable_ipv6", "1"),
    ] {
        let _ = std::fs::write(format!("/proc/sys/net/{name}"), value);
    }
}

/// A pair of interfaces that carry single segments.
pub(super) fn veth(a: &str, b: &str) {
    ip(&format!("link add {a} type veth peer name {b}"));
    for end in [a, b] {
        ip(&format!("link set {end} gso_max_segs 1"));
        ip(&format!("link set {end} up"));
    }
}

pub(super) fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status();
    assert!(status.is_ok_and(|s| s.success()), "ip {words}");
}
