//! What each sample of a line counts for, in each sample of the resized line.

/// Lobes of the filter on each side.
const LOBES: f64 = 3.0;

/// Weights come in vectors of so many; those behind the last are 0.
pub(super) const VECTOR: usize = 16;

/// Results come in groups of so many; those behind the last have weights of 0.
pub(super) const GROUP: usize = 8;

/// Binary places of a weight.
pub(super) const PLACES: u32 = 14;

/// A line of samples, and where on it the results are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    /// Samples; sample n reaches from n to n + 1.
    pub(super) len: usize,
    /// Results.
    pub(super) size: usize,
    /// Middle of the first result.
    pub(super) first: f64,
    /// From one result to the next.
    pub(super) step: f64,
}

/// The weights of an axis.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) axis: Axis,
    /// Weights of each result that may be other than 0.
    pub(super) used: usize,
    /// Weights of each result, a multiple of [`VECTOR`].
    pub(super) taps: usize,
    /// `[groups × GROUP]`: the first sample of each result.
    pub(super) starts: Vec<usize>,
    /// The greatest of them.
    pub(super) last_start: usize,
    /// `[groups × GROUP, taps]`.
    pub(super) weights: Vec<i16>,
}

impl Weights {
    pub(super) fn new(axis: Axis) -> Weights {
        let stretch = axis.step.abs().max(1.0);
        let radius = LOBES * stretch;
        let used = 2 * radius.ceil() as usize + 2;
        let taps = used.next_multiple_of(VECTOR);
        let entries = axis.size.next_multiple_of(GROUP);
        let (mut starts, mut weights) = (vec![0; entries], vec![0i16; entries * taps]);
        let mut exact = Vec::with_capacity(used);
        for (result, row) in weights.chunks_exact_mut(taps).take(axis.size).enumerate() {
            // One beyond the line is at its end.
            let middle = axis.first + result as f64 * axis.step;
            let middle = middle.clamp(0.0, axis.len as f64);
            let start = (middle - radius).floor().max(0.0) as usize;
            let end = ((middle + radius).ceil() as usize).clamp(start + 1, axis.len.max(start + 1));
            exact.clear();
            exact.extend(
                (start..end).map(|sample| lanczos((sample as f64 + 0.5 - middle) / stretch)),
            );
            round(&exact, row);
            starts[result] = start;
        }
        Weights {
            last_start: starts.iter().max().copied().unwrap_or(0),
            axis,
            used,
            taps,
            starts,
            weights,
        }
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.starts) + size_of_val(&*self.weights)
    }
}

/// Weights whose sum is 1, in units of 2^-[`PLACES`]; the greatest takes what rounding leaves.
fn round(exact: &[f64], row: &mut [i16]) {
    let unit = f64::from(1u32 << PLACES);
    let sum: f64 = exact.iter().sum();
    let (mut left, mut greatest) = (1i32 << PLACES, 0);
    for (at, (rounded, weight)) in row.iter_mut().zip(exact).enumerate() {
        *rounded = (weight / sum * unit).round() as i16;
        left -= i32::from(*rounded);
        if *weight > exact[greatest] {
            greatest = at;
        }
    }
    row[greatest] += left as i16;
}

/// sinc(x) · sinc(x / 3), by one sine: sin 3t = 3 sin t − 4 sin³ t.
fn lanczos(x: f64) -> f64 {
    let third = x * std::f64::consts::PI / LOBES;
    if x.abs() >= LOBES {
        0.0
    } else if third.abs() < 1e-8 {
        1.0
    } else {
        let sine = third.sin();
        sine * sine * (3.0 - 4.0 * sine * sine) / (LOBES * third * third)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_is_a_windowed_sinc() {
        let sinc = |x: f64| (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI);
        for step in 1..4000 {
            let x = f64::from(step) * 0.0009;
            let expected = if x < 3.0 {
                sinc(x) * sinc(x / 3.0)
            } else {
                0.0
            };
            assert!((lanczos(x) - expected).abs() < 1e-12, "{x}");
            assert_eq!(lanczos(x), lanczos(-x));
        }
        assert_eq!(lanczos(0.0), 1.0);
        assert!((lanczos(1e-7) - 1.0).abs() < 1e-12);
    }
}
