use tch::Tensor;

use super::rows::RowMap;
use super::KeyValue;
use crate::config::QformerConfig;
use crate::error::ModelError;
use crate::layers::{Dropout, LayerNorm, Linear, LinearInit};
use crate::ops;
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

    /// Queries of rows `[M, D]`: `[M, D]`.
    pub(crate) fn query(&self, rows: &Tensor) -> Result<Tensor, ModelError> {
        self.query.forward(rows)
    }

    /// Keys and values of rows `[M, key_width]`, each `[M, D]`.
    pub(crate) fn key_value(&self, rows: &Tensor) -> Result<(Tensor, Tensor), ModelError> {
        Ok((self.key.forward(rows)?, self.value.forward(rows)?))
    }

    /// Keys and values of image rows `[B, M, E]` that still miss gain and shift of `norm`: each
    /// `[B, heads, M, d]`, contiguous, for they are read several times.
    pub(crate) fn image_key_value(
        &self,
        normalized: &Tensor,
        norm: &LayerNorm,
    ) -> Result<KeyValue, ModelError> {
        let size = normalized.size();
        let map = RowMap::dense(size[0], size[1]);
        let rows = normalized.f_flatten(0, 1)?;
        let project = |layer: &Linear| -> Result<Tensor, ModelError> {
            let projected = layer.after(norm)?.forward(&rows)?;
            Ok(map.split(&projected, self.heads)?.f_contiguous()?)
        };
        Ok(KeyValue {
            key: project(&self.key)?,
            value: project(&self.value)?,
        })
    }

    /// Keys and values of one segment in attention's layout.
    pub(crate) fn split_key_value(
        &self,
        key: &Tensor,
        value: &Tensor,
        map: &RowMap,
    ) -> Result<KeyValue, ModelError> {
        Ok(KeyValue {
            key: map.split(key, self.heads)?,
            value: map.split(value, self.heads)?,
        })
    }

    /// What the queries `[M, D]`, placed by `map`, gather from keys and values: `[M, D]`, before the
    /// output block.
    pub(crate) fn gather(
        &self,
        query: &Tensor,
        map: &RowMap,
        key_value: &KeyValue,
        mask: Option<&Tensor>,
        dropout: Dropout,
    ) -> Result<Tensor, ModelError> {
        let query = map.split(query, self.heads)?; // [R, heads, L, d]
        let KeyValue { key, value } = key_value;
        map.merge(&ops::attention(
            &query,
            key,
            value,
            mask,
            dropout.probability,
        )?)
    }

    /// The output block: gathered `[M, D]` and the rows that asked `[M, D]` → `[M, D]`.
    pub(crate) fn output(
        &self,
        gathered: &Tensor,
        rows: &Tensor,
        dropout: Dropout,
    ) -> Result<Tensor, ModelError> {
        self.norm
            .forward_residual(&self.dense.forward(gathered)?, rows, dropout)
    }
}
