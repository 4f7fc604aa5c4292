//! What the queries take from an image, for those who look at a trained model.

use tch::{Kind, Tensor};

use super::Blip2Qformer;
use crate::error::ModelError;

impl Blip2Qformer {
    /// Outputs of the queries of images, before any head: `[B, M, E]` from
    /// [`Blip2Qformer::encode_image`] → `[B, Q, D]` f32, the reference's `query_output.last_hidden_state`.
    /// No gradient.
    ///
    /// # Errors
    /// [`ModelError::Shape`] or [`ModelError::Kind`] for any other input.
    pub fn query_outputs(&self, image_embeds: &Tensor) -> Result<Tensor, ModelError> {
        let batch = self.check_image(image_embeds)?;
        self.refresh_copies()?;
        tch::no_grad(|| {
            let queries = self.encode_queries(image_embeds, batch)?;
            Ok(queries.hidden.f_to_kind(Kind::Float)?)
        })
    }

    /// Normalised projections of query outputs: `[B, Q, D]` from [`Blip2Qformer::query_outputs`] →
    /// `[B, Q, d]`, those of [`Blip2Qformer::image_features`]. No gradient.
    ///
    /// # Errors
    /// [`ModelError::Torch`] for any other shape.
    pub fn project_outputs(&self, outputs: &Tensor) -> Result<Tensor, ModelError> {
        tch::no_grad(|| self.project_queries(outputs))
    }

    /// Where the queries look: the share of each of the image's rows in what a query gathers in the last
    /// layer with cross attention, the mean over its heads. `[B, M, E]` from
    /// [`Blip2Qformer::encode_image`] → `[B, Q, M]` f32, each row of which adds up to 1. No gradient.
    ///
    /// # Errors
    /// [`ModelError::Shape`] or [`ModelError::Kind`] for any other input.
    pub fn query_attention(&self, image_embeds: &Tensor) -> Result<Tensor, ModelError> {
        let batch = self.check_image(image_embeds)?;
        self.refresh_copies()?;
        tch::no_grad(|| {
            let image = self.qformer.project_image(image_embeds, &self.ln_vision)?;
            self.qformer
                .attention_to_images(&self.query_tokens, batch, &image)
        })
    }
}

#[cfg(test)]
mod tests {
    use qf_config::model::{FeaturesConfig, ModelConfig, VisionConfig};
    use tch::Device;

    use super::*;

    fn model(cross_attention_freq: i64) -> Blip2Qformer {
        let mut config = ModelConfig::tiny();
        config.vision = VisionConfig::Features(FeaturesConfig { width: 24 });
        let sizes = &mut config.qformer;
        (sizes.encoder_width, sizes.hidden, sizes.intermediate) = (24, 32, 64);
        (sizes.vocab_size, sizes.dec_token_id, sizes.init_std) = (40, 39, 0.3);
        sizes.cross_attention_freq = cross_attention_freq;
        Blip2Qformer::new(&config, Device::Cpu, 5).unwrap()
    }

    #[test]
    fn shares_add_up_and_follow_the_rows_of_the_image() {
        for freq in [1, 2] {
            let model = model(freq);
            let image = Tensor::randn([3, 7, 24], (Kind::Float, Device::Cpu));
            let weights = model.query_attention(&image).unwrap();
            let queries = model.config().qformer.num_queries;
            assert_eq!(weights.size(), [3, queries, 7]);
            let sums = weights.sum_dim_intlist([2i64].as_slice(), false, None);
            assert!(
                sums.allclose(&sums.ones_like(), 1e-5, 1e-5, false),
                "{sums}"
            );
            assert!(weights.min().double_value(&[]) >= 0.0);
            // Rows in another order are looked at in that order: attention knows no positions.
            let order = Tensor::from_slice(&[3i64, 0, 6, 1, 5, 2, 4]);
            let moved = model
                .query_attention(&image.index_select(1, &order))
                .unwrap();
            let expected = weights.index_select(2, &order);
            assert!(moved.allclose(&expected, 1e-4, 1e-6, false));
            // Equal rows get equal shares, and all together everything.
            let same = image.narrow(1, 0, 1).repeat([1, 7, 1]);
            let shares = model.query_attention(&same).unwrap();
            assert!(shares.allclose(&shares.full_like(1.0 / 7.0), 1e-4, 1e-6, false));
        }
    }

    #[test]
    fn outputs_are_those_that_are_projected() {
        let model = model(2);
        let image = Tensor::randn([2, 5, 24], (Kind::Float, Device::Cpu));
        let outputs = model.query_outputs(&image).unwrap();
        let queries = model.config().qformer.num_queries;
        assert_eq!(outputs.size(), [2, queries, 32]);
        let projected = model.project_outputs(&outputs).unwrap();
        let expected = model.image_features(&image).unwrap();
        assert!(projected.allclose(&expected, 1e-6, 1e-7, false));
    }
}
