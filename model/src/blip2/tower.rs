//! A tower that is not trained, apart from the model: it can run ahead of the steps.

use tch::Tensor;

use super::Blip2Qformer;
use crate::config::VisionConfig;
use crate::error::ModelError;
use crate::layers::LayerNorm;
use crate::vision::VisionTower;

/// The vision tower of a model that does not train it, with the norm behind it. Shares the model's
/// tensors; another thread may hold it.
#[derive(Debug)]
pub struct FrozenTower {
    tower: VisionTower,
    config: VisionConfig,
    norm: LayerNorm,
}

impl Blip2Qformer {
    /// The tower, where there is one that is not trained. To be taken after weights are loaded and the
    /// precision is set.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails.
    pub fn frozen_tower(&self) -> Result<Option<FrozenTower>, ModelError> {
        if self.config.vision.vit().is_none_or(|vit| vit.trainable) {
            return Ok(None);
        }
        self.refresh_copies()?;
        Ok(Some(FrozenTower {
            tower: self.tower.frozen_clone(),
            config: self.config.vision.clone(),
            norm: self.ln_vision.shallow_clone(),
        }))
    }
}

impl FrozenTower {
    /// What [`Blip2Qformer::encode_image`] gives for pixels `[B, 3, S, S]`: `[B, M, E]` f32.
    ///
    /// # Errors
    /// [`ModelError::Shape`] or [`ModelError::Kind`] for any other input, [`ModelError::Torch`] when the
    /// device has too little memory.
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        tch::no_grad(|| {
            let features = self.tower.forward(pixels, &self.config, false)?;
            self.norm.normalize(&features)
        })
    }
}
