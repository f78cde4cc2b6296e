//! Conditional jumps: which sides are possible and what each side learns.

use super::super::error::VerifyError;
use super::super::insn::{Insn, class, jmp};
use super::scalar::Scalar;
use super::state::{Id, Reg, State, Target};
use super::{Next, Verifier};

impl Verifier<'_> {
    pub(super) fn branch(&mut self, insn: &Insn) -> Result<Next, VerifyError> {
        let (next, target) = (self.pc + 1, insn.off as usize);
        let dst = self.reg(insn.dst)?;
        let src = if insn.is_x() {
            self.reg(insn.src)?
        } else {
            Reg::scalar(Scalar::exact(insn.imm as u64))
        };
        let wide = insn.class() == class::JMP;
        match (dst, src) {
            (Reg::Scalar(a, a_id), Reg::Scalar(b, b_id)) => {
                let refine = |outcome| Scalar::refine(insn.op(), wide, outcome, &a, &b);
                let learn = |state: &mut State, (a, b): (Scalar, Scalar)| {
                    if insn.is_x() && insn.dst == insn.src {
                        // Compared with itself, each side was refined without the other.
                        return;
                    }
                    learn_scalar(state, insn.dst, a_id, a);
                    if insn.is_x() {
                        learn_scalar(state, insn.src, b_id, b);
                    }
                };
                match (refine(false), refine(true)) {
                    (Some(falls), Some(jumps)) => {
                        let mut jumped = self.state.clone();
                        learn(&mut jumped, jumps);
                        learn(&mut self.state, falls);
                        Ok(Next::Both(next, jumped, target))
                    }
                    (None, Some(jumps)) => {
                        learn(&mut self.state, jumps);
                        Ok(Next::At(target))
                    }
                    (Some(falls), None) => {
                        learn(&mut self.state, falls);
                        Ok(Next::At(next))
                    }
                    // The state admits no value at all: nothing runs here.
                    (None, None) => Ok(Next::End),
                }
            }
            (Reg::Pointer(pointee, ..), Reg::Scalar(number, _))
                if wide
                    && !insn.is_x()
                    && number.constant() == Some(0)
                    && matches!(insn.op(), jmp::JEQ | jmp::JNE) =>
            {
                let (if_null, if_not) = if insn.op() == jmp::JEQ {
                    (target, next)
                } else {
                    (next, target)
                };
                match pointee {
                    Target::ValueOrNull(map, id) => {
                        let mut null = self.state.clone();
                        resolve_null(&mut null, id, &Reg::scalar(Scalar::exact(0)));
                        resolve_null(&mut self.state, id, &Reg::pointer(Target::Value(map), 0));
                        Ok(Next::Both(if_not, null, if_null))
                    }
                    Target::Value(_) | Target::Map(_) => Ok(Next::At(if_not)),
                    Target::Ctx | Target::Stack(_) => {
                        Ok(Next::Both(next, self.state.clone(), target))
                    }
                }
            }
            // Addresses compare somehow.
            _ => Ok(Next::Both(next, self.state.clone(), target)),
        }
    }
}

/// Sharpens a register and all that hold the same number.
fn learn_scalar(state: &mut State, number: u8, id: Id, learned: Scalar) {
    if id != 0 {
        state.for_each_reg(|reg| {
            if let Reg::Scalar(scalar, other) = reg
                && *other == id
            {
                *scalar = learned;
            }
        });
    } else if let Some(reg) = state.running_mut().regs.get_mut(usize::from(number)) {
        *reg = Reg::scalar(learned);
    }
}

/// Turns every copy of a maybe-null pointer into what it is.
fn resolve_null(state: &mut State, id: Id, resolved: &Reg) {
    state.for_each_reg(|reg| {
        if matches!(reg, Reg::Pointer(Target::ValueOrNull(_, other), ..) if *other == id) {
            *reg = *resolved;
        }
    });
}
