//! Programs with their results, one program for each reason to refuse, and hostile bytes.

use std::string::ToString;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use crate::tests::cases;

use super::insn::{FP, K, LD_IMM64, RawInsn, X, alu, atomic, class, jmp, mode, pseudo, size};
use super::map::{MAP_TYPE_ARRAY, MAP_TYPE_HASH, flag};
use super::*;

type Slot = (u8, u8, u8, i16, i32);

const MOV: u8 = class::ALU64 | alu::MOV | K;
const MOVX: u8 = class::ALU64 | alu::MOV | X;
const ADD: u8 = class::ALU64 | alu::ADD | K;
const ADDX: u8 = class::ALU64 | alu::ADD | X;
const JEQ: u8 = class::JMP | jmp::JEQ | K;
const JNE: u8 = class::JMP | jmp::JNE | K;
const JA: u8 = class::JMP | jmp::JA;
const LDXW: u8 = class::LDX | mode::MEM | size::W;
const LDXDW: u8 = class::LDX | mode::MEM | size::DW;
const STW: u8 = class::ST | mode::MEM | size::W;
const STDW: u8 = class::ST | mode::MEM | size::DW;
const STXW: u8 = class::STX | mode::MEM | size::W;
const STXDW: u8 = class::STX | mode::MEM | size::DW;
const ABS_W: u8 = class::LD | mode::ABS | size::W;
const IND_H: u8 = class::LD | mode::IND | size::H;
const CALL: u8 = class::JMP | jmp::CALL;
const ATOMIC_DW: u8 = class::STX | mode::ATOMIC | size::DW;

const EXIT: Slot = (class::JMP | jmp::EXIT, 0, 0, 0, 0);
const R0_ZERO: Slot = (MOV, 0, 0, 0, 0);
const SAVE_CTX: Slot = (MOVX, 6, 1, 0, 0);

fn bytes(slots: &[Slot]) -> Vec<u8> {
    let slot = |&(code, dst, src, off, imm): &_| RawInsn {
        code,
        dst,
        src,
        off,
        imm,
    };
    slots.iter().map(slot).flat_map(RawInsn::to_bytes).collect()
}

/// Descriptors: 3 an array of four 16-byte values, 4 a hash map, 5 an array of one value,
/// 6 one that programs may not write, 7 one they may not read.
fn maps(fd: i32) -> Option<Arc<Map>> {
    let spec = |map_type, key_size, value_size, max_entries, flags| {
        let spec = MapSpec {
            map_type,
            key_size,
            value_size,
            max_entries,
            flags,
        };
        Some(Arc::new(Map::new(spec, 1).unwrap()))
    };
    match fd {
        3 => spec(MAP_TYPE_ARRAY, 4, 16, 4, 0),
        4 => spec(MAP_TYPE_HASH, 4, 16, 4, 0),
        5 => spec(MAP_TYPE_ARRAY, 4, 64, 1, 0),
        6 => spec(MAP_TYPE_ARRAY, 4, 64, 1, flag::RDONLY_PROG),
        7 => spec(MAP_TYPE_ARRAY, 4, 64, 1, flag::WRONLY_PROG),
        100..200 => spec(MAP_TYPE_ARRAY, 4, 4, 1, 0),
        _ => None,
    }
}

fn verify(slots: &[Slot]) -> Result<Program, VerifyError> {
    Program::verify(&bytes(slots), &maps)
}

fn run(slots: &[Slot], packet: &[u8]) -> u64 {
    let program = verify(slots).unwrap_or_else(|error| panic!("{error}: {slots:x?}"));
    let env = Env {
        now_ns: 77,
        boot_ns: 88,
        cpu: 9,
        seed: 1,
    };
    program.try_run(packet, &mut [1, 2, 3, 4, 5], &env).unwrap()
}

/// `LD_IMM64`.
fn wide(dst: u8, src: u8, low: i32, high: i32) -> [Slot; 2] {
    [(LD_IMM64, dst, src, 0, low), (0, 0, 0, 0, high)]
}

fn join(parts: &[&[Slot]]) -> Vec<Slot> {
    parts.concat()
}

/// `r0 = lookup(map, key)` with a four-byte key.
fn lookup(fd: i32, key: i32) -> Vec<Slot> {
    let key = [
        (STW, FP, 0, -4, key),
        (MOVX, 2, FP, 0, 0),
        (ADD, 2, 0, 0, -4),
    ];
    join(&[&key, &wide(1, pseudo::MAP_FD, fd, 0), &[(CALL, 0, 0, 0, 1)]])
}

#[test]
fn clangs_length_prefix_parser_returns_body_plus_header() {
    let parser = [SAVE_CTX, (ABS_W, 0, 0, 0, 0), (ADD, 0, 0, 0, 4), EXIT];
    assert_eq!(run(&parser, &[0, 0, 1, 2, 9]), 0x106);
    assert_eq!(run(&parser, &[0xff; 4]), 0x1_0000_0003);
    assert_eq!(run(&parser, &[0, 0, 1]), 0);
}

#[test]
fn closed_form_equals_the_interpreter() {
    let step = |code, imm| (code, 0, 0, 0, imm);
    let programs = [
        vec![],
        vec![step(ADD, -7)],
        vec![step(class::ALU | alu::RSH | K, 8), step(ADD, 9)],
        vec![
            step(class::ALU | alu::END | X, 32),
            step(class::ALU64 | alu::MUL | K, 3),
        ],
        vec![
            step(class::ALU | alu::NEG, 0),
            step(class::ALU64 | alu::AND | K, 0xffff),
        ],
    ];
    for steps in programs {
        for size in [size::W, size::H, size::B] {
            let load = (class::LD | mode::ABS | size, 0, 0, 0, 1);
            let short = join(&[&[SAVE_CTX, load], &steps, &[EXIT]]);
            // A jump to the next instruction changes nothing but the shape.
            let long = join(&[&[SAVE_CTX, load, (JA, 0, 0, 0, 0)], &steps, &[EXIT]]);
            for packet in [&[1, 0xfe, 3, 4, 5, 6][..], &[1, 2], &[]] {
                assert_eq!(run(&short, packet), run(&long, packet), "{steps:x?}");
            }
        }
    }
}

#[test]
fn length_prefix_equals_the_program() {
    let step = |code, imm| (code, 0, 0, 0, imm);
    let (rsh32, and64) = (class::ALU | alu::RSH | K, class::ALU64 | alu::AND | K);
    let prefixes = [
        vec![],
        vec![step(ADD, -7)],
        vec![step(rsh32, 7), step(ADD, 9)],
        vec![
            step(and64, 0x7fff_ffff),
            step(class::ALU | alu::ADD | K, 4),
            step(ADD, 1),
        ],
        vec![
            step(and64, -256),
            step(rsh32, 3),
            step(and64, 0xff),
            step(ADD, i32::MAX),
        ],
    ];
    let others = [
        vec![step(ADD, 1), step(rsh32, 1)],
        vec![step(class::ALU64 | alu::MUL | K, 3)],
        vec![step(class::ALU64 | alu::RSH | K, 33)],
        vec![step(class::ALU | alu::END | X, 32)],
    ];
    let program = |size, steps: &[Slot]| {
        let load = (class::LD | mode::ABS | size, 0, 0, 0, 1);
        join(&[&[SAVE_CTX, load], steps, &[EXIT]])
    };
    for size in [size::W, size::H, size::B] {
        for steps in &prefixes {
            let program = program(size, steps);
            let prefix = verify(&program).unwrap().length_field().unwrap();
            for packet in [[9, 0xfe, 3, 0x84, 5], [0; 5], [0xff; 5]] {
                assert_eq!(prefix.length(&packet), Some(run(&program, &packet) as u32));
            }
            assert_eq!(prefix.length(&[1, 2, 3, 4]), None);
        }
        for steps in &others {
            assert_eq!(verify(&program(size, steps)).unwrap().length_field(), None);
        }
    }
}

#[test]
fn programs_give_their_results() {
    let packet: Vec<u8> = (0..40).collect();
    let alu = |op: u8, variant: i16, a: i32, b: i32| {
        vec![
            (MOV, 0, 0, 0, a),
            (MOV, 1, 0, 0, b),
            (op | X, 0, 1, variant, 0),
            EXIT,
        ]
    };
    let (wide64, narrow) = (class::ALU64, class::ALU);
    let from_stack = |store: Slot, load: Slot| vec![(MOV, 1, 0, 0, -2), store, load, EXIT];
    let element = |access: &[Slot]| {
        let skip = (JEQ, 0, 0, access.len() as i16, 0);
        join(&[&lookup(3, 1), &[skip], access, &[(MOV, 0, 0, 0, 7), EXIT]])
    };
    let stored = [(STDW, 0, 0, 8, 5), (LDXW, 0, 0, 8, 0), EXIT];
    let table: Vec<(&str, Vec<Slot>, u64)> = vec![
        ("div by zero", alu(wide64 | alu::DIV, 0, 5, 0), 0),
        ("mod by zero", alu(wide64 | alu::MOD, 0, 5, 0), 5),
        (
            "mod32 by zero",
            alu(narrow | alu::MOD, 0, -1, 0),
            0xffff_ffff,
        ),
        ("sdiv", alu(wide64 | alu::DIV, 1, -7, 2), -3i64 as u64),
        ("smod", alu(wide64 | alu::MOD, 1, -7, 2), -1i64 as u64),
        (
            "sdiv32 overflow",
            alu(narrow | alu::DIV, 1, i32::MIN, -1),
            0x8000_0000,
        ),
        (
            "smod32 overflow",
            alu(narrow | alu::MOD, 1, i32::MIN, -1),
            0,
        ),
        ("shift count wraps", alu(wide64 | alu::LSH, 0, 1, 65), 2),
        ("arsh32", alu(narrow | alu::ARSH, 0, -8, 1), 0xffff_fffc),
        (
            "movsx8",
            alu(wide64 | alu::MOV, 8, 0, 0x180),
            -128i64 as u64,
        ),
        (
            "movsx16 32",
            alu(narrow | alu::MOV, 16, 0, 0x8000),
            0xffff_8000,
        ),
        (
            "bswap16",
            vec![
                (MOV, 0, 0, 0, 0x1_0203),
                (wide64 | alu::END, 0, 0, 0, 16),
                EXIT,
            ],
            0x0302,
        ),
        (
            "to be64",
            vec![
                (MOV, 0, 0, 0, 1),
                (narrow | alu::END | X, 0, 0, 0, 64),
                EXIT,
            ],
            1 << 56,
        ),
        (
            "to le32",
            vec![(MOV, 0, 0, 0, -1), (narrow | alu::END, 0, 0, 0, 32), EXIT],
            0xffff_ffff,
        ),
        ("imm64", join(&[&wide(0, 0, 1, 2), &[EXIT]]), 0x2_0000_0001),
        (
            "gotol",
            vec![
                (class::JMP32 | jmp::JA, 0, 0, 0, 1),
                EXIT,
                R0_ZERO,
                (JA, 0, 0, -3, 0),
            ],
            0,
        ),
        (
            "load byte, sign-extended",
            from_stack(
                (STXDW, FP, 1, -8, 0),
                (class::LDX | mode::MEMSX | size::B, 0, FP, -8, 0),
            ),
            -2i64 as u64,
        ),
        (
            "xchg",
            from_stack(
                (STDW, FP, 0, -8, 9),
                (ATOMIC_DW, FP, 1, -8, atomic::XCHG as i32),
            )
            .iter()
            .copied()
            .take(3)
            .chain([(MOVX, 0, 1, 0, 0), EXIT])
            .collect(),
            9,
        ),
        (
            "cmpxchg misses",
            vec![
                (MOV, 0, 0, 0, 1),
                (MOV, 1, 0, 0, 2),
                (STDW, FP, 0, -8, 3),
                (ATOMIC_DW, FP, 1, -8, atomic::CMPXCHG as i32),
                EXIT,
            ],
            3,
        ),
        (
            "acquire what was released",
            vec![
                (MOV, 1, 0, 0, 6),
                (ATOMIC_DW, FP, 1, -8, atomic::STORE_REL as i32),
                (ATOMIC_DW, 0, FP, -8, atomic::LOAD_ACQ as i32),
                EXIT,
            ],
            6,
        ),
        (
            "ind",
            vec![SAVE_CTX, (MOV, 7, 0, 0, 4), (IND_H, 0, 7, 0, 3), EXIT],
            0x0708,
        ),
        (
            "ind below zero",
            vec![SAVE_CTX, (MOV, 7, 0, 0, 4), (IND_H, 0, 7, 0, -5), EXIT],
            0,
        ),
        (
            "net header",
            vec![SAVE_CTX, (ABS_W, 0, 0, 0, -0x10_0000), EXIT],
            0,
        ),
        ("len", vec![(LDXW, 0, 1, 0, 0), EXIT], 40),
        ("protocol", vec![(LDXW, 0, 1, 16, 0), EXIT], 8),
        (
            "cb[3], cb[2]",
            vec![(LDXDW, 0, 1, 56, 0), EXIT],
            0x4_0000_0003,
        ),
        (
            "cb[4]",
            vec![(STW, 1, 0, 64, 6), (LDXW, 0, 1, 64, 0), EXIT],
            6,
        ),
        ("ktime", vec![(CALL, 0, 0, 0, 5), EXIT], 77),
        ("boot time", vec![(CALL, 0, 0, 0, 125), EXIT], 88),
        ("cpu", vec![(CALL, 0, 0, 0, 8), EXIT], 9),
        ("cookie", vec![(CALL, 0, 0, 0, 46), EXIT], 0),
        ("uid", vec![(CALL, 0, 0, 0, 47), EXIT], 65_534),
        ("element", element(&stored), 5),
        ("no element", join(&[&lookup(4, 1), &[EXIT]]), 0),
        (
            "global",
            join(&[
                &wide(1, pseudo::MAP_VALUE, 5, 8),
                &[(STW, 1, 0, 4, 3), (LDXDW, 0, 1, 0, 0), EXIT],
            ]),
            3 << 32,
        ),
        (
            "function with its own frame",
            vec![
                (STDW, FP, 0, -8, 1),
                (MOV, 1, 0, 0, 20),
                (MOV, 6, 0, 0, 300),
                (CALL, 0, pseudo::CALL, 0, 4),
                (LDXDW, 1, FP, -8, 0),
                (ADDX, 0, 1, 0, 0),
                (ADDX, 0, 6, 0, 0),
                EXIT,
                (STXDW, FP, 1, -8, 0),
                (MOV, 6, 0, 0, 5),
                (LDXDW, 0, FP, -8, 0),
                EXIT,
            ],
            321,
        ),
    ];
    for (name, slots, expected) in table {
        assert_eq!(run(&slots, &packet), expected, "{name}");
    }
}

#[test]
fn skb_load_bytes_copies_or_clears() {
    let load = |helper, off, header| {
        let slots = [
            (STDW, FP, 0, -8, -1),
            (MOV, 2, 0, 0, off),
            (MOVX, 3, FP, 0, 0),
            (ADD, 3, 0, 0, -8),
            (MOV, 4, 0, 0, 3),
            (MOV, 5, 0, 0, header),
            (CALL, 0, 0, 0, helper),
            (LDXW, 1, FP, -8, 0),
            (ADDX, 0, 1, 0, 0),
            EXIT,
        ];
        run(&slots, &[1, 2, 3, 4, 5])
    };
    assert_eq!(load(26, 2, 0), 0xff05_0403);
    assert_eq!(load(26, 3, 0), 0xff00_0000_u64.wrapping_sub(14));
    assert_eq!(load(26, -1, 0), 0xff00_0000_u64.wrapping_sub(14));
    assert_eq!(load(68, 1, 1), 0xff04_0302);
    assert_eq!(load(68, 1, 0), 0xff00_0000_u64.wrapping_sub(14));
}

#[test]
fn every_refusal_has_a_program_and_an_errno() {
    let at = |pc| VerifyError::UninitRegister { pc, reg: 0 };
    let pc = 0;
    let exit_zero = [R0_ZERO, EXIT];
    let to_buffer = |size: i32| {
        vec![
            (MOV, 2, 0, 0, 0),
            (MOVX, 3, FP, 0, 0),
            (ADD, 3, 0, 0, -8),
            (MOV, 4, 0, 0, size),
            (CALL, 0, 0, 0, 26),
            EXIT,
        ]
    };
    let call = |body: &[Slot]| join(&[&[(CALL, 0, 1, 0, 1), EXIT], body, &exit_zero]);
    let chain = |frames: i16, bytes: i16| {
        let mut slots = Vec::new();
        for _ in 1..frames {
            slots.extend([(STDW, FP, 0, -bytes, 0), (CALL, 0, 1, 0, 1), EXIT]);
        }
        join(&[&slots, &[(STDW, FP, 0, -bytes, 0)], &exit_zero])
    };
    let functions: Vec<Slot> = (0..256)
        .map(|n| (CALL, 0, 1, 0, 257 + n))
        .chain(exit_zero)
        .chain((0..256).flat_map(|_| exit_zero))
        .collect();
    let many_maps: Vec<Slot> = (100..165)
        .flat_map(|fd| wide(1, pseudo::MAP_FD, fd, 0))
        .chain(exit_zero)
        .collect();
    let table: Vec<(Vec<Slot>, VerifyError, i32)> = vec![
        (vec![], VerifyError::BadLength, 7),
        (
            vec![(LD_IMM64, 0, 0, 0, 0)],
            VerifyError::TruncatedInsn { pc },
            22,
        ),
        (
            vec![(0xff, 0, 0, 0, 0), EXIT],
            VerifyError::UnknownOpcode { pc, code: 0xff },
            22,
        ),
        (
            vec![(MOV, 11, 0, 0, 0), EXIT],
            VerifyError::BadRegister { pc },
            22,
        ),
        (
            vec![(MOV, 0, 1, 0, 0), EXIT],
            VerifyError::ReservedField { pc },
            22,
        ),
        (
            vec![(JA, 0, 0, 1, 0), EXIT],
            VerifyError::BadJump { pc },
            22,
        ),
        (
            vec![(JA, 0, 0, -2, 0), EXIT],
            VerifyError::BadJump { pc },
            22,
        ),
        (
            join(&[&[(JEQ, 1, 0, 1, 0)], &wide(0, 0, 0, 0), &[EXIT]]),
            VerifyError::BadJump { pc },
            22,
        ),
        (vec![R0_ZERO], VerifyError::FallsThrough { pc }, 22),
        (
            join(&[&wide(1, pseudo::MAP_FD, 2, 0), &exit_zero]),
            VerifyError::BadMapFd { pc, fd: 2 },
            9,
        ),
        (many_maps, VerifyError::TooManyMaps { pc: 128 }, 7),
        (
            join(&[&wide(1, pseudo::MAP_VALUE, 5, 64), &exit_zero]),
            VerifyError::BadMapValue { pc },
            22,
        ),
        (
            join(&[&wide(1, pseudo::MAP_VALUE, 3, 0), &exit_zero]),
            VerifyError::MapValueUnsupported { pc },
            524,
        ),
        (
            join(&[&wide(1, pseudo::MAP_VALUE, 4, 0), &exit_zero]),
            VerifyError::MapValueOfHash { pc },
            22,
        ),
        (
            vec![(CALL, 0, 0, 0, 12), EXIT],
            VerifyError::UnknownHelper { pc, number: 12 },
            22,
        ),
        (
            vec![(CALL, 0, 2, 0, 1), EXIT],
            VerifyError::KernelFunction { pc },
            22,
        ),
        (vec![EXIT], at(0), 13),
        (vec![(JEQ, 1, 0, 1, 0), R0_ZERO, EXIT], at(2), 13),
        (
            vec![(MOV, FP, 0, 0, 0), EXIT],
            VerifyError::FramePointerWrite { pc },
            13,
        ),
        (
            vec![(class::ALU64 | alu::MUL | K, 1, 0, 0, 2), EXIT],
            VerifyError::PointerArithmetic { pc },
            13,
        ),
        (
            join(&[&lookup(4, 0), &[(ADD, 0, 0, 0, 1), EXIT]]),
            VerifyError::NullableArithmetic { pc: 6 },
            13,
        ),
        (
            vec![(ADD, 1, 0, 0, 1 << 29), EXIT],
            VerifyError::PointerOffset { pc },
            22,
        ),
        (
            vec![R0_ZERO, (class::ALU64 | alu::DIV | K, 0, 0, 0, 0), EXIT],
            VerifyError::DivisionByZero { pc: 1 },
            22,
        ),
        (
            vec![R0_ZERO, (class::ALU | alu::LSH | K, 0, 0, 0, 32), EXIT],
            VerifyError::BadShift { pc: 1 },
            22,
        ),
        (
            vec![R0_ZERO, (LDXW, 0, 0, 0, 0), EXIT],
            VerifyError::NotAPointer { pc: 1 },
            13,
        ),
        (
            join(&[&lookup(4, 0), &[(LDXW, 0, 0, 0, 0), EXIT]]),
            VerifyError::NullableAccess { pc: 6 },
            13,
        ),
        (
            vec![(STDW, FP, 0, -9, 0), EXIT],
            VerifyError::Misaligned { pc },
            13,
        ),
        (
            vec![(STDW, FP, 0, -520, 0), EXIT],
            VerifyError::StackOutOfBounds { pc },
            13,
        ),
        (
            vec![
                SAVE_CTX,
                (ABS_W, 0, 0, 0, 0),
                (class::ALU64 | alu::AND | K, 0, 0, 0, 0x3f8),
                (MOVX, 1, FP, 0, 0),
                (ADD, 1, 0, 0, -512),
                (ADDX, 1, 0, 0, 0),
                (STDW, 1, 0, 0, 0),
                EXIT,
            ],
            VerifyError::StackOverrun { pc: 6 },
            22,
        ),
        (to_buffer(9), VerifyError::StackOverrun { pc: 4 }, 22),
        (
            vec![(LDXDW, 0, FP, -8, 0), EXIT],
            VerifyError::UninitStack { pc, off: -8 },
            13,
        ),
        (
            vec![(STXW, FP, 1, -8, 0), EXIT],
            VerifyError::PartialSpill { pc },
            13,
        ),
        (
            vec![(STXDW, FP, 1, -8, 0), (LDXW, 0, FP, -8, 0), EXIT],
            VerifyError::PartialFill { pc: 1 },
            13,
        ),
        (
            join(&[&[(MOVX, 1, FP, 0, 0)], &call(&[(STXDW, 1, FP, -8, 0)])]),
            VerifyError::ForeignStackSpill { pc: 3 },
            22,
        ),
        (
            vec![(CALL, 0, 1, 0, 1), EXIT, (MOVX, 0, FP, 0, 0), EXIT],
            VerifyError::ReturnsStackPointer { pc: 3 },
            22,
        ),
        (
            vec![(ADD, 1, 0, 0, 4), (LDXW, 0, 1, 0, 0), EXIT],
            VerifyError::MovedContext { pc: 1 },
            13,
        ),
        (
            vec![R0_ZERO, (ATOMIC_DW, 1, 0, 48, 0), EXIT],
            VerifyError::AtomicOnContext { pc: 1 },
            13,
        ),
        (
            vec![(MOV, 6, 0, 0, 0), (ABS_W, 0, 0, 0, 0), EXIT],
            VerifyError::PacketLoadWithoutContext { pc: 1 },
            22,
        ),
        (
            call(&[SAVE_CTX, (ABS_W, 0, 0, 0, 0)]),
            VerifyError::PacketLoadInFunction { pc: 3 },
            22,
        ),
        (
            join(&[
                &wide(1, pseudo::MAP_VALUE, 5, 0),
                &[(LDXW, 0, 1, 61, 0), EXIT],
            ]),
            VerifyError::ValueOutOfBounds { pc: 2 },
            13,
        ),
        (
            join(&[
                &wide(1, pseudo::MAP_VALUE, 6, 0),
                &[(STW, 1, 0, 0, 0), EXIT],
            ]),
            VerifyError::MapAccess { pc: 2 },
            13,
        ),
        (
            join(&[
                &wide(1, pseudo::MAP_VALUE, 7, 0),
                &[(LDXW, 0, 1, 0, 0), EXIT],
            ]),
            VerifyError::MapAccess { pc: 2 },
            13,
        ),
        (to_buffer(0), VerifyError::BadArgument { pc: 4, reg: 4 }, 13),
        (
            vec![(LDXW, 0, 1, 76, 0), EXIT],
            VerifyError::BadContextAccess { pc, off: 76 },
            13,
        ),
        (
            exit_zero.iter().chain(&exit_zero).copied().collect(),
            VerifyError::Unreachable { pc: 2 },
            22,
        ),
        (
            vec![(JA, 0, 0, -1, 0)],
            VerifyError::InfiniteLoop { pc },
            22,
        ),
        (
            vec![R0_ZERO, (ADD, 0, 0, 0, 1), (JNE, 0, 0, -2, 0), EXIT],
            VerifyError::TooComplex,
            7,
        ),
        (functions, VerifyError::TooManyFunctions, 7),
        (
            vec![(CALL, 0, 1, 0, 1), EXIT, (CALL, 0, 1, 0, -1), EXIT],
            VerifyError::CallsTooDeep { pc: 2 },
            7,
        ),
        (chain(3, 256), VerifyError::StacksTooDeep { bytes: 768 }, 13),
    ];
    for (slots, expected, errno) in table {
        assert_eq!(verify(&slots).map(drop), Err(expected));
        assert_eq!(expected.errno(), errno, "{expected}");
    }
    assert!(verify(&chain(2, 256)).is_ok());
    let refused = verify(&[(CALL, 0, 0, 0, 12), EXIT]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "insn 0: helper is not available: bpf_tail_call#12"
    );
    assert!(Program::verify(&[0; 9], &maps).is_err());
}

#[test]
fn context_fields_are_readable_as_in_the_kernel() {
    let load = |code: u8, off| verify(&[(code, 0, 1, off, 0), R0_ZERO, EXIT]);
    let store = |code: u8, off| verify(&[(code, 1, 0, off, 0), R0_ZERO, EXIT]);
    let refused = |off| Err(VerifyError::BadContextAccess { pc: 0, off });
    for off in (0..192).step_by(4) {
        let readable = matches!(off, 0..=71 | 84..=87 | 164..=167 | 176..=179);
        let expected = if readable {
            Ok(())
        } else {
            refused(i64::from(off))
        };
        assert_eq!(load(LDXW, off).map(drop), expected, "load at {off}");
        let expected = if (48..68).contains(&off) {
            Ok(())
        } else {
            refused(i64::from(off))
        };
        assert_eq!(store(STW, off).map(drop), expected, "store at {off}");
    }
    assert!(load(LDXDW, 48).is_ok() && load(LDXDW, 56).is_ok());
    assert!(load(LDXDW, 64).is_err() && load(LDXDW, 0).is_err());
    assert!(load(class::LDX | mode::MEM | size::B, 3).is_ok());
    assert!(load(class::LDX | mode::MEM | size::H, 1).is_err());
    assert!(load(LDXW, -4).is_err() && load(LDXW, 192).is_err());
}

#[test]
fn equal_values_are_bounded_together() {
    // r7 = r0; if r0 > 63 goto exit; the copy indexes a 64-byte value.
    let index = [
        SAVE_CTX,
        (ABS_W, 0, 0, 0, 0),
        (MOVX, 7, 0, 0, 0),
        (STXDW, FP, 0, -8, 0),
        (class::JMP | jmp::JGT | K, 0, 0, 5, 63),
        (LDXDW, 8, FP, -8, 0),
    ];
    let global = wide(1, pseudo::MAP_VALUE, 5, 0);
    for copy in [7, 8] {
        let access = [
            (ADDX, 1, copy, 0, 0),
            (class::LDX | mode::MEM | size::B, 0, 1, 0, 0),
        ];
        let slots = join(&[&index, &global, &access, &[R0_ZERO, EXIT]]);
        assert_eq!(verify(&slots).map(drop), Ok(()));
    }
}

#[test]
fn indices_a_compiler_would_bound_are_accepted() {
    let load = [SAVE_CTX, (ABS_W, 0, 0, 0, 0), (MOVX, 7, 0, 0, 0)];
    let global = wide(1, pseudo::MAP_VALUE, 5, 0);
    // Each bounds r7 to below 64, at the edge; the jump's distance is to the exit.
    let (wide64, narrow) = (class::ALU64, class::ALU);
    let guard = |code: u8, imm: i32, behind: i16| (code, 7, 0, behind + 4, imm);
    let bounds: Vec<Vec<Slot>> = vec![
        vec![(wide64 | alu::AND | K, 7, 0, 0, 63)],
        vec![(narrow | alu::RSH | K, 7, 0, 0, 26)],
        vec![
            (narrow | alu::MOV | X, 7, 7, 0, 0),
            guard(class::JMP | jmp::JGE | K, 64, 0),
        ],
        vec![guard(class::JMP | jmp::JGT | K, 63, 0)],
        vec![
            guard(class::JMP | jmp::JSLT | K, 0, 1),
            guard(class::JMP | jmp::JSGE | K, 64, 0),
        ],
        vec![
            (narrow | alu::MOV | X, 7, 7, 0, 0),
            guard(class::JMP32 | jmp::JSGT | K, 63, 1),
            guard(class::JMP32 | jmp::JSLT | K, 0, 0),
        ],
        vec![
            (wide64 | alu::LSH | K, 7, 0, 0, 32),
            (wide64 | alu::ARSH | K, 7, 0, 0, 32),
            guard(class::JMP | jmp::JGT | K, 63, 0),
        ],
        vec![
            (wide64 | alu::AND | K, 7, 0, 0, 7),
            (wide64 | alu::MUL | K, 7, 0, 0, 8),
            (wide64 | alu::OR | K, 7, 0, 0, 7),
        ],
        vec![
            (wide64 | alu::AND | K, 7, 0, 0, 63),
            (wide64 | alu::XOR | K, 7, 0, 0, 63),
        ],
    ];
    for bound in bounds {
        let access = |off| {
            let byte = (class::LDX | mode::MEM | size::B, 0, 1, off, 0);
            join(&[
                &load,
                &bound,
                &global,
                &[(ADDX, 1, 7, 0, 0), byte, R0_ZERO, EXIT],
            ])
        };
        assert_eq!(verify(&access(0)).map(drop), Ok(()), "{bound:x?}");
        let pc = access(0).len() - 3;
        let error = Err(VerifyError::ValueOutOfBounds { pc });
        assert_eq!(verify(&access(1)).map(drop), error, "{bound:x?}");
    }
}

#[test]
fn unverified_programs_are_stopped_at_run_time() {
    let fault = |slots: &[Slot]| {
        let program = Program::trusted(&bytes(slots), &maps).unwrap();
        let fault = program
            .try_run(&[0u8; 4][..], &mut [0; 5], &Env::default())
            .unwrap_err();
        let r0 = program.run(&[0u8; 4][..], &mut [0; 5], &Env::default());
        assert_eq!(r0 as i32, -fault.errno());
        fault
    };
    let global = |fd, access: Slot| join(&[&wide(1, pseudo::MAP_VALUE, fd, 0), &[access, EXIT]]);
    let table = [
        (vec![(LDXDW, 0, FP, 0, 0), EXIT], Fault::BadAccess),
        (vec![(LDXDW, 0, FP, -513, 0), EXIT], Fault::BadAccess),
        (vec![(LDXDW, 0, 1, 192, 0), EXIT], Fault::BadAccess),
        (vec![(STW, 1, 0, 0, 0), EXIT], Fault::BadAccess),
        (vec![(LDXDW, 0, 0, 0, 0), EXIT], Fault::BadAccess),
        (global(5, (LDXDW, 0, 1, 57, 0)), Fault::BadAccess),
        (global(5, (ATOMIC_DW, 1, 0, 4, 0)), Fault::BadAccess),
        (global(6, (STW, 1, 0, 0, 0)), Fault::MapAccess),
        (vec![(CALL, 0, 0, 0, 1), EXIT], Fault::BadArgument),
        (vec![(JA, 0, 0, -1, 0)], Fault::Budget),
        (vec![(CALL, 0, 1, 0, -1), EXIT], Fault::CallDepth),
    ];
    for (slots, expected) in table {
        assert_eq!(fault(&slots), expected, "{slots:x?}");
    }
}

/// A message in two parts.
struct Split<'a>(&'a [u8], usize);

impl Packet for Split<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn head(&self) -> &[u8] {
        &self.0[..self.1]
    }

    fn load(&self, off: usize, dst: &mut [u8]) -> bool {
        self.0.load(off, dst)
    }
}

#[test]
fn loads_cross_the_end_of_the_head() {
    let packet = [1, 2, 3, 4, 5, 6, 7];
    for size in [size::W, size::H, size::B] {
        for off in 0..8 {
            let slots = [SAVE_CTX, (class::LD | mode::ABS | size, 0, 0, 0, off), EXIT];
            let whole = run(&slots, &packet);
            for cut in 0..=packet.len() {
                let program = verify(&slots).unwrap();
                let split = program.run(&Split(&packet, cut), &mut [0; 5], &Env::default());
                assert_eq!(split, whole, "{size:#x} at {off}, head of {cut}");
            }
        }
    }
}

/// A slot that is often an instruction.
fn any_slot() -> impl Strategy<Value = Slot> {
    let codes = (0..=255u8).filter(|&code| {
        let raw = bytes(&[(code, 1, 0, 0, 16), EXIT]);
        !matches!(
            Program::trusted(&raw, &maps),
            Err(VerifyError::UnknownOpcode { .. })
        )
    });
    let code = prop_oneof![9 => prop::sample::select(codes.collect::<Vec<_>>()), 1 => any::<u8>()];
    let imm = prop_oneof![Just(0), -4..20i32, any::<i32>()];
    (
        code,
        0..12u8,
        prop_oneof![Just(0), 0..12u8],
        prop_oneof![Just(0), -16..16i16],
        imm,
    )
}

proptest! {
    #![proptest_config(cases(2_000))]

    #[test]
    fn random_programs_neither_panic_nor_fault(
        slots in prop::collection::vec(any_slot(), 0..20),
        packet in prop::collection::vec(any::<u8>(), 0..32),
    ) {
        let raw = bytes(&join(&[&[R0_ZERO, SAVE_CTX], &slots, &[EXIT]]));
        if let Ok(program) = Program::trusted(&raw, &maps) {
            let _ = program.run(&packet[..], &mut [0; 5], &Env::default());
        }
        if let Ok(program) = Program::verify(&raw, &maps) {
            let outcome = program.try_run(&packet[..], &mut [0; 5], &Env::default());
            prop_assert!(matches!(outcome, Ok(_) | Err(Fault::Budget)), "{outcome:?}");
        }
    }
}
