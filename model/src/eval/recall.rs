//! Recall at 1, 5 and 10 of score matrices.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::error::ModelError;

/// Scores of every image with every caption for text retrieval: `[I, C]`, a row for each image.
#[derive(Debug)]
pub struct ImageToText(pub(super) Tensor);

impl ImageToText {
    /// The same scores for image retrieval.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device is out of memory.
    pub fn transposed(&self) -> Result<TextToImage, ModelError> {
        Ok(TextToImage(self.0.f_tr()?.f_contiguous()?))
    }
}

/// Scores of every caption with every image for image retrieval: `[C, I]`, a row for each caption.
#[derive(Debug)]
pub struct TextToImage(pub(super) Tensor);

/// Recall at three depths, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// Queries whose best candidate is right.
    pub r1: f64,
    /// Queries with a right candidate among the best 5.
    pub r5: f64,
    /// Queries with a right candidate among the best 10.
    pub r10: f64,
}

/// Recall in both directions, in percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecallPair {
    /// Text retrieval (TR): captions of an image; any of its own counts.
    pub text: Recall,
    /// Image retrieval (IR): the image of a caption.
    pub image: Recall,
}

impl RecallPair {
    /// Mean of the six figures, in percent.
    pub fn mean(&self) -> f64 {
        let sum = |side: &Recall| side.r1 + side.r5 + side.r10;
        (sum(&self.text) + sum(&self.image)) / 6.0
    }
}

impl Recall {
    /// From the rank (0 is best) of the best right candidate of each query.
    fn from_ranks(ranks: &[usize]) -> Recall {
        let within = |depth: usize| {
            let hits = ranks.iter().filter(|&&rank| rank < depth).count();
            100.0 * hits as f64 / ranks.len().max(1) as f64
        };
        Recall {
            r1: within(1),
            r5: within(5),
            r10: within(10),
        }
    }
}

/// Recall of scores where caption `c` belongs to image `caption_image[c]`.
pub(super) fn recall_pair(
    image_to_text: &ImageToText,
    text_to_image: &TextToImage,
    caption_image: &[usize],
) -> Result<RecallPair, ModelError> {
    let text_ranks = best_ranks(&image_to_text.0, |image, caption| {
        caption_image[caption] == image
    })?;
    let image_ranks = best_ranks(&text_to_image.0, |caption, image| {
        caption_image[caption] == image
    })?;
    Ok(RecallPair {
        text: Recall::from_ranks(&text_ranks),
        image: Recall::from_ranks(&image_ranks),
    })
}

/// For each row, the rank of its best right column: the number of columns that score higher, and of
/// wrong ones that score the same. A model that scores everything equal thus gets no credit.
fn best_ranks(
    scores: &Tensor,
    is_right: impl Fn(usize, usize) -> bool,
) -> Result<Vec<usize>, ModelError> {
    let rows = scores.size()[0];
    let mut ranks = Vec::with_capacity(rows as usize);
    for row in 0..rows {
        let row_scores = scores
            .f_select(0, row)?
            .f_to_kind(Kind::Double)?
            .f_to_device(tch::Device::Cpu)?;
        let row_scores = Vec::<f64>::try_from(row_scores)?;
        let row = row as usize;
        let columns = || row_scores.iter().copied().enumerate();
        let best = columns()
            .filter(|(column, _)| is_right(row, *column))
            .map(|(_, score)| score)
            .fold(f64::NEG_INFINITY, f64::max);
        let ahead = columns().filter(|&(column, score)| {
            // Not a number compares false: it must not put its query ahead.
            (score >= best || score.is_nan()) && !is_right(row, column)
        });
        ranks.push(ahead.count());
    }
    Ok(ranks)
}

/// Expected recall of a random ranking.
pub(super) fn chance(caption_image: &[usize], num_images: usize) -> RecallPair {
    let captions = caption_image.len();
    let mut own = vec![0usize; num_images];
    for &image in caption_image {
        own[image] += 1;
    }
    let depth = |depth: usize| -> (f64, f64) {
        let text: f64 = own
            .iter()
            .map(|&own| 1.0 - all_miss(captions, own, depth))
            .sum();
        let image = depth.min(num_images) as f64 / num_images.max(1) as f64;
        (100.0 * text / num_images.max(1) as f64, 100.0 * image)
    };
    let ((t1, i1), (t5, i5), (t10, i10)) = (depth(1), depth(5), depth(10));
    RecallPair {
        text: Recall {
            r1: t1,
            r5: t5,
            r10: t10,
        },
        image: Recall {
            r1: i1,
            r5: i5,
            r10: i10,
        },
    }
}

/// Probability that `depth` draws without replacement miss all `right` of `total` candidates.
fn all_miss(total: usize, right: usize, depth: usize) -> f64 {
    (0..depth.min(total))
        .map(|drawn| {
            let wrong_left = (total - right).saturating_sub(drawn) as f64;
            wrong_left / (total - drawn) as f64
        })
        .product()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: &[&[f64]]) -> Tensor {
        let flat: Vec<f64> = rows.iter().flat_map(|row| row.iter().copied()).collect();
        Tensor::from_slice(&flat).view([rows.len() as i64, rows[0].len() as i64])
    }

    #[test]
    fn ranks_count_what_is_ahead() {
        // Captions 0 and 1 belong to image 0, caption 2 to image 1.
        let caption_image = [0, 0, 1];
        let image_to_text = matrix(&[&[0.1, 0.9, 0.5], &[0.7, 0.2, 0.6]]);
        let image_to_text = ImageToText(image_to_text);
        let text_to_image = image_to_text.transposed().unwrap();
        let pair = recall_pair(&image_to_text, &text_to_image, &caption_image).unwrap();
        assert_eq!(pair.text.r1, 50.0); // image 1 prefers caption 0
        assert_eq!(pair.text.r5, 100.0);
        // Caption 0 prefers image 1, captions 1 and 2 their own.
        assert!((pair.image.r1 - 200.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn equal_or_broken_scores_earn_nothing() {
        let caption_image: Vec<usize> = (0..20).collect();
        for value in [0.0, f64::NAN] {
            let scores = Tensor::full([20, 20], value, (Kind::Double, tch::Device::Cpu));
            let scores = ImageToText(scores);
            let transposed = scores.transposed().unwrap();
            let pair = recall_pair(&scores, &transposed, &caption_image).unwrap();
            assert_eq!(pair, RecallPair::default());
        }
    }

    #[test]
    fn chance_of_random_rankings() {
        // 10 images, 3 captions each.
        let caption_image: Vec<usize> = (0..30).map(|caption| caption / 3).collect();
        let pair = chance(&caption_image, 10);
        assert!((pair.text.r1 - 10.0).abs() < 1e-9);
        assert!((pair.image.r1 - 10.0).abs() < 1e-9);
        assert!((pair.image.r5 - 50.0).abs() < 1e-9);
        assert_eq!(pair.image.r10, 100.0);
        // 1 - C(27, 5) / C(30, 5) = 1 - (25 * 24 * 23) / (30 * 29 * 28)
        let expected = 100.0 * (1.0 - (25.0 * 24.0 * 23.0) / (30.0 * 29.0 * 28.0));
        assert!((pair.text.r5 - expected).abs() < 1e-9);
    }
}
