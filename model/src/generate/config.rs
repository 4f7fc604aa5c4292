//! How captions are generated.

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
