//! Image-grounded text generation loss.

use tch::Tensor;

use crate::error::ModelError;

/// Label of positions that the loss passes over.
const IGNORED: i64 = -100;

/// Token ids `[B, T]` with the first of each row replaced by `[DEC]`.
pub(crate) fn decoder_ids(token_ids: &Tensor, dec_token_id: i64) -> Result<Tensor, ModelError> {
    let length = token_ids.size()[1];
    let first = token_ids.f_narrow(1, 0, 1)?.f_full_like(dec_token_id)?;
    Ok(Tensor::f_cat(
        &[first, token_ids.f_narrow(1, 1, length - 1)?],
        1,
    )?)
}

/// What each position predicts: ids `[B, T]` → labels `[B, T]`, none at padding nor at the end.
pub(crate) fn labels(decoder_ids: &Tensor, pad_token_id: i64) -> Result<Tensor, ModelError> {
    let next = decoder_ids.f_narrow(1, 1, decoder_ids.size()[1] - 1)?;
    let next = next.f_masked_fill(&next.f_eq(pad_token_id)?, IGNORED)?;
    let end = decoder_ids.f_narrow(1, 0, 1)?.f_full_like(IGNORED)?;
    Ok(Tensor::f_cat(&[next, end], 1)?)
}

/// Smoothed cross entropy of the next token, mean over the positions of this rank's batch that are
/// not ignored.
///
/// `rows` `[N, D]` are the decoder's, `labels` `[N]` theirs, `predict` the head `[R, D]` →
/// `[R, V]`. With `compacts` rows of ignored positions are left out of it: the head is the widest product
/// of a small model, and padding often most of a batch. How many there are has to be read from the device,
/// so only where nobody waits for it.
pub(crate) fn loss(
    rows: &Tensor,
    labels: &Tensor,
    label_smoothing: f64,
    compacts: bool,
    predict: impl Fn(&Tensor) -> Result<Tensor, ModelError>,
) -> Result<Tensor, ModelError> {
    let (rows, labels) = match compacts {
        true => {
            let kept = labels.f_ne(IGNORED)?.f_nonzero()?.f_view([-1])?;
            match kept.size()[0] == labels.size()[0] {
                true => (rows.shallow_clone(), labels.shallow_clone()),
                false => (
                    rows.f_index_select(0, &kept)?,
                    labels.f_index_select(0, &kept)?,
                ),
            }
        }
        false => (rows.shallow_clone(), labels.shallow_clone()),
    };
    Ok(predict(&rows)?.f_cross_entropy_loss::<Tensor>(
        &labels,
        None,
        tch::Reduction::Mean,
        IGNORED,
        label_smoothing,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn ids_and_labels() {
        let ids = Tensor::from_slice2(&[[5i64, 7, 8, 6], [5, 9, 6, 0]]);
        let decoder = decoder_ids(&ids, 99).unwrap();
        let rows = |t: &Tensor| Vec::<Vec<i64>>::try_from(t).unwrap();
        assert_eq!(rows(&decoder), [[99, 7, 8, 6], [99, 9, 6, 0]]);
        assert_eq!(
            rows(&labels(&decoder, 0).unwrap()),
            [[7, 8, 6, IGNORED], [9, 6, IGNORED, IGNORED]]
        );
    }

    /// The widest product of a small model is spared what the loss passes over.
    #[test]
    fn the_head_sees_the_rows_that_count() {
        let hidden = Tensor::arange(16, (Kind::Double, Device::Cpu)).view([4, 4]);
        for (labels, compacts, expected) in [
            ([1i64, IGNORED, 0, IGNORED], true, vec![0.0, 8.0]),
            ([1, IGNORED, 0, IGNORED], false, vec![0.0, 4.0, 8.0, 12.0]),
            ([1, 2, 0, 3], true, vec![0.0, 4.0, 8.0, 12.0]),
        ] {
            let seen = std::cell::RefCell::new(Vec::new());
            let head = |rows: &Tensor| {
                *seen.borrow_mut() = Vec::<f64>::try_from(rows.select(1, 0)).unwrap();
                Ok(rows.shallow_clone())
            };
            let _ = loss(&hidden, &Tensor::from_slice(&labels), 0.1, compacts, head).unwrap();
            assert_eq!(seen.into_inner(), expected, "{labels:?}, {compacts}");
        }
    }

    #[test]
    fn mean_over_tokens_not_over_samples() {
        // Uniform scores: every token costs ln V, smoothed or not; a skewed one differs.
        let hidden = Tensor::zeros([4, 4], (Kind::Double, Device::Cpu));
        let labels = Tensor::from_slice(&[1i64, 2, 0, IGNORED]);
        let head = |rows: &Tensor| Ok(rows.shallow_clone());
        let value = loss(&hidden, &labels, 0.1, true, head).unwrap();
        assert!((value.double_value(&[]) - 4f64.ln()).abs() < 1e-9);

        // One score of 1 in the label's column of the only token of sample 1.
        let skewed = Tensor::zeros([4, 4], (Kind::Double, Device::Cpu));
        let _ = skewed.get(2).get(0).fill_(1.0);
        let value = loss(&skewed, &labels, 0.1, false, head).unwrap();
        let log_sum = (3.0 + 1f64.exp()).ln();
        let skewed_token = log_sum - 0.9 - 0.1 / 4.0;
        let expected = (2.0 * 4f64.ln() + skewed_token) / 3.0;
        assert!((value.double_value(&[]) - expected).abs() < 1e-9);
    }
}
