use tch::Tensor;

use crate::config::QformerConfig;
use crate::error::ModelError;
use crate::layers::{LayerNorm, Linear, LinearInit};
use crate::ops;
use crate::params::{Init, Scope};

/// BERT's language-model head: dense, GELU, norm, then the word embeddings as output weights.
#[derive(Debug)]
pub(crate) struct LmHead {
    bias: Tensor, // [V]
    dense: Linear,
    norm: LayerNorm,
}

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
        })
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
        ops::linear(&rows, word_embeddings, Some(&self.bias))
    }
}
