//! What is known about a number: bits, and signed and unsigned ranges of the whole and of the low
//! half. Every operation over-approximates: the result holds for each value the operands may have.

use super::super::alu::{Swap, alu32, alu64, swap};
use super::super::insn::alu;
use super::bits::Bits;

/// A range, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range<T> {
    pub(super) min: T,
    pub(super) max: T,
}

impl<T: Ord + Copy> Range<T> {
    pub(super) const fn new(min: T, max: T) -> Self {
        Self { min, max }
    }

    pub(super) fn meet(self, other: Self) -> Self {
        Self {
            min: self.min.max(other.min),
            max: self.max.min(other.max),
        }
    }

    fn is_empty(&self) -> bool {
        self.min > self.max
    }

    fn covers(&self, other: &Self) -> bool {
        self.min <= other.min && other.max <= self.max
    }
}

const U64: Range<u64> = Range::new(0, u64::MAX);
const S64: Range<i64> = Range::new(i64::MIN, i64::MAX);
const U32: Range<u32> = Range::new(0, u32::MAX);
const S32: Range<i32> = Range::new(i32::MIN, i32::MAX);

/// A number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scalar {
    pub(super) bits: Bits,
    pub(super) u: Range<u64>,
    pub(super) s: Range<i64>,
    pub(super) u32: Range<u32>,
    pub(super) s32: Range<i32>,
}

impl Scalar {
    /// Nothing is known.
    pub(super) const UNKNOWN: Self = Self {
        bits: Bits::UNKNOWN,
        u: U64,
        s: S64,
        u32: U32,
        s32: S32,
    };

    /// Exactly `value`.
    pub(super) const fn exact(value: u64) -> Self {
        Self {
            bits: Bits::exact(value),
            u: Range::new(value, value),
            s: Range::new(value as i64, value as i64),
            u32: Range::new(value as u32, value as u32),
            s32: Range::new(value as i32, value as i32),
        }
    }

    /// Any value of `bytes` bytes, zero-extended.
    pub(super) fn zero_extended(bytes: usize) -> Self {
        if bytes >= 8 {
            Self::UNKNOWN
        } else {
            Self::between(0, (1 << (8 * bytes)) - 1)
        }
    }

    /// Any value of `bytes` bytes, sign-extended.
    pub(super) fn sign_extended(bytes: usize) -> Self {
        if bytes >= 8 {
            return Self::UNKNOWN;
        }
        let half = 1 << (8 * bytes - 1);
        Self {
            s: Range::new(-half, half - 1),
            ..Self::UNKNOWN
        }
        .settled()
    }

    fn between(min: u64, max: u64) -> Self {
        Self {
            u: Range::new(min, max),
            ..Self::UNKNOWN
        }
        .settled()
    }

    /// The value, if only one is possible.
    pub(super) const fn constant(&self) -> Option<u64> {
        if self.bits.mask == 0 {
            Some(self.bits.value)
        } else {
            None
        }
    }

    /// Whether every value `other` admits is admitted.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.bits.covers(other.bits)
            && self.u.covers(&other.u)
            && self.s.covers(&other.s)
            && self.u32.covers(&other.u32)
            && self.s32.covers(&other.s32)
    }

    /// Whether `self + off` is a multiple of `bytes`, whatever the value.
    pub(super) const fn is_aligned(&self, off: i64, bytes: usize) -> bool {
        let sum = self.bits.add(Bits::exact(off as u64));
        (sum.value | sum.mask) & (bytes as u64 - 1) == 0
    }

    /// Lets each view sharpen the others. None if they contradict: no value is possible.
    pub(super) fn settle(mut self) -> Option<Self> {
        // Each round passes knowledge one view further; two reach all of them.
        for _ in 0..2 {
            // Bits bound the unsigned ranges.
            let most = self.bits.value | self.bits.mask;
            self.u = self.u.meet(Range::new(self.bits.value, most));
            self.u32 = self
                .u32
                .meet(Range::new(self.bits.value as u32, most as u32));
            // The whole bounds the low half if the high half is fixed.
            if self.u.min >> 32 == self.u.max >> 32 {
                self.u32 = self
                    .u32
                    .meet(Range::new(self.u.min as u32, self.u.max as u32));
            }
            if self.s.min >> 32 == self.s.max >> 32 {
                self.u32 = self
                    .u32
                    .meet(Range::new(self.s.min as u32, self.s.max as u32));
            }
            if let (Ok(min), Ok(max)) = (i32::try_from(self.s.min), i32::try_from(self.s.max)) {
                self.s32 = self.s32.meet(Range::new(min, max));
            }
            // Signed and unsigned agree where the sign is known.
            if self.u.min as i64 <= self.u.max as i64 {
                self.s = self
                    .s
                    .meet(Range::new(self.u.min as i64, self.u.max as i64));
            }
            if self.s.min as u64 <= self.s.max as u64 {
                self.u = self
                    .u
                    .meet(Range::new(self.s.min as u64, self.s.max as u64));
            }
            if self.u32.min as i32 <= self.u32.max as i32 {
                self.s32 = self
                    .s32
                    .meet(Range::new(self.u32.min as i32, self.u32.max as i32));
            }
            if self.s32.min as u32 <= self.s32.max as u32 {
                self.u32 = self
                    .u32
                    .meet(Range::new(self.s32.min as u32, self.s32.max as u32));
            }
            // The low half bounds the whole: under a fixed high half, and if the whole is known
            // to be a sign-extended 32-bit number.
            let high = self.u.min & !0xffff_ffff;
            if self.u.min >> 32 == self.u.max >> 32 {
                let low = Range::new(
                    high | u64::from(self.u32.min),
                    high | u64::from(self.u32.max),
                );
                self.u = self.u.meet(low);
            }
            if S32_IN_64.covers(&self.s) {
                let low = Range::new(i64::from(self.s32.min), i64::from(self.s32.max));
                self.s = self.s.meet(low);
            }
            // Ranges know leading bits.
            if self.is_empty() {
                return None;
            }
            self.bits = self.bits.meet(Bits::of_range(self.u.min, self.u.max))?;
            let low = Bits::of_range(u64::from(self.u32.min), u64::from(self.u32.max));
            self.bits = self.bits.meet(Bits {
                value: low.value,
                mask: low.mask | HIGH_HALF,
            })?;
        }
        (!self.is_empty()).then_some(self)
    }

    /// [`Scalar::settle`] for a result that is known to have values.
    fn settled(self) -> Self {
        self.settle().unwrap_or(Self::UNKNOWN)
    }

    fn is_empty(&self) -> bool {
        self.u.is_empty() || self.s.is_empty() || self.u32.is_empty() || self.s32.is_empty()
    }

    /// What both know. None if no value is in both.
    pub(super) fn meet(self, other: Self) -> Option<Self> {
        Self {
            bits: self.bits.meet(other.bits)?,
            u: self.u.meet(other.u),
            s: self.s.meet(other.s),
            u32: self.u32.meet(other.u32),
            s32: self.s32.meet(other.s32),
        }
        .settle()
    }

    /// The low half, zero-extended.
    pub(super) fn low_half(&self) -> Self {
        Self {
            bits: Bits {
                value: self.bits.value & !HIGH_HALF,
                mask: self.bits.mask & !HIGH_HALF,
            },
            u: Range::new(u64::from(self.u32.min), u64::from(self.u32.max)),
            s: Range::new(i64::from(self.u32.min), i64::from(self.u32.max)),
            u32: self.u32,
            s32: self.s32,
        }
        .settled()
    }

    /// The low half, sign-extended.
    fn low_half_signed(&self) -> Self {
        Self {
            u32: self.u32,
            s32: self.s32,
            s: Range::new(i64::from(self.s32.min), i64::from(self.s32.max)),
            ..Self::UNKNOWN
        }
        .settled()
    }

    /// The low `bytes`, zero-extended.
    pub(super) fn truncated(&self, bytes: usize) -> Self {
        let mask = u64::MAX >> (64 - 8 * bytes.clamp(1, 8));
        if self.u.max <= mask {
            return *self;
        }
        if bytes == 4 {
            return self.low_half();
        }
        let bits = self.bits.and(Bits::exact(mask));
        Self {
            bits,
            ..Self::UNKNOWN
        }
        .settled()
    }

    /// `MOVSX`: the low `bits`, sign-extended to 64.
    pub(super) fn sign_extend(&self, bits: i32) -> Self {
        let fits = Self::sign_extended(bits as usize / 8);
        if bits == 32 {
            return self.low_half_signed();
        }
        if fits.s.covers(&self.s) {
            return *self;
        }
        let unused = 64 - bits;
        let extend = |word: u64| ((word << unused) as i64 >> unused) as u64;
        // An unknown sign bit makes all copies of it unknown.
        let mask = extend(self.bits.mask);
        let value = extend(self.bits.value) & !mask;
        let bits = Bits { value, mask };
        Self { bits, ..fits }.settled()
    }

    /// `END`: the low `bits`, in another byte order. Ranges do not survive it, known bits do.
    pub(super) fn swapped(&self, kind: Swap, bits: i64) -> Self {
        let swap = |value| swap(kind, bits, value);
        let bits = Bits {
            value: swap(self.bits.value),
            mask: swap(self.bits.mask),
        };
        Self {
            bits,
            ..Self::UNKNOWN
        }
        .settled()
    }

    /// A 64-bit operation.
    pub(super) fn alu64(op: u8, dst: &Self, src: &Self) -> Self {
        let whole = Self::core(op, 64, dst, src);
        match op {
            alu::ADD | alu::SUB | alu::MUL | alu::AND | alu::OR | alu::XOR => {
                // The low half follows from the low halves.
                let low = Self::alu32(op, dst, src);
                Self {
                    u32: low.u32,
                    s32: low.s32,
                    ..whole
                }
                .meet(whole)
                .unwrap_or(whole)
            }
            _ => whole,
        }
    }

    /// A 32-bit operation, zero-extended.
    pub(super) fn alu32(op: u8, dst: &Self, src: &Self) -> Self {
        if let (Some(dst), Some(src)) = (dst.constant(), src.constant())
            && is_tracked(op)
            && (!is_shift(op) || src as u32 <= 31)
        {
            return Self::exact(alu32(op, 0, dst, src));
        }
        let unsigned = || Self::core(op, 32, &dst.low_half(), &src.low_half()).low_half();
        let signed =
            || Self::core(op, 32, &dst.low_half_signed(), &src.low_half_signed()).low_half();
        match op {
            alu::RSH => unsigned(),
            alu::ARSH => Self::core(op, 32, &dst.low_half_signed(), &src.low_half()).low_half(),
            alu::ADD | alu::SUB | alu::MUL | alu::AND | alu::OR | alu::XOR => {
                let both = unsigned();
                both.meet(signed()).unwrap_or(both)
            }
            alu::LSH => unsigned(),
            _ => Self::zero_extended(4),
        }
    }

    /// The operation on 64-bit ranges; shift counts up to `width`. As in the kernel, division,
    /// modulo and shifts by an unknown count tell nothing.
    fn core(op: u8, width: u64, dst: &Self, src: &Self) -> Self {
        let (a, b) = (dst, src);
        if let (64, Some(a), Some(b)) = (width, a.constant(), b.constant())
            && is_tracked(op)
            && (!is_shift(op) || b <= 63)
        {
            return Self::exact(alu64(op, 0, a, b));
        }
        let unknown = Self::UNKNOWN;
        let result = match op {
            alu::ADD => Self {
                bits: a.bits.add(b.bits),
                u: unsigned(a.u.min.checked_add(b.u.min), a.u.max.checked_add(b.u.max)),
                s: signed(a.s.min.checked_add(b.s.min), a.s.max.checked_add(b.s.max)),
                ..unknown
            },
            alu::SUB => Self {
                bits: a.bits.sub(b.bits),
                u: unsigned(a.u.min.checked_sub(b.u.max), a.u.max.checked_sub(b.u.min)),
                s: signed(a.s.min.checked_sub(b.s.max), a.s.max.checked_sub(b.s.min)),
                ..unknown
            },
            alu::MUL => Self {
                bits: a.bits.mul(b.bits),
                u: unsigned(a.u.min.checked_mul(b.u.min), a.u.max.checked_mul(b.u.max)),
                s: signed_product(a.s, b.s),
                ..unknown
            },
            alu::AND => Self {
                bits: a.bits.and(b.bits),
                u: Range::new(0, a.u.max.min(b.u.max)),
                ..unknown
            },
            alu::OR => Self {
                bits: a.bits.or(b.bits),
                u: Range::new(a.u.min.max(b.u.min), u64::MAX),
                ..unknown
            },
            alu::XOR => Self {
                bits: a.bits.xor(b.bits),
                ..unknown
            },
            alu::LSH | alu::RSH | alu::ARSH => match b.constant() {
                Some(count) if count < width => shift(op, a, count as u32),
                _ => unknown,
            },
            _ => unknown,
        };
        result.settled()
    }
}

pub(super) const HIGH_HALF: u64 = 0xffff_ffff_0000_0000;
const S32_IN_64: Range<i64> = Range::new(i32::MIN as i64, i32::MAX as i64);

const fn is_shift(op: u8) -> bool {
    matches!(op, alu::LSH | alu::RSH | alu::ARSH)
}

/// Operations whose results are tracked; the kernel tracks the same.
const fn is_tracked(op: u8) -> bool {
    !matches!(op, alu::DIV | alu::MOD)
}

fn unsigned(min: Option<u64>, max: Option<u64>) -> Range<u64> {
    min.zip(max).map_or(U64, |(min, max)| Range::new(min, max))
}

fn signed(min: Option<i64>, max: Option<i64>) -> Range<i64> {
    min.zip(max).map_or(S64, |(min, max)| Range::new(min, max))
}

/// The extremes of a product lie at the ends of the factors.
fn signed_product(a: Range<i64>, b: Range<i64>) -> Range<i64> {
    let ends = [
        (a.min, b.min),
        (a.min, b.max),
        (a.max, b.min),
        (a.max, b.max),
    ];
    let mut products = Range::new(i64::MAX, i64::MIN);
    for (x, y) in ends {
        let Some(product) = x.checked_mul(y) else {
            return S64;
        };
        products = Range::new(products.min.min(product), products.max.max(product));
    }
    products
}

/// A shift by a known count below 64.
fn shift(op: u8, a: &Scalar, count: u32) -> Scalar {
    let unknown = Scalar::UNKNOWN;
    match op {
        alu::LSH => {
            let fits_s = |v: i64| (v << count >> count == v).then_some(v << count);
            let s = if count == 32 {
                // The first half of sign extension by shifting left and right.
                Range::new(i64::from(a.s32.min) << 32, i64::from(a.s32.max) << 32)
            } else {
                signed(fits_s(a.s.min), fits_s(a.s.max))
            };
            let fits_u = a.u.max << count >> count == a.u.max;
            let u = if fits_u {
                Range::new(a.u.min << count, a.u.max << count)
            } else {
                U64
            };
            Scalar {
                bits: Bits {
                    value: a.bits.value << count,
                    mask: a.bits.mask << count,
                },
                u,
                s,
                ..unknown
            }
        }
        alu::RSH => Scalar {
            bits: Bits {
                value: a.bits.value >> count,
                mask: a.bits.mask >> count,
            },
            u: Range::new(a.u.min >> count, a.u.max >> count),
            ..unknown
        },
        _ => {
            let arithmetic = |v: u64| (v as i64 >> count) as u64;
            let mask = arithmetic(a.bits.mask);
            Scalar {
                bits: Bits {
                    value: arithmetic(a.bits.value) & !mask,
                    mask,
                },
                s: Range::new(a.s.min >> count, a.s.max >> count),
                ..unknown
            }
        }
    }
}
