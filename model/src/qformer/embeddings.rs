use tch::Tensor;

use crate::config::QformerConfig;
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

    /// Ids `[B, T]` → words with their positions `[B, T, D]`, before the norm. Queries have no
    /// position.
    pub(crate) fn words(&self, token_ids: &Tensor) -> Result<Tensor, ModelError> {
        self.words_from(token_ids, 0)
    }

    /// The same for ids that stand at `first` and the positions after it.
    pub(crate) fn words_from(&self, token_ids: &Tensor, first: i64) -> Result<Tensor, ModelError> {
        let length = token_ids.size()[1];
        // The ids come from data: one beyond the vocabulary must be an error, not a panic.
        let words = Tensor::f_embedding(&self.word_embeddings, token_ids, -1, false, false)?;
        let positions = self.position_embeddings.f_narrow(0, first, length)?; // [T, D]
        Ok(words + positions)
    }

    /// Norm and dropout of the rows that enter the first layer.
    pub(crate) fn normalize(&self, rows: &Tensor, dropout: Dropout) -> Tensor {
        dropout.apply(self.norm.forward(rows))
    }
}
