//! Which rows of texts are computed.

use tch::Tensor;

use super::Blip2Qformer;
use crate::error::ModelError;
use crate::qformer::TextRows;

impl Blip2Qformer {
    /// Number of tokens of each text, where padding is to be left out and the host can know: masks
    /// must be ones before zeros and cover exactly what is no padding.
    pub(super) fn lengths(
        &self,
        token_ids: &Tensor,
        attention_mask: &Tensor,
    ) -> Result<Option<Vec<i64>>, ModelError> {
        let size = token_ids.size();
        if !self.applied_compute().skip_padding {
            return Ok(None);
        }
        let flat = |t: &Tensor| Vec::<i64>::try_from(t.f_reshape([-1])?);
        let (ids, mask) = (flat(token_ids)?, flat(attention_mask)?);
        let width = usize::try_from(size[1]).unwrap_or(0).max(1);
        let pad = self.config.qformer.pad_token_id;
        let lengths = ids
            .chunks(width)
            .zip(mask.chunks(width))
            .map(|(ids, mask)| {
                let tokens = mask.iter().take_while(|&&mask| mask == 1).count();
                let padded = |(&id, &mask): (&i64, &i64)| id == pad && mask == 0;
                let whole = tokens > 0
                    && ids[..tokens].iter().all(|&id| id != pad)
                    && ids[tokens..].iter().zip(&mask[tokens..]).all(padded);
                whole.then_some(tokens as i64)
            });
        Ok(lengths.collect())
    }

    /// The rows of texts `[B, T]`; `lengths` count `unread` columns that the texts are short of.
    pub(super) fn text_rows(
        &self,
        token_ids: &Tensor,
        lengths: Option<&[i64]>,
        unread: i64,
    ) -> Result<TextRows, ModelError> {
        let size = token_ids.size();
        match lengths {
            Some(lengths) => {
                let lengths: Vec<i64> = lengths.iter().map(|length| length - unread).collect();
                TextRows::new(&lengths, size[1], token_ids.device())
            }
            None => Ok(TextRows::all(size[0], size[1])),
        }
    }
}
