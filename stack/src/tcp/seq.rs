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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Points on a line of integers, seen modulo 2^32 from anywhere: while they are less than
        /// 2^31 apart, nothing shows that the space wraps.
        #[test]
        fn order_and_distance_are_those_of_the_integers(
            origin: u32,
            a in 0i64..0x3fff_ffff,
            b in 0i64..0x3fff_ffff,
            c in 0i64..0x3fff_ffff,
        ) {
            let at = |x: i64| Seq(origin) + x as u32;
            let (p, q, r) = (at(a), at(b), at(c));
            prop_assert_eq!(p.before(q), a < b);
            prop_assert_eq!(p.after(q), a > b);
            prop_assert_eq!(p.at_or_before(q), a <= b);
            prop_assert_eq!(p.at_or_after(q), a >= b);
            prop_assert_eq!(q.since(p), (b - a).max(0) as u32);
            prop_assert_eq!(p.later(q), at(a.max(b)));
            prop_assert_eq!(p.earlier(q), at(a.min(b)));
            let (lo, hi) = (a.min(b), a.max(b));
            prop_assert_eq!(r.between(at(lo), at(hi)), (lo..=hi).contains(&c));
            let mut moved = p;
            moved += c as u32;
            prop_assert_eq!(moved - c as u32, p);
        }

        #[test]
        fn exactly_one_order_holds_between_any_two_points(p: u32, q: u32) {
            let (p, q) = (Seq(p), Seq(q));
            // Half the space apart, each is before the other; nothing may depend on it.
            prop_assume!(p.0.wrapping_sub(q.0) != 1 << 31);
            let holds = [p.before(q), p == q, p.after(q)];
            prop_assert_eq!(holds.iter().filter(|h| **h).count(), 1);
            prop_assert_eq!(p.since(q) > 0, p.after(q));
        }
    }
}
