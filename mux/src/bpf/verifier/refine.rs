//! What a comparison teaches about its two sides.

use super::super::insn::jmp;
use super::bits::Bits;
use super::scalar::{HIGH_HALF, Range, Scalar};

impl Scalar {
    /// What both sides of a comparison are known to be if `dst op src` has the given `outcome`.
    /// None if it cannot have.
    pub(super) fn refine(
        op: u8,
        wide: bool,
        outcome: bool,
        dst: &Self,
        src: &Self,
    ) -> Option<(Self, Self)> {
        let (op, outcome) = if outcome { (op, true) } else { negate(op) };
        let (mut a, mut b) = (*dst, *src);
        match op {
            jmp::JEQ => {
                if wide {
                    let both = a.meet(b)?;
                    return Some((both, both));
                }
                let (u, s) = (a.u32.meet(b.u32), a.s32.meet(b.s32));
                let low = Bits {
                    mask: b.bits.mask | HIGH_HALF,
                    value: b.bits.value & !HIGH_HALF,
                };
                let other = Bits {
                    mask: a.bits.mask | HIGH_HALF,
                    value: a.bits.value & !HIGH_HALF,
                };
                (a.u32, a.s32, a.bits) = (u, s, a.bits.meet(low)?);
                (b.u32, b.s32, b.bits) = (u, s, b.bits.meet(other)?);
            }
            jmp::JNE if wide => {
                exclude(&mut a, b.constant());
                exclude(&mut b, dst.constant());
                if dst.constant().is_some() && dst.constant() == src.constant() {
                    return None;
                }
            }
            jmp::JNE => {
                let fixed = |s: &Self| (s.u32.min == s.u32.max).then_some(s.u32.min);
                if fixed(dst).is_some() && fixed(dst) == fixed(src) {
                    return None;
                }
                exclude32(&mut a, fixed(src));
                exclude32(&mut b, fixed(dst));
            }
            jmp::JSET => {
                let half = if wide { u64::MAX } else { !HIGH_HALF };
                if let Some(tested) = src.constant().map(|bits| bits & half) {
                    let bits = if !outcome {
                        Bits {
                            value: 0,
                            mask: !tested,
                        }
                    } else if tested.is_power_of_two() {
                        Bits {
                            value: tested,
                            mask: !tested,
                        }
                    } else if (a.bits.value | a.bits.mask) & tested == 0 {
                        return None;
                    } else {
                        Bits::UNKNOWN
                    };
                    a.bits = a.bits.meet(bits)?;
                }
            }
            jmp::JGT | jmp::JGE | jmp::JLT | jmp::JLE if wide => {
                let (low, high) = order(op, &mut a.u, &mut b.u);
                below(
                    low,
                    high,
                    is_strict(op),
                    |v| v.checked_add(1),
                    |v| v.checked_sub(1),
                )?;
            }
            jmp::JGT | jmp::JGE | jmp::JLT | jmp::JLE => {
                let (low, high) = order(op, &mut a.u32, &mut b.u32);
                below(
                    low,
                    high,
                    is_strict(op),
                    |v| v.checked_add(1),
                    |v| v.checked_sub(1),
                )?;
            }
            _ if wide => {
                let (low, high) = order(op, &mut a.s, &mut b.s);
                below(
                    low,
                    high,
                    is_strict(op),
                    |v| v.checked_add(1),
                    |v| v.checked_sub(1),
                )?;
            }
            _ => {
                let (low, high) = order(op, &mut a.s32, &mut b.s32);
                below(
                    low,
                    high,
                    is_strict(op),
                    |v| v.checked_add(1),
                    |v| v.checked_sub(1),
                )?;
            }
        }
        Some((a.settle()?, b.settle()?))
    }
}

/// The operation that holds when `op` does not. `JSET` has none: its outcome stays false.
const fn negate(op: u8) -> (u8, bool) {
    match op {
        jmp::JEQ => (jmp::JNE, true),
        jmp::JNE => (jmp::JEQ, true),
        jmp::JGT => (jmp::JLE, true),
        jmp::JGE => (jmp::JLT, true),
        jmp::JLT => (jmp::JGE, true),
        jmp::JLE => (jmp::JGT, true),
        jmp::JSGT => (jmp::JSLE, true),
        jmp::JSGE => (jmp::JSLT, true),
        jmp::JSLT => (jmp::JSGE, true),
        jmp::JSLE => (jmp::JSGT, true),
        _ => (jmp::JSET, false),
    }
}

const fn is_strict(op: u8) -> bool {
    matches!(op, jmp::JGT | jmp::JLT | jmp::JSGT | jmp::JSLT)
}

/// The smaller and the larger side of a comparison.
fn order<'a, T>(
    op: u8,
    dst: &'a mut Range<T>,
    src: &'a mut Range<T>,
) -> (&'a mut Range<T>, &'a mut Range<T>) {
    match op {
        jmp::JLT | jmp::JLE | jmp::JSLT | jmp::JSLE => (dst, src),
        _ => (src, dst),
    }
}

/// `low < high` (or `<=`). None if that is impossible at the end of the number range.
fn below<T: Ord + Copy>(
    low: &mut Range<T>,
    high: &mut Range<T>,
    strict: bool,
    up: impl Fn(T) -> Option<T>,
    down: impl Fn(T) -> Option<T>,
) -> Option<()> {
    let (floor, ceiling) = if strict {
        (up(low.min)?, down(high.max)?)
    } else {
        (low.min, high.max)
    };
    high.min = high.min.max(floor);
    low.max = low.max.min(ceiling);
    Some(())
}

/// Takes one value off the ends of the ranges.
fn exclude(scalar: &mut Scalar, value: Option<u64>) {
    let Some(value) = value else { return };
    trim(
        &mut scalar.u,
        value,
        |v| v.saturating_add(1),
        |v| v.saturating_sub(1),
    );
    trim(
        &mut scalar.s,
        value as i64,
        |v| v.saturating_add(1),
        |v| v.saturating_sub(1),
    );
}

/// [`exclude`] for the low half.
fn exclude32(scalar: &mut Scalar, value: Option<u32>) {
    let Some(value) = value else { return };
    trim(
        &mut scalar.u32,
        value,
        |v| v.saturating_add(1),
        |v| v.saturating_sub(1),
    );
    trim(
        &mut scalar.s32,
        value as i32,
        |v| v.saturating_add(1),
        |v| v.saturating_sub(1),
    );
}

/// A range with more than one value loses `value` if it is an end.
fn trim<T: Ord + Copy>(range: &mut Range<T>, value: T, up: fn(T) -> T, down: fn(T) -> T) {
    if range.min < range.max {
        if range.min == value {
            range.min = up(value);
        } else if range.max == value {
            range.max = down(value);
        }
    }
}
