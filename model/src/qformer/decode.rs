//! Text one token at a time, with the keys and values of what came before kept.

use tch::Tensor;

use super::plan::{Past, Plan, TextRows};
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
        let size = token_ids.size();
        let plan = Plan::text(&TextRows::all(size[0], 1), None, Past::Given)?;
        let words = self.embeddings.words(&token_ids.f_view([-1])?)?; // [R, D]
        let words = self.embeddings.add_position(&words, position)?;
        let rows = self.embeddings.normalize(&words, self.dropout(false))?;
        let (rows, cache) = self.run(rows, &plan, &[], Some(past), false)?;
        for (past, own) in past.iter_mut().zip(cache.into_iter().flatten()) {
            *past = past.join(&own)?;
        }
        Ok(rows.f_view([size[0], 1, -1])?)
    }
}
