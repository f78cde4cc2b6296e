//! Helper calls: the kinds of their arguments and what they leave behind.

use super::super::error::VerifyError;
use super::super::helper::{Argument, Helper};
use super::super::map::MAP_TYPE_ARRAY;
use super::Verifier;
use super::access::StackSpan;
use super::arith::POINTER_OFF_MAX;
use super::state::{Byte, Reg, Target};

impl Verifier<'_> {
    pub(super) fn helper_call(&mut self, number: i64) -> Result<(), VerifyError> {
        let pc = self.pc;
        let helper = Helper::from_number(number).ok_or(VerifyError::UnknownHelper {
            pc,
            number: number as i32,
        })?;
        let mut map = None;
        let mut constant_key = None;
        for (number, argument) in (1u8..).zip(helper.arguments()) {
            let bad = VerifyError::BadArgument { pc, reg: number };
            let value = self.reg(number)?;
            match (argument, value) {
                (Argument::Ctx, Reg::Pointer(Target::Ctx, off, var)) => {
                    if off != 0 || var.constant() != Some(0) {
                        return Err(VerifyError::MovedContext { pc });
                    }
                }
                (Argument::Map, Reg::Pointer(Target::Map(index), off, var))
                    if off == 0 && var.constant() == Some(0) =>
                {
                    map = Some(index);
                }
                (Argument::Key, Reg::Pointer(..)) => {
                    let bytes = self.map(map.ok_or(bad)?)?.key_bytes();
                    constant_key = self.check_input(number, &value, bytes)?;
                }
                (Argument::Value, Reg::Pointer(..)) => {
                    let bytes = self.map(map.ok_or(bad)?)?.value_bytes();
                    self.check_input(number, &value, bytes)?;
                }
                (Argument::Buffer, Reg::Pointer(..)) => {
                    let size = self.reg(number + 1)?;
                    self.check_output(number, &value, &size)?;
                }
                (Argument::BufferBytes, Reg::Scalar(..)) | (Argument::Any, _) => {}
                _ => return Err(bad),
            }
        }
        let writes_map = matches!(helper, Helper::MapUpdateElem | Helper::MapDeleteElem);
        if let Some(index) = map
            && writes_map
            && !self.map(index)?.prog_may_write()
        {
            return Err(VerifyError::MapAccess { pc });
        }
        let result = match (helper, map) {
            (Helper::MapLookupElem, Some(index)) => {
                let spec = self.map(index)?.spec();
                let exists = spec.map_type == MAP_TYPE_ARRAY
                    && constant_key.is_some_and(|key| key < u64::from(spec.max_entries));
                let target = if exists {
                    Target::Value(index)
                } else {
                    Target::ValueOrNull(index, self.new_id())
                };
                Reg::pointer(target, 0)
            }
            _ => Reg::UNKNOWN,
        };
        self.clobber_caller_saved();
        self.set(0, result);
        Ok(())
    }

    /// Bytes a helper reads. Their value, if it is known to be one number on the stack.
    fn check_input(
        &mut self,
        number: u8,
        value: &Reg,
        bytes: usize,
    ) -> Result<Option<u64>, VerifyError> {
        match *value {
            Reg::Pointer(Target::Stack(frame), off, var) => {
                let span = self.stack_span(frame, off, &var, bytes)?;
                let zero = self.check_initialised(span)?;
                Ok(if zero {
                    Some(0)
                } else {
                    self.constant_at(span)
                })
            }
            Reg::Pointer(Target::Value(map), off, var) => {
                self.check_value(map, off, &var, bytes, false)?;
                Ok(None)
            }
            _ => Err(VerifyError::BadArgument {
                pc: self.pc,
                reg: number,
            }),
        }
    }

    /// The number spilled exactly into a span.
    fn constant_at(&self, span: StackSpan) -> Option<u64> {
        let frame = self.state.frames.get(span.frame)?;
        let (number, first) = super::Frame::byte_place(span.start)?;
        let (slot, bytes) = (frame.slot(number), (span.end - span.start) as usize);
        let whole = span.exact && first == 0 && bytes <= slot.spilled();
        slot.spill
            .as_scalar()
            .filter(|_| whole)?
            .truncated(bytes)
            .constant()
    }

    /// A buffer a helper fills, of a size between one and what is there.
    fn check_output(&mut self, number: u8, value: &Reg, size: &Reg) -> Result<(), VerifyError> {
        let pc = self.pc;
        let bad_size = VerifyError::BadArgument {
            pc,
            reg: number + 1,
        };
        let size = size.as_scalar().ok_or(bad_size)?;
        if size.s.min < 0 || size.u.min == 0 || size.u.max >= POINTER_OFF_MAX as u64 {
            return Err(bad_size);
        }
        let most = size.u.max as usize;
        match *value {
            Reg::Pointer(Target::Stack(frame), off, var) => {
                let span = self.stack_span(frame, off, &var, most)?;
                if span.exact && size.constant().is_some() {
                    self.overwrite(span, Byte::Misc);
                } else {
                    // Some of it stays as it was.
                    self.check_initialised(span)?;
                    self.overwrite(
                        StackSpan {
                            exact: false,
                            ..span
                        },
                        Byte::Misc,
                    );
                }
                Ok(())
            }
            Reg::Pointer(Target::Value(map), off, var) => {
                self.check_value(map, off, &var, most, true)
            }
            _ => Err(VerifyError::BadArgument { pc, reg: number }),
        }
    }
}
