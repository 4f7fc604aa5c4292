//! Captions from the generation head: beam search and nucleus sampling.
//!
//! Follows `Blip2Qformer.generate` of LAVIS, which calls `generate` of Hugging Face's transformers
//! (4.33): texts begin with `[DEC]` and end with `[SEP]`; lengths count `[DEC]`, and not `[SEP]`. The
//! image is looked at once and each token costs one row: keys and values of the queries and of the
//! text so far are kept ([`DecodeCache`](crate::blip2::DecodeCache)).

mod beam;
mod config;
mod rules;
mod sample;

use tch::Tensor;

use crate::blip2::Blip2Qformer;
use crate::error::ModelError;
pub use config::{GenerateConfig, Strategy};
pub use rules::Generated;

/// Generates captions of images: `[B, M, E]` from [`Blip2Qformer::encode_image`] → for each image
/// its captions, the best first; those of sampling as they were drawn. `sep_token_id` ends a text.
///
/// The captions of an image depend on nothing but it, the settings, and, when sampling, its place in
/// the batch, `first_image` counting from before the batch.
///
/// # Errors
/// [`ModelError::Config`] for settings that cannot work, [`ModelError::Shape`] or
/// [`ModelError::Kind`] for features that do not fit, [`ModelError::Torch`] when the device has no
/// room.
pub fn generate(
    model: &Blip2Qformer,
    image_embeds: &Tensor,
    config: &GenerateConfig,
    sep_token_id: i64,
    first_image: u64,
) -> Result<Vec<Vec<Generated>>, ModelError> {
    let sizes = &model.config().qformer;
    config.validate(sizes.max_positions)?;
    if !(0..sizes.vocab_size).contains(&sep_token_id) {
        return Err(ModelError::Input {
            what: "[SEP]",
            message: format!("{sep_token_id} is no id of {}", sizes.vocab_size),
        });
    }
    tch::no_grad(|| match config.strategy {
        Strategy::Beam {
            num_beams,
            length_penalty,
        } => beam::search(
            model,
            image_embeds,
            config,
            num_beams,
            length_penalty,
            sep_token_id,
        ),
        Strategy::Sample {
            top_p,
            top_k,
            temperature,
            seed,
        } => {
            let draw = sample::Draw {
                top_p,
                top_k,
                temperature,
            };
            sample::sample(
                model,
                image_embeds,
                config,
                &draw,
                seed,
                sep_token_id,
                first_image,
            )
        }
    })
}

#[cfg(test)]
mod tests;
