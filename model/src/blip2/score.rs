//! Few images against many texts.

use tch::Tensor;

use super::Blip2Qformer;
use crate::error::{check_integers, check_shape, ModelError};
use crate::loss::itm::MatchLogits;

impl Blip2Qformer {
    /// Matching scores of N pairs over few images: `[I, M, E]` from
    /// [`encode_image`](Self::encode_image), `image_index` `[N]` i64 into them, ids and mask `[N, T]`
    /// i64. The numbers of [`itm_logits`](Self::itm_logits) on the images of the index, but keys and
    /// values of each image are computed once. No gradient.
    ///
    /// # Errors
    /// As [`itm_logits`](Self::itm_logits); [`ModelError::Torch`] for an index beyond the images.
    pub fn itm_logits_of_pairs(
        &self,
        image_embeds: &Tensor,
        image_index: &Tensor,
        token_ids: &Tensor,
        attention_mask: &Tensor,
    ) -> Result<MatchLogits, ModelError> {
        let images = self.check_image(image_embeds)?;
        let texts = self.check_text(token_ids, attention_mask)?;
        check_shape("image index", image_index, &[texts], &format!("[{texts}]"))?;
        check_integers("image index", image_index)?;
        self.refresh_copies()?;
        tch::no_grad(|| {
            let image = self.qformer.project_image(image_embeds, &self.ln_vision)?;
            let image = match images {
                // A view instead of N copies.
                1 => image.expand(texts)?,
                _ => image.select(image_index)?,
            };
            self.score_pairs(&image, token_ids, attention_mask)
        })
    }

    /// The temperature where it is computed with, a scalar.
    pub(crate) fn temperature_tensor(&self) -> &Tensor {
        &self.temp
    }

    /// The learned temperature, which training divides similarities by.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when it cannot be read from the device.
    pub fn temperature(&self) -> Result<f64, ModelError> {
        Ok(self.temp.f_detach()?.f_double_value(&[])?)
    }
}

#[cfg(test)]
mod tests {
    use qf_config::model::Precision;
    use tch::{Device, Kind};

    use super::*;
    use crate::blip2::decode::tests::opinionated;
    use crate::optim::{AdamW, AdamWConfig};

    /// Everything that inference gives, computed in `precision`.
    fn inference(precision: Precision) -> Vec<(&'static str, Tensor)> {
        let (mut model, embeds) = opinionated(20);
        model.set_precision(precision).unwrap();
        results(&model, &embeds)
    }

    fn results(model: &Blip2Qformer, embeds: &Tensor) -> Vec<(&'static str, Tensor)> {
        tch::no_grad(|| {
            let (ids, mask) = texts();
            let pairs = Tensor::from_slice(&[0i64, 2, 1]);
            let match_of = |logits: MatchLogits| logits.of_match().unwrap();
            let mut cache = model.start_decoding(embeds, 1).unwrap();
            let mut next = || {
                let token = ids.select(1, cache.length());
                model.decode_next(&token, &mut cache).unwrap()
            };
            let (first, second) = (next(), next());
            vec![
                ("image features", model.image_features(embeds).unwrap()),
                ("text features", model.text_features(&ids, &mask).unwrap()),
                (
                    "matching",
                    match_of(model.itm_logits(embeds, &ids, &mask).unwrap()),
                ),
                (
                    "matching of pairs",
                    match_of(
                        model
                            .itm_logits_of_pairs(embeds, &pairs, &ids, &mask)
                            .unwrap(),
                    ),
                ),
                ("first token", first),
                ("second token", second),
            ]
        })
    }

    /// Ids and mask of three texts of eleven tokens and fewer.
    fn texts() -> (Tensor, Tensor) {
        let ids = (Tensor::arange(33, (Kind::Int64, Device::Cpu)) * 7).remainder(18) + 1;
        let length = Tensor::from_slice(&[11i64, 5, 8]).view([3, 1]);
        let mask = Tensor::arange(11, (Kind::Int64, Device::Cpu)).lt_tensor(&length);
        let mask = mask.to_kind(Kind::Int64);
        (ids.view([3, 11]) * &mask, mask)
    }

    /// Keys and values that several texts share give what each pair alone gives: of one image, and of several.
    #[test]
    fn pairs_over_few_images_score_as_whole_pairs() {
        let (model, embeds) = opinionated(20);
        let (ids, mask) = texts();
        for (images, pairs) in [(1, [0i64, 0, 0]), (3, [0, 2, 1]), (2, [1, 1, 0])] {
            let few = embeds.narrow(0, 0, images);
            let pairs = Tensor::from_slice(&pairs);
            let whole = few.index_select(0, &pairs);
            let expected = model.itm_logits(&whole, &ids, &mask).unwrap();
            let own = model.itm_logits_of_pairs(&few, &pairs, &ids, &mask);
            let own = own.unwrap();
            assert_eq!(own.both().size(), [3, 2]);
            assert!(
                own.both().allclose(expected.both(), 1e-5, 1e-5, false),
                "{images} images"
            );
        }
    }

    /// Products are in 16 bits, results in 32, and both are near those in 32.
    #[test]
    fn inference_is_in_the_models_precision() {
        let exact = inference(Precision::F32);
        for precision in [Precision::Bf16, Precision::F16] {
            for ((what, exact), (_, own)) in exact.iter().zip(inference(precision)) {
                assert_eq!(own.kind(), Kind::Float, "{what} in {precision:?}");
                assert_eq!(own.size(), exact.size());
                let off = (&own - exact).norm().double_value(&[]);
                let off = off / exact.norm().double_value(&[]);
                let bits = match precision {
                    Precision::Bf16 => 8,
                    _ => 11,
                };
                // Rounding errors of all layers of a model with large weights.
                let most = 32.0 * 2f64.powi(-bits);
                assert!(off > 0.0, "{what} is not computed in {precision:?}");
                assert!(
                    off < most,
                    "{what} in {precision:?}: {off} off, {most} allowed"
                );
            }
        }
        // Numbers that are compared keep their steps: in bf16 those near 1 are 1/256 apart.
        let features = &inference(Precision::Bf16)[0].1;
        let rounded = features.to_kind(Kind::BFloat16).to_kind(Kind::Float);
        assert_ne!(features, &rounded);
    }

    /// Each function alone, right after the weights have moved.
    #[test]
    fn inference_in_16_bits_sees_weights_that_have_moved() {
        let moved = |precision_first: bool| {
            let (mut model, embeds) = opinionated(20);
            if precision_first {
                model.set_precision(Precision::Bf16).unwrap();
            }
            tch::no_grad(|| {
                for param in model.params().trainable() {
                    let _ = param.tensor.shallow_clone().g_mul_scalar_(1.25);
                }
            });
            if !precision_first {
                model.set_precision(Precision::Bf16).unwrap();
            }
            (model, embeds)
        };
        let (fresh, embeds) = moved(false);
        let ids = Tensor::from_slice(&[19i64, 3, 7]);
        let first_token = |model: &Blip2Qformer| {
            let mut cache = model.start_decoding(&embeds, 1).unwrap();
            model.decode_next(&ids, &mut cache).unwrap()
        };
        assert_eq!(first_token(&moved(true).0), first_token(&fresh));
        let pairs = |model: &Blip2Qformer| {
            let (ids, mask) = texts();
            let index = Tensor::from_slice(&[0i64, 1, 2]);
            let logits = model.itm_logits_of_pairs(&embeds, &index, &ids, &mask);
            logits.unwrap().of_match().unwrap()
        };
        assert_eq!(pairs(&moved(true).0), pairs(&fresh));
        let (model, _) = moved(true);
        let all = results(&model, &embeds)
            .into_iter()
            .zip(results(&fresh, &embeds));
        for ((what, own), (_, expected)) in all {
            assert_eq!(own, expected, "{what}");
        }
    }

    /// The optimiser's kernel does not count its changes as torch's other operations do.
    #[test]
    fn inference_in_16_bits_sees_the_steps_of_the_optimiser() {
        let stepped = |precision_first: bool| {
            let (mut model, embeds) = opinionated(20);
            if precision_first {
                model.set_precision(Precision::Bf16).unwrap();
            }
            let mut optimizer = AdamW::new(model.params(), &AdamWConfig::default()).unwrap();
            for _ in 0..3 {
                optimizer.zero_grad().unwrap();
                for param in model.params().trainable() {
                    param.tensor.square().sum(Kind::Float).backward();
                }
                optimizer.step(0.05).unwrap();
            }
            if !precision_first {
                model.set_precision(Precision::Bf16).unwrap();
            }
            results(&model, &embeds)
        };
        for ((what, own), (_, expected)) in stepped(true).into_iter().zip(stepped(false)) {
            assert_eq!(own, expected, "{what}");
        }
    }
}
