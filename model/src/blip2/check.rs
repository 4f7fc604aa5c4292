//! Checks of what a step or an inference is given.

use tch::Tensor;

use super::Blip2Qformer;
use crate::error::{check_floats, check_integers, check_shape, ModelError};

impl Blip2Qformer {
    /// Checks image features; returns B.
    pub(super) fn check_image(&self, image_embeds: &Tensor) -> Result<i64, ModelError> {
        let width = self.config.qformer.encoder_width;
        let names = format!("[B, M, {width}]");
        check_shape("image features", image_embeds, &[-1, -1, width], &names)?;
        check_floats("image features", image_embeds)?;
        let size = image_embeds.size();
        if size[0] < 1 || size[1] < 1 {
            return Err(ModelError::Shape {
                what: "image features",
                expected: format!("{names} with B, M > 0"),
                got: size,
            });
        }
        Ok(size[0])
    }

    /// Checks ids and mask; returns B.
    pub(super) fn check_text(
        &self,
        token_ids: &Tensor,
        attention_mask: &Tensor,
    ) -> Result<i64, ModelError> {
        check_integers("token ids", token_ids)?;
        check_integers("attention mask", attention_mask)?;
        check_shape("token ids", token_ids, &[-1, -1], "[B, T]")?;
        let size = token_ids.size();
        let longest = self.config.qformer.max_positions;
        if size[0] < 1 || size[1] < 1 || size[1] > longest {
            return Err(ModelError::Shape {
                what: "token ids",
                expected: format!("[B, T] with B > 0 and T from 1 to max_positions = {longest}"),
                got: size,
            });
        }
        let names = format!("{size:?} like the token ids");
        check_shape("attention mask", attention_mask, &size, &names)?;
        Ok(size[0])
    }
}

pub(super) fn check_same_batch(images: i64, texts: i64) -> Result<(), ModelError> {
    if images == texts {
        return Ok(());
    }
    Err(ModelError::Input {
        what: "batch",
        message: format!("{images} images but {texts} texts"),
    })
}
