//! Two engines that hand each other frames through one flat buffer.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kcm_stack::{Config, IfaceId, Instant, Key, Received, Stack};
use rustix::time::{ClockId, clock_gettime};

pub(crate) const MAC: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

pub(crate) fn ip(side: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, 1 + side as u8])
}

pub(crate) fn at(side: usize, port: u16) -> SocketAddr {
    SocketAddr::new(ip(side), port)
}

pub(crate) fn stack(side: usize, tweak: impl Fn(&mut Config)) -> Stack {
    let mut config = Config::new(MAC[side], Key([side as u8 + 1; 16]));
    tweak(&mut config);
    let now = Instant::from_millis(1);
    let mut s = Stack::new(&config, now);
    s.add_address(ip(side), 8).expect("address");
    s.add_neighbor(ip(1 - side), MAC[1 - side], now);
    s
}

/// Frames of one batch, back to back.
#[derive(Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Batch {
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn clear(&mut self) {
        self.ends.clear();
    }

    pub(crate) fn push(&mut self, frame: &[u8]) {
        let start = self.end();
        self.reserve(start + frame.len());
        self.bytes[start..start + frame.len()].copy_from_slice(frame);
        self.ends.push(start + frame.len());
    }

    fn end(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Bytes stay initialised from batch to batch: clearing them would cost more than the engine.
    fn reserve(&mut self, len: usize) {
        if self.bytes.len() < len {
            self.bytes.resize(2 * len, 0);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let mut start = 0;
        self.ends.iter().map(move |end| {
            let f = &self.bytes[start..*end];
            start = *end;
            f
        })
    }

    /// Everything `from` has to send, at most `max` frames.
    pub(crate) fn fill(&mut self, from: &mut Stack, now: Instant, max: usize) {
        self.clear();
        let room = from.frame_bytes_max();
        while self.ends.len() < max {
            let start = self.end();
            self.reserve(start + room);
            let Some(t) =
                from.poll_transmit_on(now, IfaceId::FIRST, &mut self.bytes[start..start + room])
            else {
                break;
            };
            self.ends.push(start + t.len);
        }
    }

    pub(crate) fn deliver(&self, to: &mut Stack, now: Instant) {
        to.handle_frames(now, self.iter().map(|f| (f, Received::default())));
    }
}

/// A clock that stands still unless moved: engines are timed, not timers.
pub(crate) struct Clock(pub(crate) Instant);

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Instant::from_millis(1_000))
    }

    pub(crate) fn tick(&mut self, us: u64) -> Instant {
        self.0 += Duration::from_micros(us);
        self.0
    }
}

/// Time this thread has had on a core: what a figure "per core" is about. Waiting for a core that others
/// use does not count.
#[derive(Clone, Copy)]
pub(crate) struct CpuTime(Duration);

impl CpuTime {
    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        let subsec = u32::try_from(now.tv_nsec).unwrap_or(0);
        Self(Duration::new(now.tv_sec.unsigned_abs(), subsec))
    }

    pub(crate) fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}

/// Middle value.
pub(crate) fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

/// Resident bytes of this process.
pub(crate) fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm
        .split(' ')
        .nth(1)
        .and_then(|p| p.parse::<usize>().ok())
        .unwrap_or(0)
        * 4096
}
