//! Which data set the next sample comes from.

/// Shares positions among data sets in proportion to their weights.
///
/// Each position goes to the set that is furthest behind its share (the first of them when equal), so
/// after any number of positions every set is within one position of it. Deterministic; its state is the
/// positions taken so far.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    /// Shares, adding up to one.
    shares: Vec<f64>,
    taken: Vec<u64>,
}

impl Mixture {
    /// A mixture with positive, finite weights, from positions taken before (zeros at the start).
    pub fn new(weights: &[f64], taken: &[u64]) -> Mixture {
        let total: f64 = weights.iter().sum();
        Mixture {
            shares: weights.iter().map(|weight| weight / total).collect(),
            taken: taken.to_vec(),
        }
    }

    /// Positions taken by each set.
    pub fn taken(&self) -> &[u64] {
        &self.taken
    }

    /// The set that the next position belongs to; zero without sets.
    pub fn next(&self) -> usize {
        let place = self.taken.iter().sum::<u64>() as f64 + 1.0;
        let behind = |set: usize| self.shares[set] * place - self.taken[set] as f64;
        let mut best = 0;
        for set in 1..self.shares.len() {
            if behind(set) > behind(best) {
                best = set;
            }
        }
        best
    }

    /// Takes a position for a set.
    pub fn take(&mut self, set: usize) {
        self.taken[set] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_hold_at_every_place() {
        for weights in [
            vec![1.0],
            vec![1.0, 1.0],
            vec![0.7, 0.2, 0.1],
            vec![5.0, 3.0, 1e-3],
        ] {
            let total: f64 = weights.iter().sum();
            let mut mixture = Mixture::new(&weights, &vec![0; weights.len()]);
            for place in 1..=20_000u64 {
                mixture.take(mixture.next());
                for (weight, &taken) in weights.iter().zip(mixture.taken()) {
                    let share = weight / total * place as f64;
                    assert!((share - taken as f64).abs() < 1.0 + 1e-6, "{weights:?}");
                }
                if place % 997 == 0 {
                    let resumed = Mixture::new(&weights, mixture.taken());
                    assert_eq!(resumed, mixture);
                }
            }
        }
    }
}
