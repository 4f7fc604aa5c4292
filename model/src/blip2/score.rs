//! One image against many texts.

use tch::Tensor;

use super::Blip2Qformer;
use crate::error::{check_shape, ModelError};

impl Blip2Qformer {
    /// Matching scores of one image with N texts: `[1, M, E]` from
    /// [`encode_image`](Self::encode_image), ids and mask `[N, T]` i64 → logits `[N, 2]`, class 1 =
    /// match. The numbers of [`itm_logits`](Self::itm_logits) on the image repeated N times, but its
    /// keys and values are computed once. No gradient.
    ///
    /// # Errors
    /// As [`itm_logits`](Self::itm_logits).
    pub fn itm_logits_of_image(
        &self,
        image_embeds: &Tensor,
        token_ids: &Tensor,
        attention_mask: &Tensor,
    ) -> Result<Tensor, ModelError> {
        self.check_image(image_embeds)?;
        check_shape("image features", image_embeds, &[1, -1, -1], "[1, M, E]")?;
        let texts = self.check_text(token_ids, attention_mask)?;
        tch::no_grad(|| {
            let image = self.qformer.project_image(image_embeds).expand(texts)?;
            let pairs = self.qformer.encode_pair(
                &self.query_tokens,
                token_ids,
                attention_mask,
                &image,
                false,
            )?;
            Ok(self.score_match(&pairs.hidden))
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
