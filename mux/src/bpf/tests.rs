//! Programs in words short enough to read, and the maps they may use.

mod hostile;
mod refusals;
mod results;

use std::string::ToString;
use std::sync::Arc;
use std::vec;
use std::vec::Vec;

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
