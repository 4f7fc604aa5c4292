//! Image-text matching loss and its hard negatives.

use tch::{Device, Kind, Tensor};

use crate::qformer::MASKED;

/// Probabilities with which each column is drawn as a row's negative: softmax of the similarities
/// `[B, N]` with the matching columns of `mask` (`[B, N]` bool) out of the draw. A constant for
/// autograd.
///
/// A matching column ends at exactly 0, unless all columns match: then none can be told from the
/// others and all are equally likely, as in the reference.
pub(crate) fn sampling_weights(similarities: &Tensor, mask: &Tensor) -> Tensor {
    similarities
        .detach()
        .masked_fill(mask, MASKED)
        .softmax(1, None)
}

/// Draws one column per row of `weights` `[B, N]` with torch's generator: `[B]` i64.
///
/// What `torch.multinomial` does for one draw (the largest weight over an exponential number),
/// without its checks, which would wait for the device.
pub(crate) fn sample(weights: &Tensor) -> Tensor {
    let exponential = weights.empty_like().exponential_(1.0);
    (weights / exponential).argmax(1, false)
}

/// 1 for the B matched rows, 0 for the 2 B unmatched ones: `[3 B]` i64.
pub(crate) fn labels(batch: i64, device: Device) -> Tensor {
    let matched = Tensor::ones([batch], (Kind::Int64, device));
    let unmatched = Tensor::zeros([2 * batch], (Kind::Int64, device));
    Tensor::cat(&[matched, unmatched], 0)
}

/// Cross entropy of logits `[R, 2]` (class 1 = match) against labels `[R]`, mean over the rows.
pub(crate) fn loss(logits: &Tensor, labels: &Tensor) -> Tensor {
    logits.cross_entropy_loss::<Tensor>(labels, None, tch::Reduction::Mean, -100, 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_positive_is_never_drawn() {
        for batch in [2i64, 3, 17] {
            let similarities = Tensor::randn([batch, batch], (Kind::Float, Device::Cpu)) * 20.0;
            let mask = Tensor::eye(batch, (Kind::Bool, Device::Cpu));
            let weights = sampling_weights(&similarities, &mask);
            assert_eq!(
                weights
                    .masked_select(&mask)
                    .sum(Kind::Float)
                    .double_value(&[]),
                0.0
            );
            for _ in 0..200 {
                let drawn = Vec::<i64>::try_from(sample(&weights)).unwrap();
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
        let counts = sample(&weights).bincount::<Tensor>(None, 4);
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
        let weights = sampling_weights(&similarities, &mask);
        assert_eq!(Vec::<f32>::try_from(weights.view(-1)).unwrap(), [0.25; 8]);
    }

    #[test]
    fn labels_and_loss_by_hand() {
        let labels = labels(2, Device::Cpu);
        assert_eq!(Vec::<i64>::try_from(&labels).unwrap(), [1, 1, 0, 0, 0, 0]);
        let logits = Tensor::from_slice(&[0.0f64, 1.0]).expand([6, 2], false);
        let matched = (1.0 + (-1f64).exp()).ln();
        let expected = (2.0 * matched + 4.0 * (matched + 1.0)) / 6.0;
        assert!((loss(&logits, &labels).double_value(&[]) - expected).abs() < 1e-9);
    }
}
