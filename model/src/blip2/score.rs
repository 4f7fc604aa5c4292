//! Few images against many texts.

use tch::Tensor;

use super::Blip2Qformer;
use crate::error::{check_integers, check_shape, ModelError};
use crate::loss::itm::MatchLogits;

impl Blip2Qformer {
    /// Matching scores of N pairs over few images: `[I, M, E]` from
    /// [`encode_image`](Self::encode_image), `image_index` `[N]` i64 into them, ids and mask `[N, T]`
    /// i64. The numbers of [`itm_logits`](Self::itm_logits) on the images of the index, but keys and
    /// values of each image are computed once. No gradient.
    ///
    /// # Errors
    /// As [`itm_logits`](Self::itm_logits); [`ModelError::Torch`] for an index beyond the images.
    pub fn itm_logits_of_pairs(
        &self,
        image_embeds: &Tensor,
        image_index: &Tensor,
        token_ids: &Tensor,
        attention_mask: &Tensor,
    ) -> Result<MatchLogits, ModelError> {
        let images = self.check_image(image_embeds)?;
        let texts = self.check_text(token_ids, attention_mask)?;
        check_shape("image index", image_index, &[texts], &format!("[{texts}]"))?;
        check_integers("image index", image_index)?;
        tch::no_grad(|| {
            let image = self.qformer.project_image(image_embeds, &self.ln_vision)?;
            let image = match images {
                // A view instead of N copies.
                1 => image.expand(texts)?,
                _ => image.select(image_index)?,
            };
            self.score_pairs(&image, token_ids, attention_mask)
        })
    }

    /// The learned temperature, which training divides similarities by.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when it cannot be read from the device.
    pub fn temperature(&self) -> Result<f64, ModelError> {
        Ok(self.temp.f_detach()?.f_double_value(&[])?)
    }
}
