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
        self.refresh_copies()?;
        tch::no_grad(|| {
            let queries = self.encode_queries(image_embeds, batch)?;
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
        self.refresh_copies()?;
        tch::no_grad(|| {
            let ids = token_ids.f_unsqueeze(1)?; // [R, 1]
            let hidden = self
                .qformer
                .decode_next(&ids, cache.length, &mut cache.layers)?; // [R, 1, D]
            cache.length += 1;
            self.qformer.predict_tokens(&hidden.f_select(1, 0)?) // [R, V]
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use qf_config::model::{FeaturesConfig, ModelConfig, VisionConfig};
    use tch::{Device, Kind};

    use super::*;

    /// A model of random numbers wide enough to have opinions, and features `[3, 5, 24]`.
    pub(crate) fn opinionated(vocab_size: i64) -> (Blip2Qformer, Tensor) {
        let mut config = ModelConfig::tiny();
        config.vision = VisionConfig::Features(FeaturesConfig { width: 24 });
        let sizes = &mut config.qformer;
        (sizes.encoder_width, sizes.vocab_size) = (24, vocab_size);
        (sizes.hidden, sizes.intermediate, sizes.init_std) = (32, 64, 0.3);
        (sizes.dec_token_id, sizes.max_positions) = (vocab_size - 1, 12);
        let model = Blip2Qformer::new(&config, Device::Cpu, 5).unwrap();
        let values: Vec<f32> = (0..3 * 5 * 24)
            .map(|at: i32| ((at * 37 % 101) as f32 - 50.0) / 25.0)
            .collect();
        let features = Tensor::from_slice(&values).view([3, 5, 24]);
        let embeds = model.encode_image(&features).unwrap().detach();
        (model, embeds)
    }

    /// Scores of the token after each text, `[B, V]`, with everything computed anew: texts `[B, T]`.
    pub(crate) fn recomputed(model: &Blip2Qformer, embeds: &Tensor, texts: &Tensor) -> Tensor {
        tch::no_grad(|| {
            let queries = model.encode_queries(embeds, embeds.size()[0]).unwrap();
            let mask = texts.ones_like();
            let hidden = model
                .qformer
                .decode_text(texts, &mask, &queries.cache, false)
                .unwrap();
            model
                .lm_logits(&hidden)
                .unwrap()
                .select(1, texts.size()[1] - 1)
        })
    }

    #[test]
    fn kept_keys_and_values_give_the_scores_of_a_full_pass() {
        let (model, embeds) = opinionated(20);
        let texts = Tensor::from_slice2(&[[19i64, 3, 7, 7], [19, 11, 0, 2], [19, 5, 5, 18]]);
        for copies in [1, 2] {
            let repeat = |t: &Tensor| t.repeat_interleave_self_int(copies, 0, None);
            let mut cache = model.start_decoding(&embeds, copies).unwrap();
            for length in 1..=4 {
                let next = repeat(&texts.select(1, length - 1));
                let scores = model.decode_next(&next, &mut cache).unwrap();
                let expected = recomputed(&model, &embeds, &texts.narrow(1, 0, length));
                assert!(scores.allclose(&repeat(&expected), 1e-5, 1e-5, false));
                assert_eq!((cache.rows(), cache.length()), (3 * copies, length));
            }
        }
        // Rows in another order, one of them twice.
        let mut cache = model.start_decoding(&embeds, 1).unwrap();
        let _ = model.decode_next(&texts.select(1, 0), &mut cache).unwrap();
        let order = Tensor::from_slice(&[2i64, 0, 2, 1]);
        cache.select(&order).unwrap();
        let next = texts.select(1, 1).index_select(0, &order);
        let scores = model.decode_next(&next, &mut cache).unwrap();
        let expected = recomputed(&model, &embeds, &texts.narrow(1, 0, 2));
        assert!(scores.allclose(&expected.index_select(0, &order), 1e-5, 1e-5, false));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let (model, embeds) = opinionated(20);
        let mut cache = model.start_decoding(&embeds, 1).unwrap();
        let ids = Tensor::from_slice(&[19i64, 19]);
        assert!(model.decode_next(&ids, &mut cache).is_err());
        let floats = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        assert!(model.decode_next(&floats, &mut cache).is_err());
        let beyond = Tensor::from_slice(&[20i64, 0, 0]);
        assert!(model.decode_next(&beyond, &mut cache).is_err());
        let ids = Tensor::from_slice(&[19i64, 19, 19]);
        for _ in 0..12 {
            let _ = model.decode_next(&ids, &mut cache).unwrap();
        }
        let message = model.decode_next(&ids, &mut cache).unwrap_err().to_string();
        assert!(message.contains("12 tokens"), "{message}");
        assert!(model.start_decoding(&ids, 1).is_err());
    }
}
