use qf_config::model::QformerConfig;
use tch::Tensor;

use super::plan::{Positions, TextRows};
use crate::error::ModelError;
use crate::layers::{Dropout, LayerNorm};
use crate::params::{Init, Scope};

/// Word and position embeddings, and the norm that queries and text share.
#[derive(Debug)]
pub(crate) struct Embeddings {
    word_embeddings: Tensor,     // [V, D]
    position_embeddings: Tensor, // [P, D]
    norm: LayerNorm,
}

impl Embeddings {
    pub(crate) fn new(
        mut scope: Scope<'_>,
        config: &QformerConfig,
    ) -> Result<Embeddings, ModelError> {
        let normal = Init::Normal {
            std: config.init_std,
        };
        let width = config.hidden;
        Ok(Embeddings {
            word_embeddings: scope.param(
                "word_embeddings.weight",
                &[config.vocab_size, width],
                normal,
            )?,
            position_embeddings: scope.param(
                "position_embeddings.weight",
                &[config.max_positions, width],
                normal,
            )?,
            norm: LayerNorm::new(scope.sub("LayerNorm"), width, config.eps)?,
        })
    }

    /// `[V, D]`; the language-model head uses it too.
    pub(crate) fn word_embeddings(&self) -> &Tensor {
        &self.word_embeddings
    }

    /// Ids `[N]` i64 → words `[N, D]`, without positions.
    pub(crate) fn words(&self, token_ids: &Tensor) -> Result<Tensor, ModelError> {
        look_up(&self.word_embeddings, token_ids)
    }

    /// Words `[N, D]` of the rows of texts → with their positions, before the norm. Queries have no
    /// position.
    pub(crate) fn add_positions(
        &self,
        words: &Tensor,
        rows: &TextRows,
    ) -> Result<Tensor, ModelError> {
        match rows.positions() {
            Positions::Counted { batch, length } => {
                let table = self.position_embeddings.f_narrow(0, 0, length)?; // [T, D]
                let words = words.f_view([batch, length, -1])?;
                Ok(words.f_add(&table)?.f_flatten(0, 1)?)
            }
            Positions::Listed(positions) => {
                Ok(words.f_add(&look_up(&self.position_embeddings, positions)?)?)
            }
        }
    }

    /// Words `[N, D]` that all stand at one position.
    pub(crate) fn add_position(&self, words: &Tensor, at: i64) -> Result<Tensor, ModelError> {
        Ok(words.f_add(&self.position_embeddings.f_narrow(0, at, 1)?)?)
    }

    /// Norm and dropout of the rows that enter the first layer.
    pub(crate) fn normalize(&self, rows: &Tensor, dropout: Dropout) -> Result<Tensor, ModelError> {
        dropout.apply(&self.norm.forward(rows)?)
    }
}

/// Rows of a table. The ids come from data: one beyond the table must be an error, not a panic.
fn look_up(table: &Tensor, index: &Tensor) -> Result<Tensor, ModelError> {
    Ok(Tensor::f_embedding(table, index, -1, false, false)?)
}
