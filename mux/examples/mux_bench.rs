//! Nanoseconds per message of the multiplexor alone: no socket, no lock, one thread.
//!
//! `cargo run --release -p kcm-mux --example mux_bench`. Compare figures of one run only.
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use kcm_mux::bpf::{Env, Program};
use kcm_mux::{
    Cb, Chunk, KcmId, MsgView, Mux, ParseMsg, Parser, PsockId, ReadOutcome, ReadResult, RxBatch,
    SendFlags, SocketType, TxResult,
};

const ROUNDS: usize = 5;
const RCVBUF: u32 = 212_992;

/// A 32-bit big-endian body length, as a native function.
struct Be32PlusFour;

impl ParseMsg for Be32PlusFour {
    fn parse(&self, msg: &MsgView<'_>, _: &mut Cb, _: &Env) -> i32 {
        match msg.head() {
            &[a, b, c, d, ..] => i32::from_be_bytes([a, b, c, d]).wrapping_add(4),
            _ => 0,
        }
    }
}

/// The same as clang compiles it: `r6 = r1; r0 = be32 at 0; r0 += 4; exit`.
fn program() -> Program {
    let insns = [
        [0xbf, 0x16, 0, 0, 0, 0, 0, 0],
        [0x20, 0, 0, 0, 0, 0, 0, 0],
        [0x07, 0, 0, 0, 4, 0, 0, 0],
        [0x95, 0, 0, 0, 0, 0, 0, 0],
    ];
    Program::verify(insns.as_flattened(), &|_| None).expect("a valid program")
}

struct Receiver {
    mux: Mux,
    kcm: KcmId,
    psock: PsockId,
    batch: RxBatch,
}

impl Receiver {
    fn new(parser: Parser) -> Self {
        let (mut mux, kcm) = Mux::new(SocketType::Dgram, RCVBUF, RCVBUF);
        let psock = mux.attach(parser, 4 * RCVBUF, None);
        Self {
            mux,
            kcm,
            psock,
            batch: RxBatch::empty(),
        }
    }

    /// One read of the stream from `at` on, then every message copied out; returns how many.
    fn read_pass(&mut self, stream: &[u8], at: &mut usize, out: &mut [u8]) -> usize {
        let fresh = self.mux.take_free_chunk().unwrap_or_default();
        let mut buf = self.mux.begin_read(self.psock, fresh);
        let spare = buf.spare();
        let n = spare.len().min(stream.len() - *at);
        spare[..n].copy_from_slice(&stream[*at..*at + n]);
        *at = (*at + n) % stream.len();
        let outcome = self
            .mux
            .finish_read(self.psock, buf, ReadResult::Bytes(n), 0);
        assert!(matches!(outcome, ReadOutcome::Done));
        while black_box(self.mux.poll_event()).is_some() {}
        let mut msgs = 0;
        while self.mux.refill(self.kcm, &mut self.batch) {
            while let Some(msg) = self.batch.front() {
                let len = msg.len();
                match msg.contiguous() {
                    Some(bytes) => out[..len].copy_from_slice(bytes),
                    None => {
                        let mut filled = 0;
                        for part in msg.parts() {
                            out[filled..filled + part.len()].copy_from_slice(part);
                            filled += part.len();
                        }
                    }
                }
                black_box(&mut *out);
                self.batch.consume(len, true);
                msgs += 1;
            }
        }
        msgs
    }
}

fn stream(msg_len: usize) -> Vec<u8> {
    let mut msg = vec![7; msg_len];
    msg[..4].copy_from_slice(&(msg_len as u32 - 4).to_be_bytes());
    // A length that no read divides, so that messages straddle reads.
    msg.repeat((8 << 20) / msg_len)
}

fn bench_rx(name: &str, parser: Parser, msg_len: usize) {
    let stream = stream(msg_len);
    let mut receiver = Receiver::new(parser);
    let mut out = vec![0; msg_len];
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let (mut at, mut msgs) = (0, 0);
        let start = Instant::now();
        while msgs * msg_len < 8 * stream.len() {
            msgs += receiver.read_pass(&stream, &mut at, &mut out);
        }
        best = best.min(start.elapsed().as_nanos() as f64 / msgs as f64);
    }
    println!("{name:<36} {best:>9.2} ns/message");
}

/// Framing in place over the same copies: what a hand-written loop costs.
fn bench_framing(name: &str, msg_len: usize) {
    let stream = stream(msg_len);
    let mut chunk = vec![0; 64 * 1024];
    let mut out = vec![0; msg_len];
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let (mut at, mut msgs, mut kept) = (0, 0, 0);
        let start = Instant::now();
        while msgs * msg_len < 8 * stream.len() {
            let n = (chunk.len() - kept).min(stream.len() - at);
            chunk[kept..kept + n].copy_from_slice(&stream[at..at + n]);
            at = (at + n) % stream.len();
            let (mut pos, end) = (0, kept + n);
            while end - pos >= 4 {
                let word = [chunk[pos], chunk[pos + 1], chunk[pos + 2], chunk[pos + 3]];
                let len = u32::from_be_bytes(word) as usize + 4;
                if end - pos < len {
                    break;
                }
                out[..len].copy_from_slice(&chunk[pos..pos + len]);
                black_box(&mut out);
                pos += len;
                msgs += 1;
            }
            chunk.copy_within(pos..end, 0);
            kept = end - pos;
        }
        best = best.min(start.elapsed().as_nanos() as f64 / msgs as f64);
    }
    println!("{name:<36} {best:>9.2} ns/message");
}

fn bench_tx(name: &str, msg_len: usize, batch: usize) {
    let (mut mux, kcm) = Mux::new(SocketType::Dgram, RCVBUF, 16 * RCVBUF);
    mux.attach(Arc::new(Be32PlusFour), RCVBUF, None);
    let msg = vec![7; msg_len];
    let mut wire = vec![0; 2 << 20];
    let mut best = f64::MAX;
    let msgs = ((64 << 20) / msg_len).next_multiple_of(batch);
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for n in 1..=msgs {
            let flags = SendFlags {
                end: true,
                batch: n % batch != 0,
            };
            black_box(mux.send(kcm, &[&msg], flags)).expect("room");
            while let Some(transmit) = mux.begin_transmit() {
                let mut filled = 0;
                for slice in transmit.slices() {
                    wire[filled..filled + slice.len()].copy_from_slice(slice);
                    filled += slice.len();
                }
                mux.finish_transmit(transmit, TxResult::Sent(filled));
            }
            while black_box(mux.poll_event()).is_some() {}
        }
        best = best.min(start.elapsed().as_nanos() as f64 / msgs as f64);
    }
    println!("{name:<36} {best:>9.2} ns/message");
}

/// Resident bytes of the process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}

/// What idle sockets cost after they have carried traffic.
fn bench_memory() {
    const SOCKETS: usize = 20_000;
    let (mut mux, first) = Mux::new(SocketType::Dgram, RCVBUF, RCVBUF);
    let parser: Parser = Arc::new(Be32PlusFour);
    let mut batch = RxBatch::empty();
    let mut chunk = Chunk::new();
    let before = resident();
    for _ in 0..SOCKETS {
        let psock = mux.attach(parser.clone(), RCVBUF, None);
        let mut buf = mux.begin_read(psock, chunk);
        buf.spare()[..8].copy_from_slice(&[0, 0, 0, 4, 1, 2, 3, 4]);
        assert!(matches!(
            mux.finish_read(psock, buf, ReadResult::Bytes(8), 0),
            ReadOutcome::Done
        ));
        while mux.refill(first, &mut batch) {
            batch.consume(8, true);
        }
        while mux.poll_event().is_some() {}
        chunk = mux.take_free_chunk().unwrap_or_default();
    }
    let attached = resident();
    for _ in 0..SOCKETS {
        black_box(mux.clone_kcm());
    }
    let cloned = resident();
    println!(
        "{:<36} {:>9} bytes",
        "idle psock",
        (attached - before) / SOCKETS
    );
    println!(
        "{:<36} {:>9} bytes",
        "idle KCM socket",
        (cloned - attached) / SOCKETS
    );
    let start = Instant::now();
    for psock in (0..SOCKETS).rev() {
        black_box(mux.unattach(PsockId(psock as u32)));
    }
    let each = start.elapsed().as_nanos() as f64 / SOCKETS as f64;
    let name = format!("unattach one of {SOCKETS}");
    println!("{name:<36} {each:>9.2} ns");
}

fn main() {
    // An argument picks the lines that contain it, for profiling.
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let run = |name: &str, bench: &dyn Fn(&str)| {
        if name.contains(&wanted) {
            bench(name);
        }
    };
    for msg_len in [64, 1000, 16 * 1024, 60_000] {
        run(&format!("receive {msg_len} B, framing in place"), &|name| {
            bench_framing(name, msg_len);
        });
        run(&format!("receive {msg_len} B, native parser"), &|name| {
            bench_rx(name, Arc::new(Be32PlusFour), msg_len);
        });
        run(&format!("receive {msg_len} B, parser program"), &|name| {
            bench_rx(name, Arc::new(program()), msg_len);
        });
    }
    for (msg_len, batch) in [(64, 1), (64, 64), (1000, 64), (16 * 1024, 64)] {
        run(&format!("send {msg_len} B, batches of {batch}"), &|name| {
            bench_tx(name, msg_len, batch);
        });
    }
    run("memory", &|_| bench_memory());
}
