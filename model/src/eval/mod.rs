//! Image-text retrieval on held-out pairs: contrastive scores, and their re-ranking by matching.
//!
//! The protocol is that of the reference (`compute_sim_matrix` of LAVIS's BLIP-2 retrieval): every
//! caption is a candidate for every image and the other way round; the contrastive score is the
//! greatest of the query-text dot products; re-ranking adds the matching logit to the contrastive
//! score for the `k` best candidates, all others lose.

mod annotations;
mod recall;
mod source;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

pub use annotations::{read_annotations, Annotation, AnnotationSource};
pub use recall::{ImageToText, Recall, RecallPair, TextToImage};
pub use source::{EvalBatch, EvalSource};

use crate::blip2::Blip2Qformer;
use crate::error::ModelError;
use crate::host::DeviceBatch;

/// Score that re-ranking gives to candidates outside the best `k`.
const NOT_RANKED: f64 = -100.0;

/// Pairs that the matching head scores at a time.
const PAIRS_PER_CALL: i64 = 128;

/// Features of all images and captions of a data set, on the model's device.
#[derive(Debug)]
pub struct FeatureBank {
    /// `[I, M, E]`: what cross attention reads.
    image_embeds: Tensor,
    /// `[I, Q, d]`, normalised.
    image_feats: Tensor,
    /// `[C, d]`, normalised.
    text_feats: Tensor,
    /// `[C, T]` i64.
    token_ids: Tensor,
    /// `[C, T]` i64.
    attention_mask: Tensor,
    /// `[C]`: tokens of each caption, padding not counted.
    text_lengths: Vec<i64>,
    /// `[C]`: the image of each caption.
    caption_image: Vec<usize>,
    num_images: usize,
}

/// Gathers a [`FeatureBank`] batch by batch.
#[derive(Debug, Default)]
pub struct FeatureBankBuilder {
    image_embeds: Vec<Tensor>,
    image_feats: Vec<Tensor>,
    text_feats: Vec<Tensor>,
    token_ids: Vec<Tensor>,
    attention_mask: Vec<Tensor>,
    caption_image: Vec<usize>,
    num_images: usize,
}

impl FeatureBankBuilder {
    /// Encodes the images `[B, 3, S, S]` and captions `[N, T]` of a batch; `caption_image` `[N]` says
    /// which of its images each caption belongs to. Returns the image features `[B, M, E]`.
    ///
    /// # Errors
    /// [`ModelError::Shape`] for tensors that do not fit the model or each other,
    /// [`ModelError::Torch`] when the device is out of memory.
    pub fn add(
        &mut self,
        model: &Blip2Qformer,
        input: &DeviceBatch,
        caption_image: &[u32],
    ) -> Result<Tensor, ModelError> {
        let batch = input.images.size().first().map_or(0, |&size| size as usize);
        let captions = input
            .token_ids
            .size()
            .first()
            .map_or(0, |&size| size as usize);
        let fits = caption_image.iter().all(|&image| (image as usize) < batch);
        if captions != caption_image.len() || !fits {
            return Err(ModelError::Input {
                what: "captions of a batch",
                message: format!(
                    "{captions} rows, {} of them assigned to {batch} images",
                    caption_image.len()
                ),
            });
        }
        tch::no_grad(|| {
            let embeds = model.encode_image(&input.images)?;
            self.image_feats.push(model.image_features(&embeds)?);
            let (ids, mask) = (&input.token_ids, &input.attention_mask);
            self.text_feats.push(model.text_features(ids, mask)?);
            self.image_embeds.push(embeds.shallow_clone());
            self.token_ids.push(ids.shallow_clone());
            self.attention_mask.push(mask.shallow_clone());
            let first = self.num_images;
            let images = caption_image.iter().map(|&image| first + image as usize);
            self.caption_image.extend(images);
            self.num_images += batch;
            Ok(embeds)
        })
    }

    /// The bank of all batches.
    ///
    /// # Errors
    /// [`ModelError::Input`] when there was none, [`ModelError::Torch`] when the device is out of memory.
    pub fn finish(self) -> Result<FeatureBank, ModelError> {
        if self.num_images == 0 {
            return Err(ModelError::Input {
                what: "evaluation data",
                message: "it holds no usable sample".into(),
            });
        }
        let cat = |parts: &[Tensor]| Tensor::f_cat(parts, 0);
        let attention_mask = cat(&self.attention_mask)?;
        let lengths = attention_mask.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)?;
        Ok(FeatureBank {
            image_embeds: cat(&self.image_embeds)?,
            image_feats: cat(&self.image_feats)?,
            text_feats: cat(&self.text_feats)?,
            token_ids: cat(&self.token_ids)?,
            attention_mask,
            text_lengths: Vec::try_from(lengths)?,
            caption_image: self.caption_image,
            num_images: self.num_images,
        })
    }
}

/// What `qftrain eval` reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RetrievalReport {
    /// Images of the set.
    pub images: usize,
    /// Captions of the set.
    pub captions: usize,
    /// Samples that could not be used.
    pub skipped: u64,
    /// Candidates that were re-ranked per query; 0 without re-ranking.
    pub rerank: usize,
    /// By contrastive score.
    pub itc: RecallPair,
    /// After re-ranking by the matching head.
    pub itm: Option<RecallPair>,
    /// What random ranking reaches, on average.
    pub chance: RecallPair,
}

impl FeatureBank {
    /// Encodes everything that `source` delivers.
    ///
    /// `on_batch` is told the images of each batch.
    ///
    /// # Errors
    /// Whatever stops the source or the model, and [`ModelError::Input`] for an empty set.
    pub fn encode(
        model: &Blip2Qformer,
        source: &mut dyn EvalSource,
        on_batch: &mut dyn FnMut(usize),
    ) -> Result<FeatureBank, ModelError> {
        let device = model.params().device();
        let mut builder = FeatureBankBuilder::default();
        while let Some(batch) = source.next_batch(device)? {
            let before = builder.num_images;
            let _ = builder.add(model, &batch.input, &batch.caption_image)?;
            on_batch(builder.num_images - before);
        }
        builder.finish()
    }

    /// Number of images.
    pub fn num_images(&self) -> usize {
        self.num_images
    }

    /// Number of captions.
    pub fn num_captions(&self) -> usize {
        self.caption_image.len()
    }

    /// Contrastive scores, f32: the greatest dot product over the queries, not divided by the
    /// temperature.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device is out of memory.
    pub fn contrastive_scores(&self) -> Result<ImageToText, ModelError> {
        let texts = self.text_feats.f_tr()?; // [d, C]
        let images: Result<Vec<Tensor>, ModelError> = (0..self.num_images as i64)
            .map(|image| {
                let queries = self.image_feats.f_select(0, image)?; // [Q, d]
                Ok(queries.f_matmul(&texts)?.f_amax(0, false)?) // [C]
            })
            .collect();
        Ok(ImageToText(Tensor::f_stack(&images?, 0)?))
    }

    /// Scores after re-ranking: for each image, the `k` best captions get matching logit +
    /// contrastive score, the others -100.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device is out of memory.
    pub fn rerank_texts(
        &self,
        model: &Blip2Qformer,
        scores: &ImageToText,
        k: usize,
        on_row: &mut dyn FnMut() -> Result<(), ModelError>,
    ) -> Result<ImageToText, ModelError> {
        let ranked = self.rerank(model, &scores.0, true, k, on_row)?;
        Ok(ImageToText(ranked))
    }

    /// Scores after re-ranking: for each caption, the `k` best images get matching logit +
    /// contrastive score, the others -100.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device is out of memory.
    pub fn rerank_images(
        &self,
        model: &Blip2Qformer,
        scores: &TextToImage,
        k: usize,
        on_row: &mut dyn FnMut() -> Result<(), ModelError>,
    ) -> Result<TextToImage, ModelError> {
        let ranked = self.rerank(model, &scores.0, false, k, on_row)?;
        Ok(TextToImage(ranked))
    }

    /// The rows of `scores` are images with `by_image`, else captions.
    fn rerank(
        &self,
        model: &Blip2Qformer,
        scores: &Tensor,
        by_image: bool,
        k: usize,
        on_row: &mut dyn FnMut() -> Result<(), ModelError>,
    ) -> Result<Tensor, ModelError> {
        let size = scores.size();
        let k = i64::try_from(k).unwrap_or(i64::MAX).min(size[1]);
        let ranked = scores.f_full_like(NOT_RANKED)?;
        if k == 0 {
            return Ok(ranked);
        }
        tch::no_grad(|| {
            let (best, candidates) = scores.f_topk(k, 1, true, true)?; // [rows, k]
            let chosen = Vec::<Vec<i64>>::try_from(&candidates)?;
            let rows_per_call = (PAIRS_PER_CALL / k).max(1);
            let mut first = 0;
            for chosen in chosen.chunks(rows_per_call as usize) {
                let rows = chosen.len() as i64;
                let candidates = candidates.f_narrow(0, first, rows)?; // [rows, k]
                let logits = self.match_logits(model, first, &candidates, chosen, by_image)?;
                let values = logits + best.f_narrow(0, first, rows)?;
                let _ = ranked
                    .f_narrow(0, first, rows)?
                    .f_scatter_(1, &candidates, &values)?;
                chosen.iter().try_for_each(|_| on_row())?;
                first += rows;
            }
            Ok(ranked)
        })
    }

    /// Matching logits of `candidates` `[rows, k]` for the images (or captions) from `first` on;
    /// `chosen` are the numbers of `candidates` on the host.
    fn match_logits(
        &self,
        model: &Blip2Qformer,
        first: i64,
        candidates: &Tensor,
        chosen: &[Vec<i64>],
        by_image: bool,
    ) -> Result<Tensor, ModelError> {
        let size = candidates.size();
        let (rows, k) = (size[0], size[1]);
        let queries = Tensor::f_arange(rows, (Kind::Int64, candidates.device()))?
            .f_repeat_interleave_self_int(k, 0, None)?; // [rows · k]
        let candidates = candidates.f_reshape(-1)?; // [rows · k]
        let own: Vec<i64> = (first..first + rows).collect();
        let chosen = chosen.concat();
        let images = match by_image {
            true => self.image_embeds.f_narrow(0, first, rows)?,
            false => self.image_embeds.shallow_clone(),
        };
        let mut logits = Vec::new();
        let parts = queries.f_split(PAIRS_PER_CALL, 0)?;
        let candidates = candidates.f_split(PAIRS_PER_CALL, 0)?;
        let chosen = chosen.chunks(PAIRS_PER_CALL as usize);
        for ((query, candidate), chosen) in parts.iter().zip(&candidates).zip(chosen) {
            let pair_logits = if by_image {
                let (ids, mask) = self.texts(candidate, chosen)?;
                model.itm_logits_of_pairs(&images, query, &ids, &mask)?
            } else {
                let (ids, mask) = self.texts(&query.f_add_scalar(first)?, &own)?;
                let images = images.f_index_select(0, candidate)?;
                model.itm_logits(&images, &ids, &mask)?
            };
            logits.push(pair_logits.of_match()?.f_to_kind(Kind::Float)?);
        }
        Ok(Tensor::f_cat(&logits, 0)?.f_view([rows, k])?)
    }

    /// Ids and mask `[N, L]` of captions, without the columns that are padding in all of them;
    /// `numbers` are those of `index` on the host.
    fn texts(&self, index: &Tensor, numbers: &[i64]) -> Result<(Tensor, Tensor), ModelError> {
        let lengths = numbers
            .iter()
            .filter_map(|&number| self.text_lengths.get(usize::try_from(number).ok()?));
        let longest = lengths.copied().max().unwrap_or(0);
        let rows = |all: &Tensor| all.f_index_select(0, index)?.f_narrow(1, 0, longest);
        Ok((rows(&self.token_ids)?, rows(&self.attention_mask)?))
    }

    /// Recall of text retrieval and of image retrieval.
    ///
    /// # Errors
    /// [`ModelError::Torch`] for matrices of other sizes.
    pub fn recall(
        &self,
        image_to_text: &ImageToText,
        text_to_image: &TextToImage,
    ) -> Result<RecallPair, ModelError> {
        recall::recall_pair(image_to_text, text_to_image, &self.caption_image)
    }

    /// Evaluates retrieval, re-ranking the `rerank` best candidates (0: not at all).
    ///
    /// `on_row` is called for each of the `I + C` queries that are re-ranked; its error ends the
    /// evaluation.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device is out of memory.
    pub fn evaluate(
        &self,
        model: &Blip2Qformer,
        rerank: usize,
        skipped: u64,
        on_row: &mut dyn FnMut() -> Result<(), ModelError>,
    ) -> Result<RetrievalReport, ModelError> {
        let image_to_text = self.contrastive_scores()?;
        let text_to_image = image_to_text.transposed()?;
        let itm = if rerank == 0 {
            None
        } else {
            let texts = self.rerank_texts(model, &image_to_text, rerank, on_row)?;
            let images = self.rerank_images(model, &text_to_image, rerank, on_row)?;
            Some(self.recall(&texts, &images)?)
        };
        Ok(RetrievalReport {
            images: self.num_images,
            captions: self.num_captions(),
            skipped,
            rerank,
            itc: self.recall(&image_to_text, &text_to_image)?,
            itm,
            chance: recall::chance(&self.caption_image, self.num_images),
        })
    }
}

#[cfg(test)]
mod tests {
    use qf_config::model::{FeaturesConfig, ModelConfig, VisionConfig};
    use tch::Device;

    use super::*;

    const TEXT_LEN: usize = 7;
    /// The image of each caption.
    const CAPTION_IMAGE: [usize; 11] = [0, 0, 0, 1, 2, 2, 3, 3, 3, 4, 4];

    fn model() -> Blip2Qformer {
        let mut config = ModelConfig::tiny();
        config.vision = VisionConfig::Features(FeaturesConfig { width: 24 });
        let sizes = &mut config.qformer;
        (sizes.encoder_width, sizes.hidden, sizes.intermediate) = (24, 32, 64);
        (sizes.vocab_size, sizes.dec_token_id, sizes.init_std) = (40, 39, 0.2);
        Blip2Qformer::new(&config, Device::Cpu, 11).unwrap()
    }

    /// Five images `[5, 6, 24]` and eleven captions of two to seven tokens.
    fn data() -> (Tensor, Vec<Vec<i64>>) {
        let values: Vec<f32> = (0..5 * 6 * 24)
            .map(|at: i32| ((at * at * 31 % 97) as f32 - 48.0) / 24.0)
            .collect();
        let texts = (0..11usize).map(|text| {
            let length = 2 + text * 5 % 6;
            (0..length)
                .map(|at| ((text * 7 + at * at * 3) % 36 + 2) as i64)
                .collect()
        });
        (
            Tensor::from_slice(&values).view([5, 6, 24]),
            texts.collect(),
        )
    }

    /// The rows of a batch, padded.
    fn padded(texts: &[Vec<i64>]) -> (Tensor, Tensor) {
        let rows = |value: &dyn Fn(&Vec<i64>, usize) -> i64| {
            let flat: Vec<i64> = texts
                .iter()
                .flat_map(|text| (0..TEXT_LEN).map(move |at| value(text, at)))
                .collect();
            Tensor::from_slice(&flat).view([-1, TEXT_LEN as i64])
        };
        (
            rows(&|text, at| text.get(at).copied().unwrap_or(0)),
            rows(&|text, at| i64::from(at < text.len())),
        )
    }

    fn bank(model: &Blip2Qformer) -> FeatureBank {
        let (images, texts) = data();
        let mut builder = FeatureBankBuilder::default();
        for images_of_batch in [0..2usize, 2..5] {
            let first = images_of_batch.start;
            let rows: Vec<usize> = (0..11)
                .filter(|&row| images_of_batch.contains(&CAPTION_IMAGE[row]))
                .collect();
            let of_batch: Vec<Vec<i64>> = rows.iter().map(|&row| texts[row].clone()).collect();
            let (token_ids, attention_mask) = padded(&of_batch);
            let input = DeviceBatch {
                images: images.narrow(0, first as i64, images_of_batch.len() as i64),
                token_ids,
                attention_mask,
                image_ids: None,
            };
            let caption_image: Vec<u32> = rows
                .iter()
                .map(|&row| (CAPTION_IMAGE[row] - first) as u32)
                .collect();
            let embeds = builder.add(model, &input, &caption_image).unwrap();
            assert_eq!(embeds.size()[0], images_of_batch.len() as i64);
        }
        builder.finish().unwrap()
    }

    /// The protocol once more, one pair at a time, by its definition.
    struct ByHand {
        itc: Vec<Vec<f64>>, // [I][C]
        itm: Vec<Vec<f64>>, // [I][C]
    }

    fn by_hand(model: &Blip2Qformer) -> ByHand {
        let (images, texts) = data();
        let number = |tensor: Tensor| tensor.double_value(&[]);
        let mut by_hand = ByHand {
            itc: vec![vec![0.0; 11]; 5],
            itm: vec![vec![0.0; 11]; 5],
        };
        for image in 0..5 {
            let embeds = model.encode_image(&images.narrow(0, image, 1)).unwrap();
            let queries = model.image_features(&embeds).unwrap().squeeze_dim(0); // [Q, d]
            for (row, text) in texts.iter().enumerate() {
                // Padding and batch play no part.
                let ids = Tensor::from_slice(text).unsqueeze(0);
                let mask = ids.ones_like();
                let text = model.text_features(&ids, &mask).unwrap().squeeze_dim(0); // [d]
                by_hand.itc[image as usize][row] = number(queries.matmul(&text).max());
                let logits = model.itm_logits(&embeds, &ids, &mask).unwrap();
                by_hand.itm[image as usize][row] = number(logits.both().get(0).get(1));
            }
        }
        by_hand
    }

    /// Positions of a query's candidates, the best first, after re-ranking the best `k`.
    fn ranking(itc: &[f64], itm: &[f64], k: usize) -> Vec<usize> {
        let sorted = |score: &dyn Fn(usize) -> f64| {
            let mut order: Vec<usize> = (0..itc.len()).collect();
            order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
            order
        };
        let best = sorted(&|candidate| itc[candidate]);
        let kept = &best[..k.min(best.len())];
        sorted(&|candidate| match kept.contains(&candidate) {
            true => itc[candidate] + itm[candidate],
            false => -100.0,
        })
    }

    fn recall(hits: &[Option<usize>]) -> Recall {
        let within = |depth: usize| {
            let found = hits.iter().filter(|hit| hit.is_some_and(|hit| hit < depth));
            100.0 * found.count() as f64 / hits.len() as f64
        };
        Recall {
            r1: within(1),
            r5: within(5),
            r10: within(10),
        }
    }

    #[test]
    fn evaluation_is_the_protocol_computed_pair_by_pair() {
        let model = model();
        let bank = bank(&model);
        assert_eq!((bank.num_images(), bank.num_captions()), (5, 11));
        let by_hand = by_hand(&model);
        let scores = bank.contrastive_scores().unwrap();
        for image in 0..5 {
            for caption in 0..11 {
                let got = scores.0.double_value(&[image, caption]);
                let expected = by_hand.itc[image as usize][caption as usize];
                assert!((got - expected).abs() < 1e-5, "{image} {caption}");
            }
        }
        let column = |matrix: &[Vec<f64>], caption: usize| -> Vec<f64> {
            matrix.iter().map(|row| row[caption]).collect()
        };
        let mut figures = Vec::new();
        for k in [1, 2, 4, 11, usize::MAX] {
            let report = bank.evaluate(&model, k, 0, &mut || Ok(())).unwrap();
            // A right one beyond the best k was not ranked at all, and is no hit.
            let hit = |order: Vec<usize>, is_right: &dyn Fn(usize) -> bool| {
                let ranked = &order[..k.min(order.len())];
                ranked.iter().position(|&candidate| is_right(candidate))
            };
            let texts: Vec<_> = (0..5)
                .map(|image| {
                    let order = ranking(&by_hand.itc[image], &by_hand.itm[image], k);
                    hit(order, &|caption| CAPTION_IMAGE[caption] == image)
                })
                .collect();
            let images: Vec<_> = (0..11)
                .map(|caption| {
                    let itc = column(&by_hand.itc, caption);
                    let order = ranking(&itc, &column(&by_hand.itm, caption), k);
                    hit(order, &|image| CAPTION_IMAGE[caption] == image)
                })
                .collect();
            let itm = report.itm.unwrap();
            assert_eq!(
                (itm.text.r1, itm.image.r1),
                (recall(&texts).r1, recall(&images).r1)
            );
            if k >= 11 {
                assert_eq!((itm.text, itm.image), (recall(&texts), recall(&images)));
            }
            figures.push(itm.image.r1);
        }
        // Re-ranking does something on these numbers.
        assert!(
            figures.iter().any(|&figure| figure != figures[0]),
            "{figures:?}"
        );
    }

    #[test]
    fn re_ranked_scores_are_logit_plus_cosine() {
        let model = model();
        let bank = bank(&model);
        let by_hand = by_hand(&model);
        let scores = bank.contrastive_scores().unwrap();
        let texts = bank
            .rerank_texts(&model, &scores, 3, &mut || Ok(()))
            .unwrap();
        let images = bank
            .rerank_images(&model, &scores.transposed().unwrap(), 2, &mut || Ok(()))
            .unwrap();
        for (matrix, by_image, k) in [(texts.0, true, 3), (images.0, false, 2)] {
            let size = matrix.size();
            for row in 0..size[0] {
                let mut kept = 0;
                for candidate in 0..size[1] {
                    let (image, caption) = match by_image {
                        true => (row as usize, candidate as usize),
                        false => (candidate as usize, row as usize),
                    };
                    let got = matrix.double_value(&[row, candidate]);
                    if got == NOT_RANKED {
                        continue;
                    }
                    kept += 1;
                    let expected = by_hand.itc[image][caption] + by_hand.itm[image][caption];
                    assert!((got - expected).abs() < 1e-4, "{got} {expected}");
                }
                assert_eq!(kept, k);
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let model = model();
        let (images, texts) = data();
        let (token_ids, attention_mask) = padded(&texts);
        let input = DeviceBatch {
            images,
            token_ids,
            attention_mask,
            image_ids: None,
        };
        for caption_image in [&[0u32; 10][..], &[5; 11]] {
            let mut builder = FeatureBankBuilder::default();
            assert!(builder.add(&model, &input, caption_image).is_err());
        }
        assert!(FeatureBankBuilder::default().finish().is_err());
    }
}
