//! Text one token at a time, with the keys and values of what came before kept.

use tch::Tensor;

use super::{ImageKeyValues, KeyValue, Qformer};
use crate::error::ModelError;

impl ImageKeyValues {
    /// The keys and values of one image as a batch of `batch` equal ones, a view.
    pub(crate) fn expand(&self, batch: i64) -> Result<ImageKeyValues, ModelError> {
        let layers = self.0.iter().map(|layer| {
            Ok(KeyValue {
                key: layer.key.f_expand([batch, -1, -1, -1], false)?,
                value: layer.value.f_expand([batch, -1, -1, -1], false)?,
            })
        });
        Ok(ImageKeyValues(layers.collect::<Result<_, ModelError>>()?))
    }
}

impl Qformer {
    /// The next row of texts that continue the queries: ids `[R, 1]` at position `position` → rows
    /// `[R, 1, D]`. `past` holds, layer by layer, keys and values of the queries and of the text
    /// before, and receives those of this row.
    ///
    /// The same numbers as the row of [`Qformer::decode_text`] over the whole text: a row sees
    /// nothing behind it, so those before it never change.
    pub(crate) fn decode_next(
        &self,
        token_ids: &Tensor,
        position: i64,
        past: &mut [KeyValue],
    ) -> Result<Tensor, ModelError> {
        let dropout = self.dropout(false);
        let words = self.embeddings.words_from(token_ids, position)?;
        let rows = self.embeddings.normalize(&words, dropout);
        let output = self.run(rows, 0, None, None, Some(past), dropout);
        for (past, own) in past.iter_mut().zip(output.cache) {
            *past = KeyValue {
                key: Tensor::f_cat(&[&past.key, &own.key], 2)?,
                value: Tensor::f_cat(&[&past.value, &own.value], 2)?,
            };
        }
        Ok(output.hidden)
    }
}
