//! The stream parser against a naive specification, with programs of every temper and bytes
//! that are mostly no messages at all.

use std::vec;

use proptest::prelude::*;

use super::*;
use crate::bpf::Program;
use crate::error::{EMSGSIZE, ENODATA, EPROTO, ESTRPIPE};

const RCVBUF: usize = 6_000;

/// What a program does with the bytes at `header_at`.
#[derive(Clone, Copy, Debug)]
enum Temper {
    /// Reads a 16-bit word and answers by it: mostly a length, sometimes an errno, an absurd or a tiny
    /// length, and at times only after much has come.
    Moody { header_at: usize },
    /// A length prefix of four, two or one bytes, shifted right, plus a constant: real instructions,
    /// which the parser may evaluate without running them.
    Prefix {
        header_at: usize,
        width: usize,
        shift: u8,
        add: i32,
    },
}

impl Temper {
    fn answer(header_at: usize, len: usize, word: Option<u16>) -> i32 {
        let Some(word) = word else { return 0 };
        let patience = match word / 16 % 16 {
            0..3 => 60,
            3 => 5_000,
            4 => RCVBUF + 5_000,
            _ => 0,
        };
        if len < patience {
            return 0;
        }
        let size = i32::from(word % 4000);
        match word % 16 {
            0 if word % 5 == 0 => -74,
            1 if word % 3 == 0 => -ESTRPIPE,
            2 if word % 5 == 0 => i32::MAX,
            3 if word % 5 == 0 => size % 50 + 1,
            4 => i32::from(word) % 12_000,
            _ => size + header_at as i32,
        }
    }

    fn of_bytes(self, bytes: &[u8]) -> i32 {
        match self {
            Self::Moody { header_at } => {
                let word = bytes.get(header_at..header_at + 2);
                let word = word.map(|word| u16::from_be_bytes([word[0], word[1]]));
                Self::answer(header_at, bytes.len(), word)
            }
            Self::Prefix {
                header_at,
                width,
                shift,
                add,
            } => bytes
                .get(header_at..header_at + width)
                .map_or(0, |field| {
                    let field = field
                        .iter()
                        .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
                    (field >> shift) as i32
                })
                .wrapping_add(if bytes.len() < header_at + width {
                    0
                } else {
                    add
                }),
        }
    }

    fn parser(self) -> Parser {
        match self {
            Self::Moody { header_at } => parser(move |msg, _| {
                let mut word = [0; 2];
                let arrived = msg.read(header_at, &mut word);
                Self::answer(
                    header_at,
                    msg.len(),
                    arrived.then(|| u16::from_be_bytes(word)),
                )
            }),
            Self::Prefix {
                header_at,
                width,
                shift,
                add,
            } => {
                let load = match width {
                    4 => 0x20,
                    2 => 0x28,
                    _ => 0x30,
                };
                let program = [
                    (0xbf, 0x16, 0), // r6 = r1
                    (load, 0, header_at as i32),
                    (0x77, 0, i32::from(shift)), // r0 >>= shift
                    (0x07, 0, add),
                    (0x95, 0, 0),
                ];
                let insns: Vec<u8> = program
                    .iter()
                    .flat_map(|&(code, regs, imm): &(u8, u8, i32)| {
                        [&[code, regs, 0, 0][..], &imm.to_le_bytes()].concat()
                    })
                    .collect();
                let program = Program::verify(&insns, &|_| None).unwrap();
                assert!(program.length_field().is_some());
                Arc::new(program)
            }
        }
    }
}

fn any_temper() -> impl Strategy<Value = Temper> {
    let header_at = prop_oneof![4 => 0..4_usize, 1 => Just(5_000_usize)];
    let width = prop::sample::select(vec![4_usize, 2, 1]);
    let add = prop_oneof![4 => 0..9_i32, 1 => -9..4_000_i32, 1 => any::<i32>()];
    prop_oneof![
        header_at
            .clone()
            .prop_map(|header_at| Temper::Moody { header_at }),
        (header_at, width, 0..8_u8, add).prop_map(|(header_at, width, shift, add)| {
            Temper::Prefix {
                header_at,
                width,
                shift,
                add,
            }
        }),
    ]
}

/// kcm-semantics §9.2 as sentences.
#[derive(Debug, Default, PartialEq)]
struct Spec {
    held: Vec<u8>,
    consumed: usize,
    len: Option<usize>,
    messages: Vec<Vec<u8>>,
    bytes: usize,
    need_more: u64,
    errno: i32,
}

impl Spec {
    fn feed(&mut self, temper: Temper, bytes: &[u8]) {
        self.held.extend(bytes);
        while self.errno == 0 && !self.held.is_empty() {
            if self.len.is_none() {
                let seen = self.held.len();
                match temper.of_bytes(&self.held) {
                    0 if seen > RCVBUF => return self.abort(EMSGSIZE),
                    0 => {
                        self.need_more += 1;
                        self.consumed = seen;
                        return;
                    }
                    result @ ..0 if result == -ESTRPIPE && self.consumed > 0 => {
                        return self.abort(ENODATA);
                    }
                    result @ ..0 => return self.abort(-result),
                    len if len as usize > RCVBUF => return self.abort(EMSGSIZE),
                    len if len as usize <= self.consumed => return self.abort(EPROTO),
                    len => self.len = Some(len as usize),
                }
                if self.len > Some(seen) {
                    self.consumed = seen;
                }
            }
            match self.len {
                Some(len) if len <= self.held.len() => {
                    self.messages.push(self.held.drain(..len).collect());
                    self.bytes += len;
                    self.len = None;
                    self.consumed = 0;
                }
                _ => return,
            }
        }
    }

    fn abort(&mut self, errno: i32) {
        self.errno = errno;
        self.held.drain(..self.consumed);
        self.bytes += core::mem::take(&mut self.consumed);
    }
}

fn any_byte() -> impl Strategy<Value = u8> {
    prop_oneof![2 => any::<u8>(), 2 => Just(0_u8), 2 => 0..20_u8]
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn any_program_and_any_bytes_end_as_specified(
        temper in any_temper(),
        pattern in prop::collection::vec(any_byte(), 1..600),
        reads in prop::collection::vec(
            prop_oneof![4 => 1..30_usize, 3 => 30..3_000_usize, 1 => 3_000..30_000_usize], 1..40),
    ) {
        let mut spec = Spec::default();
        let mut world = World::new(1);
        let psock = world.mux.attach(temper.parser(), RCVBUF as u32, None);
        let mut stream = pattern.iter().copied().cycle();
        let mut received = vec![];
        for len in reads {
            if spec.errno != 0 {
                break;
            }
            let bytes: Vec<u8> = stream.by_ref().take(len).collect();
            spec.feed(temper, &bytes);
            if let ReadOutcome::NeedRcvbuf = world.feed(psock, &bytes) {
                world.mux.set_psock_rcvbuf(psock, RCVBUF as u32);
            }
            loop {
                received.extend(core::iter::from_fn(|| world.recv(KcmId(0))));
                if !world.events().contains(&Event::NeedRcvbuf(psock)) {
                    break;
                }
                world.mux.set_psock_rcvbuf(psock, RCVBUF as u32);
            }
            prop_assert_eq!(world.mux.wants_read(psock), spec.errno == 0);
        }
        prop_assert!(received == spec.messages);
        prop_assert_eq!(world.mux.pending_error(psock), spec.errno);
        let stats = world.mux.psock_stats(psock);
        prop_assert_eq!(stats.rx_msgs, spec.messages.len() as u64);
        prop_assert_eq!(stats.rx_bytes, (spec.bytes + spec.consumed) as u64);
        prop_assert_eq!(stats.rx_need_more_hdr, spec.need_more);
        prop_assert_eq!(stats.rx_aborts, u64::from(spec.errno != 0));
        let left = unread(&world.mux.unattach(psock));
        prop_assert!(left == spec.held[spec.consumed..]);
    }
}
