//! What is known at one point of one path: registers and stack of every active call, and when one
//! such state makes exploring another superfluous.

use alloc::rc::Rc;
use alloc::vec::Vec;

use super::super::insn::{FP, REG_COUNT};
use super::super::interp::STACK_BYTES;
use super::scalar::Scalar;

/// Names equal values, so that a comparison of one sharpens all; 0 is no name.
pub(super) type Id = u32;

/// What a pointer points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The context.
    Ctx,
    /// The stack of the frame with this number; offsets count from its upper end.
    Stack(usize),
    /// A value of the map with this number.
    Value(usize),
    /// Null, or a value of this map that the null check of any copy makes a [`Target::Value`].
    ValueOrNull(usize, Id),
    /// A map itself.
    Map(usize),
}

/// A register or a spilled one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reg {
    /// Never written on this path.
    Uninit,
    /// A number.
    Scalar(Scalar, Id),
    /// `target + off + var`, where `off` is fixed.
    Pointer(Target, i64, Scalar),
}

impl Reg {
    /// A number nothing is known of.
    pub(super) const UNKNOWN: Self = Self::Scalar(Scalar::UNKNOWN, 0);

    /// A number without a name.
    pub(super) const fn scalar(scalar: Scalar) -> Self {
        Self::Scalar(scalar, 0)
    }

    /// A pointer at a fixed offset.
    pub(super) const fn pointer(target: Target, off: i64) -> Self {
        Self::Pointer(target, off, Scalar::exact(0))
    }

    /// The number, if it is one.
    pub(super) const fn as_scalar(&self) -> Option<&Scalar> {
        match self {
            Self::Scalar(scalar, _) => Some(scalar),
            _ => None,
        }
    }
}

/// One byte of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Byte {
    Uninit,
    /// Written, contents unknown.
    Misc,
    Zero,
    /// Part of the slot's spilled register.
    Spill,
}

/// Eight aligned bytes of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) bytes: [Byte; 8],
    /// What the [`Byte::Spill`] bytes hold, lowest byte first.
    pub(super) spill: Reg,
}

impl Slot {
    /// Never written.
    pub(super) const UNINIT: Self = Self {
        bytes: [Byte::Uninit; 8],
        spill: Reg::Uninit,
    };

    /// Number of spilled bytes.
    pub(super) fn spilled(&self) -> usize {
        self.bytes
            .iter()
            .filter(|&&byte| byte == Byte::Spill)
            .count()
    }

    /// Forgets a spilled register; its bytes stay written.
    pub(super) fn scrub(&mut self) {
        if self.spill != Reg::Uninit {
            for byte in &mut self.bytes {
                if *byte == Byte::Spill {
                    *byte = Byte::Misc;
                }
            }
            self.spill = Reg::Uninit;
        }
    }
}

/// One active call.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) regs: [Reg; REG_COUNT],
    /// Slot 0 is the highest, just below the frame pointer.
    pub(super) stack: Vec<Slot>,
    /// First slot of the function.
    pub(super) function: usize,
    /// Where the caller continues; unused in the outermost frame.
    pub(super) return_pc: usize,
}

impl Frame {
    /// A frame of `function` that knows only its frame pointer.
    pub(super) fn new(number: usize, function: usize, return_pc: usize) -> Self {
        let mut regs = [Reg::Uninit; REG_COUNT];
        if let Some(fp) = regs.get_mut(usize::from(FP)) {
            *fp = Reg::pointer(Target::Stack(number), 0);
        }
        Self {
            regs,
            stack: Vec::new(),
            function,
            return_pc,
        }
    }

    /// The byte at `off` (-512 to -1 from the frame pointer) as slot number and index inside it.
    pub(super) fn byte_place(off: i64) -> Option<(usize, usize)> {
        let depth = usize::try_from(-1 - off)
            .ok()
            .filter(|&depth| depth < STACK_BYTES)?;
        Some((depth / 8, 7 - depth % 8))
    }

    /// The slot with this number, created if it was never written.
    pub(super) fn slot_mut(&mut self, number: usize) -> Option<&mut Slot> {
        if number >= STACK_BYTES / 8 {
            return None;
        }
        if self.stack.len() <= number {
            self.stack.resize(number + 1, Slot::UNINIT);
        }
        self.stack.get_mut(number)
    }

    /// The slot with this number as it is.
    pub(super) fn slot(&self, number: usize) -> Slot {
        self.stack.get(number).copied().unwrap_or(Slot::UNINIT)
    }
}

/// All active calls; the last is the running one. Frames are shared between states until written.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) frames: Vec<Rc<Frame>>,
}

/// How exactly two states are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// The older admits everything the newer does.
    Covers,
    /// They are the same in all that matters.
    Equal,
}

/// Which registers matter at a point: bit n is rn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Matters {
    /// Read before they are written.
    pub(super) live: u16,
    /// Their numeric value may decide whether the program is accepted.
    pub(super) precise: u16,
}

impl State {
    /// Entry of the program.
    pub(super) fn entry() -> Self {
        let mut frame = Frame::new(0, 0, 0);
        if let Some(r1) = frame.regs.get_mut(1) {
            *r1 = Reg::pointer(Target::Ctx, 0);
        }
        Self {
            frames: alloc::vec![Rc::new(frame)],
        }
    }

    /// The running frame.
    pub(super) fn running_mut(&mut self) -> &mut Frame {
        // A state has at least one frame: `entry` makes it, `exit` ends the path instead of
        // taking the last.
        let last = self.frames.len() - 1;
        Rc::make_mut(&mut self.frames[last])
    }

    /// Applies `f` to every register and spilled register.
    pub(super) fn for_each_reg(&mut self, mut f: impl FnMut(&mut Reg)) {
        for frame in &mut self.frames {
            let frame = Rc::make_mut(frame);
            frame.regs.iter_mut().for_each(&mut f);
            for slot in &mut frame.stack {
                if slot.spill != Reg::Uninit {
                    f(&mut slot.spill);
                }
            }
        }
    }

    /// Whether having explored `self` makes exploring `newer` at the same point superfluous.
    /// `matters` says what matters at a program point; `pc` is the running frame's.
    pub(super) fn admits(
        &self,
        newer: &Self,
        pc: usize,
        how: Match,
        matters: impl Fn(usize) -> Matters,
    ) -> bool {
        if self.frames.len() != newer.frames.len() {
            return false;
        }
        let mut names = Names {
            pairs: Vec::new(),
            how,
        };
        let running = self.frames.len() - 1;
        self.frames
            .iter()
            .zip(&newer.frames)
            .enumerate()
            .all(|(number, (old, new))| {
                // A caller continues where its callee returns to.
                let at = match self.frames.get(number + 1) {
                    Some(callee) if number < running => callee.return_pc,
                    _ => pc,
                };
                let same_call = old.function == new.function && old.return_pc == new.return_pc;
                same_call
                    && (how == Match::Covers && Rc::ptr_eq(old, new)
                        || names.frames_match(old, new, matters(at)))
            })
    }
}

/// The correspondence of names between two states.
struct Names {
    pairs: Vec<(Id, Id)>,
    how: Match,
}

impl Names {
    fn frames_match(&mut self, old: &Frame, new: &Frame, matters: Matters) -> bool {
        let regs = old.regs.iter().zip(&new.regs).enumerate();
        let mut regs = regs.filter(|(number, _)| matters.live >> number & 1 == 1);
        if !regs.all(|(n, (old, new))| self.regs_match(old, new, matters.precise >> n & 1 == 1)) {
            return false;
        }
        let slots = old.stack.len().max(new.stack.len());
        (0..slots).all(|number| self.slots_match(&old.slot(number), &new.slot(number)))
    }

    fn regs_match(&mut self, old: &Reg, new: &Reg, precise: bool) -> bool {
        match (old, new) {
            (Reg::Uninit, _) => self.how == Match::Covers || *new == Reg::Uninit,
            (Reg::Scalar(..), Reg::Scalar(..)) if !precise => true,
            (Reg::Scalar(old, old_id), Reg::Scalar(new, new_id)) => {
                self.scalars_match(old, new) && self.names_match(*old_id, *new_id)
            }
            (Reg::Pointer(old, old_off, old_var), Reg::Pointer(new, new_off, new_var)) => {
                let same_target = match (old, new) {
                    (Target::ValueOrNull(a, old_id), Target::ValueOrNull(b, new_id)) => {
                        a == b && self.names_match(*old_id, *new_id)
                    }
                    _ => old == new,
                };
                same_target && old_off == new_off && self.scalars_match(old_var, new_var)
            }
            _ => false,
        }
    }

    fn scalars_match(&self, old: &Scalar, new: &Scalar) -> bool {
        match self.how {
            Match::Covers => old.covers(new),
            Match::Equal => old == new,
        }
    }

    /// A name in the old state stands for one and the same name in the new state. An unnamed old
    /// value makes no use of equality, so anything goes.
    fn names_match(&mut self, old: Id, new: Id) -> bool {
        if old == 0 {
            return true;
        }
        match self
            .pairs
            .iter()
            .find(|pair| pair.0 == old || pair.1 == new)
        {
            Some(pair) => *pair == (old, new),
            None => {
                self.pairs.push((old, new));
                true
            }
        }
    }

    fn slots_match(&mut self, old: &Slot, new: &Slot) -> bool {
        let spilled = old.spilled();
        let new_is_number = new.spill.as_scalar().is_some();
        let bytes_match = old
            .bytes
            .iter()
            .zip(&new.bytes)
            .all(|(old, new)| match old {
                Byte::Uninit => self.how == Match::Covers || *new == Byte::Uninit,
                Byte::Misc => match new {
                    Byte::Misc | Byte::Zero => true,
                    Byte::Spill => new_is_number,
                    Byte::Uninit => false,
                },
                Byte::Zero => *new == Byte::Zero,
                Byte::Spill => *new == Byte::Spill,
            });
        bytes_match
            && (spilled == 0
                || spilled == new.spilled() && self.regs_match(&old.spill, &new.spill, true))
    }
}
