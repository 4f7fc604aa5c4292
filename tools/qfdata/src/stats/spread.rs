//! How numbers are spread, in memory that does not depend on how many there are.

use serde::Serialize;

/// Numbers below this have a bin each.
const EXACT: u64 = 128;
/// Bins of each power of two above.
const PER_OCTAVE: u64 = 64;

/// Counts numbers in bins that are at most 1.6 % wide.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spread {
    bins: Vec<u64>,
    count: u64,
    sum: f64,
    min: u64,
    max: u64,
}

/// What is said of a [`Spread`]. Quantiles are the lower ends of bins: exact below 128, else at most 1.6 % low.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) min: f64,
    pub(crate) p5: f64,
    pub(crate) p25: f64,
    pub(crate) median: f64,
    pub(crate) p75: f64,
    pub(crate) p95: f64,
    pub(crate) max: f64,
    pub(crate) mean: f64,
}

impl Spread {
    pub(crate) fn add(&mut self, value: u64) {
        let bin = bin_of(value);
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, 0);
        }
        self.bins[bin] += 1;
        self.min = match self.count {
            0 => value,
            _ => self.min.min(value),
        };
        self.max = self.max.max(value);
        self.count += 1;
        self.sum += value as f64;
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// In units of which a number is `unit`; nothing without a number.
    pub(crate) fn summary(&self, unit: f64) -> Option<Summary> {
        let quantile = |share| self.quantile(share) as f64 / unit;
        (self.count > 0).then(|| Summary {
            min: self.min as f64 / unit,
            p5: quantile(0.05),
            p25: quantile(0.25),
            median: quantile(0.5),
            p75: quantile(0.75),
            p95: quantile(0.95),
            max: self.max as f64 / unit,
            mean: self.sum / self.count as f64 / unit,
        })
    }

    fn quantile(&self, share: f64) -> u64 {
        let rank = (share * (self.count - 1) as f64).floor() as u64;
        let mut before = 0;
        for (bin, count) in self.bins.iter().enumerate() {
            before += count;
            if before > rank {
                return lower_end(bin as u64).clamp(self.min, self.max);
            }
        }
        self.max
    }

    /// How many numbers lie in each of some ranges of equal width that cover those from the fifth to the
    /// 95th hundredth, and what lies outside at the ends: lower end, count.
    pub(crate) fn bars(&self, bars: usize) -> Vec<(u64, u64)> {
        if self.count == 0 {
            return Vec::new();
        }
        let (low, high) = (self.quantile(0.01), self.quantile(0.99));
        let width = (high - low).div_ceil(bars as u64).max(1);
        let low = low - low % width;
        let mut heights: Vec<(u64, u64)> = (0..=(high - low) / width)
            .map(|bar| (low + bar * width, 0))
            .collect();
        let last = heights.len() - 1;
        for (bin, count) in self
            .bins
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
        {
            let bar = lower_end(bin as u64).saturating_sub(low) / width;
            heights[(bar as usize).min(last)].1 += count;
        }
        heights
    }
}

fn bin_of(value: u64) -> usize {
    if value < EXACT {
        return value as usize;
    }
    let octave = u64::from(value.ilog2());
    let within = (value >> (octave - 6)) - PER_OCTAVE;
    (EXACT + (octave - 7) * PER_OCTAVE + within) as usize
}

fn lower_end(bin: u64) -> u64 {
    if bin < EXACT {
        return bin;
    }
    let (octave, within) = ((bin - EXACT) / PER_OCTAVE + 7, (bin - EXACT) % PER_OCTAVE);
    (PER_OCTAVE + within) << (octave - 6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_narrow_and_in_order() {
        for value in (0..100_000).chain([u64::MAX / 3, u64::MAX]) {
            let low = lower_end(bin_of(value) as u64);
            assert!(
                low <= value && value - low <= value / 63,
                "{value} in a bin from {low}"
            );
            assert_eq!(bin_of(low), bin_of(value));
        }
    }

    #[test]
    fn quantiles_of_known_numbers() {
        let mut spread = Spread::default();
        assert_eq!(spread.summary(1.0), None);
        (0..=100).for_each(|value| spread.add(value));
        let summary = spread.summary(1.0).unwrap();
        let found = [
            summary.min,
            summary.p5,
            summary.median,
            summary.p95,
            summary.max,
            summary.mean,
        ];
        assert_eq!(found, [0.0, 5.0, 50.0, 95.0, 100.0, 50.0]);
        let bars = spread.bars(10);
        assert_eq!(bars.iter().map(|(_, count)| count).sum::<u64>(), 101);
        let mut one = Spread::default();
        one.add(7);
        assert_eq!(one.bars(8), [(7, 1)]);
    }
}
