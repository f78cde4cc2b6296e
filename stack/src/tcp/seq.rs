//! Sequence numbers, modulo 2^32 (RFC 9293 §3.4). Never compared with `<`.

use core::ops::{Add, AddAssign, Sub};

/// A point in sequence space. Order exists only between points less than 2^31 apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Seq(pub u32);

impl Seq {
    /// Strictly before `other`.
    pub const fn before(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// Strictly after `other`.
    pub const fn after(self, other: Self) -> bool {
        other.before(self)
    }

    /// Before or equal to `other`.
    pub const fn at_or_before(self, other: Self) -> bool {
        !other.before(self)
    }

    /// After or equal to `other`.
    pub const fn at_or_after(self, other: Self) -> bool {
        !self.before(other)
    }

    /// Within `[lo, hi]`, walking upwards from `lo`.
    pub const fn between(self, lo: Self, hi: Self) -> bool {
        self.0.wrapping_sub(lo.0) <= hi.0.wrapping_sub(lo.0)
    }

    /// Distance from `earlier` up to `self`; zero when `self` is before `earlier`.
    pub const fn since(self, earlier: Self) -> u32 {
        if self.before(earlier) {
            0
        } else {
            self.0.wrapping_sub(earlier.0)
        }
    }

    /// The later of two points.
    #[must_use]
    pub const fn later(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }

    /// The earlier of two points.
    #[must_use]
    pub const fn earlier(self, other: Self) -> Self {
        if other.before(self) { other } else { self }
    }
}

impl Add<u32> for Seq {
    type Output = Self;
    fn add(self, n: u32) -> Self {
        Self(self.0.wrapping_add(n))
    }
}

impl AddAssign<u32> for Seq {
    fn add_assign(&mut self, n: u32) {
        self.0 = self.0.wrapping_add(n);
    }
}

impl Sub<u32> for Seq {
    type Output = Self;
    fn sub(self, n: u32) -> Self {
        Self(self.0.wrapping_sub(n))
    }
}
