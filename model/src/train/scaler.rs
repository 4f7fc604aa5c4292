//! The loss scale of training in float16 (Micikevicius et al., arXiv 1710.03740), with the numbers of
//! `torch.amp.GradScaler`: small gradients stay above float16's smallest number.

use tch::{Device, Kind, Tensor};

use crate::checkpoint::ScalerState;
use crate::error::ModelError;

const INITIAL_SCALE: f64 = 65_536.0;
const GROWTH: f64 = 2.0;
const BACKOFF: f64 = 0.5;
const GROWTH_INTERVAL: i64 = 2000;

/// A loss scale that grows while gradients are finite and shrinks where they are not. Its numbers
/// live on the device: nobody waits for them.
#[derive(Debug)]
pub struct LossScaler {
    scale: Tensor,      // [] f32
    good_steps: Tensor, // [] i32
}

impl LossScaler {
    /// A scale that starts anew, or from a checkpoint's state.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when the device is out of memory.
    pub fn new(state: Option<ScalerState>, device: Device) -> Result<LossScaler, ModelError> {
        let state = state.unwrap_or(ScalerState {
            scale: INITIAL_SCALE,
            good_steps: 0,
        });
        let scalar = |value: f64, kind| Tensor::f_full([], value, (kind, device));
        Ok(LossScaler {
            scale: scalar(state.scale, Kind::Float)?,
            good_steps: scalar(state.good_steps as f64, Kind::Int)?,
        })
    }

    /// The numbers, for a checkpoint.
    ///
    /// # Errors
    /// [`ModelError::Torch`] when they cannot be read.
    pub fn state(&self) -> Result<ScalerState, ModelError> {
        Ok(ScalerState {
            scale: self.scale.f_double_value(&[])?,
            good_steps: self.good_steps.f_int64_value(&[])?.unsigned_abs(),
        })
    }

    /// The factor of the loss, a scalar on the device; gradients are to be divided by it.
    pub fn scale(&self) -> &Tensor {
        &self.scale
    }

    /// After a step: `overflow` is 1 if a gradient was not finite, else 0.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails.
    pub fn update(&mut self, overflow: &Tensor) -> Result<(), ModelError> {
        let _ = self.scale.f_internal_amp_update_scale_(
            &self.good_steps,
            overflow,
            GROWTH,
            BACKOFF,
            GROWTH_INTERVAL,
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_halves_on_overflow_and_doubles_after_a_while() {
        let mut scaler = LossScaler::new(None, Device::Cpu).unwrap();
        let flag = |value: f32| Tensor::from(value);
        scaler.update(&flag(1.0)).unwrap();
        let state = |scale: f64, good_steps: u64| ScalerState { scale, good_steps };
        assert_eq!(scaler.state().unwrap(), state(32_768.0, 0));
        for _ in 0..1999 {
            scaler.update(&flag(0.0)).unwrap();
        }
        assert_eq!(scaler.state().unwrap(), state(32_768.0, 1999));
        let mut restored = LossScaler::new(Some(scaler.state().unwrap()), Device::Cpu).unwrap();
        restored.update(&flag(0.0)).unwrap();
        assert_eq!(restored.state().unwrap(), state(65_536.0, 0));
        scaler.update(&flag(1.0)).unwrap();
        assert_eq!(scaler.state().unwrap(), state(16_384.0, 0));
    }
}
