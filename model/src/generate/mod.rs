//! Captions from the generation head: beam search and nucleus sampling.
//!
//! Follows `Blip2Qformer.generate` of LAVIS, which calls `generate` of Hugging Face's transformers
//! (4.33): texts begin with `[DEC]` and end with `[SEP]`; lengths count `[DEC]`, and not `[SEP]`. The
//! image is looked at once and each token costs one row: keys and values of the queries and of the
//! text so far are kept ([`DecodeCache`](crate::blip2::DecodeCache)).

mod beam;
mod sample;

use tch::{Kind, Tensor};

use crate::blip2::Blip2Qformer;
use crate::error::ModelError;

/// How captions are generated.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateConfig {
    /// How the next token is chosen.
    pub strategy: Strategy,
    /// Captions per image. Beam search gives at most as many as it has beams.
    pub num_captions: usize,
    /// Most tokens of a text, `[DEC]` included. LAVIS: 30.
    pub max_length: usize,
    /// Fewest tokens of a text, `[DEC]` included: `[SEP]` is not taken before. LAVIS: 10.
    pub min_length: usize,
    /// Divides the probability of tokens that the text has already, if above 1 (Keskar et al., arXiv
    /// 1909.05858). 1 changes nothing.
    pub repetition_penalty: f64,
}

/// How the next token is chosen.
#[derive(Clone, Debug, PartialEq)]
pub enum Strategy {
    /// The most probable texts, as far as a beam of `num_beams` texts finds them.
    Beam {
        /// Texts that are followed at a time.
        num_beams: usize,
        /// A finished text is worth its log-probability over its length to this power: above 0
        /// favours long texts.
        length_penalty: f64,
    },
    /// Drawn at random, from the most probable tokens.
    Sample {
        /// Only the fewest tokens that together have this probability are drawn from (Holtzman et
        /// al., arXiv 1904.09751); 1 for all.
        top_p: f64,
        /// Of these, at most so many; 0 for all. transformers: 50.
        top_k: usize,
        /// Divides the scores: below 1 sharpens, above 1 flattens.
        temperature: f64,
        /// Fixes the draws; caption and image decide the rest.
        seed: u64,
    },
}

impl Default for GenerateConfig {
    /// Five beams, one caption, lengths 1 to 30.
    fn default() -> Self {
        GenerateConfig {
            strategy: Strategy::Beam {
                num_beams: 5,
                length_penalty: 1.0,
            },
            num_captions: 1,
            max_length: 30,
            min_length: 1,
            repetition_penalty: 1.0,
        }
    }
}

/// A generated text.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Its ids, without `[DEC]` before and `[SEP]` behind them.
    pub token_ids: Vec<i64>,
    /// Beam search: log-probability over length to the power of the length penalty. Sampling:
    /// log-probability under the distribution that was drawn from.
    pub score: f64,
}

impl GenerateConfig {
    /// Checks the settings for a model of `max_positions` positions.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming the first that cannot work.
    pub fn validate(&self, max_positions: i64) -> Result<(), ModelError> {
        /// No use is known for more, and each is a row of every tensor.
        const MOST: usize = 1024;
        let positions = usize::try_from(max_positions).unwrap_or(0);
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let mut checks = vec![
            (
                (2..=positions).contains(&self.max_length),
                "max_length",
                format!(
                    "{} is out of range; take 2 to {positions}, the positions of the model",
                    self.max_length
                ),
            ),
            (
                self.min_length <= self.max_length,
                "min_length",
                format!(
                    "{} is above max_length {}",
                    self.min_length, self.max_length
                ),
            ),
            (
                (1..=MOST).contains(&self.num_captions),
                "num_captions",
                format!("{} is out of range; take 1 to {MOST}", self.num_captions),
            ),
            (
                positive(self.repetition_penalty),
                "repetition_penalty",
                format!(
                    "{} is out of range; take a number above 0",
                    self.repetition_penalty
                ),
            ),
        ];
        match self.strategy {
            Strategy::Beam {
                num_beams,
                length_penalty,
            } => checks.extend([
                (
                    (1..=MOST).contains(&num_beams),
                    "num_beams",
                    format!("{num_beams} is out of range; take 1 to {MOST}"),
                ),
                (
                    self.num_captions <= num_beams,
                    "num_captions",
                    format!("{} is more than the {num_beams} beams", self.num_captions),
                ),
                (
                    length_penalty.is_finite(),
                    "length_penalty",
                    format!("{length_penalty} is not a finite number"),
                ),
            ]),
            Strategy::Sample {
                top_p, temperature, ..
            } => checks.extend([
                (
                    top_p > 0.0 && top_p <= 1.0,
                    "top_p",
                    format!("{top_p} is out of range; take above 0 to 1"),
                ),
                (
                    positive(temperature),
                    "temperature",
                    format!("{temperature} is out of range; take a number above 0"),
                ),
            ]),
        }
        for (holds, setting, message) in checks {
            if !holds {
                return Err(ModelError::Config { setting, message });
            }
        }
        Ok(())
    }
}

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

/// Log-probabilities (or scores) `[R, V]` with the rules on repetition and length applied; `texts`
/// are the rows' tokens so far, all of one length.
fn apply_rules(
    scores: Tensor,
    texts: &[Vec<i64>],
    config: &GenerateConfig,
    sep_token_id: i64,
) -> Result<Tensor, ModelError> {
    let mut scores = scores;
    let length = texts.first().map_or(0, Vec::len);
    if config.repetition_penalty != 1.0 {
        let flat: Vec<i64> = texts.iter().flatten().copied().collect();
        let ids = Tensor::f_from_slice(&flat)?
            .f_view([texts.len() as i64, length as i64])?
            .f_to_device(scores.device())?;
        let seen = scores.f_gather(1, &ids, false)?;
        let penalty = config.repetition_penalty;
        let penalised = seen
            .f_mul_scalar(penalty)?
            .f_where_self(&seen.f_lt(0.0)?, &seen.f_div_scalar(penalty)?)?;
        scores = scores.f_scatter(1, &ids, &penalised)?;
    }
    if length < config.min_length {
        let sep = Tensor::f_from_slice(&[sep_token_id])?.f_to_device(scores.device())?;
        scores = scores.f_index_fill(1, &sep, f64::NEG_INFINITY)?;
    }
    Ok(scores)
}

/// Ids of the last tokens, `[R]` on the device of `like`.
fn last_tokens(texts: &[Vec<i64>], like: &Tensor) -> Result<Tensor, ModelError> {
    let last: Vec<i64> = texts
        .iter()
        .map(|text| text.last().copied().unwrap_or(0))
        .collect();
    Ok(Tensor::f_from_slice(&last)?.f_to_device(like.device())?)
}

fn log_probabilities(logits: &Tensor) -> Result<Tensor, ModelError> {
    Ok(logits.f_log_softmax(-1, Kind::Float)?)
}

#[cfg(test)]
mod tests;
