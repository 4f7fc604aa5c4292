//! Image-text retrieval on held-out pairs: contrastive scores, and their re-ranking by matching.
//!
//! The protocol is that of the reference (`compute_sim_matrix` of LAVIS's BLIP-2 retrieval): every
//! caption is a candidate for every image and the other way round; the contrastive score is the
//! greatest of the query-text dot products; re-ranking adds the matching logit to the contrastive
//! score for the `k` best candidates, all others lose.

mod recall;

use qf_pipeline::Loader;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

pub use recall::{Recall, RecallPair};

use crate::blip2::Blip2Qformer;
use crate::error::ModelError;
use crate::host::upload;

/// Score that re-ranking gives to candidates outside the best `k`.
const NOT_RANKED: f64 = -100.0;

/// Pairs that the matching head scores at a time.
const PAIRS_PER_CALL: i64 = 128;

/// Features of all images and captions of a data set.
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
    /// `[C]`: the image of each caption.
    caption_image: Vec<usize>,
    num_images: usize,
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
    /// Encodes everything that `loader` delivers (configured
    /// [for evaluation](qf_pipeline::LoaderConfig::for_evaluation)).
    ///
    /// `on_batch` is told the images of each batch.
    ///
    /// # Errors
    /// Whatever stops the loader or the model, and [`ModelError::Input`] for an empty set.
    pub fn encode(
        model: &Blip2Qformer,
        loader: &mut Loader,
        on_batch: &mut dyn FnMut(usize),
    ) -> Result<FeatureBank, ModelError> {
        let device = model.params().device();
        let mut image_embeds = Vec::new();
        let mut image_feats = Vec::new();
        let mut text_feats = Vec::new();
        let mut token_ids = Vec::new();
        let mut attention_mask = Vec::new();
        let mut caption_image = Vec::new();
        let mut num_images = 0;
        while let Some(batch) = loader.next_batch()? {
            let input = upload(&batch, device)?;
            tch::no_grad(|| -> Result<(), ModelError> {
                let embeds = model.encode_image(&input.images)?;
                image_feats.push(model.image_features(&embeds)?);
                text_feats.push(model.text_features(&input.token_ids, &input.attention_mask)?);
                image_embeds.push(embeds);
                Ok(())
            })?;
            caption_image.extend(
                batch
                    .caption_image
                    .iter()
                    .map(|&image| num_images + image as usize),
            );
            num_images += batch.batch_size;
            token_ids.push(input.token_ids);
            attention_mask.push(input.attention_mask);
            on_batch(batch.batch_size);
        }
        if num_images == 0 {
            return Err(ModelError::Input {
                what: "evaluation shards",
                message: "they hold no usable sample".into(),
            });
        }
        let cat = |parts: &[Tensor]| Tensor::f_cat(parts, 0);
        Ok(FeatureBank {
            image_embeds: cat(&image_embeds)?,
            image_feats: cat(&image_feats)?,
            text_feats: cat(&text_feats)?,
            token_ids: cat(&token_ids)?,
            attention_mask: cat(&attention_mask)?,
            caption_image,
            num_images,
        })
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
            for row in 0..size[0] {
                let (best, candidates) = scores.f_select(0, row)?.f_topk(k, 0, true, true)?;
                let logits = self.match_logits(model, row, &candidates, by_image)?; // [k]
                let _ = ranked
                    .f_select(0, row)?
                    .f_index_copy_(0, &candidates, &(logits + best))?;
                on_row();
            }
            Ok(ranked)
        })
    }

    /// Matching logits `[k]` of one image with `k` captions, or of one caption with `k` images.
    fn match_logits(
        &self,
        model: &Blip2Qformer,
        row: i64,
        candidates: &Tensor,
        by_image: bool,
    ) -> Result<Tensor, ModelError> {
        let mut logits = Vec::new();
        for part in candidates.f_split(PAIRS_PER_CALL, 0)? {
            let same = part.f_full_like(row)?;
            let (images, texts) = if by_image {
                (&same, &part)
            } else {
                (&part, &same)
            };
            let pair_logits = model.itm_logits(
                &self.image_embeds.f_index_select(0, images)?,
                &self.token_ids.f_index_select(0, texts)?,
                &self.attention_mask.f_index_select(0, texts)?,
            )?; // [k, 2]
            logits.push(pair_logits.f_select(1, 1)?.f_to_kind(Kind::Float)?);
        }
        Ok(Tensor::f_cat(&logits, 0)?)
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
