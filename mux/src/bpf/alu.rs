//! What arithmetic, comparisons and byte swaps mean, as pure functions on register values.
//!
//! RFC 9669 §4.1: division by zero yields 0, modulo by zero leaves the dividend, shift counts are
//! taken modulo the width, and 32-bit operations zero the upper half of the destination.

use super::insn::{alu, jmp};

/// A 64-bit operation `dst = dst op src`. `variant` is the offset field: for `DIV` and `MOD`
/// non-zero means signed, for `MOV` the width in bits to sign-extend from.
#[inline(always)]
pub(crate) fn alu64(op: u8, variant: i32, dst: u64, src: u64) -> u64 {
    match op {
        alu::ADD => dst.wrapping_add(src),
        alu::SUB => dst.wrapping_sub(src),
        alu::MUL => dst.wrapping_mul(src),
        alu::DIV if variant != 0 => {
            if src == 0 {
                0
            } else {
                (dst as i64).wrapping_div(src as i64) as u64
            }
        }
        alu::DIV => dst.checked_div(src).unwrap_or(0),
        alu::MOD if variant != 0 => {
            if src == 0 {
                dst
            } else {
                (dst as i64).wrapping_rem(src as i64) as u64
            }
        }
        alu::MOD => dst.checked_rem(src).unwrap_or(dst),
        alu::OR => dst | src,
        alu::AND => dst & src,
        alu::XOR => dst ^ src,
        alu::LSH => dst.wrapping_shl(src as u32),
        alu::RSH => dst.wrapping_shr(src as u32),
        alu::ARSH => (dst as i64).wrapping_shr(src as u32) as u64,
        alu::NEG => (dst as i64).wrapping_neg() as u64,
        alu::MOV => match variant {
            8 => src as i8 as u64,
            16 => src as i16 as u64,
            32 => src as i32 as u64,
            _ => src,
        },
        _ => dst,
    }
}

/// A 32-bit operation on the low halves; the result is zero-extended. See [`alu64`].
#[inline(always)]
pub(crate) fn alu32(op: u8, variant: i32, dst: u64, src: u64) -> u64 {
    let (dst, src) = (dst as u32, src as u32);
    let result = match op {
        alu::ADD => dst.wrapping_add(src),
        alu::SUB => dst.wrapping_sub(src),
        alu::MUL => dst.wrapping_mul(src),
        alu::DIV if variant != 0 => {
            if src == 0 {
                0
            } else {
                (dst as i32).wrapping_div(src as i32) as u32
            }
        }
        alu::DIV => dst.checked_div(src).unwrap_or(0),
        alu::MOD if variant != 0 => {
            if src == 0 {
                dst
            } else {
                (dst as i32).wrapping_rem(src as i32) as u32
            }
        }
        alu::MOD => dst.checked_rem(src).unwrap_or(dst),
        alu::OR => dst | src,
        alu::AND => dst & src,
        alu::XOR => dst ^ src,
        alu::LSH => dst.wrapping_shl(src),
        alu::RSH => dst.wrapping_shr(src),
        alu::ARSH => (dst as i32).wrapping_shr(src) as u32,
        alu::NEG => (dst as i32).wrapping_neg() as u32,
        alu::MOV => match variant {
            8 => src as i8 as u32,
            16 => src as i16 as u32,
            _ => src,
        },
        _ => dst,
    };
    u64::from(result)
}

/// Which byte order an `END` instruction converts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swap {
    /// `ALU|END|K`: to little endian.
    ToLe,
    /// `ALU|END|X`: to big endian.
    ToBe,
    /// `ALU64|END|K`: swap, whatever the host's order.
    Always,
}

/// Converts the low `bits` (16, 32 or 64) of a register; the rest becomes zero.
pub(crate) fn swap(kind: Swap, bits: i64, value: u64) -> u64 {
    let flip = match kind {
        Swap::ToLe => false,
        Swap::ToBe | Swap::Always => true,
    };
    match (bits, flip) {
        (16, true) => u64::from((value as u16).swap_bytes()),
        (16, false) => u64::from(value as u16),
        (32, true) => u64::from((value as u32).swap_bytes()),
        (32, false) => u64::from(value as u32),
        (_, true) => value.swap_bytes(),
        (_, false) => value,
    }
}

/// Whether a conditional jump is taken. `wide` selects 64-bit comparison.
#[inline(always)]
pub(crate) fn compare(op: u8, wide: bool, dst: u64, src: u64) -> bool {
    let (ud, us, sd, ss) = if wide {
        (dst, src, dst as i64, src as i64)
    } else {
        (
            u64::from(dst as u32),
            u64::from(src as u32),
            i64::from(dst as i32),
            i64::from(src as i32),
        )
    };
    match op {
        jmp::JEQ => ud == us,
        jmp::JNE => ud != us,
        jmp::JGT => ud > us,
        jmp::JGE => ud >= us,
        jmp::JLT => ud < us,
        jmp::JLE => ud <= us,
        jmp::JSET => ud & us != 0,
        jmp::JSGT => sd > ss,
        jmp::JSGE => sd >= ss,
        jmp::JSLT => sd < ss,
        _ => sd <= ss,
    }
}
