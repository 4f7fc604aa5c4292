//! Settings of the optimiser.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// Settings of AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients. Default 0.9.
    pub beta1: f64,
    /// Decay of the mean of squared gradients. Default 0.98, the paper's; LAVIS's own default is
    /// 0.999.
    pub beta2: f64,
    /// Added to the root of the mean of squares. Default 1e-8.
    pub eps: f64,
    /// Share of a parameter's value that a step of rate 1 takes away. Default 0.05.
    pub weight_decay: f64,
    /// Whether weight decay acts on the temperature too, as it does in the reference, which exempts
    /// vectors and biases alone. Default true.
    pub decay_temperature: bool,
    /// Gradients whose norm (over all parameters) is larger are scaled down to it. The reference
    /// does not clip, which is the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_grad_norm: Option<f64>,
    /// Layer-wise rates of a trained vision tower: block k of K moves at the rate times this to the
    /// power of K - k (k from 0), patches and positions to the power of K + 1. Default 1. The
    /// reference's schedules overwrite its own such setting, `lr_layer_decay`.
    pub layer_decay: f64,
    /// Keep an exponential moving average of the trained parameters with this decay, e.g. 0.9999.
    /// None by default, as in the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_decay: Option<f64>,
    /// With several ranks, each keeps the moments (and averages) of its share of the parameters alone
    /// and sends what it has updated to the others: stage 1 of ZeRO (arXiv 1910.02054). The numbers of
    /// the run and its checkpoints are the same. Default false.
    pub shard_state: bool,
}

impl Default for AdamWConfig {
    fn default() -> AdamWConfig {
        AdamWConfig {
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-8,
            weight_decay: 0.05,
            decay_temperature: true,
            max_grad_norm: None,
            layer_decay: 1.0,
            ema_decay: None,
            shard_state: false,
        }
    }
}

impl AdamWConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`ConfigError::Setting`] naming the first that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let share = |value: f64| (0.0..1.0).contains(&value);
        let checks = [
            (
                "optimizer.beta1",
                self.beta1,
                share(self.beta1),
                "0 to below 1",
            ),
            (
                "optimizer.beta2",
                self.beta2,
                share(self.beta2),
                "0 to below 1",
            ),
            (
                "optimizer.eps",
                self.eps,
                self.eps > 0.0 && self.eps.is_finite(),
                "a number above 0",
            ),
            (
                "optimizer.weight_decay",
                self.weight_decay,
                self.weight_decay >= 0.0 && self.weight_decay.is_finite(),
                "0 or more",
            ),
            (
                "optimizer.max_grad_norm",
                self.max_grad_norm.unwrap_or(1.0),
                self.max_grad_norm
                    .is_none_or(|norm| norm > 0.0 && norm.is_finite()),
                "a number above 0",
            ),
            (
                "optimizer.layer_decay",
                self.layer_decay,
                self.layer_decay > 0.0 && self.layer_decay <= 1.0,
                "above 0 to 1",
            ),
            (
                "optimizer.ema_decay",
                self.ema_decay.unwrap_or(0.0),
                self.ema_decay.is_none_or(share),
                "0 to below 1",
            ),
        ];
        for (setting, value, fits, range) in checks {
            if !fits {
                return Err(ConfigError::Setting {
                    setting,
                    message: format!("{value} is out of range; take {range}"),
                });
            }
        }
        Ok(())
    }
}
