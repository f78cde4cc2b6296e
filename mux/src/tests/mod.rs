//! Proofs of the multiplexor: one test per rule, random sequences against a model, and small
//! worlds in full.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::vec::Vec;

use proptest::test_runner::{Config as ProptestConfig, RngSeed};

use crate::bpf::Env;
use crate::{
    Cb, Chunk, Event, KcmId, MsgView, Mux, Nanos, ParseMsg, Parser, PsockId, ReadOutcome,
    ReadResult, RxBatch, SendError, SendFlags, SocketType, TxResult, Unattached,
};

mod assembly;
mod proc;
mod receive;
mod rx_model;
mod strparser_model;
mod tap;
mod transmit;
mod tx_model;

pub(crate) const BUF: u32 = 212_992;
pub(crate) const END: SendFlags = SendFlags {
    end: true,
    batch: false,
};
pub(crate) const MORE: SendFlags = SendFlags {
    end: false,
    batch: false,
};
pub(crate) const BATCH: SendFlags = SendFlags {
    end: true,
    batch: true,
};

/// A parser made of a closure.
struct ByFn<F>(F);

impl<F: Fn(&MsgView<'_>, &mut Cb) -> i32> ParseMsg for ByFn<F> {
    fn parse(&self, msg: &MsgView<'_>, cb: &mut Cb, _: &Env) -> i32 {
        (self.0)(msg, cb)
    }
}

pub(crate) fn parser(
    parse: impl Fn(&MsgView<'_>, &mut Cb) -> i32 + Send + Sync + 'static,
) -> Parser {
    Arc::new(ByFn(parse))
}

/// The 32-bit big-endian word at the message's start, if it has arrived.
fn be32(msg: &MsgView<'_>) -> Option<i32> {
    let mut word = [0; 4];
    msg.read(0, &mut word).then(|| i32::from_be_bytes(word))
}

/// Body length in four bytes, big endian (P4).
pub(crate) fn p4() -> Parser {
    parser(|msg, _| be32(msg).map_or(0, |len| len.wrapping_add(4)))
}

/// Message length in four bytes, big endian (PRAW).
pub(crate) fn praw() -> Parser {
    parser(|msg, _| be32(msg).unwrap_or(0))
}

/// The same result whatever arrives (PC).
pub(crate) fn constant(result: i32) -> Parser {
    parser(move |_, _| result)
}

/// A P4 message with `len` body bytes `fill`.
pub(crate) fn msg(len: usize, fill: u8) -> Vec<u8> {
    let mut bytes = (len as u32).to_be_bytes().to_vec();
    bytes.resize(4 + len, fill);
    bytes
}

/// One-letter messages of twelve bytes, as the rules' examples use them.
pub(crate) fn letters(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|letter| msg(8, letter)).collect()
}

/// A mux with its readers' batches, and TCP sockets that do as the test says.
pub(crate) struct World {
    pub(crate) mux: Mux,
    pub(crate) batches: BTreeMap<KcmId, RxBatch>,
    pub(crate) now: Nanos,
}

impl World {
    pub(crate) fn new(kcms: usize) -> Self {
        let (mux, first) = Mux::new(SocketType::Dgram, BUF, BUF);
        let batches = BTreeMap::from([(first, RxBatch::empty())]);
        let mut world = Self {
            mux,
            batches,
            now: 1_000,
        };
        for _ in 1..kcms {
            world.clone_kcm();
        }
        world
    }

    pub(crate) fn clone_kcm(&mut self) -> KcmId {
        let id = self.mux.clone_kcm();
        self.batches.insert(id, RxBatch::empty());
        id
    }

    pub(crate) fn attach(&mut self, parser: Parser) -> PsockId {
        self.mux.attach(parser, BUF, None)
    }

    /// One read pass that brings `bytes`.
    pub(crate) fn feed(&mut self, psock: PsockId, bytes: &[u8]) -> ReadOutcome {
        let mut buf = self.mux.begin_read(psock, Chunk::new());
        buf.spare()[..bytes.len()].copy_from_slice(bytes);
        self.mux
            .finish_read(psock, buf, ReadResult::Bytes(bytes.len()), self.now)
    }

    /// One read pass per message of `text`.
    pub(crate) fn spaced(&mut self, psock: PsockId, text: &str) {
        for letter in text.chars() {
            let _ = self.feed(psock, &letters(letter.encode_utf8(&mut [0; 4])));
        }
    }

    /// One read pass that brings a result other than bytes.
    pub(crate) fn read(&mut self, psock: PsockId, result: ReadResult) -> ReadOutcome {
        let buf = self.mux.begin_read(psock, Chunk::new());
        self.mux.finish_read(psock, buf, result, self.now)
    }

    pub(crate) fn recv(&mut self, kcm: KcmId) -> Option<Vec<u8>> {
        let batch = self.batches.get_mut(&kcm).unwrap();
        if batch.is_empty() && !self.mux.refill(kcm, batch) {
            return None;
        }
        let message = batch.front().unwrap();
        let bytes: Vec<u8> = message.parts().flatten().copied().collect();
        assert_eq!(bytes.len(), message.len());
        assert!(message.contiguous().is_none_or(|whole| whole == bytes));
        batch.consume(bytes.len(), true);
        // As a shim does before it sleeps.
        if batch.is_empty() {
            self.mux.account(kcm, batch);
        }
        Some(bytes)
    }

    /// Everything a KCM socket has, as the letters its messages are made of.
    pub(crate) fn text(&mut self, kcm: KcmId) -> std::string::String {
        core::iter::from_fn(|| self.recv(kcm))
            .map(|bytes| char::from(bytes[4]))
            .collect()
    }

    pub(crate) fn disable(&mut self, kcm: KcmId, disabled: bool) {
        self.mux
            .set_rx_disabled(kcm, disabled, self.batches.get_mut(&kcm).unwrap());
    }

    pub(crate) fn close(&mut self, kcm: KcmId) -> bool {
        self.mux
            .close_kcm(kcm, &mut self.batches.remove(&kcm).unwrap())
    }

    pub(crate) fn send(&mut self, kcm: KcmId, bytes: &[u8], flags: SendFlags) {
        assert_eq!(self.mux.send(kcm, &[bytes], flags), Ok(bytes.len()));
    }

    /// What TCP gets when it takes everything: bytes by psock, in order of writing.
    pub(crate) fn wire(&mut self) -> Vec<(PsockId, Vec<u8>)> {
        let mut writes = Vec::new();
        while let Some(transmit) = self.mux.begin_transmit() {
            let bytes = transmit.slices().flatten().copied().collect::<Vec<u8>>();
            writes.push((transmit.psock(), bytes));
            let len = transmit.len();
            self.mux.finish_transmit(transmit, TxResult::Sent(len));
        }
        writes
    }

    /// The next write, of which TCP does what `result` says; returns the bytes offered.
    pub(crate) fn write(&mut self, result: TxResult) -> (PsockId, Vec<u8>) {
        let transmit = self.mux.begin_transmit().expect("something to write");
        let offered = (
            transmit.psock(),
            transmit.slices().flatten().copied().collect(),
        );
        self.mux.finish_transmit(transmit, result);
        offered
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        core::iter::from_fn(|| self.mux.poll_event()).collect()
    }
}

/// As many random cases, the same in every run. PROPTEST_RNG_SEED and PROPTEST_CASES explore.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    let defaults = ProptestConfig::default();
    let explored = |name| std::env::var_os(name).is_some();
    ProptestConfig {
        cases: if explored("PROPTEST_CASES") {
            defaults.cases
        } else {
            cases
        },
        rng_seed: match explored("PROPTEST_RNG_SEED") {
            true => defaults.rng_seed,
            false => RngSeed::Fixed(0x006b_636d),
        },
        failure_persistence: None,
        ..defaults
    }
}

/// The bytes an unattached psock leaves to its TCP fd.
pub(crate) fn unread(unattached: &Unattached) -> Vec<u8> {
    unattached
        .unread
        .iter()
        .flat_map(|slice| slice.iter().copied())
        .collect()
}
