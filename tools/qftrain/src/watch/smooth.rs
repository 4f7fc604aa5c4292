//! Running means, so that a line on the screen does not jump with every batch.

/// Share of the mean that a new value leaves as it was; a value counts for some twenty records.
const KEPT: f64 = 0.95;

/// An exponential moving average without bias towards its start, and the mean distance from it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Smooth {
    sum: f64,
    weight: f64,
    distance: f64,
    values: u64,
}

impl Smooth {
    /// Adds a value; one that is not finite is left out. Returns the mean with it.
    pub(crate) fn add(&mut self, value: f64) -> f64 {
        if value.is_finite() {
            let distance = match self.values {
                0 => 0.0,
                _ => (value - self.mean()).abs(),
            };
            self.sum = KEPT * self.sum + (1.0 - KEPT) * value;
            self.weight = KEPT * self.weight + (1.0 - KEPT);
            self.distance = KEPT * self.distance + (1.0 - KEPT) * distance;
            self.values += 1;
        }
        self.mean()
    }

    /// The mean; 0 before the first value.
    pub(crate) fn mean(&self) -> f64 {
        match self.weight {
            0.0 => 0.0,
            weight => self.sum / weight,
        }
    }

    /// How far values were from the mean before them, on average.
    pub(crate) fn distance(&self) -> f64 {
        match self.weight {
            0.0 => 0.0,
            weight => self.distance / weight,
        }
    }

    /// Values so far.
    pub(crate) fn values(&self) -> u64 {
        self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_has_no_bias_and_forgets() {
        let mut smooth = Smooth::default();
        assert_eq!((smooth.add(8.0), smooth.distance()), (8.0, 0.0));
        assert!((smooth.add(8.0) - 8.0).abs() < 1e-12);
        smooth.add(f64::NAN);
        assert_eq!((smooth.mean(), smooth.values()), (8.0, 2));
        for _ in 0..200 {
            smooth.add(2.0);
        }
        assert!((smooth.mean() - 2.0).abs() < 1e-3, "{}", smooth.mean());
        // 1, 3, 1, 3, ... lie 1 from their mean.
        for value in 0..400 {
            smooth.add(1.0 + f64::from(value % 2 * 2));
        }
        assert!((smooth.mean() - 2.0).abs() < 0.06 && (smooth.distance() - 1.0).abs() < 0.06);
    }
}
