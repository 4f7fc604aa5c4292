//! Image-text matching loss and its hard negatives.

use tch::{Device, Kind, Tensor};

use crate::error::ModelError;
use crate::qformer::MASKED;

/// The class of a pair that belongs together, as in LAVIS and transformers; 0 is that of one that does not.
const MATCH: i64 = 1;

/// Scores of R pairs by the matching head, of both classes.
#[derive(Debug)]
pub struct MatchLogits(Tensor);

impl MatchLogits {
    /// Logits `[R, 2]`, no match and match.
    pub(crate) fn new(logits: Tensor) -> MatchLogits {
        MatchLogits(logits)
    }

    /// Logits of both classes, `[R, 2]`: no match, match.
    pub fn both(&self) -> &Tensor {
        &self.0
    }

    /// Logits of a match, `[R]`: what retrieval ranks by.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device is out of memory.
    pub fn of_match(&self) -> Result<Tensor, ModelError> {
        Ok(self.0.f_select(1, MATCH)?)
    }

    /// Probability of a match, `[R]` f64.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device is out of memory.
    pub fn match_probability(&self) -> Result<Tensor, ModelError> {
        Ok(self.0.f_softmax(1, Kind::Double)?.f_select(1, MATCH)?)
    }
}

/// Probabilities with which each column is drawn as a row's negative: softmax of the similarities
/// `[B, N]` with the matching columns of `mask` (`[B, N]` bool) out of the draw. A constant for
/// autograd.
///
/// A matching column ends at exactly 0, unless all columns match: then none can be told from the
/// others and all are equally likely, as in the reference.
pub(crate) fn sampling_weights(similarities: &Tensor, mask: &Tensor) -> Result<Tensor, ModelError> {
    Ok(similarities
        .f_detach()?
        .f_masked_fill(mask, MASKED)?
        .f_softmax(1, None)?)
}

/// Draws one column per row of `weights` `[B, N]` with torch's generator: `[B]` i64.
///
/// What `torch.multinomial` does for one draw (the largest weight over an exponential number),
/// without its checks, which would wait for the device.
pub(crate) fn sample(weights: &Tensor) -> Result<Tensor, ModelError> {
    let exponential = weights.f_empty_like()?.f_exponential_(1.0)?;
    Ok(weights.f_div(&exponential)?.f_argmax(1, false)?)
}

/// Classes of the B matched rows and the 2 B unmatched ones: `[3 B]` i64.
pub(crate) fn labels(batch: i64, device: Device) -> Result<Tensor, ModelError> {
    let matched = Tensor::f_full([batch], MATCH, (Kind::Int64, device))?;
    let unmatched = Tensor::f_full([2 * batch], 1 - MATCH, (Kind::Int64, device))?;
    Ok(Tensor::f_cat(&[matched, unmatched], 0)?)
}

/// Cross entropy of logits `[R, 2]` against labels `[R]`, mean over the rows.
pub(crate) fn loss(logits: &Tensor, labels: &Tensor) -> Result<Tensor, ModelError> {
    Ok(logits.f_cross_entropy_loss::<Tensor>(labels, None, tch::Reduction::Mean, -100, 0.0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_positive_is_never_drawn() {
        for batch in [2i64, 3, 17] {
            let similarities = Tensor::randn([batch, batch], (Kind::Float, Device::Cpu)) * 20.0;
            let mask = Tensor::eye(batch, (Kind::Bool, Device::Cpu));
            let weights = sampling_weights(&similarities, &mask).unwrap();
            assert_eq!(
                weights
                    .masked_select(&mask)
                    .sum(Kind::Float)
                    .double_value(&[]),
                0.0
            );
            for _ in 0..200 {
                let drawn = Vec::<i64>::try_from(sample(&weights).unwrap()).unwrap();
                for (row, column) in drawn.into_iter().enumerate() {
                    assert!((0..batch).contains(&column) && column != row as i64);
                }
            }
        }
    }

    #[test]
    fn draws_follow_the_weights() {
        const DRAWS: i64 = 40_000;
        let weights = Tensor::from_slice(&[0.5f32, 0.0, 0.2, 0.3]).expand([DRAWS, 4], false);
        let counts = sample(&weights).unwrap().bincount::<Tensor>(None, 4);
        for (column, share) in [0.5, 0.0, 0.2, 0.3].into_iter().enumerate() {
            let got = counts.double_value(&[column as i64]) / DRAWS as f64;
            // Five standard deviations of a share at most: 5 √(0.25 / 40 000) = 0.0125.
            assert!((got - share).abs() < 0.0125, "{column}: {got}");
        }
    }

    #[test]
    fn every_column_matching_leaves_a_uniform_draw() {
        let mask = Tensor::ones([2, 4], (Kind::Bool, Device::Cpu));
        let similarities = Tensor::randn([2, 4], (Kind::Float, Device::Cpu));
        let weights = sampling_weights(&similarities, &mask).unwrap();
        assert_eq!(Vec::<f32>::try_from(weights.view(-1)).unwrap(), [0.25; 8]);
    }

    #[test]
    fn labels_and_loss_by_hand() {
        let labels = labels(2, Device::Cpu).unwrap();
        assert_eq!(Vec::<i64>::try_from(&labels).unwrap(), [1, 1, 0, 0, 0, 0]);
        let logits = Tensor::from_slice(&[0.0f64, 1.0]).expand([6, 2], false);
        let matched = (1.0 + (-1f64).exp()).ln();
        let expected = (2.0 * matched + 4.0 * (matched + 1.0)) / 6.0;
        assert!((loss(&logits, &labels).unwrap().double_value(&[]) - expected).abs() < 1e-9);
    }

    /// A lower loss on the matched rows is a higher probability of a match.
    #[test]
    fn the_class_of_a_match() {
        let logits = MatchLogits::new(Tensor::from_slice(&[-1.0f64, 2.0]).view([1, 2]));
        assert_eq!(logits.of_match().unwrap().double_value(&[0]), 2.0);
        let probability = logits.match_probability().unwrap().double_value(&[0]);
        assert!((probability - 1.0 / (1.0 + (-3f64).exp())).abs() < 1e-12);
        let matched = labels(1, Device::Cpu).unwrap().narrow(0, 0, 1);
        let loss = loss(logits.both(), &matched).unwrap().double_value(&[]);
        assert!((loss + probability.ln()).abs() < 1e-12);
    }
}
