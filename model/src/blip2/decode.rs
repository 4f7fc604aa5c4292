//! Text generation one token at a time.

use tch::Tensor;

use super::Blip2Qformer;
use crate::error::{check_integers, check_shape, ModelError};
use crate::qformer::KeyValue;

/// What a text under way has behind it: keys and values of every layer's self-attention, for the
/// queries that saw the image and for the tokens so far.
#[derive(Debug)]
pub struct DecodeCache {
    layers: Vec<KeyValue>, // each [R, heads, Q + length, d]
    rows: i64,
    length: i64,
}

impl DecodeCache {
    /// Number of texts (R).
    pub fn rows(&self) -> i64 {
        self.rows
    }

    /// Tokens of each text so far.
    pub fn length(&self) -> i64 {
        self.length
    }

    /// The texts of `index`, `[N]` i64, in its order: what beam search keeps.
    ///
    /// # Errors
    /// [`ModelError::Torch`] for an index beyond the rows.
    pub fn select(&mut self, index: &Tensor) -> Result<(), ModelError> {
        for layer in &mut self.layers {
            *layer = layer.select(index)?;
        }
        self.rows = index.size().first().copied().unwrap_or(0);
        Ok(())
    }
}

impl Blip2Qformer {
    /// The start of `copies` texts for each image: `[B, M, E]` from
    /// [`encode_image`](Self::encode_image) → a cache of B · `copies` rows, those of an image one
    /// after the other. The image is looked at here and never again. No gradient.
    ///
    /// # Errors
    /// [`ModelError::Shape`] or [`ModelError::Kind`] for any other input.
    pub fn start_decoding(
        &self,
        image_embeds: &Tensor,
        copies: i64,
    ) -> Result<DecodeCache, ModelError> {
        let batch = self.check_image(image_embeds)?;
        tch::no_grad(|| {
            let image = self.qformer.project_image(image_embeds);
            let queries = self
                .qformer
                .encode_image(&self.query_tokens, batch, &image, false);
            let repeat = |tensor: &Tensor| tensor.f_repeat_interleave_self_int(copies, 0, None);
            let layers = queries.cache.iter().map(|layer| {
                Ok(KeyValue {
                    key: repeat(&layer.key)?,
                    value: repeat(&layer.value)?,
                })
            });
            Ok(DecodeCache {
                layers: layers.collect::<Result<_, ModelError>>()?,
                rows: batch * copies,
                length: 0,
            })
        })
    }

    /// Puts one token behind each text: ids `[R]` i64 → scores of the token after it `[R, V]`. No
    /// gradient.
    ///
    /// # Errors
    /// [`ModelError::Shape`] or [`ModelError::Kind`] for ids that do not fit the cache,
    /// [`ModelError::Input`] when a text has as many tokens as the model has positions,
    /// [`ModelError::Torch`] for ids beyond the vocabulary.
    pub fn decode_next(
        &self,
        token_ids: &Tensor,
        cache: &mut DecodeCache,
    ) -> Result<Tensor, ModelError> {
        let names = format!("[{}]", cache.rows);
        check_shape("next tokens", token_ids, &[cache.rows], &names)?;
        check_integers("next tokens", token_ids)?;
        let positions = self.config.qformer.max_positions;
        if cache.length >= positions {
            return Err(ModelError::Input {
                what: "text under way",
                message: format!("it has {positions} tokens, the most that the model takes"),
            });
        }
        tch::no_grad(|| {
            let ids = token_ids.f_unsqueeze(1)?; // [R, 1]
            let hidden = self
                .qformer
                .decode_next(&ids, cache.length, &mut cache.layers)?; // [R, 1, D]
            cache.length += 1;
            Ok(self.qformer.predict_tokens(&hidden.f_select(1, 0)?)) // [R, V]
        })
    }
}
