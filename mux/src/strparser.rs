//! The stream parser: bytes of one TCP connection in, delimited messages out.
//!
//! Owns the bytes read and not yet delivered, the length of the current message once the
//! program has told it, and what the kernel would have consumed of it (kcm-semantics §9,
//! §18). Refuses to know KCM sockets: messages go to a [`Sink`].
//!
//! ```text
//!  stream: |<- consumed ->|<- seen later, still unread for unattach ->|
//!          ^ first byte of the current message          held bytes ->|
//! ```

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::batch::Desc;
use crate::bpf::{CB_WORDS, Env, LengthField, Packet, Program};
use crate::chunk::{ReadBuf, Slice};
use crate::error::{EMSGSIZE, ENODATA, EPROTO, ESTRPIPE};
use crate::limits::{CARRY_BYTES_MAX, CHUNK_BYTES, COMPACT_BYTES_MAX};
use crate::stats::PsockStats;

/// Scratch words a program keeps for one message: `cb[0..5]` of its context.
///
/// Zero at the first run on a message, kept between the runs on the same one.
pub type Cb = [u32; CB_WORDS];

/// A parser program: tells where the message ends that begins at the view's first byte.
pub trait ParseMsg {
    /// Returns the message's length in bytes; 0 when `msg` is too short to tell; a negative
    /// errno to stop the stream. Called again with more bytes after 0.
    fn parse(&self, msg: &MsgView<'_>, cb: &mut Cb, env: &Env) -> i32;

    /// The length prefix that [`parse`](Self::parse) amounts to, wherever the prefix has an answer.
    fn length_field(&self) -> Option<LengthField> {
        None
    }
}

impl ParseMsg for Program {
    #[inline]
    fn parse(&self, msg: &MsgView<'_>, cb: &mut Cb, env: &Env) -> i32 {
        // The kernel takes the low 32 bits as an int (kcm-semantics §9.2).
        self.run(msg, cb, env) as i32
    }

    fn length_field(&self) -> Option<LengthField> {
        Self::length_field(self)
    }
}

impl Packet for MsgView<'_> {
    #[inline]
    fn len(&self) -> usize {
        self.len
    }

    #[inline]
    fn head(&self) -> &[u8] {
        self.head
    }

    #[inline]
    fn load(&self, off: usize, dst: &mut [u8]) -> bool {
        self.read(off, dst)
    }
}

/// A parser program that psocks share.
pub type Parser = Arc<dyn ParseMsg + Send + Sync>;

/// The bytes of the stream from the first byte of the current message on.
#[derive(Clone, Copy, Debug)]
pub struct MsgView<'a> {
    head: &'a [u8],
    tail: &'a [Slice],
    len: usize,
}

impl<'a> MsgView<'a> {
    /// A view of contiguous bytes.
    #[inline]
    #[must_use]
    pub fn new(head: &'a [u8]) -> Self {
        Self {
            head,
            tail: &[],
            len: head.len(),
        }
    }

    /// Bytes in the view: `ctx->len` of a program.
    #[inline]
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "a view without bytes is never parsed"
    )]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The contiguous first part: everything for short messages, and for the header of
    /// all but the most unlucky long ones.
    #[inline]
    #[must_use]
    pub fn head(&self) -> &'a [u8] {
        self.head
    }

    /// Copies `out.len()` bytes from `offset` on, across parts. `false`, and nothing
    /// promised about `out`, when a byte lies outside the view.
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        let Some(end) = offset.checked_add(out.len()) else {
            return false;
        };
        if let Some(bytes) = self.head.get(offset..end) {
            out.copy_from_slice(bytes);
            return true;
        }
        end <= self.len && self.read_across(offset, out)
    }

    #[cold]
    fn read_across(&self, mut offset: usize, mut out: &mut [u8]) -> bool {
        for part in core::iter::once(self.head).chain(self.tail.iter().map(|slice| &**slice)) {
            let Some(bytes) = part.get(offset..) else {
                offset -= part.len();
                continue;
            };
            let n = bytes.len().min(out.len());
            let (now, later) = out.split_at_mut(n);
            now.copy_from_slice(bytes.get(..n).unwrap_or_default());
            out = later;
            offset = 0;
            if out.is_empty() {
                return true;
            }
        }
        out.is_empty()
    }
}

/// Whether a [`Sink`] takes more messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Continue,
    /// The message was taken, but parsing pauses behind it.
    Pause,
}

/// Where a parse delivers its messages. Every message handed over is taken.
pub(crate) trait Sink {
    /// Descriptors that follow lie in `chunk`.
    fn enter_chunk(&mut self, chunk: &Arc<[u8]>);
    /// A message inside the current chunk.
    fn packed(&mut self, desc: Desc) -> Flow;
    /// A message across chunks.
    fn spanning(&mut self, parts: Vec<Slice>, len: u32) -> Flow;
}

/// Why a parse ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParseEnd {
    /// The current message, if any, needs more bytes.
    Drained,
    /// The sink paused.
    Paused,
    /// The current message is longer than the SO_RCVBUF given.
    OverRcvbuf,
    /// Unrecoverable; post this errno (kcm-semantics §9.5).
    Abort(i32),
}

/// Progress a caller needs for the assembly timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) end: ParseEnd,
    /// A message was completed.
    pub(crate) completed: bool,
    /// The first bytes of a still incomplete message were consumed.
    pub(crate) began: bool,
}

/// Parser state of one psock.
pub(crate) struct StreamParser {
    program: Parser,
    /// What `program` computes, if that is so simple.
    prefix: Option<LengthField>,
    /// Bytes read and not delivered, beginning at the current message.
    stream: Vec<Slice>,
    /// Bytes in `stream`.
    held: usize,
    /// Length of the current message; 0 while unknown.
    msg_len: u32,
    /// Bytes of the current message the kernel would have consumed (§9.2): those present
    /// when the program last ran on it.
    consumed: usize,
    cb: Cb,
    /// The program's result on the current bytes, which waits for SO_RCVBUF to be judged.
    unjudged: Option<i32>,
    /// No message is cut any more: the parser aborted.
    stopped: bool,
}

impl fmt::Debug for StreamParser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamParser")
            .field("held", &self.held)
            .field("msg_len", &self.msg_len)
            .field("consumed", &self.consumed)
            .field("stopped", &self.stopped)
            .finish_non_exhaustive()
    }
}

impl StreamParser {
    pub(crate) fn new(program: Parser) -> Self {
        Self {
            prefix: program.length_field(),
            program,
            stream: Vec::new(),
            held: 0,
            msg_len: 0,
            consumed: 0,
            cb: Cb::default(),
            unjudged: None,
            stopped: false,
        }
    }

    pub(crate) fn stopped(&self) -> bool {
        self.stopped
    }

    /// Bytes read and not delivered.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Bytes of the current message the kernel would have consumed.
    pub(crate) fn consumed(&self) -> usize {
        self.consumed
    }

    /// Bytes of a message of known length that were not consumed (the kernel's `need_bytes`);
    /// 0 while the length is unknown.
    pub(crate) fn need_bytes(&self) -> usize {
        (self.msg_len as usize).saturating_sub(self.consumed)
    }

    /// Copies a short remainder of the stream to the start of `buf` and returns its length.
    pub(crate) fn carry_into(&self, buf: &mut [u8]) -> usize {
        let Some(tail) = self.stream.last() else {
            return 0;
        };
        if self.stopped || tail.len() > CARRY_BYTES_MAX.min(buf.len() / 2) {
            return 0;
        }
        if let Some(room) = buf.get_mut(..tail.len()) {
            room.copy_from_slice(tail);
        }
        tail.len()
    }

    /// Appends `n` bytes read behind what [`carry_into`](Self::carry_into) put into `buf`.
    /// Returns the chunk when the bytes were moved out of it.
    pub(crate) fn push(&mut self, buf: ReadBuf, n: usize) -> Option<Arc<[u8]>> {
        // An abort meanwhile leaves the stream to the TCP fd: the carried bytes are still
        // in it, or dropped.
        let carried = if self.stopped { 0 } else { buf.carried };
        let (start, end) = (buf.carried - carried, buf.carried + n);
        if carried > 0 {
            self.stream.pop();
        }
        self.held += n;
        if end - start <= COMPACT_BYTES_MAX {
            let bytes = buf.chunk.bytes().get(start..end).unwrap_or_default();
            self.stream.push(Slice::copy_of(bytes));
            Some(buf.chunk.into_shared())
        } else {
            self.stream
                .push(Slice::new(buf.chunk.into_shared(), start, end));
            None
        }
    }

    /// Cuts messages until bytes or room run out.
    ///
    /// `rcvbuf` is SO_RCVBUF of the TCP socket: the longest message accepted. `env` is what
    /// programs may know; its seed moves on with each run.
    pub(crate) fn run(
        &mut self,
        rcvbuf: u32,
        env: &mut Env,
        stats: &mut PsockStats,
        sink: &mut impl Sink,
    ) -> Parsed {
        let mut parsed = Parsed {
            end: ParseEnd::Drained,
            completed: false,
            began: false,
        };
        while !self.stopped && !self.stream.is_empty() {
            let cut = self.cut_packed(rcvbuf, env, stats, sink);
            parsed.completed |= cut.msgs > 0;
            let stop = match cut.stop {
                Stop::SliceEnd => continue,
                Stop::Paused => ParseEnd::Paused,
                Stop::Incomplete(Verdict::Len(len)) if len as usize <= self.held => {
                    // The message ends in a later slice.
                    parsed.completed = true;
                    self.count_message(stats);
                    let parts = self.cut(len as usize);
                    match sink.spanning(parts, len) {
                        Flow::Continue => continue,
                        Flow::Pause => ParseEnd::Paused,
                    }
                }
                Stop::Incomplete(verdict) => {
                    let news =
                        cut.program_ran && matches!(verdict, Verdict::Len(_) | Verdict::NeedMore);
                    parsed.began = news && self.consumed == 0;
                    if news {
                        // The program saw these bytes, so the kernel would have consumed
                        // them. Once the length is known, later bytes stay unread until
                        // all have come (§9.2).
                        stats.rx_bytes += (self.held - self.consumed) as u64;
                        self.consumed = self.held;
                    }
                    self.incomplete(verdict, stats)
                }
            };
            parsed.end = stop;
            break;
        }
        self.compact_tail();
        self.check_invariants();
        parsed
    }

    /// Cuts the messages that end inside the first slice. The hot path: one program run, one
    /// descriptor and some counters a message.
    fn cut_packed(
        &mut self,
        rcvbuf: u32,
        env: &mut Env,
        stats: &mut PsockStats,
        sink: &mut impl Sink,
    ) -> Cut {
        let mut cut = Cut {
            msgs: 0,
            program_ran: false,
            stop: Stop::SliceEnd,
        };
        let Some((head, tail)) = self.stream.split_first() else {
            return cut;
        };
        let chunk = head.chunk.clone();
        sink.enter_chunk(&chunk);
        let tail_len = self.held - head.len();
        let (start, end) = (head.start, head.end);
        let mut pos = start;
        let mut unjudged = self.unjudged.take();
        let (mut msg_len, mut consumed) = (self.msg_len, self.consumed);
        // Bytes of the first message that are in RX-Bytes already.
        let counted = consumed;
        if let Some(prefix) = self.prefix
            && msg_len == 0
            && consumed == 0
            && unjudged.is_none()
        {
            let bytes = chunk.get(..end).unwrap_or_default();
            pos = cut_prefixed(prefix, bytes, rcvbuf, pos, &mut cut, sink);
        }
        while !matches!(cut.stop, Stop::Paused)
            && let Some(rest) = chunk.get(pos..end)
            && !rest.is_empty()
        {
            let view = MsgView {
                head: rest,
                tail,
                len: rest.len() + tail_len,
            };
            if msg_len == 0 {
                let result = unjudged.take().unwrap_or_else(|| {
                    env.seed = env.seed.wrapping_add(1);
                    self.program.parse(&view, &mut self.cb, env)
                });
                cut.program_ran = true;
                match classify(result, view.len, consumed, rcvbuf) {
                    Verdict::Len(len) => msg_len = len,
                    verdict => {
                        if verdict == Verdict::OverRcvbuf {
                            self.unjudged = Some(result);
                        }
                        cut.stop = Stop::Incomplete(verdict);
                        break;
                    }
                }
            }
            let len = msg_len as usize;
            if len > rest.len() {
                cut.stop = Stop::Incomplete(Verdict::Len(msg_len));
                break;
            }
            let desc = Desc {
                start: pos as u32,
                len: msg_len,
            };
            cut.msgs += 1;
            cut.program_ran = false;
            (msg_len, consumed) = (0, 0);
            self.cb = Cb::default();
            pos += len;
            if sink.packed(desc) == Flow::Pause {
                cut.stop = Stop::Paused;
            }
        }
        (self.msg_len, self.consumed) = (msg_len, consumed);
        if cut.msgs > 0 {
            stats.rx_bytes += (pos - start - counted) as u64;
        }
        stats.rx_msgs += cut.msgs;
        self.drop_front(pos - start);
        cut
    }

    /// Counts the current message, whose length is known, as complete.
    fn count_message(&mut self, stats: &mut PsockStats) {
        stats.rx_msgs += 1;
        stats.rx_bytes += u64::from(self.msg_len) - self.consumed as u64;
        self.msg_len = 0;
        self.consumed = 0;
        self.cb = Cb::default();
    }

    /// What it means that the current message cannot be cut now.
    fn incomplete(&self, verdict: Verdict, stats: &mut PsockStats) -> ParseEnd {
        match verdict {
            Verdict::Len(_) => ParseEnd::Drained,
            Verdict::NeedMore => {
                stats.rx_need_more_hdr += 1;
                ParseEnd::Drained
            }
            Verdict::OverRcvbuf => ParseEnd::OverRcvbuf,
            Verdict::BadLen => {
                stats.rx_bad_hdr_len += 1;
                ParseEnd::Abort(EPROTO)
            }
            Verdict::Errno(errno) if errno == ESTRPIPE && self.consumed > 0 => {
                stats.rx_unrecov_intr += 1;
                ParseEnd::Abort(ENODATA)
            }
            Verdict::Errno(errno) => {
                stats.rx_interrupted += 1;
                ParseEnd::Abort(errno)
            }
        }
    }

    /// The message is longer than even the current SO_RCVBUF.
    pub(crate) fn too_big(stats: &mut PsockStats) -> i32 {
        stats.rx_msg_too_big += 1;
        EMSGSIZE
    }

    /// Stops for good: the consumed part of the current message is lost, the rest of the
    /// stream stays readable on the TCP fd (§9.5).
    pub(crate) fn abort(&mut self) {
        self.drop_front(self.consumed);
        self.consumed = 0;
        self.msg_len = 0;
        self.stopped = true;
    }

    /// Bytes the TCP fd's owner may read, in order. Only a stopped parser gives them up.
    pub(crate) fn take_unread(&mut self) -> Vec<Slice> {
        if !self.stopped {
            return Vec::new();
        }
        self.held = 0;
        core::mem::take(&mut self.stream)
    }

    /// Removes the first `n` bytes of the stream.
    fn drop_front(&mut self, n: usize) {
        let mut left = n.min(self.held);
        self.held -= left;
        let mut gone = 0;
        for slice in &mut self.stream {
            let step = left.min(slice.len());
            slice.start += step;
            left -= step;
            if !slice.is_empty() {
                break;
            }
            gone += 1;
        }
        self.stream.drain(..gone);
    }

    /// Removes the first `n` bytes of the stream and returns them.
    fn cut(&mut self, n: usize) -> Vec<Slice> {
        let mut left = n.min(self.held);
        self.held -= left;
        let mut parts = Vec::new();
        let mut gone = 0;
        for slice in &mut self.stream {
            let step = left.min(slice.len());
            if step > 0 {
                parts.push(slice.split_front(step));
                left -= step;
            }
            if !slice.is_empty() {
                break;
            }
            gone += 1;
        }
        self.stream.drain(..gone);
        parts
    }

    /// Lets go of a whole chunk of which only a short remainder is needed.
    fn compact_tail(&mut self) {
        if self.stream.is_empty() && self.stream.capacity() > 0 {
            self.stream = Vec::new();
        }
        if let [.., tail] = self.stream.as_mut_slice()
            && tail.chunk.len() >= CHUNK_BYTES
            && tail.len() <= CARRY_BYTES_MAX
        {
            *tail = Slice::copy_of(tail);
        }
    }

    pub(crate) fn check_invariants(&self) {
        debug_assert_eq!(
            self.held,
            self.stream.iter().map(|slice| slice.len()).sum::<usize>()
        );
        debug_assert!(self.stream.iter().all(|slice| !slice.is_empty()));
        debug_assert!(
            self.consumed <= self.held,
            "consumed bytes are held until delivery"
        );
        debug_assert!(self.msg_len == 0 || self.consumed <= self.msg_len as usize);
    }
}

/// What [`StreamParser::cut_packed`] did with one slice.
struct Cut {
    msgs: u64,
    /// The program has seen all bytes of the message that could not be cut.
    program_ran: bool,
    stop: Stop,
}

/// Cuts the messages of `bytes` from `pos` on, up to one that has to be judged, crosses the end, or
/// makes the sink pause. Returns where that one begins.
#[inline]
fn cut_prefixed(
    prefix: LengthField,
    bytes: &[u8],
    rcvbuf: u32,
    mut pos: usize,
    cut: &mut Cut,
    sink: &mut impl Sink,
) -> usize {
    let longest = rcvbuf.min(i32::MAX as u32) as usize;
    while let Some(rest) = bytes.get(pos..)
        && let Some(len) = prefix.length(rest)
        && (1..=longest.min(rest.len())).contains(&(len as usize))
    {
        let start = pos as u32;
        pos += len as usize;
        cut.msgs += 1;
        if sink.packed(Desc { start, len }) == Flow::Pause {
            cut.stop = Stop::Paused;
            break;
        }
    }
    pos
}

/// Why it stopped.
enum Stop {
    SliceEnd,
    Paused,
    Incomplete(Verdict),
}

/// What a program's result means (kcm-semantics §9.2), in the kernel's order of checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Len(u32),
    NeedMore,
    Errno(i32),
    OverRcvbuf,
    BadLen,
}

#[inline]
fn classify(result: i32, seen: usize, consumed: usize, rcvbuf: u32) -> Verdict {
    match u32::try_from(result) {
        // A message that fills SO_RCVBUF before its length is known can only fail later:
        // any length is then too long, or already consumed. The kernel goes on swallowing.
        Ok(0) if seen > rcvbuf as usize => Verdict::OverRcvbuf,
        Ok(0) => Verdict::NeedMore,
        Ok(len) if len > rcvbuf => Verdict::OverRcvbuf,
        Ok(len) if len as usize <= consumed => Verdict::BadLen,
        Ok(len) => Verdict::Len(len),
        // The posted number is unchecked: i32::MIN stays negative [V].
        Err(_) => Verdict::Errno(result.wrapping_neg()),
    }
}
