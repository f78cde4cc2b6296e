//! Arithmetic on numbers and pointers.

use super::super::alu::Swap;
use super::super::error::VerifyError;
use super::super::insn::{Insn, alu, class};
use super::Verifier;
use super::scalar::Scalar;
use super::state::{Reg, Target};

/// Pointer offsets stay within ± this: the kernel's `BPF_MAX_VAR_OFF`.
pub(super) const POINTER_OFF_MAX: i64 = 1 << 29;

impl Verifier<'_> {
    pub(super) fn arithmetic(&mut self, insn: &Insn) -> Result<(), VerifyError> {
        let (pc, wide) = (self.pc, insn.class() == class::ALU64);
        if insn.op() == alu::MOV {
            let value = self.moved(insn, wide)?;
            self.writable(insn.dst)?;
            self.set(insn.dst, value);
            return Ok(());
        }
        let dst = self.reg(insn.dst)?;
        let src = match insn.op() {
            alu::NEG | alu::END => Reg::scalar(Scalar::exact(0)),
            _ if insn.is_x() => self.reg(insn.src)?,
            _ => {
                self.check_immediate(insn, wide)?;
                Reg::scalar(Scalar::exact(insn.imm as u64))
            }
        };
        self.writable(insn.dst)?;
        let value = match (dst, src) {
            (Reg::Scalar(dst, _), _) if insn.op() == alu::END => {
                let kind = match (wide, insn.is_x()) {
                    (true, _) => Swap::Always,
                    (false, true) => Swap::ToBe,
                    (false, false) => Swap::ToLe,
                };
                Reg::scalar(dst.swapped(kind, insn.imm))
            }
            (Reg::Scalar(dst, _), _) if insn.op() == alu::NEG => {
                scalar_result(alu::SUB, wide, &Scalar::exact(0), &dst)
            }
            (Reg::Scalar(dst, _), Reg::Scalar(src, _)) => {
                scalar_result(insn.op(), wide, &dst, &src)
            }
            // The difference of addresses, or of their halves, is a number without meaning; so is
            // an address with its bytes or its sign turned.
            _ if matches!(insn.op(), alu::NEG | alu::END) => Reg::UNKNOWN,
            (Reg::Pointer(..), Reg::Pointer(..)) if insn.op() == alu::SUB => Reg::UNKNOWN,
            _ if !wide && insn.op() == alu::SUB => Reg::UNKNOWN,
            _ if !wide => return Err(VerifyError::PointerArithmetic { pc }),
            (Reg::Pointer(target, off, var), Reg::Scalar(number, _)) => {
                self.moved_pointer(insn.op(), (target, off, var), &number)?
            }
            (Reg::Scalar(number, _), Reg::Pointer(target, off, var)) if insn.op() == alu::ADD => {
                self.moved_pointer(alu::ADD, (target, off, var), &number)?
            }
            (Reg::Scalar(number, _), Reg::Pointer(target, off, var)) => {
                // The kernel looks at the offset first.
                self.moved_pointer(alu::ADD, (target, off, var), &number)?;
                return Err(VerifyError::PointerArithmetic { pc });
            }
            _ => return Err(VerifyError::PointerArithmetic { pc }),
        };
        self.set(insn.dst, value);
        Ok(())
    }

    /// `MOV` and `MOVSX`. A copied number shares a name with its source.
    fn moved(&mut self, insn: &Insn, wide: bool) -> Result<Reg, VerifyError> {
        if !insn.is_x() {
            let imm = insn.imm as u64;
            let value = if wide { imm } else { u64::from(imm as u32) };
            return Ok(Reg::scalar(Scalar::exact(value)));
        }
        let src = self.reg(insn.src)?;
        let Reg::Scalar(number, _) = src else {
            return Ok(if wide && insn.off == 0 {
                src
            } else {
                Reg::UNKNOWN
            });
        };
        Ok(match (wide, insn.off) {
            (true, 0) => self.named(insn.src),
            (false, 0) if number.u.max <= u64::from(u32::MAX) => self.named(insn.src),
            (false, 0) => Reg::scalar(number.low_half()),
            (true, bits) => Reg::scalar(number.sign_extend(bits)),
            (false, bits) => Reg::scalar(number.sign_extend(32).sign_extend(bits).low_half()),
        })
    }

    /// A register's number with a name, so that its copies are known to be equal. Constants need
    /// none.
    pub(super) fn named(&mut self, number: u8) -> Reg {
        match self.reg(number) {
            Ok(Reg::Scalar(scalar, 0)) if scalar.constant().is_none() => {
                let named = Reg::Scalar(scalar, self.new_id());
                self.set(number, named);
                named
            }
            Ok(reg) => reg,
            Err(_) => Reg::Uninit,
        }
    }

    /// Immediates that have no meaning.
    fn check_immediate(&self, insn: &Insn, wide: bool) -> Result<(), VerifyError> {
        let pc = self.pc;
        match insn.op() {
            alu::DIV | alu::MOD if insn.imm == 0 => Err(VerifyError::DivisionByZero { pc }),
            alu::LSH | alu::RSH | alu::ARSH
                if !(0..if wide { 64 } else { 32 }).contains(&insn.imm) =>
            {
                Err(VerifyError::BadShift { pc })
            }
            _ => Ok(()),
        }
    }

    /// A pointer plus or minus a number.
    fn moved_pointer(
        &self,
        op: u8,
        (target, off, var): (Target, i64, Scalar),
        number: &Scalar,
    ) -> Result<Reg, VerifyError> {
        let pc = self.pc;
        let unmoved = number.constant() == Some(0) && op == alu::ADD;
        match target {
            Target::ValueOrNull(..) => return Err(VerifyError::NullableArithmetic { pc }),
            Target::Map(_) if !unmoved => return Err(VerifyError::PointerArithmetic { pc }),
            _ => {}
        }
        if !is_sane(number) || !is_sane(&var) {
            return Err(VerifyError::PointerOffset { pc });
        }
        match op {
            alu::ADD => {}
            alu::SUB if !matches!(target, Target::Stack(_)) => {}
            _ => return Err(VerifyError::PointerArithmetic { pc }),
        }
        let moved = match number.constant().map(|fixed| fixed as i64) {
            Some(fixed) => {
                let off = if op == alu::ADD {
                    off + fixed
                } else {
                    off - fixed
                };
                (off, var)
            }
            None => (off, Scalar::alu64(op, &var, number)),
        };
        if moved.0.abs() < POINTER_OFF_MAX && is_sane(&moved.1) {
            Ok(Reg::Pointer(target, moved.0, moved.1))
        } else {
            Err(VerifyError::PointerOffset { pc })
        }
    }
}

/// Whether a number may be part of an offset. As in the kernel, fixed parts are bounded, and the
/// lower end of a variable one; its upper end is looked at where the pointer is used.
const fn is_sane(number: &Scalar) -> bool {
    let least = match number.constant() {
        Some(fixed) => fixed as i64,
        None => number.s.min,
    };
    -POINTER_OFF_MAX < least && least < POINTER_OFF_MAX
}

/// Number by number.
fn scalar_result(op: u8, wide: bool, dst: &Scalar, src: &Scalar) -> Reg {
    Reg::scalar(if wide {
        Scalar::alu64(op, dst, src)
    } else {
        Scalar::alu32(op, dst, src)
    })
}
