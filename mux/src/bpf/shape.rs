//! Programs so simple that one closed form replaces interpreting them: load a field of the header
//! and compute the length from it, as compilers and `kcm_parser.h` write length-prefix parsers.

use alloc::vec::Vec;

use super::alu::{Swap, alu32, alu64, swap};
use super::insn::{Insn, X, alu, class, code, mode};
use super::skb::{self, Packet, PacketOffset};

/// Operations on the loaded field a closed form may have; longer programs are no header parsers.
const STEPS_MAX: usize = 8;

/// `r0 = f(field) + add`.
#[derive(Debug)]
pub(crate) struct Field {
    off: PacketOffset,
    bytes: usize,
    /// Operations on r0 with constants, in order.
    steps: Vec<Insn>,
    /// A final 64-bit addition, by far the commonest step.
    add: u64,
}

/// A length prefix: `((be32 at off) >> shift & mask) + add`. What nearly all parsers compute, and
/// the one form that a caller can evaluate for a whole buffer without running a program a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthField {
    off: usize,
    shift: u32,
    mask: u32,
    add: u32,
}

impl LengthField {
    /// The low 32 bits of what the program returns for a message that starts with `bytes`. `None`
    /// when four bytes from the field's first on are not all there; the program may still have an
    /// answer, since its field may be shorter.
    #[inline(always)]
    #[must_use]
    pub fn length(self, bytes: &[u8]) -> Option<u32> {
        let word = bytes.get(self.off..)?.first_chunk()?;
        let field = u32::from_be_bytes(*word) >> self.shift & self.mask;
        Some(field.wrapping_add(self.add))
    }
}

impl Field {
    /// Recognises `[r6 = r1;] r0 = LD_ABS; r0 op= constant...; exit`. None for anything else.
    pub(crate) fn of(insns: &[Insn]) -> Option<Self> {
        let rest = match insns {
            [save, rest @ ..] if save.code == class::ALU64 | alu::MOV | X && save.dst != 0 => rest,
            all => all,
        };
        let [load, steps @ .., exit] = rest else {
            return None;
        };
        let is_load = load.class() == class::LD && load.mode() == mode::ABS;
        if !is_load || !exit.is_exit() || steps.len() > STEPS_MAX || !steps.iter().all(is_step) {
            return None;
        }
        let (steps, add) = match steps {
            [steps @ .., last] if last.code == code::alu64_k::ADD => (steps, last.imm as u64),
            all => (all, 0),
        };
        let (off, bytes) = (load.imm as PacketOffset, load.access_bytes());
        Some(Self {
            off,
            bytes,
            steps: steps.to_vec(),
            add,
        })
    }

    /// What the program returns for a packet.
    #[inline]
    pub(crate) fn run<P: Packet + ?Sized>(&self, packet: &P) -> u64 {
        let Some(field) = skb::load_be(packet, self.off, self.bytes) else {
            return 0;
        };
        let value = if self.steps.is_empty() {
            field
        } else {
            self.stepped(field)
        };
        value.wrapping_add(self.add)
    }

    /// This closed form as a length prefix, if its steps are shifts to the right and masks, then
    /// additions.
    pub(crate) fn as_length(&self) -> Option<LengthField> {
        let mut shift = u32::BITS.checked_sub(self.bytes as u32 * u8::BITS)?;
        let (mut mask, mut add) = (u32::MAX, 0u32);
        // The field has no bit beyond 32, so that neither the width of a step nor the sign
        // extension of its constant matters.
        for step in &self.steps {
            let imm = step.imm as u32;
            match step.op() {
                alu::ADD => add = add.wrapping_add(imm),
                alu::RSH if add == 0 => {
                    shift = shift.checked_add(imm)?;
                    mask = mask.checked_shr(imm)?;
                }
                alu::AND if add == 0 => mask &= imm,
                _ => return None,
            }
        }
        (shift < u32::BITS).then_some(LengthField {
            off: usize::try_from(self.off).ok()?,
            shift,
            mask,
            add: add.wrapping_add(self.add as u32),
        })
    }

    fn stepped(&self, field: u64) -> u64 {
        self.steps
            .iter()
            .fold(field, |value, step| match step.code {
                code::LE => swap(Swap::ToLe, step.imm, value),
                code::BE => swap(Swap::ToBe, step.imm, value),
                code::BSWAP => swap(Swap::Always, step.imm, value),
                _ if step.class() == class::ALU64 => {
                    alu64(step.op(), step.off, value, step.imm as u64)
                }
                _ => alu32(step.op(), step.off, value, step.imm as u64),
            })
    }
}

/// Whether an instruction computes r0 from r0 and a constant.
fn is_step(insn: &Insn) -> bool {
    let arithmetic = matches!(insn.class(), class::ALU | class::ALU64);
    arithmetic && insn.dst == 0 && (!insn.is_x() || insn.op() == alu::END)
}
