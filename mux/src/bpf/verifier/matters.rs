//! Which registers matter at each instruction, by a backward pass over the program text.
//!
//! States that differ only in what does not matter have the same future, so exploring one of
//! them is enough. The pass knows nothing of paths and over-approximates.

use alloc::vec::Vec;

use super::super::decode::Code;
use super::super::helper::Helper;
use super::super::insn::{FP, Insn, LD_IMM64, alu, atomic, class, jmp, mode};
use super::state::Matters;

/// Passes over the text. Each nested loop may take one more; a program that needs more than this
/// gets "everything matters", which is always right.
const PASSES_MAX: usize = 32;

const CALLER_SAVED: u16 = 0b11_1111;
const ARGUMENTS: u16 = 0b11_1110;
const ALL: Matters = Matters {
    live: 0x7ff,
    precise: 0x7ff,
};

/// What matters before each instruction.
pub(super) fn analyse(code: &Code) -> Vec<Matters> {
    let count = code.insns.len();
    let mut before = alloc::vec![Matters::default(); count];
    // Only the outermost function's result is not looked at again.
    let main_end = code.functions.get(1).copied().unwrap_or(count);
    for _ in 0..PASSES_MAX {
        let mut changed = false;
        for (pc, insn) in code.insns.iter().enumerate().rev() {
            let at = |pc: usize| before.get(pc).copied().unwrap_or_default();
            let target = usize::try_from(insn.off).unwrap_or(count);
            let after = if insn.is_exit() {
                let precise = u16::from(pc >= main_end);
                Matters { live: 1, precise }
            } else if insn.is_goto() {
                at(target)
            } else if insn.is_branch() {
                join(at(pc + 1), at(target))
            } else if insn.code == LD_IMM64 {
                at(pc + 2)
            } else {
                at(pc + 1)
            };
            let now = step(insn, after);
            if let Some(known) = before.get_mut(pc) {
                changed |= *known != now;
                *known = now;
            }
        }
        if !changed {
            return before;
        }
    }
    alloc::vec![ALL; count]
}

fn join(a: Matters, b: Matters) -> Matters {
    Matters {
        live: a.live | b.live,
        precise: a.precise | b.precise,
    }
}

/// What matters before `insn`, given what matters after it.
fn step(insn: &Insn, after: Matters) -> Matters {
    let (dst, src) = (1 << insn.dst, 1 << insn.src);
    let kill = |regs: u16| Matters {
        live: after.live & !regs,
        precise: after.precise & !regs,
    };
    let reads = |m: Matters, regs: u16| Matters {
        live: m.live | regs,
        ..m
    };
    let decides = |m: Matters, regs: u16| Matters {
        live: m.live | regs,
        precise: m.precise | regs,
    };
    match insn.class() {
        class::ALU | class::ALU64 => {
            let operand = if insn.is_x() && insn.op() != alu::END {
                src
            } else {
                0
            };
            let value_matters = after.precise & dst != 0;
            let with = |m, regs| {
                if value_matters {
                    decides(m, regs)
                } else {
                    reads(m, regs)
                }
            };
            match insn.op() {
                alu::MOV => with(kill(dst), operand),
                // Either side may be a pointer, and then the other is its offset.
                alu::ADD | alu::SUB if insn.is_x() => decides(after, dst | operand),
                _ => with(after, dst | operand),
            }
        }
        class::JMP | class::JMP32 => match insn.op() {
            jmp::JA | jmp::EXIT => after,
            jmp::CALL => {
                let helper = if insn.src == 0 {
                    Helper::from_number(insn.imm)
                } else {
                    None
                };
                // Bits 1 to n for n arguments.
                let arguments = helper.map_or(ARGUMENTS, |h| (2 << h.arguments().len()) - 2);
                decides(kill(CALLER_SAVED), arguments)
            }
            _ => decides(after, dst | if insn.is_x() { src } else { 0 }),
        },
        class::LD if insn.code == LD_IMM64 => kill(dst),
        class::LD => {
            let index = if insn.mode() == mode::IND { src } else { 0 };
            reads(kill(CALLER_SAVED), 1 << 6 | index)
        }
        class::LDX => reads(kill(dst), src),
        // What is stored may be loaded again.
        class::STX if insn.mode() == mode::MEM => decides(after, dst | src),
        class::STX => {
            let after = match insn.imm {
                atomic::LOAD_ACQ => return reads(kill(dst), src),
                atomic::CMPXCHG => reads(after, 1),
                _ => after,
            };
            decides(after, dst | src)
        }
        _ => reads(after, dst),
    }
}

const _: () = assert!(FP == 10 && ALL.live == (1 << (FP + 1)) - 1);
