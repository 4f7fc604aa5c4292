//! Image-text contrastive loss.

use tch::{Kind, Tensor};

use crate::error::ModelError;

/// Cosine similarities over temperature, local against gathered samples.
#[derive(Debug)]
pub struct Similarities {
    /// `[B, N]`: own images (rows) against all texts.
    pub image_to_text: Tensor,
    /// `[B, N]`: own texts (rows) against all images.
    pub text_to_image: Tensor,
}

/// Similarities of normalised features: the best query of an image counts.
///
/// `image_feats` `[B, Q, d]`, `text_feat` `[B, d]`, `all_image_feats` `[N, Q, d]`, `all_text_feat`
/// `[N, d]`, `temp` a scalar that divides. Only the best query receives a gradient.
pub(crate) fn similarities(
    image_feats: &Tensor,
    text_feat: &Tensor,
    all_image_feats: &Tensor,
    all_text_feat: &Tensor,
    temp: &Tensor,
) -> Result<Similarities, ModelError> {
    let image_to_text = image_feats
        .f_matmul(&all_text_feat.f_transpose(0, 1)?)? // [B, Q, N]
        .f_max_dim(1, false)?
        .0; // [B, N]
    let text_to_image = all_image_feats
        .f_matmul(&text_feat.f_transpose(0, 1)?)? // [N, Q, B]
        .f_max_dim(1, false)?
        .0 // [N, B]
        .f_transpose(0, 1)?; // [B, N]
    Ok(Similarities {
        image_to_text: image_to_text.f_div(temp)?,
        text_to_image: text_to_image.f_div(temp)?,
    })
}

/// Which columns match each row of the similarities.
#[derive(Debug)]
pub enum Targets {
    /// `[B]` i64: one column a row.
    Index(Tensor),
    /// `[B, N]` bool: every column of the same image.
    SameImage(Tensor),
}

impl Targets {
    /// `[B, N]` bool, true at the matching columns.
    pub(crate) fn mask(&self, columns: i64) -> Result<Tensor, ModelError> {
        Ok(match self {
            Targets::Index(index) => {
                let all = Tensor::f_arange(columns, (Kind::Int64, index.device()))?;
                index.f_unsqueeze(1)?.f_eq_tensor(&all)?
            }
            Targets::SameImage(mask) => mask.shallow_clone(),
        })
    }
}

/// Cross entropy of similarities `[B, N]` with smoothed targets, mean over the rows.
///
/// Smoothing spreads its share over all N columns, matching ones included. Several matching
/// columns share the rest evenly.
pub(crate) fn loss(
    similarities: &Tensor,
    targets: &Targets,
    label_smoothing: f64,
) -> Result<Tensor, ModelError> {
    Ok(match targets {
        Targets::Index(index) => similarities.f_cross_entropy_loss::<Tensor>(
            index,
            None,
            tch::Reduction::Mean,
            -100,
            label_smoothing,
        )?,
        Targets::SameImage(mask) => {
            let columns = mask.size()[1];
            let mask = mask.f_to_kind(similarities.f_kind()?)?;
            let along_columns = [1i64];
            let shares =
                mask.f_div(&mask.f_sum_dim_intlist(along_columns.as_slice(), true, None)?)?;
            let smoothed = shares
                .f_mul_scalar(1.0 - label_smoothing)?
                .f_add_scalar(label_smoothing / columns as f64)?;
            smoothed
                .f_mul(&similarities.f_log_softmax(1, None)?)?
                .f_sum_dim_intlist(along_columns.as_slice(), false, None)?
                .f_mean(None)?
                .f_neg()?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn close(got: &Tensor, expected: &[f64]) {
        let got = Vec::<f64>::try_from(got.to_kind(Kind::Double).flatten(0, -1)).unwrap();
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{got} {expected}");
        }
    }

    #[test]
    fn the_best_query_counts_and_alone_gets_a_gradient() {
        let image = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0, 0.6, 0.8, 0.8, 0.6])
            .view([2, 2, 2])
            .set_requires_grad(true);
        let text = Tensor::from_slice2(&[[1.0f32, 0.0], [0.0, 1.0]]);
        let temp = Tensor::from(0.5f32);
        let sims = similarities(&image, &text, &image.detach(), &text, &temp).unwrap();
        close(&sims.image_to_text, &[2.0, 2.0, 1.6, 1.6]);
        close(&sims.text_to_image, &[2.0, 1.6, 2.0, 1.6]);
        sims.image_to_text
            .narrow(1, 0, 1)
            .sum(Kind::Float)
            .backward();
        close(&image.grad(), &[2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 0.0]);
    }

    #[test]
    fn sizes_of_one_keep_their_dimensions() {
        let options = (Kind::Float, Device::Cpu);
        let (image, text) = (
            Tensor::ones([1, 1, 3], options),
            Tensor::ones([1, 3], options),
        );
        let sims = similarities(&image, &text, &image, &text, &Tensor::from(1.0f32)).unwrap();
        assert_eq!(sims.image_to_text.size(), [1, 1]);
        assert_eq!(sims.text_to_image.size(), [1, 1]);
    }

    #[test]
    fn smoothed_cross_entropy_by_hand() {
        let sims = Tensor::from_slice2(&[[2.0f64, 0.0], [0.0, 0.0]]);
        let by_index = loss(&sims, &Targets::Index(Tensor::from_slice(&[0i64, 1])), 0.1).unwrap();
        // Row 0: 0.95 · ln(1 + e^-2) + 0.05 · (2 + ln(1 + e^-2)); row 1: ln 2.
        let expected = ((1.0 + (-2f64).exp()).ln() + 0.1 + 2f64.ln()) / 2.0;
        close(&by_index, &[expected]);
        // The same through the other branch.
        let mask = Tensor::from_slice2(&[[true, false], [false, true]]);
        close(
            &loss(&sims, &Targets::SameImage(mask), 0.1).unwrap(),
            &[expected],
        );
    }

    /// Batches of all ranks have thousands of columns, and every one of them can be a row's match.
    #[test]
    fn every_column_of_a_large_batch_counts() {
        const COLUMNS: i64 = 300;
        let sims = Tensor::arange(COLUMNS * COLUMNS, (Kind::Double, Device::Cpu))
            .sin()
            .view([COLUMNS, COLUMNS]);
        let rows = Vec::<Vec<f64>>::try_from(&sims).unwrap();
        let cost = |(row, sims): (usize, &Vec<f64>)| {
            let sum: f64 = sims.iter().map(|s| s.exp()).sum();
            sum.ln() - sims[row]
        };
        let expected = rows.iter().enumerate().map(cost).sum::<f64>() / COLUMNS as f64;
        let index = Targets::Index(Tensor::arange(COLUMNS, (Kind::Int64, Device::Cpu)));
        close(&loss(&sims, &index, 0.0).unwrap(), &[expected]);
        let mask = Targets::SameImage(index.mask(COLUMNS).unwrap());
        close(&loss(&sims, &mask, 0.0).unwrap(), &[expected]);
    }

    #[test]
    fn columns_of_one_image_share_its_target() {
        let sims = Tensor::from_slice2(&[[1.0f64, 3.0, 0.0]]);
        let mask = Tensor::from_slice2(&[[true, true, false]]);
        let logs = Vec::<f64>::try_from(sims.log_softmax(1, None).view(-1)).unwrap();
        let share = 0.45 + 0.1 / 3.0;
        let expected = -(share * (logs[0] + logs[1]) + 0.1 / 3.0 * logs[2]);
        close(
            &loss(&sims, &Targets::SameImage(mask), 0.1).unwrap(),
            &[expected],
        );
    }

    #[test]
    fn target_masks() {
        let mask = Targets::Index(Tensor::from_slice(&[2i64, 3]))
            .mask(4)
            .unwrap();
        let rows = Vec::<bool>::try_from(mask.flatten(0, -1)).unwrap();
        assert_eq!(rows, [false, false, true, false, false, false, false, true]);
    }
}
