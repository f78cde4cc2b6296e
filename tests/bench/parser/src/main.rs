//! Nanoseconds a message for length-prefix parsers, our VM and rbpf's interpreter in alternated rounds.
//!
//! Prints one JSON object: for each line of the table its nanoseconds, one number a round. Run by `ci/bench kcm`.
//! rbpf loads packet words in host order, which costs what network order costs: only its result differs.

use std::hint::black_box;
use std::time::Instant;

use kcm_mux::bpf::{CB_WORDS, Env, Program};

/// 64 KiB of 64-byte messages, as one bulk read gives them.
const MESSAGES: usize = 1024;
const MESSAGE_BYTES: usize = 64;
/// Passes over the buffer, of tens of microseconds each, that one figure is taken from.
const PASSES: usize = 200;

const LDABS_W: u8 = 0x20;
const MOV64_X: u8 = 0xbf;
const ADD64_K: u8 = 0x07;
const EXIT: u8 = 0x95;

fn insn(code: u8, dst: u8, src: u8, imm: i32) -> [u8; 8] {
    let [a, b, c, d] = imm.to_le_bytes();
    [code, src << 4 | dst, 0, 0, a, b, c, d]
}

/// What clang makes of kcm.rst's example: `r6 = r1; r0 = ntohl(word 0); r0 += 4; exit`.
fn clang_parser() -> Vec<u8> {
    [
        insn(MOV64_X, 6, 1, 0),
        insn(LDABS_W, 0, 0, 0),
        insn(ADD64_K, 0, 0, 4),
        insn(EXIT, 0, 0, 0),
    ]
    .concat()
}

/// The same with a copy to another register, so that no closed form fits and every instruction is interpreted.
fn interpreted_parser() -> Vec<u8> {
    [
        insn(MOV64_X, 6, 1, 0),
        insn(LDABS_W, 0, 0, 0),
        insn(ADD64_K, 0, 0, 4),
        insn(MOV64_X, 7, 0, 0),
        insn(EXIT, 0, 0, 0),
    ]
    .concat()
}

/// Nanoseconds a message of `parse`: the median pass over the buffer, so that a pass the scheduler cut in two counts for
/// nothing.
fn nanos_each(buffer: &mut [u8], mut parse: impl FnMut(&mut [u8]) -> u64) -> f64 {
    let mut passes: Vec<_> = (0..PASSES)
        .map(|_| {
            let start = Instant::now();
            for message in buffer.chunks_exact_mut(MESSAGE_BYTES) {
                black_box(parse(black_box(message)));
            }
            start.elapsed()
        })
        .collect();
    passes.sort();
    passes[PASSES / 2].as_secs_f64() * 1e9 / MESSAGES as f64
}

fn main() {
    let rounds = std::env::args()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(5);
    let mut buffer = vec![0_u8; MESSAGES * MESSAGE_BYTES];
    for message in buffer.chunks_exact_mut(MESSAGE_BYTES) {
        message[..4].copy_from_slice(&(MESSAGE_BYTES as u32 - 4).to_be_bytes());
    }
    let (clang, interpreted) = (clang_parser(), interpreted_parser());
    let ours_clang = Program::verify(&clang, &|_| None).expect("a valid program");
    let ours_interpreted = Program::verify(&interpreted, &|_| None).expect("a valid program");
    let rbpf_clang = rbpf::EbpfVmRaw::new(Some(&clang)).expect("a valid program");
    let rbpf_interpreted = rbpf::EbpfVmRaw::new(Some(&interpreted)).expect("a valid program");
    let env = Env {
        now_ns: 0,
        boot_ns: 0,
        cpu: 0,
        seed: 1,
    };
    let mut cb = [0; CB_WORDS];
    let mut ours = |program: &Program, message: &mut [u8]| {
        let len = program.run::<[u8]>(message, &mut cb, &env);
        assert_eq!(len, MESSAGE_BYTES as u64, "the parser finds the message");
        len
    };
    let mut figures: [(&str, Vec<f64>); 4] =
        ["ours", "rbpf", "ours_interpreted", "rbpf_interpreted"].map(|name| (name, Vec::new()));
    for _ in 0..rounds {
        let round = [
            nanos_each(&mut buffer, |message| ours(&ours_clang, message)),
            nanos_each(&mut buffer, |message| {
                rbpf_clang.execute_program(message).expect("a run")
            }),
            nanos_each(&mut buffer, |message| ours(&ours_interpreted, message)),
            nanos_each(&mut buffer, |message| {
                rbpf_interpreted.execute_program(message).expect("a run")
            }),
        ];
        for ((_, all), nanos) in figures.iter_mut().zip(round) {
            all.push(nanos);
        }
    }
    let lines = figures.map(|(name, all)| format!("\"{name}\": {all:?}"));
    println!("{{{}}}", lines.join(", "));
}
