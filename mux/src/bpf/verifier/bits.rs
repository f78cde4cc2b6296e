//! Known bits of a number.

/// Known bits: those not in `mask` equal `value`'s; `value & mask` is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bits {
    pub(super) value: u64,
    pub(super) mask: u64,
}

impl Bits {
    pub(super) const UNKNOWN: Self = Self {
        value: 0,
        mask: u64::MAX,
    };

    pub(super) const fn exact(value: u64) -> Self {
        Self { value, mask: 0 }
    }

    /// The tightest bits of a range: the common leading ones.
    pub(super) const fn of_range(min: u64, max: u64) -> Self {
        let differ = min ^ max;
        let mask = if differ == 0 {
            0
        } else {
            u64::MAX >> differ.leading_zeros()
        };
        Self {
            value: min & !mask,
            mask,
        }
    }

    pub(super) const fn add(self, other: Self) -> Self {
        let (low, high) = (
            self.value.wrapping_add(other.value),
            (self.value | self.mask).wrapping_add(other.value | other.mask),
        );
        // A carry may differ wherever the smallest and the largest sum do.
        let mask = (low ^ high) | self.mask | other.mask;
        Self {
            value: low & !mask,
            mask,
        }
    }

    pub(super) const fn sub(self, other: Self) -> Self {
        let most = (self.value | self.mask).wrapping_sub(other.value);
        let least = self.value.wrapping_sub(other.value | other.mask);
        let mask = (most ^ least) | self.mask | other.mask;
        Self {
            value: self.value.wrapping_sub(other.value) & !mask,
            mask,
        }
    }

    pub(super) const fn and(self, other: Self) -> Self {
        let value = self.value & other.value;
        let may = (self.value | self.mask) & (other.value | other.mask);
        Self {
            value,
            mask: may & !value,
        }
    }

    pub(super) const fn or(self, other: Self) -> Self {
        let value = self.value | other.value;
        Self {
            value,
            mask: (self.mask | other.mask) & !value,
        }
    }

    pub(super) const fn xor(self, other: Self) -> Self {
        let mask = self.mask | other.mask;
        Self {
            value: (self.value ^ other.value) & !mask,
            mask,
        }
    }

    /// Long multiplication: a known one adds the shifted factor, an unknown bit adds either
    /// nothing or the factor.
    pub(super) fn mul(self, other: Self) -> Self {
        let mut sum = Self::exact(0);
        for bit in 0..64 {
            let term = Self {
                value: other.value << bit,
                mask: other.mask << bit,
            };
            if self.value >> bit & 1 == 1 {
                sum = sum.add(term);
            } else if self.mask >> bit & 1 == 1 {
                sum = sum.add(Self {
                    value: 0,
                    mask: term.value | term.mask,
                });
            }
        }
        sum
    }

    /// The bits both know. None if they contradict each other.
    pub(super) const fn meet(self, other: Self) -> Option<Self> {
        if (self.value ^ other.value) & !self.mask & !other.mask != 0 {
            return None;
        }
        let mask = self.mask & other.mask;
        Some(Self {
            value: (self.value | other.value) & !mask,
            mask,
        })
    }

    /// Whether every value `other` admits is admitted.
    pub(super) const fn covers(self, other: Self) -> bool {
        other.mask & !self.mask == 0 && (self.value ^ other.value) & !self.mask == 0
    }
}
