//! Figures of several rounds, for people.

/// Smallest, median and largest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` of nothing.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[half],
            _ => f64::midpoint(values[half - 1], values[half]),
        };
        Some(Self { min, median, max })
    }
}

/// The median of the ratios of the rounds that have both.
pub(crate) fn ratio(
    mine: impl Iterator<Item = Option<f64>>,
    theirs: impl Iterator<Item = Option<f64>>,
) -> Option<f64> {
    let ratios = mine.zip(theirs).filter_map(|(mine, theirs)| {
        let theirs = theirs?;
        (theirs > 0.0).then_some(mine? / theirs)
    });
    Spread::of(ratios.collect()).map(|spread| spread.median)
}

/// A ratio with as many digits as it is worth.
pub(crate) fn times(ratio: f64) -> String {
    match ratio {
        10.0.. => format!("{ratio:.0} x"),
        2.0.. => format!("{ratio:.1} x"),
        _ => format!("{ratio:.2} x"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(Spread::of(Vec::new()), None);
        let of = |values: &[f64]| Spread::of(values.to_vec()).map(|s| (s.min, s.median, s.max));
        assert_eq!(of(&[3.0, 1.0, 2.0]), Some((1.0, 2.0, 3.0)));
        assert_eq!(of(&[4.0, 1.0, 2.0, 3.0]), Some((1.0, 2.5, 4.0)));
    }

    #[test]
    fn ratio_is_that_of_rounds_which_have_both() {
        let mine = [Some(2.0), None, Some(9.0), Some(1.0)].into_iter();
        let theirs = [Some(1.0), Some(5.0), Some(3.0), Some(0.0)].into_iter();
        assert_eq!(ratio(mine, theirs), Some(2.5));
    }

    #[test]
    fn ratios_have_as_many_digits_as_they_are_worth() {
        assert_eq!(
            (times(0.431), times(5.94), times(26.2)),
            ("0.43 x".into(), "5.9 x".into(), "26 x".into())
        );
    }
}
