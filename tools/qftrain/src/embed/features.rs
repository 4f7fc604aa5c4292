//! Texts as vectors.

use anyhow::bail;
use qf_model::host::text_batch;
use qf_pipeline::text::TokenRows;
use tch::Tensor;

use crate::model_source::LoadedModel;

/// Normalised projections `[N, d]` of texts, after the caption processor.
///
/// # Errors
/// A text that is empty after the processor, by its place and words; whatever stops the model.
pub(crate) fn embed_texts(loaded: &LoadedModel, texts: &[String]) -> anyhow::Result<Tensor> {
    let processor = loaded.caption_processor()?;
    let mut tokens = TokenRows::with_capacity(loaded.config.data.text_len, texts.len());
    for (number, text) in texts.iter().enumerate() {
        if processor.is_empty(text) {
            bail!(
                "text {} ({text:?}) is empty after the caption processor; give some words",
                number + 1
            );
        }
        tokens.push(&loaded.tokenizer, &processor.process(text))?;
    }
    let (ids, mask) = text_batch(&tokens, loaded.device)?;
    Ok(loaded.model.text_features(&ids, &mask)?)
}
