use qf_config::model::QformerConfig;
use tch::{Kind, Tensor};

use super::rows::RowMap;
use super::KeyValue;
use crate::error::ModelError;
use crate::layers::{Dropout, LayerNorm, Linear, LinearInit, Rows};
use crate::low::{LowCopies, LowLinear};
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
    /// Query, key and value of one input as one product in 16 bits.
    joint: Option<LowLinear>,
}

/// Queries, keys and values of rows.
pub(crate) enum Projected {
    /// Each `[M, D]`; of the queries those that are read.
    Apart {
        query: Tensor,
        key: Tensor,
        value: Tensor,
    },
    /// `[M, 3 D]`: query, key and value of each row side by side.
    Joint(Tensor),
    /// Queries `[M', D]` of the rows that are read, and `[M, 2 D]`: key and value side by side.
    JointKeyValue { query: Tensor, key_value: Tensor },
}

/// One segment in attention's layout.
pub(crate) struct SegmentHeads {
    /// `[R, heads, L, d]`.
    pub(crate) query: Tensor,
    /// Each `[R, heads, S, d]`.
    pub(crate) key_value: KeyValue,
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
            joint: None,
        })
    }

    /// Computes self-attention's products in 16 bits from here on, or in 32 again.
    pub(crate) fn use_copies(
        &mut self,
        mut copies: Option<&mut LowCopies>,
    ) -> Result<(), ModelError> {
        self.joint = match &mut copies {
            Some(copies) => Some(copies.joint(&[&self.query, &self.key, &self.value])?),
            None => None,
        };
        self.dense.use_copies(copies)
    }

    /// The same of cross attention, whose keys and values [`ImageProjection`](super::image)
    /// computes.
    pub(crate) fn use_copies_for_queries(
        &mut self,
        mut copies: Option<&mut LowCopies>,
    ) -> Result<(), ModelError> {
        self.query.use_copies(copies.as_deref_mut())?;
        self.dense.use_copies(copies)
    }

    /// Queries, keys and values of self-attention: of rows `[M, D]`, and of `asking`, those of them
    /// that are read, if not all are.
    pub(crate) fn project(
        &self,
        rows: &Rows,
        asking: Option<&Rows>,
    ) -> Result<Projected, ModelError> {
        let asking = asking.map(Rows::for_products);
        let rows = rows.for_products();
        Ok(match (&self.joint, asking) {
            (None, _) => Projected::Apart {
                query: flat(&self.query.forward(asking.unwrap_or(rows))?)?,
                key: self.key.forward(rows)?,
                value: self.value.forward(rows)?,
            },
            (Some(joint), None) => Projected::Joint(joint.forward(rows)?),
            (Some(joint), Some(asking)) => Projected::JointKeyValue {
                query: flat(&joint.part(0..1)?.forward(asking)?)?,
                key_value: joint.part(1..3)?.forward(rows)?,
            },
        })
    }

    /// The segments of projected rows: rows are keys by `maps`, and ask by `query_maps`.
    pub(crate) fn segments(
        &self,
        projected: &Projected,
        maps: &[&RowMap],
        query_maps: &[&RowMap],
    ) -> Result<Vec<SegmentHeads>, ModelError> {
        let rows_of = |maps: &[&RowMap]| maps.iter().map(|map| map.rows()).collect::<Vec<_>>();
        let split = |rows: &Tensor, maps: &[&RowMap]| -> Result<Vec<Tensor>, ModelError> {
            let parts = rows.f_split_with_sizes(rows_of(maps), 0)?;
            let parts = parts.iter().zip(maps);
            parts
                .map(|(part, map)| map.split(part, self.heads))
                .collect()
        };
        let joint = |rows: &Tensor, count| -> Result<Vec<Vec<Tensor>>, ModelError> {
            let parts = rows.f_split_with_sizes(rows_of(maps), 0)?;
            let parts = parts.iter().zip(maps);
            parts
                .map(|(part, map)| map.split_joint(part, count, self.heads))
                .collect()
        };
        let (queries, keys_values) = match projected {
            Projected::Apart { query, key, value } => {
                let (keys, values) = (split(key, maps)?, split(value, maps)?);
                let pairs = keys.into_iter().zip(values).map(|(k, v)| vec![k, v]);
                (split(query, query_maps)?, pairs.collect())
            }
            Projected::JointKeyValue { query, key_value } => {
                (split(query, query_maps)?, joint(key_value, 2)?)
            }
            Projected::Joint(rows) => {
                let mut all = joint(rows, 3)?;
                let queries = all.iter_mut().map(|heads| heads.remove(0)).collect();
                (queries, all)
            }
        };
        let segments = queries.into_iter().zip(keys_values);
        segments
            .map(|(query, key_value)| {
                let [key, value] =
                    <[Tensor; 2]>::try_from(key_value).map_err(|_| ModelError::Input {
                        what: "columns of a joint product",
                        message: "neither two nor three".into(),
                    })?;
                let key_value = KeyValue { key, value };
                Ok(SegmentHeads { query, key_value })
            })
            .collect()
    }

    /// Queries of rows `[…, D]`: `[M, D]`.
    pub(crate) fn query(&self, rows: &Rows) -> Result<Tensor, ModelError> {
        flat(&self.query.forward(rows.for_products())?)
    }

    /// The projections of keys and values.
    pub(crate) fn key_value_layers(&self) -> [&Linear; 2] {
        [&self.key, &self.value]
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
        self.gather_heads(
            &map.split(query, self.heads)?,
            map,
            key_value,
            mask,
            dropout,
        )
    }

    /// The same of queries in attention's layout, `[R, heads, L, d]`.
    pub(crate) fn gather_heads(
        &self,
        query: &Tensor,
        map: &RowMap,
        key_value: &KeyValue,
        mask: Option<&Tensor>,
        dropout: Dropout,
    ) -> Result<Tensor, ModelError> {
        let KeyValue { key, value } = key_value;
        map.merge(&ops::attention(
            query,
            key,
            value,
            mask,
            dropout.probability,
        )?)
    }

    /// How much each of the queries `[M, D]`, placed by `map`, takes of each key `[R, heads, S, d]`: `[R, L, S]`
    /// f32, the mean over the heads.
    pub(crate) fn weights(
        &self,
        query: &Tensor,
        map: &RowMap,
        key: &Tensor,
    ) -> Result<Tensor, ModelError> {
        let query = map.split(query, self.heads)?.f_to_kind(Kind::Float)?;
        let key = key.f_to_kind(Kind::Float)?;
        let width = query.size().last().copied().unwrap_or(1) as f64;
        let scores = query
            .f_matmul(&key.f_transpose(-2, -1)?)?
            .f_divide_scalar(width.sqrt())?;
        let weights = scores.f_softmax(-1, Kind::Float)?; // [R, heads, L, S]
        Ok(weights.f_mean_dim([1i64].as_slice(), false, None)?)
    }

    /// The output block: gathered `[M, D]` and the rows that asked `[…, D]` → `[…, D]`.
    pub(crate) fn output(
        &self,
        gathered: &Tensor,
        rows: &Rows,
        dropout: Dropout,
    ) -> Result<Rows, ModelError> {
        self.norm.after_linear(&self.dense, gathered, rows, dropout)
    }
}

/// `[…, D]` → `[M, D]`.
fn flat(rows: &Tensor) -> Result<Tensor, ModelError> {
    Ok(match rows.dim() {
        2 => rows.shallow_clone(),
        _ => rows.f_flatten(0, -2)?,
    })
}
