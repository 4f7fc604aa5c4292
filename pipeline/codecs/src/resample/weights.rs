//! What each sample of a line counts for, in each sample of the resized line.

/// Samples on each side of a position that bicubic interpolation takes.
const SUPPORT: f64 = 2.0;

/// Most binary places of a weight; results have 8 bits, and sums overshoot by less than two more.
const MOST_PLACES: u32 = 21;

/// Weights that are computed at a time.
const LANES: usize = 4;

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
    /// `[size, row]`: the weights before they are rounded, with zeros behind them.
    exact: Vec<f64>,
    row: usize,
    /// For each result the first sample and how many.
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
        let rows = self.exact.chunks_exact(self.row);
        for ((at, &(first, count)), weights) in self.bounds.iter().enumerate().zip(rows) {
            let at = if line.reversed {
                line.size - 1 - at
            } else {
                at
            };
            let start = (first / 2).min(last_start);
            self.starts[at] = start;
            let pairs = &mut self.pairs[at * self.pairs_each..][..self.pairs_each];
            for (sample, &weight) in (first - 2 * start..).zip(&weights[..count]) {
                let rounded = (weight * unit).round() as i16;
                pairs[sample / 2] |= i32::from(rounded as u16) << (16 * (sample & 1));
            }
        }
    }

    /// Sets `exact`, `row` and `bounds`; returns the greatest weight.
    #[inline(always)]
    fn set_exact(&mut self, line: &Line) -> f64 {
        let scale = (line.start + line.span - line.start) / line.size as f64;
        let stretch = scale.max(1.0);
        let (radius, shrink) = (SUPPORT * stretch, 1.0 / stretch);
        self.row = (2 * radius.ceil() as usize + 2).next_multiple_of(LANES);
        // Each row is written in full.
        self.exact.resize(line.size * self.row, 0.0);
        self.bounds.clear();
        let mut greatest = [0.0f64; LANES];
        for (at, row) in self.exact.chunks_exact_mut(self.row).enumerate() {
            let center = line.start + (at as f64 + 0.5) * scale;
            let first = (center - radius).floor().max(0.0) as usize;
            let end = ((center + radius).ceil().min(line.len as f64) as usize).max(first + 1);
            let count = end - first;
            let middle = center - 0.5;
            for (lanes, x) in row
                .chunks_exact_mut(LANES)
                .zip((first as i32..).step_by(LANES))
            {
                for (lane, weight) in lanes.iter_mut().enumerate() {
                    *weight = bicubic((f64::from(x + lane as i32) - middle) * shrink);
                }
            }
            row[count..].fill(0.0);
            // In this order, as each addition rounds.
            let sum = row[..count].iter().fold(0.0, |sum, &weight| sum + weight);
            for lanes in row.chunks_exact_mut(LANES) {
                for (weight, greatest) in lanes.iter_mut().zip(&mut greatest) {
                    *weight /= sum;
                    *greatest = if *weight > *greatest {
                        *weight
                    } else {
                        *greatest
                    };
                }
            }
            self.bounds.push((line.before + first, count));
        }
        greatest.into_iter().fold(0.0, f64::max)
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
