//! What both ways of choosing tokens share.

use tch::{Kind, Tensor};

use super::config::GenerateConfig;
use crate::error::ModelError;

/// A generated text.
#[derive(Clone, Debug, PartialEq)]
pub struct Generated {
    /// Its ids, without `[DEC]` before and `[SEP]` behind them.
    pub token_ids: Vec<i64>,
    /// Beam search: log-probability over length to the power of the length penalty. Sampling:
    /// log-probability under the distribution that was drawn from.
    pub score: f64,
}

/// Log-probabilities (or scores) `[R, V]` with the rules on repetition and length applied; `texts`
/// are the rows' tokens so far, all of one length.
pub(super) fn apply_rules(
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
pub(super) fn last_tokens(texts: &[Vec<i64>], like: &Tensor) -> Result<Tensor, ModelError> {
    let last: Vec<i64> = texts
        .iter()
        .map(|text| text.last().copied().unwrap_or(0))
        .collect();
    Ok(Tensor::f_from_slice(&last)?.f_to_device(like.device())?)
}

pub(super) fn log_probabilities(logits: &Tensor) -> Result<Tensor, ModelError> {
    Ok(logits.f_log_softmax(-1, Kind::Float)?)
}
