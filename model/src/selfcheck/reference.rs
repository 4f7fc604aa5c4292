//! What the device's numbers are compared with: the CPU in 64 bits, every row of every pass computed,
//! and AdamW as its paper writes it.

use std::collections::HashSet;

use qf_config::model::{ModelConfig, Precision, VisionConfig};
use tch::{Device, Kind, Tensor};

use super::check::Fault;
use super::network::model;
use crate::blip2::{Blip2Qformer, ComputeOptions};
use crate::optim::AdamWConfig;

/// The network of a check on the CPU and the element type of its inputs: in 64 bits, which takes libtorch's
/// plain operations, the fused ones being for 32. CLIP's norms convert to 32 bits whatever they are given,
/// so that tower stays in these.
pub(super) fn reference(config: &ModelConfig) -> Result<(Blip2Qformer, Kind), Fault> {
    let model = model(
        config,
        Device::Cpu,
        Precision::F32,
        ComputeOptions::ALL_ROWS,
    )?;
    if matches!(config.vision, VisionConfig::Clip(_)) {
        return Ok((model, Kind::Float));
    }
    for param in model.params().named_parameters() {
        let doubled = param.tensor.f_detach()?.f_to_kind(Kind::Double)?;
        param.tensor.shallow_clone().f_set_data(&doubled)?;
    }
    Ok((model, Kind::Double))
}

/// Whether a parameter's gradient is zero in exact arithmetic: softmax does not change when all keys
/// move alike.
pub(super) fn is_zero_gradient(name: &str) -> bool {
    name.ends_with(".self.key.bias")
}

/// AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2) in plain operations.
pub(super) struct PlainAdamW {
    config: AdamWConfig,
    decaying: HashSet<String>,
    entries: Vec<PlainEntry>,
    steps: i32,
}

struct PlainEntry {
    name: String,
    value: Tensor,
    mean: Tensor,
    square: Tensor,
}

impl PlainAdamW {
    /// An optimiser of tensors by name; weight decay acts on those in `decaying`.
    pub(super) fn new(
        config: &AdamWConfig,
        decaying: &[String],
        values: Vec<(String, Tensor)>,
    ) -> Result<PlainAdamW, Fault> {
        let entries = values.into_iter().map(|(name, value)| {
            Ok::<_, Fault>(PlainEntry {
                name,
                mean: value.f_zeros_like()?,
                square: value.f_zeros_like()?,
                value,
            })
        });
        Ok(PlainAdamW {
            config: config.clone(),
            decaying: decaying.iter().cloned().collect(),
            entries: entries.collect::<Result<_, _>>()?,
            steps: 0,
        })
    }

    /// Moves every tensor at rate `lr` against its gradient, in the order of the tensors; one without a
    /// gradient stays.
    pub(super) fn step(&mut self, lr: f64, gradients: &[Tensor]) -> Result<(), Fault> {
        let AdamWConfig {
            beta1,
            beta2,
            eps,
            weight_decay,
            ..
        } = self.config;
        self.steps += 1;
        let (first, second) = (1.0 - beta1.powi(self.steps), 1.0 - beta2.powi(self.steps));
        for (entry, gradient) in self.entries.iter_mut().zip(gradients) {
            if !gradient.defined() {
                continue;
            }
            let decay = match self.decaying.contains(&entry.name) {
                true => weight_decay,
                false => 0.0,
            };
            let blend = |old: &Tensor, new: &Tensor, beta: f64| {
                old.f_mul_scalar(beta)?
                    .f_add(&new.f_mul_scalar(1.0 - beta)?)
            };
            entry.mean = blend(&entry.mean, gradient, beta1)?;
            entry.square = blend(&entry.square, &gradient.f_mul(gradient)?, beta2)?;
            let root = entry.square.f_divide_scalar(second)?.f_sqrt()?;
            let way = entry.mean.f_divide_scalar(first)?;
            let way = way.f_divide(&root.f_add_scalar(eps)?)?;
            let kept = entry.value.f_mul_scalar(1.0 - lr * decay)?;
            let moved = kept.f_sub(&way.f_mul_scalar(lr)?)?;
            tch::no_grad(|| entry.value.f_copy_(&moved))?;
        }
        Ok(())
    }

    /// Name, value and both moments of each tensor.
    pub(super) fn state(&self) -> impl Iterator<Item = (&str, &Tensor, &Tensor, &Tensor)> {
        let entries = self.entries.iter();
        entries.map(|entry| {
            (
                entry.name.as_str(),
                &entry.value,
                &entry.mean,
                &entry.square,
            )
        })
    }
}
