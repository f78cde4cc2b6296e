//! The stream parser against a naive specification, with programs of every temper and bytes
//! that are mostly no messages at all.

use std::vec;

use proptest::prelude::*;

use super::*;
use crate::error::{EMSGSIZE, ENODATA, EPROTO, ESTRPIPE};

const RCVBUF: usize = 20_000;

/// A program that reads a 16-bit word at `header_at` and answers by the word: mostly a length,
/// sometimes an errno, an absurd or a tiny length, and at times only after much has come.
#[derive(Clone, Copy, Debug)]
struct Temper {
    header_at: usize,
}

impl Temper {
    fn answer(self, len: usize, word: Option<u16>) -> i32 {
        let Some(word) = word else { return 0 };
        let patience = match word / 16 % 16 {
            0..3 => 60,
            3 => 9_000,
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
            _ => size + self.header_at as i32,
        }
    }

    fn of_bytes(self, bytes: &[u8]) -> i32 {
        let word = bytes.get(self.header_at..self.header_at + 2);
        self.answer(
            bytes.len(),
            word.map(|word| u16::from_be_bytes([word[0], word[1]])),
        )
    }

    fn parser(self) -> Parser {
        parser(move |msg, _| {
            let mut word = [0; 2];
            let arrived = msg.read(self.header_at, &mut word);
            self.answer(msg.len(), arrived.then(|| u16::from_be_bytes(word)))
        })
    }
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
    #![proptest_config(cases(256))]

    #[test]
    fn any_program_and_any_bytes_end_as_specified(
        header_at in prop_oneof![4 => 0..4_usize, 1 => Just(5_000_usize)],
        pattern in prop::collection::vec(any_byte(), 1..600),
        reads in prop::collection::vec(
            prop_oneof![4 => 1..30_usize, 3 => 30..3_000_usize, 1 => 3_000..30_000_usize], 1..40),
    ) {
        let temper = Temper { header_at };
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
