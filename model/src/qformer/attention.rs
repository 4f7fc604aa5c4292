use tch::Tensor;

use super::KeyValue;
use crate::config::QformerConfig;
use crate::error::ModelError;
use crate::layers::{attend, merge_heads, split_heads, Dropout, LayerNorm, Linear, LinearInit};
use crate::params::Scope;

/// Multi-head attention with BERT's output block: dense, dropout, residual, norm.
#[derive(Debug)]
pub(crate) struct Attention {
    query: Linear, // D → D
    key: Linear,   // key_width → D
    value: Linear, // key_width → D
    dense: Linear, // D → D
    norm: LayerNorm,
    heads: i64,
}

impl Attention {
    /// Keys and values are projected from rows of `key_width` channels.
    pub(crate) fn new(
        mut scope: Scope<'_>,
        config: &QformerConfig,
        key_width: i64,
    ) -> Result<Attention, ModelError> {
        let width = config.hidden;
        let init = LinearInit::Normal(config.init_std);
        let mut inner = scope.sub("self");
        let query = Linear::new(inner.sub("query"), width, width, init)?;
        let key = Linear::new(inner.sub("key"), key_width, width, init)?;
        let value = Linear::new(inner.sub("value"), key_width, width, init)?;
        let mut output = scope.sub("output");
        Ok(Attention {
            query,
            key,
            value,
            dense: Linear::new(output.sub("dense"), width, width, init)?,
            norm: LayerNorm::new(output.sub("LayerNorm"), width, config.eps)?,
            heads: config.heads,
        })
    }

    /// Keys and values of rows `[B, S, key_width]`, each `[B, heads, S, d]`.
    pub(crate) fn key_value(&self, rows: &Tensor) -> KeyValue {
        KeyValue {
            key: split_heads(&self.key.forward(rows), self.heads),
            value: split_heads(&self.value.forward(rows), self.heads),
        }
    }

    /// Attention of rows `[B, L, D]` over `key_value`, through the output block: `[B, L, D]`.
    pub(crate) fn forward(
        &self,
        rows: &Tensor,
        key_value: &KeyValue,
        mask: Option<&Tensor>,
        dropout: Dropout,
    ) -> Tensor {
        let query = split_heads(&self.query.forward(rows), self.heads); // [B, heads, L, d]
        let mixed = attend(&query, &key_value.key, &key_value.value, mask, dropout);
        let output = dropout.apply(self.dense.forward(&merge_heads(&mixed)));
        self.norm.forward(&(output + rows))
    }
}
