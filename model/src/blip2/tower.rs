//! A tower that is not trained, apart from the model: it can run ahead of the steps.

use qf_config::model::VisionConfig;
use tch::{Device, Kind, Tensor};

use super::Blip2Qformer;
use crate::accelerator::{empty_cache, SideStream};
use crate::error::ModelError;
use crate::graph::{Recorder, Recording};
use crate::layers::LayerNorm;
use crate::vision::VisionTower;

/// The vision tower of a model that does not train it, with the norm behind it. Shares the model's
/// tensors; another thread may hold it.
#[derive(Debug)]
pub struct FrozenTower {
    tower: VisionTower,
    config: VisionConfig,
    norm: LayerNorm,
    recorded: Option<RecordedTower>,
}

/// The tower's kernels for batches of one size, from a tensor that stays where it is to another: some
/// four hundred, which the host starts as one.
#[derive(Debug)]
struct RecordedTower {
    recording: Recording,
    /// `[B, 3, S, S]` f32.
    pixels: Tensor,
    /// `[B, M, E]` f32.
    features: Tensor,
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
            recorded: None,
        }))
    }
}

impl Blip2Qformer {
    /// [`Blip2Qformer::frozen_tower`], recorded on batches of `batch` images as a CUDA graph where there
    /// is a GPU: the host then starts one thing instead of four hundred. Other batches are computed as
    /// before. To be called while nothing else computes there.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device has too little memory; what is missing to record is said in
    /// the log.
    pub fn recorded_tower(&self, batch: i64) -> Result<Option<FrozenTower>, ModelError> {
        let device = self.params.device();
        let mut tower = self.frozen_tower()?;
        if let Some(tower) = tower.as_mut().filter(|_| device.is_cuda()) {
            tower.record(batch, device)?;
        }
        Ok(tower)
    }
}

impl FrozenTower {
    /// See [`Blip2Qformer::recorded_tower`].
    fn record(&mut self, batch: i64, device: Device) -> Result<(), ModelError> {
        let Some(vit) = self.config.vit() else {
            return Ok(());
        };
        let recorder = match Recorder::new() {
            Ok(recorder) => recorder,
            Err(error) => {
                log::info!("the tower is not recorded: {error}");
                return Ok(());
            }
        };
        let shape = [batch, 3, vit.image_size, vit.image_size];
        let pixels = Tensor::f_zeros(shape, (Kind::Float, device))?;
        // The recording has the priority of its stream.
        let made = SideStream::ordinary(device)?.run(|| {
            // Libraries set themselves up in a first pass.
            let _ = self.compute(&pixels)?;
            recorder.record(|| self.compute(&pixels))
        });
        match made {
            Ok((recording, features)) => {
                self.recorded = Some(RecordedTower {
                    recording,
                    pixels,
                    features,
                });
            }
            Err(error) => log::warn!("the tower is not recorded: {error}"),
        }
        // What the first pass took belongs to a stream that nothing else uses.
        empty_cache(device)
    }

    /// What [`Blip2Qformer::encode_image`] gives for pixels `[B, 3, S, S]`: `[B, M, E]` f32.
    ///
    /// # Errors
    /// [`ModelError::Shape`] or [`ModelError::Kind`] for any other input, [`ModelError::Torch`] when the
    /// device has too little memory.
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        match &self.recorded {
            Some(recorded) if recorded.pixels.size() == pixels.size() => tch::no_grad(|| {
                recorded.pixels.shallow_clone().f_copy_(pixels)?;
                recorded.recording.run()?;
                // The next run writes there again.
                Ok(recorded.features.f_detach_copy()?)
            }),
            _ => self.compute(pixels),
        }
    }

    fn compute(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        tch::no_grad(|| {
            let features = self.tower.forward(pixels, &self.config, false)?;
            self.norm.normalize(&features)
        })
    }
}
