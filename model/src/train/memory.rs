//! A step that does not fit the device's memory: which batch would.

use tch::{Device, Kind, Tensor};

use super::{TrainConfig, Trainer};
use crate::accelerator::{memory, restart_memory};
use crate::blip2::{NegativeSampling, StepInput};
use crate::collective::{Ranks, SingleProcess};
use crate::error::ModelError;

/// Share of a device's memory that a batch is proposed for: what is left is lost between blocks.
const USABLE: f64 = 0.95;

/// The smallest batch: the matching loss needs a negative.
const SMALLEST: usize = 2;

impl Trainer {
    /// The error of a step, which for lack of memory says what would fit: found by steps on ever
    /// smaller batches, which change nothing.
    pub(super) fn explain(
        &mut self,
        error: ModelError,
        config: &TrainConfig,
        ranks: &dyn Ranks,
    ) -> ModelError {
        if !error.is_out_of_memory() {
            return error;
        }
        let batch_size = config.data.batch_size;
        // Gradients of several ranks are averaged as they come, by all of them or none.
        let fits = match ranks.world_size() {
            1 => self.largest_batch(config).ok(),
            _ => None,
        };
        ModelError::DeviceMemory {
            device: match self.model.params().device() {
                Device::Cuda(index) => format!("GPU {index}"),
                _ => "this machine".into(),
            },
            batch_size,
            fits,
            cause: error.to_string(),
        }
    }

    /// About the largest batch that fits, below the configured one; 0 if none does.
    fn largest_batch(&mut self, config: &TrainConfig) -> Result<usize, ModelError> {
        let device = self.model.params().device();
        self.optimizer.zero_grad()?;
        restart_memory(device)?;
        let before = memory(device);
        let mut attempt = |size: usize| {
            restart_memory(device)?;
            self.trial_step(size, config)?;
            Ok(memory(device).map(|memory| memory.peak))
        };
        let (size, peak) = match largest_half(config.data.batch_size, &mut attempt)? {
            Some(found) => found,
            None => return Ok(0),
        };
        self.optimizer.zero_grad()?;
        Ok(match (before, peak) {
            (Some(before), Some(peak)) => {
                let limit = (before.free + before.allocated) as f64 * USABLE;
                let fixed = before.allocated as f64;
                let each = (peak as f64 - fixed).max(1.0) / size as f64;
                let most = ((limit - fixed) / each).max(0.0) as usize;
                most.clamp(size, config.data.batch_size - 1)
            }
            _ => size,
        })
    }

    /// Forward and backward on a batch of zeros.
    fn trial_step(&mut self, size: usize, config: &TrainConfig) -> Result<(), ModelError> {
        self.trial_backward(size, config)?;
        self.optimizer.zero_grad()
    }

    /// The same, with the gradients left where they are.
    pub(super) fn trial_backward(
        &mut self,
        size: usize,
        config: &TrainConfig,
    ) -> Result<(), ModelError> {
        let device = self.model.params().device();
        let (size, side) = (size as i64, config.data.image_size as i64);
        let text = [size, config.data.text_len as i64];
        let images = Tensor::f_zeros([size, 3, side, side], (Kind::Float, device))?;
        let images = self.model.encode_training_image(&images)?;
        let output = self.model.forward_losses(
            &StepInput {
                image_embeds: &images.features,
                token_ids: &Tensor::f_zeros(text, (Kind::Int64, device))?,
                attention_mask: &Tensor::f_ones(text, (Kind::Int64, device))?,
                image_ids: None,
            },
            NegativeSampling::Multinomial,
            &SingleProcess,
            true,
        )?;
        output.loss.f_backward()?;
        self.model.finish_backward(&images)
    }
}

/// The first of `batch / 2`, `batch / 4`, ... that is not out of memory, with what `attempt` gives for
/// it.
fn largest_half<T>(
    batch: usize,
    attempt: &mut dyn FnMut(usize) -> Result<T, ModelError>,
) -> Result<Option<(usize, T)>, ModelError> {
    let mut size = batch / 2;
    while size >= SMALLEST {
        match attempt(size) {
            Ok(found) => return Ok(Some((size, found))),
            Err(error) if error.is_out_of_memory() => size /= 2,
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::non_finite::tests::{config_of, trainer_and_loader};
    use super::*;

    /// libtorch's own error for more memory than any machine has.
    fn out_of_memory() -> ModelError {
        Tensor::f_zeros([1 << 50], (Kind::Float, Device::Cpu))
            .unwrap_err()
            .into()
    }

    #[test]
    fn lack_of_memory_is_told_from_other_errors() {
        assert!(out_of_memory().is_out_of_memory(), "{}", out_of_memory());
        let shapes = Tensor::ones([2], (Kind::Float, Device::Cpu)).f_view([3]);
        assert!(!ModelError::from(shapes.unwrap_err()).is_out_of_memory());
        // As a GPU words it.
        let text = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of";
        let gpu = ModelError::Torch(tch::TchError::Torch(text.into()));
        assert!(gpu.is_out_of_memory());
    }

    #[test]
    fn halves_are_tried_down_to_two() {
        let search = |fits: usize, batch: usize| {
            let mut tried = Vec::new();
            let found = largest_half(batch, &mut |size| {
                tried.push(size);
                match size <= fits {
                    true => Ok(()),
                    false => Err(out_of_memory()),
                }
            });
            (found.unwrap().map(|(size, ())| size), tried)
        };
        assert_eq!(search(5, 100), (Some(3), vec![50, 25, 12, 6, 3]));
        assert_eq!(search(1, 8), (None, vec![4, 2]));
        assert_eq!(search(9, 2), (None, vec![]));
        let other = || ModelError::Stopped;
        assert!(largest_half::<()>(8, &mut |_| Err(other())).is_err());
    }

    #[test]
    fn the_error_names_a_batch_that_fits() {
        let folder = tempfile::tempdir().unwrap();
        let (mut trainer, _) = trainer_and_loader(folder.path(), 2);
        let config = config_of(&trainer, 8);
        let before: Vec<Tensor> = params(&trainer);
        let error = trainer.explain(out_of_memory(), &config, &SingleProcess);
        let text = error.to_string();
        for words in [
            "batch of 8",
            "this machine",
            "data.batch_size=4",
            "checkpoint_activations",
        ] {
            assert!(text.contains(words), "{text}");
        }
        assert!(before
            .iter()
            .zip(params(&trainer))
            .all(|(old, new)| *old == new));
        let other = trainer.explain(ModelError::Stopped, &config, &SingleProcess);
        assert!(matches!(other, ModelError::Stopped));
    }

    fn params(trainer: &Trainer) -> Vec<Tensor> {
        let params = trainer.model.params().trainable();
        params.map(|param| param.tensor.detach().copy()).collect()
    }
}
