//! What each sample of a line counts for, in each sample of the resized line.

/// Samples on each side of a position that bicubic interpolation takes.
const SUPPORT: f64 = 2.0;

/// Most binary places of a weight; results have 8 bits, and sums overshoot by less than two more.
const MOST_PLACES: u32 = 21;

/// A line, the part of it that is resized, and to how many samples.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// Samples before the line, which weigh nothing.
    pub(super) before: usize,
    pub(super) len: usize,
    pub(super) start: f64,
    pub(super) span: f64,
    pub(super) size: usize,
    /// Entries of the table; those beyond `size` weigh nothing.
    pub(super) entries: usize,
    /// Whether the last comes first.
    pub(super) reversed: bool,
}

/// Weights for each sample of a resized line. Samples of the line are taken in pairs, the first of
/// a pair at an even place; each result has as many pairs as the others.
#[derive(Clone, Debug, Default)]
pub(super) struct Weights {
    /// First pair of each result.
    pub(super) starts: Vec<usize>,
    /// `[entries, pairs_each]`: weights of a pair, the first in the low half.
    pub(super) pairs: Vec<i32>,
    pub(super) pairs_each: usize,
    /// Binary places of the weights.
    pub(super) places: u32,
    /// The weights before they are rounded, and for each result the first sample and how many.
    exact: Vec<f64>,
    bounds: Vec<(usize, usize)>,
}

impl Weights {
    /// Makes the weights of this line, whose `span` and `size` are above 0.
    #[inline(always)]
    pub(super) fn set(&mut self, line: &Line) {
        let greatest = self.set_exact(line);
        // The formula of fast_image_resize: as many places as leave the greatest within 16 bits.
        self.places = (0..MOST_PLACES)
            .find(|places| (greatest * f64::from(1u32 << (places + 1))).round() >= 32768.0)
            .unwrap_or(MOST_PLACES);
        let pairs_of = |&(first, count): &(usize, usize)| (first + count).div_ceil(2) - first / 2;
        self.pairs_each = self.bounds.iter().map(pairs_of).max().unwrap_or(0);
        self.starts.clear();
        self.starts.resize(line.entries, 0);
        self.pairs.clear();
        self.pairs.resize(line.entries * self.pairs_each, 0);
        let last_start = (line.before + line.len).div_ceil(2) - self.pairs_each;
        let unit = f64::from(1u32 << self.places);
        let mut exact = &self.exact[..];
        for (at, &(first, count)) in self.bounds.iter().enumerate() {
            let at = if line.reversed {
                line.size - 1 - at
            } else {
                at
            };
            let start = (first / 2).min(last_start);
            self.starts[at] = start;
            let pairs = &mut self.pairs[at * self.pairs_each..][..self.pairs_each];
            let weights;
            (weights, exact) = exact.split_at(count);
            for (sample, &weight) in (first - 2 * start..).zip(weights) {
                let rounded = (weight * unit).round() as i16;
                pairs[sample / 2] |= i32::from(rounded as u16) << (16 * (sample & 1));
            }
        }
    }

    /// Sets `exact` and `bounds`; returns the greatest weight.
    #[inline(always)]
    fn set_exact(&mut self, line: &Line) -> f64 {
        self.exact.clear();
        self.bounds.clear();
        let scale = (line.start + line.span - line.start) / line.size as f64;
        let stretch = scale.max(1.0);
        let (radius, shrink) = (SUPPORT * stretch, 1.0 / stretch);
        let mut greatest = 0.0f64;
        for at in 0..line.size {
            let center = line.start + (at as f64 + 0.5) * scale;
            let first = (center - radius).floor().max(0.0) as usize;
            let end = ((center + radius).ceil().min(line.len as f64) as usize).max(first + 1);
            let from = self.exact.len();
            self.exact.resize(from + end - first, 0.0);
            let weights = &mut self.exact[from..];
            let (mut sum, middle) = (0.0, center - 0.5);
            for (x, weight) in (first as u32..).zip(&mut *weights) {
                *weight = bicubic((f64::from(x) - middle) * shrink);
                sum += *weight;
            }
            for weight in weights {
                *weight /= sum;
                greatest = greatest.max(*weight);
            }
            self.bounds.push((line.before + first, end - first));
        }
        greatest
    }

    pub(super) fn kept_bytes(&self) -> usize {
        size_of::<usize>() * self.starts.capacity()
            + size_of::<i32>() * self.pairs.capacity()
            + size_of::<f64>() * self.exact.capacity()
            + size_of::<(usize, usize)>() * self.bounds.capacity()
    }
}

/// The cubic convolution kernel with a = −0.5 (Keys 1981), as PIL's `BICUBIC` has it.
#[inline(always)]
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    let near = ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = (((x - 5.0) * x + 8.0) * x - 4.0) * A;
    let far = if x < 2.0 { far } else { 0.0 };
    if x < 1.0 {
        near
    } else {
        far
    }
}
