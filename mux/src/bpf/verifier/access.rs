//! Loads and stores: is every byte they may touch the program's, and what do they yield.

use alloc::rc::Rc;

use super::super::error::VerifyError;
use super::super::insn::{Insn, atomic, class, mode, pseudo};
use super::super::interp::STACK_BYTES;
use super::super::map::Map;
use super::super::{mem, skb};
use super::Verifier;
use super::arith::POINTER_OFF_MAX;
use super::scalar::Scalar;
use super::state::{Byte, Frame, Reg, Target};

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Load,
    Store,
    /// Must be aligned wherever it goes, and may not go to the context.
    Atomic,
}

/// Bytes of a frame's stack, as offsets from the frame pointer; `end` is excluded.
#[derive(Clone, Copy, Debug)]
pub(super) struct StackSpan {
    pub(super) frame: usize,
    pub(super) start: i64,
    pub(super) end: i64,
    /// The access covers the whole span rather than some part of it.
    pub(super) exact: bool,
}

impl Verifier<'_> {
    /// `LD_IMM64`.
    pub(super) fn load_constant(&mut self, insn: &Insn) -> Result<(), VerifyError> {
        self.writable(insn.dst)?;
        let place = mem::place(insn.imm as u64);
        let value = match (insn.src, place) {
            (pseudo::MAP_FD, Some(place)) => Reg::pointer(Target::Map(place.map), 0),
            (pseudo::MAP_VALUE, Some(place)) => {
                Reg::pointer(Target::Value(place.map), place.off as i64)
            }
            _ => Reg::scalar(Scalar::exact(insn.imm as u64)),
        };
        self.set(insn.dst, value);
        Ok(())
    }

    /// `LD_ABS` and `LD_IND`: r6 is the context, r1 to r5 are lost.
    pub(super) fn packet_load(&mut self, insn: &Insn) -> Result<(), VerifyError> {
        let pc = self.pc;
        if self.frame().function != 0 {
            return Err(VerifyError::PacketLoadInFunction { pc });
        }
        match self.reg(6)? {
            Reg::Pointer(Target::Ctx, off, var) => {
                if off != 0 || var.constant() != Some(0) {
                    return Err(VerifyError::MovedContext { pc });
                }
            }
            _ => return Err(VerifyError::PacketLoadWithoutContext { pc }),
        }
        if insn.mode() == mode::IND {
            self.reg(insn.src)?;
        }
        self.clobber_caller_saved();
        self.set(0, Reg::UNKNOWN);
        Ok(())
    }

    /// `LDX`.
    pub(super) fn load(&mut self, insn: &Insn) -> Result<(), VerifyError> {
        let bytes = insn.access_bytes();
        let base = self.reg(insn.src)?;
        self.writable(insn.dst)?;
        let value = self.load_from(&base, i64::from(insn.off), bytes, Access::Load)?;
        let value = match value {
            Reg::Scalar(number, _) if insn.mode() == mode::MEMSX => {
                Reg::scalar(number.sign_extend(8 * bytes as i32))
            }
            value => value,
        };
        self.set(insn.dst, value);
        Ok(())
    }

    /// `ST`, `STX` and atomics.
    pub(super) fn store(&mut self, insn: &Insn) -> Result<(), VerifyError> {
        if insn.mode() == mode::ATOMIC {
            return self.atomic(insn);
        }
        let (bytes, off) = (insn.access_bytes(), i64::from(insn.off));
        let value = if insn.class() == class::STX {
            self.reg(insn.src)?
        } else {
            Reg::scalar(Scalar::exact(insn.imm as u64))
        };
        let base = self.reg(insn.dst)?;
        let to_stack = matches!(base, Reg::Pointer(Target::Stack(_), ..));
        let value = if insn.class() == class::STX && to_stack {
            self.named(insn.src)
        } else {
            value
        };
        self.store_to(&base, off, bytes, value, Access::Store)
    }

    fn atomic(&mut self, insn: &Insn) -> Result<(), VerifyError> {
        let (bytes, off) = (insn.access_bytes(), i64::from(insn.off));
        if insn.imm == atomic::LOAD_ACQ {
            let base = self.reg(insn.src)?;
            self.writable(insn.dst)?;
            let value = self.load_from(&base, off, bytes, Access::Atomic)?;
            self.set(insn.dst, value);
            return Ok(());
        }
        let operand = self.reg(insn.src)?;
        let base = self.reg(insn.dst)?;
        if insn.imm == atomic::STORE_REL {
            return self.store_to(&base, off, bytes, operand, Access::Atomic);
        }
        let result = match insn.imm {
            atomic::CMPXCHG => {
                self.reg(0)?;
                Some(0)
            }
            op if op & atomic::FETCH != 0 => Some(insn.src),
            _ => None,
        };
        let old = self.load_from(&base, off, bytes, Access::Atomic)?;
        if let Some(result) = result {
            self.writable(result)?;
            self.set(result, old);
        }
        let written = Reg::scalar(Scalar::zero_extended(bytes));
        self.store_to(&base, off, bytes, written, Access::Atomic)
    }

    /// Checks a load and says what it yields.
    fn load_from(
        &mut self,
        base: &Reg,
        off: i64,
        bytes: usize,
        access: Access,
    ) -> Result<Reg, VerifyError> {
        match self.pointer(base)? {
            (Target::Stack(frame), at, var) => {
                self.check_aligned(at + off, &var, bytes)?;
                let span = self.stack_span(frame, at + off, &var, bytes)?;
                self.load_stack(span)
            }
            (target, at, var) => {
                self.check_memory(target, (at, off), &var, bytes, access, false)?;
                Ok(Reg::scalar(Scalar::zero_extended(bytes)))
            }
        }
    }

    /// Checks a store and applies it to the stack.
    fn store_to(
        &mut self,
        base: &Reg,
        off: i64,
        bytes: usize,
        value: Reg,
        access: Access,
    ) -> Result<(), VerifyError> {
        match self.pointer(base)? {
            (Target::Stack(frame), at, var) => {
                self.check_aligned(at + off, &var, bytes)?;
                let span = self.stack_span(frame, at + off, &var, bytes)?;
                self.store_stack(span, bytes, value)
            }
            (target, at, var) => self.check_memory(target, (at, off), &var, bytes, access, true),
        }
    }

    /// A register used as an address.
    fn pointer(&self, base: &Reg) -> Result<(Target, i64, Scalar), VerifyError> {
        match base {
            Reg::Pointer(target, off, var) => Ok((*target, *off, *var)),
            _ => Err(VerifyError::NotAPointer { pc: self.pc }),
        }
    }

    fn check_aligned(&self, off: i64, var: &Scalar, bytes: usize) -> Result<(), VerifyError> {
        if var.is_aligned(off, bytes) {
            Ok(())
        } else {
            Err(VerifyError::Misaligned { pc: self.pc })
        }
    }

    /// Context and map values. `at` is the pointer's fixed offset and the instruction's.
    fn check_memory(
        &self,
        target: Target,
        at: (i64, i64),
        var: &Scalar,
        bytes: usize,
        access: Access,
        write: bool,
    ) -> Result<(), VerifyError> {
        let pc = self.pc;
        match target {
            Target::Ctx if access == Access::Atomic => Err(VerifyError::AtomicOnContext { pc }),
            Target::Ctx if at.0 != 0 || var.constant() != Some(0) => {
                Err(VerifyError::MovedContext { pc })
            }
            Target::Ctx if skb::ctx_access_allowed(at.1, bytes, write) => Ok(()),
            Target::Ctx => Err(VerifyError::BadContextAccess { pc, off: at.1 }),
            Target::Value(map) => {
                if access == Access::Atomic {
                    self.check_aligned(at.0 + at.1, var, bytes)?;
                    self.check_value(map, at.0 + at.1, var, bytes, false)?;
                }
                self.check_value(map, at.0 + at.1, var, bytes, write)
            }
            Target::ValueOrNull(..) => Err(VerifyError::NullableAccess { pc }),
            Target::Map(_) | Target::Stack(_) => Err(VerifyError::NotAPointer { pc }),
        }
    }

    /// The map with this number.
    pub(super) fn map(&self, number: usize) -> Result<&Map, VerifyError> {
        let map = self.code.maps.get(number).map(|map| &**map);
        map.ok_or(VerifyError::NotAPointer { pc: self.pc })
    }

    /// Bytes of a map value.
    pub(super) fn check_value(
        &self,
        map: usize,
        off: i64,
        var: &Scalar,
        bytes: usize,
        write: bool,
    ) -> Result<(), VerifyError> {
        let pc = self.pc;
        let map = self.map(map)?;
        if !(if write {
            map.prog_may_write()
        } else {
            map.prog_may_read()
        }) {
            return Err(VerifyError::MapAccess { pc });
        }
        let first = off.checked_add(var.s.min);
        let bounded = var.u.max < POINTER_OFF_MAX as u64;
        let end =
            off + if bounded {
                var.u.max as i64
            } else {
                POINTER_OFF_MAX
            } + bytes as i64;
        if bounded && first.is_some_and(|first| first >= 0) && end <= map.value_bytes() as i64 {
            Ok(())
        } else {
            Err(VerifyError::ValueOutOfBounds { pc })
        }
    }

    /// The stack bytes an access may touch, if they are all inside the frame.
    pub(super) fn stack_span(
        &mut self,
        frame: usize,
        off: i64,
        var: &Scalar,
        bytes: usize,
    ) -> Result<StackSpan, VerifyError> {
        let out = VerifyError::StackOutOfBounds { pc: self.pc };
        let start = off.checked_add(var.s.min).ok_or(out)?;
        let end = off
            .checked_add(var.s.max)
            .and_then(|last| last.checked_add(bytes as i64));
        let end = end.ok_or(out)?;
        if start < -(STACK_BYTES as i64) || start >= 0 {
            return Err(out);
        }
        if end > 0 {
            return Err(VerifyError::StackOverrun { pc: self.pc });
        }
        let function = self
            .state
            .frames
            .get(frame)
            .map_or(0, |frame| frame.function);
        let used = self.stack_bytes.entry(function).or_default();
        *used = (*used).max(start.unsigned_abs() as usize);
        Ok(StackSpan {
            frame,
            start,
            end,
            exact: var.s.min == var.s.max,
        })
    }

    /// What a load of up to eight aligned bytes yields.
    fn load_stack(&self, span: StackSpan) -> Result<Reg, VerifyError> {
        let pc = self.pc;
        let frame = self
            .state
            .frames
            .get(span.frame)
            .ok_or(VerifyError::StackOutOfBounds { pc })?;
        if !span.exact {
            let zero = self.check_initialised(span)?;
            return Ok(if zero {
                Reg::scalar(Scalar::exact(0))
            } else {
                Reg::UNKNOWN
            });
        }
        let bytes = (span.end - span.start) as usize;
        let (number, first) =
            Frame::byte_place(span.start).ok_or(VerifyError::StackOutOfBounds { pc })?;
        let slot = frame.slot(number);
        let touched = slot.bytes.get(first..first + bytes).unwrap_or_default();
        if touched.contains(&Byte::Spill) {
            match slot.spill {
                spill @ Reg::Pointer(..) if bytes == 8 && slot.spilled() == 8 => return Ok(spill),
                Reg::Pointer(..) => return Err(VerifyError::PartialFill { pc }),
                spill if first == 0 && bytes == slot.spilled() => return Ok(spill),
                Reg::Scalar(number, _) if first == 0 && bytes < slot.spilled() => {
                    return Ok(Reg::scalar(number.truncated(bytes)));
                }
                _ => {}
            }
        }
        let zero = self.check_initialised(span)?;
        let number = if zero {
            Scalar::exact(0)
        } else {
            Scalar::zero_extended(bytes)
        };
        Ok(Reg::scalar(number))
    }

    /// Refuses a span with a byte never written. True if every byte is known to be zero.
    pub(super) fn check_initialised(&self, span: StackSpan) -> Result<bool, VerifyError> {
        let pc = self.pc;
        let frame = self
            .state
            .frames
            .get(span.frame)
            .ok_or(VerifyError::StackOutOfBounds { pc })?;
        let mut zero = true;
        for off in span.start..span.end {
            let (number, byte) =
                Frame::byte_place(off).ok_or(VerifyError::StackOutOfBounds { pc })?;
            match frame.slot(number).bytes.get(byte) {
                Some(Byte::Uninit) | None => return Err(VerifyError::UninitStack { pc, off }),
                Some(Byte::Zero) => {}
                Some(_) => zero = false,
            }
        }
        Ok(zero)
    }

    /// Stores a register's low bytes into the stack.
    fn store_stack(
        &mut self,
        span: StackSpan,
        bytes: usize,
        value: Reg,
    ) -> Result<(), VerifyError> {
        let pc = self.pc;
        if let Reg::Pointer(target, ..) = value {
            let running = self.state.frames.len() - 1;
            if matches!(target, Target::Stack(_)) && span.frame != running {
                return Err(VerifyError::ForeignStackSpill { pc });
            }
            if bytes != 8 && span.exact {
                return Err(VerifyError::PartialSpill { pc });
            }
        }
        let (number, first) =
            Frame::byte_place(span.start).ok_or(VerifyError::StackOutOfBounds { pc })?;
        let zero = value.as_scalar().and_then(Scalar::constant) == Some(0);
        if !span.exact || first != 0 {
            self.overwrite(span, if zero { Byte::Zero } else { Byte::Misc });
            return Ok(());
        }
        let spill = match value {
            Reg::Scalar(number, id) => {
                let kept = number.truncated(bytes);
                Reg::Scalar(kept, if kept == number { id } else { 0 })
            }
            value => value,
        };
        if let Some(slot) = self
            .stack_mut(span.frame)
            .and_then(|frame| frame.slot_mut(number))
        {
            slot.scrub();
            slot.bytes
                .iter_mut()
                .take(bytes)
                .for_each(|byte| *byte = Byte::Spill);
            slot.spill = spill;
        }
        Ok(())
    }

    /// Marks bytes as written. If only some of the span is, bytes never written stay so.
    pub(super) fn overwrite(&mut self, span: StackSpan, with: Byte) {
        let Some(frame) = self.stack_mut(span.frame) else {
            return;
        };
        for off in span.start..span.end {
            let Some((number, byte)) = Frame::byte_place(off) else {
                return;
            };
            let Some(slot) = frame.slot_mut(number) else {
                return;
            };
            slot.scrub();
            if let Some(byte) = slot.bytes.get_mut(byte) {
                *byte = match *byte {
                    _ if span.exact => with,
                    Byte::Uninit => Byte::Uninit,
                    Byte::Zero => with,
                    _ => Byte::Misc,
                };
            }
        }
    }

    fn stack_mut(&mut self, frame: usize) -> Option<&mut Frame> {
        self.state.frames.get_mut(frame).map(Rc::make_mut)
    }
}
