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
pub use recall::{Recall, RecallPair};
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
    /// [`ModelError::Torch`] when the device has no room.
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
    /// [`ModelError::Input`] when there was none, [`ModelError::Torch`] when the device has no room.
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

    /// Contrastive scores `[I, C]` f32: the greatest dot product over the queries, not divided by
    /// the temperature.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device has no room.
    pub fn contrastive_scores(&self) -> Result<Tensor, ModelError> {
        let texts = self.text_feats.f_tr()?; // [d, C]
        let images: Result<Vec<Tensor>, ModelError> = (0..self.num_images as i64)
            .map(|image| {
                let queries = self.image_feats.f_select(0, image)?; // [Q, d]
                Ok(queries.f_matmul(&texts)?.f_amax(0, false)?) // [C]
            })
            .collect();
        Ok(Tensor::f_stack(&images?, 0)?)
    }

    /// Scores after re-ranking: for each row of `scores` (`[I, C]` with `by_image`, else
    /// `[C, I]`), the `k` best candidates get matching logit + contrastive score, the others -100.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device has no room.
    pub fn rerank(
        &self,
        model: &Blip2Qformer,
        scores: &Tensor,
        by_image: bool,
        k: usize,
        on_row: &mut dyn FnMut(),
    ) -> Result<Tensor, ModelError> {
        let size = scores.size();
        let k = i64::try_from(k).unwrap_or(i64::MAX).min(size[1]);
        let ranked = scores.f_full_like(NOT_RANKED)?;
        tch::no_grad(|| {
            let (best, candidates) = scores.f_topk(k, 1, true, true)?; // [rows, k]
            let chosen = Vec::<Vec<i64>>::try_from(&candidates)?;
            for (row, chosen) in (0..size[0]).zip(&chosen) {
                let candidates = candidates.f_select(0, row)?;
                let logits = self.match_logits(model, row, &candidates, chosen, by_image)?; // [k]
                let values = logits + best.f_select(0, row)?;
                let _ = ranked
                    .f_select(0, row)?
                    .f_index_copy_(0, &candidates, &values)?;
                on_row();
            }
            Ok(ranked)
        })
    }

    /// Matching logits `[k]` of one image with `k` captions, or of one caption with `k` images;
    /// `chosen` are the numbers of `candidates` on the host.
    fn match_logits(
        &self,
        model: &Blip2Qformer,
        row: i64,
        candidates: &Tensor,
        chosen: &[i64],
        by_image: bool,
    ) -> Result<Tensor, ModelError> {
        let mut logits = Vec::new();
        let parts = candidates.f_split(PAIRS_PER_CALL, 0)?;
        for (part, chosen) in parts.iter().zip(chosen.chunks(PAIRS_PER_CALL as usize)) {
            let pair_logits = if by_image {
                let (ids, mask) = self.texts(part, chosen)?;
                let image = self.image_embeds.f_narrow(0, row, 1)?;
                model.itm_logits_of_image(&image, &ids, &mask)?
            } else {
                let (ids, mask) = self.texts(&part.f_full_like(row)?, &[row])?;
                let images = self.image_embeds.f_index_select(0, part)?;
                model.itm_logits(&images, &ids, &mask)?
            }; // [k, 2]
            logits.push(pair_logits.f_select(1, 1)?.f_to_kind(Kind::Float)?);
        }
        Ok(Tensor::f_cat(&logits, 0)?)
    }

    /// Ids and mask `[k, L]` of captions, without the columns that are padding in all of them;
    /// `numbers` are those of `index` on the host.
    fn texts(&self, index: &Tensor, numbers: &[i64]) -> Result<(Tensor, Tensor), ModelError> {
        let lengths = numbers
            .iter()
            .filter_map(|&number| self.text_lengths.get(usize::try_from(number).ok()?));
        let longest = lengths.copied().max().unwrap_or(0);
        let rows = |all: &Tensor| all.f_index_select(0, index)?.f_narrow(1, 0, longest);
        Ok((rows(&self.token_ids)?, rows(&self.attention_mask)?))
    }

    /// Recall of a score matrix pair: `[I, C]` for text retrieval, `[C, I]` for image retrieval.
    ///
    /// # Errors
    /// [`ModelError::Torch`] for matrices of other sizes.
    pub fn recall(
        &self,
        image_to_text: &Tensor,
        text_to_image: &Tensor,
    ) -> Result<RecallPair, ModelError> {
        recall::recall_pair(image_to_text, text_to_image, &self.caption_image)
    }

    /// Evaluates retrieval, re-ranking the `rerank` best candidates (0: not at all).
    ///
    /// `on_row` is called for each of the `I + C` queries that are re-ranked.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device has no room.
    pub fn evaluate(
        &self,
        model: &Blip2Qformer,
        rerank: usize,
        skipped: u64,
        on_row: &mut dyn FnMut(),
    ) -> Result<RetrievalReport, ModelError> {
        let image_to_text = self.contrastive_scores()?;
        let text_to_image = image_to_text.f_tr()?.f_contiguous()?;
        let itm = if rerank == 0 {
            None
        } else {
            let by_image = self.rerank(model, &image_to_text, true, rerank, on_row)?;
            let by_text = self.rerank(model, &text_to_image, false, rerank, on_row)?;
            Some(self.recall(&by_image, &by_text)?)
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
