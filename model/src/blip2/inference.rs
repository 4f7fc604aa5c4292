//! Features and scores, without a gradient.

use tch::Tensor;

use super::check::check_same_batch;
use super::Blip2Qformer;
use crate::error::{check_floats, check_shape, ModelError};
use crate::loss::itm::MatchLogits;
use crate::qformer::{EncodedImage, ImageKeyValues, Text};

impl Blip2Qformer {
    /// Normalised query projections of images: `[B, M, E]` from [`Blip2Qformer::encode_image`] →
    /// `[B, Q, d]`. No gradient.
    ///
    /// # Errors
    /// [`ModelError::Shape`] or [`ModelError::Kind`] for any other input.
    pub fn image_features(&self, image_embeds: &Tensor) -> Result<Tensor, ModelError> {
        let batch = self.check_image(image_embeds)?;
        self.refresh_copies()?;
        tch::no_grad(|| {
            let queries = self.encode_queries(image_embeds, batch)?;
            self.project_queries(&queries.hidden)
        })
    }

    /// Queries alone that look at `batch` images, without dropout.
    pub(super) fn encode_queries(
        &self,
        image_embeds: &Tensor,
        batch: i64,
    ) -> Result<EncodedImage, ModelError> {
        let image = self.qformer.project_image(image_embeds, &self.ln_vision)?;
        self.qformer
            .encode_image(&self.query_tokens, batch, &image, false)
    }

    /// Normalised projections of texts: ids and mask `[B, T]` i64 → `[B, d]`. No gradient.
    ///
    /// An image and a text are as similar as the largest product of the text's projection with one
    /// of the image's.
    ///
    /// # Errors
    /// As [`Blip2Qformer::forward_losses`].
    pub fn text_features(
        &self,
        token_ids: &Tensor,
        attention_mask: &Tensor,
    ) -> Result<Tensor, ModelError> {
        self.check_text(token_ids, attention_mask)?;
        self.refresh_copies()?;
        tch::no_grad(|| {
            let text = self.qformer.encode_text(token_ids, attention_mask, false)?;
            self.project_text(&text.f_select(1, 0)?)
        })
    }

    /// Matching scores of B pairs: `[B, M, E]` from [`Blip2Qformer::encode_image`], ids and mask
    /// `[B, T]` i64. No gradient.
    ///
    /// # Errors
    /// As [`Blip2Qformer::forward_losses`].
    pub fn itm_logits(
        &self,
        image_embeds: &Tensor,
        token_ids: &Tensor,
        attention_mask: &Tensor,
    ) -> Result<MatchLogits, ModelError> {
        let batch = self.check_image(image_embeds)?;
        let texts = self.check_text(token_ids, attention_mask)?;
        check_same_batch(batch, texts)?;
        self.refresh_copies()?;
        tch::no_grad(|| {
            let image = self.qformer.project_image(image_embeds, &self.ln_vision)?;
            self.score_pairs(&image, token_ids, attention_mask)
        })
    }

    /// Scores of the next token at every position: rows `[B, T, D]` such as
    /// [`HiddenRows::itg`](super::HiddenRows::itg) → `[B, T, V]`.
    ///
    /// # Errors
    /// [`ModelError::Shape`] or [`ModelError::Kind`] for any other input.
    pub fn lm_logits(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        let width = self.config.qformer.hidden;
        let names = format!("[B, T, {width}]");
        check_shape("decoder rows", hidden, &[-1, -1, width], &names)?;
        check_floats("decoder rows", hidden)?;
        self.refresh_copies()?;
        self.qformer.predict_tokens(hidden)
    }

    /// `[B, Q, D]` → `[B, Q, d]`, normalised.
    pub(super) fn project_queries(&self, hidden: &Tensor) -> Result<Tensor, ModelError> {
        normalize(&self.vision_proj.forward(hidden)?)
    }

    /// First rows of texts `[B, D]` → `[B, d]`, normalised.
    pub(super) fn project_text(&self, first_rows: &Tensor) -> Result<Tensor, ModelError> {
        normalize(&self.text_proj.forward(first_rows)?)
    }

    /// Matching scores of pairs, one projected image each.
    pub(super) fn score_pairs(
        &self,
        image: &ImageKeyValues,
        token_ids: &Tensor,
        attention_mask: &Tensor,
    ) -> Result<MatchLogits, ModelError> {
        let lengths = self.lengths(token_ids, attention_mask)?;
        let rows = self.text_rows(token_ids, lengths.as_deref(), 0)?;
        let text = Text {
            token_ids,
            attention_mask,
            rows: &rows,
        };
        let queries = self
            .qformer
            .encode_pairs(&self.query_tokens, text, image, false)?;
        Ok(MatchLogits::new(self.score_match(&queries)?))
    }

    /// Query rows `[R, Q, D]` → `[R, 2]`: their mean score.
    pub(super) fn score_match(&self, queries: &Tensor) -> Result<Tensor, ModelError> {
        let scores = self.itm_head.forward(queries)?;
        Ok(scores.f_mean_dim([1i64].as_slice(), false, None)?)
    }
}

/// Unit length along the last dimension; a length below 1e-12 counts as 1e-12.
fn normalize(input: &Tensor) -> Result<Tensor, ModelError> {
    const SHORTEST: f64 = 1e-12;
    let norm = input
        .f_norm_scalaropt_dim(2.0, [-1i64].as_slice(), true)?
        .f_clamp_min(SHORTEST)?;
    Ok(input.f_div(&norm)?)
}
