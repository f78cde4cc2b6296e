//! However a stream is cut into reads, the mux delivers the same messages: those that the program's
//! lengths say, each once, in order; hostile lengths end the connection, not the process.
//!
//! The first byte chooses the program: a length prefix, whose messages are cut here a second time,
//! or any program the verifier admits, of which only the stream's order is known.

use std::sync::Arc;

use kcm_mux::bpf::insn::{K, RawInsn, X, alu, class, mode, size};
use kcm_mux::bpf::{Map, Program};
use kcm_mux::{Chunk, Event, KcmId, Mux, Parser, ReadOutcome, ReadResult, RxBatch, SocketType};

use crate::bpf_gen::{self, MAPS, Source};

/// SO_RCVBUF of the TCP socket: no message may be longer.
const RCVBUF: u32 = 20_000;
/// SO_RCVBUF of the KCM sockets: a few messages fill it, and their connection waits.
const KCM_RCVBUF: u32 = 4_096;
const KCMS_MAX: usize = 3;
/// Bytes of a stream at most; the input is repeated until it is as long.
const STREAM_MAX: usize = 30_000;

/// A program that loads one field of the message and counts on from it.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    offset: i32,
    size: u8,
    shift: i32,
    add: i32,
}

impl Prefix {
    fn choose(source: &mut Source<'_>) -> Self {
        Self {
            offset: source.below(9) as i32,
            size: source.pick(&[size::B, size::H, size::W]),
            shift: source.pick(&[0, 0, 0, 1, 4, 20]),
            add: source.pick(&[0, 1, 2, 4, 8, -1, -300, i32::MAX]),
        }
    }

    const fn width(self) -> usize {
        match self.size {
            size::B => 1,
            size::H => 2,
            _ => 4,
        }
    }

    /// Bytes of a message without which the program has no answer.
    const fn needs(self) -> usize {
        self.offset as usize + self.width()
    }

    fn program(self) -> Vec<RawInsn> {
        let insn = |code, dst, src, imm| RawInsn {
            code,
            dst,
            src,
            off: 0,
            imm,
        };
        vec![
            insn(class::ALU64 | alu::MOV | X, 6, 1, 0),
            insn(class::LD | mode::ABS | self.size, 0, 0, self.offset),
            insn(class::ALU64 | alu::RSH | K, 0, 0, self.shift),
            insn(class::ALU64 | alu::ADD | K, 0, 0, self.add),
            insn(class::JMP | 0x90, 0, 0, 0),
        ]
    }

    /// What the program answers to a message that begins like `bytes`.
    fn answer(self, bytes: &[u8]) -> i32 {
        let Some(field) = bytes.get(self.offset as usize..self.needs()) else {
            return 0;
        };
        let value = field.iter().fold(0_u64, |v, b| v << 8 | u64::from(*b));
        (value >> self.shift).wrapping_add(self.add as u64) as i32
    }
}

/// How the messages of a stream end, as far as it is laid down.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// In the middle of a message, or at its end.
    Open,
    /// With an error.
    Refused,
    /// With a message shorter than its own prefix, or with a program that has all it needs and asks
    /// for more: how much was seen decides.
    Unsaid,
}

/// The messages of `stream`, cut by a program's own answers.
fn cut(prefix: Prefix, stream: &[u8]) -> (Vec<&[u8]>, End) {
    let mut messages = Vec::new();
    let mut rest = stream;
    loop {
        if rest.len() < prefix.needs() {
            return (messages, End::Open);
        }
        match prefix.answer(rest) {
            0 => return (messages, End::Unsaid),
            len if len < 0 || len as u32 > RCVBUF => return (messages, End::Refused),
            len if (len as usize) < prefix.needs() => return (messages, End::Unsaid),
            len => match rest.split_at_checked(len as usize) {
                None => return (messages, End::Open),
                Some((message, later)) => (_, rest) = (messages.push(message), later),
            },
        }
    }
}

/// One connection, and its readers.
struct World {
    mux: Mux,
    readers: Vec<(KcmId, RxBatch)>,
    got: Vec<Vec<u8>>,
}

impl World {
    fn new(kcms: usize) -> Self {
        let (mut mux, first) = Mux::new(SocketType::Seqpacket, KCM_RCVBUF, RCVBUF);
        let mut readers = vec![(first, RxBatch::empty())];
        readers.resize_with(kcms, || (mux.clone_kcm(), RxBatch::empty()));
        Self {
            mux,
            readers,
            got: Vec::new(),
        }
    }

    /// Receives at most `count` messages of one reader.
    fn receive(&mut self, reader: usize, count: usize) -> bool {
        let (kcm, batch) = &mut self.readers[reader];
        for taken in 0..count {
            if batch.is_empty() && !self.mux.refill(*kcm, batch) {
                return taken > 0;
            }
            let message = batch.front().expect("the batch is not empty");
            let bytes: Vec<u8> = message.parts().flatten().copied().collect();
            assert_eq!(bytes.len(), message.len());
            batch.consume(bytes.len(), true);
            self.got.push(bytes);
        }
        true
    }

    /// Receives until nothing is left, and nothing that room for it lets the parser go on to.
    fn receive_all(&mut self) {
        while self.receive_each() || self.answer_events() {}
    }

    /// Receives on every socket. True if any had a message.
    fn receive_each(&mut self) -> bool {
        let mut any = false;
        for reader in 0..self.readers.len() {
            any |= self.receive(reader, usize::MAX);
        }
        any
    }

    /// Tells the parser that SO_RCVBUF has not grown, where it asks. True if it did.
    fn answer_events(&mut self) -> bool {
        let mut any = false;
        while let Some(event) = self.mux.poll_event() {
            if let Event::NeedRcvbuf(psock) = event {
                self.mux.set_psock_rcvbuf(psock, RCVBUF);
                any = true;
            }
        }
        any
    }

    /// Feeds the stream in pieces that `source` chooses; returns the connection's error.
    fn run(&mut self, parser: Parser, stream: &[u8], source: &mut Source<'_>) -> i32 {
        let psock = self.mux.attach(parser, RCVBUF, None);
        let mut left = stream;
        while !left.is_empty() {
            if !self.mux.wants_read(psock) {
                self.receive_all();
                if !self.mux.wants_read(psock) {
                    break;
                }
            }
            let mut buf = self.mux.begin_read(psock, Chunk::new());
            let piece = 1 + match source.below(4) {
                0 => source.below(4),
                1 => source.below(256),
                _ => source.below(256) * 64,
            };
            let piece = piece.min(left.len()).min(buf.spare().len());
            buf.spare()[..piece].copy_from_slice(&left[..piece]);
            left = &left[piece..];
            if let ReadOutcome::NeedRcvbuf =
                self.mux
                    .finish_read(psock, buf, ReadResult::Bytes(piece), 1)
            {
                self.mux.set_psock_rcvbuf(psock, RCVBUF);
            }
            if source.below(3) == 0 {
                let reader = source.below(self.readers.len());
                self.receive(reader, source.below(5));
            }
            self.answer_events();
        }
        self.receive_all();
        self.mux.pending_error(psock)
    }
}

/// One input.
pub fn fuzz_one(data: &[u8]) {
    let mut source = Source(data);
    let any_program = source.byte() % 4 == 0;
    let kcms = 1 + source.below(KCMS_MAX);
    let prefix = Prefix::choose(&mut source);
    let insns = match any_program {
        true => bpf_gen::valid(&mut source),
        false => prefix.program(),
    };
    let maps = MAPS.map(|spec| Arc::new(Map::new(spec, 1).expect("the specs are fine")));
    let by_fd = |fd| {
        usize::try_from(fd)
            .ok()
            .and_then(|fd| maps.get(fd))
            .cloned()
    };
    let program = Program::verify(&bpf_gen::to_bytes(&insns, &[0, 1, 2]), &by_fd);
    let parser: Parser = Arc::new(program.expect("it is valid"));
    let repeat = 1 + source.byte() as usize;
    let (cuts, bytes) = source.0.split_at(source.0.len() / 2);
    let mut stream = bytes.repeat(repeat);
    stream.truncate(STREAM_MAX);

    let mut world = World::new(kcms);
    let error = world.run(parser, &stream, &mut Source(cuts));
    if kcms == 1 {
        assert!(stream.starts_with(&world.got.concat()), "out of order");
    }
    if any_program {
        return;
    }
    let (mut expected, end) = cut(prefix, &stream);
    match end {
        End::Unsaid => {
            world.got.truncate(expected.len());
            if kcms > 1 {
                return;
            }
        }
        _ => assert_eq!(
            end == End::Refused,
            error != 0,
            "{prefix:?} ended with {error}"
        ),
    }
    if kcms > 1 {
        expected.sort_unstable();
        world.got.sort_unstable();
    }
    assert_eq!(world.got, expected, "{prefix:?}");
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_cut_of_a_stream_gives_the_same_messages() {
        crate::run_seeded(super::fuzz_one, 1, 20_000, 600);
    }
}
