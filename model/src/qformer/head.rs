use qf_config::model::QformerConfig;
use tch::Tensor;

use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear, LinearInit};
use crate::low::{LowCopies, LowLinear};
use crate::ops;
use crate::params::{Init, Scope};

/// BERT's language-model head: dense, GELU, norm, then the word embeddings as output weights.
#[derive(Debug)]
pub(crate) struct LmHead {
    bias: Tensor, // [V]
    dense: Linear,
    norm: LayerNorm,
    /// The product with the word embeddings in 16 bits.
    low: Option<LowLinear>,
}

/// Kernels for 16-bit products want rows of a multiple of this many scores.
const COLUMN_MULTIPLE: i64 = 64;

impl LmHead {
    pub(crate) fn new(mut scope: Scope<'_>, config: &QformerConfig) -> Result<LmHead, ModelError> {
        let width = config.hidden;
        let bias = scope.param("bias", &[config.vocab_size], Init::Constant(0.0))?;
        let mut transform = scope.sub("transform");
        let init = LinearInit::Normal(config.init_std);
        Ok(LmHead {
            bias,
            dense: Linear::new(transform.sub("dense"), width, width, init)?,
            norm: LayerNorm::new(transform.sub("LayerNorm"), width, config.eps)?,
            low: None,
        })
    }

    /// Computes products in 16 bits from here on, or in 32 again; `word_embeddings` `[V, D]` is the
    /// tied output weight.
    pub(crate) fn use_copies(
        &mut self,
        word_embeddings: &Tensor,
        mut copies: Option<&mut LowCopies>,
    ) -> Result<(), ModelError> {
        self.low = match &mut copies {
            Some(copies) => Some(copies.padded(word_embeddings, &self.bias, COLUMN_MULTIPLE)?),
            None => None,
        };
        self.dense.use_copies(copies)
    }

    /// Rows `[…, D]` → scores `[…, V]`; `word_embeddings` `[V, D]` is the tied output weight.
    pub(crate) fn forward(
        &self,
        rows: &Tensor,
        word_embeddings: &Tensor,
    ) -> Result<Tensor, ModelError> {
        let rows = self
            .norm
            .forward(&self.dense.forward(rows)?.f_gelu("none")?)?;
        match &self.low {
            Some(low) => {
                let scores = low.forward_f32(&rows)?;
                let last = scores.dim() as i64 - 1;
                Ok(scores.f_narrow(last, 0, self.bias.size()[0])?)
            }
            None => ops::linear(&rows, word_embeddings, Some(&self.bias)),
        }
    }
}
