//! The parser VM against rbpf's interpreter, side by side: nanoseconds per run, median of rounds.
//!
//! rbpf loads `LD_ABS` in host order and checks no less than eight bytes; it is only timed here.

use std::hint::black_box;
use std::time::Instant;

use kcm_mux::bpf::insn::{FP, K, RawInsn, X, alu, class, jmp, mode, size};
use kcm_mux::bpf::{Env, Program};

/// Rounds per figure, and runs per round.
const ROUNDS: usize = 9;
const RUNS: u32 = 1_000_000;

#[allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn main() {
    let packet = [0_u8, 0, 0, 60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    let line = |text: std::fmt::Arguments<'_>| {
        use std::io::Write;
        let _ = std::io::stdout().lock().write_fmt(format_args!("{text}\n"));
    };
    line(format_args!(
        "{:<34}{:>8}{:>8}{:>8}",
        "program", "ours ns", "rbpf ns", "ratio"
    ));
    for (name, insns) in programs() {
        let bytes: Vec<u8> = insns.into_iter().flat_map(RawInsn::to_bytes).collect();
        let ours = Program::verify(&bytes, &|_| None).expect("a program of ours");
        let theirs = rbpf::EbpfVmRaw::new(Some(&bytes)).expect("a program rbpf takes");
        let (mut cb, env) = ([0; 5], Env::default());
        let mut mem = packet;
        let mut figures: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            let start = Instant::now();
            for _ in 0..RUNS {
                black_box(black_box(&ours).run(black_box(&packet[..]), &mut cb, &env));
            }
            figures[0].push(start.elapsed().as_nanos() as f64 / f64::from(RUNS));
            let start = Instant::now();
            for _ in 0..RUNS {
                let result = black_box(&theirs).execute_program(black_box(&mut mem));
                let _ = black_box(result);
            }
            figures[1].push(start.elapsed().as_nanos() as f64 / f64::from(RUNS));
        }
        let [ours, theirs] = figures.map(median);
        line(format_args!(
            "{name:<34}{ours:>8.1}{theirs:>8.1}{:>8.2}",
            ours / theirs
        ));
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

type Listing = (&'static str, Vec<RawInsn>);

fn programs() -> Vec<Listing> {
    let op = |code, dst, src, off, imm| RawInsn {
        code,
        dst,
        src,
        off,
        imm,
    };
    let (mov_x, mov_k) = (class::ALU64 | alu::MOV | X, class::ALU64 | alu::MOV | K);
    let add_k = class::ALU64 | alu::ADD | K;
    let abs = |size, off| op(class::LD | mode::ABS | size, 0, 0, 0, off);
    let exit = op(class::JMP | jmp::EXIT, 0, 0, 0, 0);
    let save = op(mov_x, 6, 1, 0, 0);
    let clang = vec![save, abs(size::W, 0), op(add_k, 0, 0, 0, 4), exit];
    let masked = vec![
        save,
        abs(size::W, 0),
        op(class::ALU64 | alu::RSH | K, 0, 0, 0, 8),
        op(class::ALU64 | alu::AND | K, 0, 0, 0, 0xff_ffff),
        op(add_k, 0, 0, 0, 9),
        exit,
    ];
    let branches = vec![
        save,
        abs(size::B, 4),
        op(class::JMP | jmp::JNE | K, 0, 0, 3, 1),
        abs(size::W, 0),
        op(add_k, 0, 0, 0, 4),
        exit,
        op(mov_k, 0, 0, 0, -1),
        exit,
    ];
    let stack = vec![
        save,
        abs(size::W, 0),
        op(class::STX | mode::MEM | size::DW, FP, 0, -8, 0),
        op(class::LDX | mode::MEM | size::W, 0, FP, -8, 0),
        op(add_k, 0, 0, 0, 4),
        exit,
    ];
    let turns = vec![
        op(mov_k, 0, 0, 0, 0),
        op(mov_k, 2, 0, 0, 100),
        op(add_k, 0, 0, 0, 3),
        op(class::ALU64 | alu::XOR | X, 0, 2, 0, 0),
        op(add_k, 2, 0, 0, -1),
        op(class::JMP | jmp::JNE | K, 2, 0, -4, 0),
        exit,
    ];
    vec![
        ("clang's four instructions", clang),
        ("field, shift, mask, add", masked),
        ("two loads and a branch", branches),
        ("through the stack", stack),
        ("loop of 100 turns", turns),
    ]
}
