//! Joins the two senders and the receiver, and is one of the senders.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant as Wall};

use kcm_stack::device::{
    Fault, FrameMeta, LinkFaults, NetDevice, OpenOptions, TransmitError, Wait, open,
};
use kcm_stack::{
    Config, CongestionControl, ConnectOptions, Instant, Key, Received, SockOpts, Stack, TcpId,
};

use rustix::thread::set_current_timer_slack;

use super::{ENGINE, PORT, RECEIVER};

/// Frames moved from one port between two looks at the others.
const BATCH: usize = 256;

/// A frame that waits for its turn.
type Frame = (Vec<u8>, FrameMeta);

/// Carries frames until all is over. With `congestion` the engine sends, too, and it does so here: the
/// kernel's TCP answers a frame in the thread that delivers it, so an engine that waited for a thread of
/// its own would be compared by its scheduler, not by its recovery.
pub(super) fn switch(
    faults: &LinkFaults,
    seed: u64,
    congestion: Option<CongestionControl>,
    is_open: &Barrier,
    is_over: &AtomicBool,
) {
    let start = Wall::now();
    let mut sender = open_device("s1");
    let mut receiver = Fault::new(open_device("r1"), seed, faults.clone(), faults.clone());
    // The kernel's pacing timers are not late by the 50 µs of a thread's.
    let _ = set_current_timer_slack(NonZeroU64::new(1));
    is_open.wait();
    let mut engine = congestion.map(Engine::connect);
    // Where answers go: the sender's address, learned from what it sends.
    let mut known: Option<[u8; 6]> = None;
    // Of the kernel and of the engine, and whose turn it is to be first.
    let (mut waiting, mut first) = ([Vec::new(), Vec::new()], 0);
    while !is_over.load(Relaxed) {
        let now = Instant::ZERO + start.elapsed();
        receiver.advance(now);
        sender
            .receive(BATCH, &mut |frames| {
                for frame in frames {
                    known = frame.data.get(6..12).and_then(|mac| mac.try_into().ok());
                    waiting[0].push((frame.data.to_vec(), frame.meta));
                }
            })
            .expect("device");
        if let Some(engine) = &mut engine {
            engine.send(now, &mut waiting[1]);
        }
        let mut moved = 0;
        for (frame, meta) in meet(&mut waiting, first) {
            forward(&mut receiver, &frame, meta);
            moved += 1;
        }
        first = 1 - first;
        receiver.kick().expect("device");
        moved += receiver
            .receive(BATCH, &mut |frames| {
                for frame in frames {
                    let to = frame.data.get(..6);
                    let is_group = to.is_some_and(|to| to[0] & 1 != 0);
                    if is_group || known.is_some_and(|mac| to == Some(&mac[..])) {
                        forward(&mut *sender, frame.data, frame.meta);
                    }
                    if let Some(engine) = &mut engine
                        && (is_group || to == Some(&MAC[..]))
                    {
                        let checksum_ok = true;
                        let received = Received { checksum_ok };
                        engine.stack.handle_frame(now, frame.data, received);
                    }
                }
            })
            .expect("device");
        sender.kick().expect("device");
        if moved == 0 {
            let deadline = engine.as_ref().and_then(|e| e.stack.next_deadline());
            let due = [receiver.next_deadline(), deadline];
            let due = due.into_iter().flatten().min().map(|at| at - now);
            sleep_on(&[&sender, &receiver], due);
        }
    }
}

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The engine as a sender.
struct Engine {
    stack: Stack,
    id: TcpId,
    data: Vec<u8>,
    frame: Vec<u8>,
}

impl Engine {
    fn connect(congestion: CongestionControl) -> Self {
        let config = Config::new(MAC, Key([7; 16]));
        let mut stack = Stack::new(&config, Instant::ZERO);
        stack.add_address(ENGINE.into(), 24).expect("address");
        let options = ConnectOptions {
            opts: Some(SockOpts {
                congestion,
                ..SockOpts::DEFAULT
            }),
            ..ConnectOptions::default()
        };
        let to = SocketAddr::from((RECEIVER, PORT));
        let id = stack.tcp_connect(Instant::ZERO, to, &options);
        Self {
            id: id.expect("connect"),
            data: vec![5; 1 << 18],
            frame: vec![0; stack.frame_bytes_max()],
            stack,
        }
    }

    /// Has something to say all the time.
    fn send(&mut self, now: Instant, to: &mut Vec<Frame>) {
        self.stack.handle_timeout(now);
        while self.stack.poll_event().is_some() {}
        let _ = self.stack.tcp_send(now, self.id, &[&self.data], false);
        while let Some(frame) = self.stack.poll_transmit(now, &mut self.frame) {
            to.push((self.frame[..frame.len].to_vec(), FrameMeta::default()));
        }
    }
}

/// What two senders sent since the last look, evenly spread over that time as on their wires, in turns
/// where that is the same. Were one always before the other, it would have all the room of a full queue.
fn meet(waiting: &mut [Vec<Frame>; 2], first: usize) -> Vec<Frame> {
    let mut all = Vec::new();
    for of in [first, 1 - first] {
        let count = waiting[of].len();
        let places = (0..count).map(|i| (2 * i + 1) * BATCH / count);
        all.extend(places.zip(waiting[of].drain(..)));
    }
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, frame)| frame).collect()
}

/// A port that is full drops the frame, as a switch does.
fn forward(port: &mut dyn NetDevice, frame: &[u8], meta: FrameMeta) {
    let sent = port.transmit_parts(&[frame], meta);
    assert!(!matches!(sent, Err(TransmitError::Device(_))), "{sent:?}");
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
