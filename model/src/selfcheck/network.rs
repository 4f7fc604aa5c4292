//! The networks that are checked, their weights and a batch: fixed numbers on every machine.

use std::collections::HashMap;

use qf_config::model::{ModelConfig, Precision, QformerConfig, VisionConfig, VitConfig};
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use super::check::Fault;
use crate::blip2::{Blip2Qformer, ComputeOptions};
use crate::params::LoadScope;

/// Tokens of each text. The longest fills its row.
pub(super) const LENGTHS: [i64; 6] = [3, 9, 5, 12, 4, 7];
pub(super) const IMAGE_SIZE: i64 = 56;
const TEXT_LEN: i64 = 12;
const VOCAB: i64 = 203;
const DEC: i64 = VOCAB - 1;

/// Which vision tower, and what of it is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tower {
    /// EVA's blocks with heads of ViT-g's size, frozen, as in stage 1.
    FrozenEva,
    /// The same, trained.
    Eva,
    /// The same, computing activations again in the backward pass.
    RecomputedEva,
    /// CLIP's blocks, trained.
    Clip,
    /// The small tower's blocks, trained.
    Small,
}

impl Tower {
    pub(super) const ALL: [Tower; 5] = [
        Tower::FrozenEva,
        Tower::Eva,
        Tower::RecomputedEva,
        Tower::Clip,
        Tower::Small,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Tower::FrozenEva => "frozen EVA",
            Tower::Eva => "EVA",
            Tower::RecomputedEva => "EVA, recomputed",
            Tower::Clip => "CLIP",
            Tower::Small => "small",
        }
    }
}

/// A network that a CPU computes in some milliseconds: heads of 88 channels in the tower and of 64 in the
/// Q-Former as in the published sizes, a vocabulary of an odd size, no dropout.
pub(super) fn config(tower: Tower) -> ModelConfig {
    let vit = VitConfig {
        image_size: IMAGE_SIZE,
        patch_size: 14,
        width: 176,
        depth: 2,
        heads: 2,
        mlp: 300,
        trainable: tower != Tower::FrozenEva,
        drop_path: 0.0,
        checkpoint_activations: tower == Tower::RecomputedEva,
    };
    ModelConfig {
        vision: match tower {
            Tower::FrozenEva | Tower::Eva | Tower::RecomputedEva => VisionConfig::Eva(vit),
            Tower::Clip => VisionConfig::Clip(vit),
            Tower::Small => VisionConfig::Small(vit),
        },
        qformer: QformerConfig {
            hidden: 128,
            layers: 2,
            heads: 2,
            intermediate: 256,
            cross_attention_freq: 2,
            num_queries: 8,
            encoder_width: 176,
            vocab_size: VOCAB,
            max_positions: 32,
            dropout: 0.0,
            embed_dim: 64,
            dec_token_id: DEC,
            ..ModelConfig::tiny().qformer
        },
    }
}

/// Numbers in [-1, 1) that depend on the name alone.
pub(super) fn draw(name: &str, count: usize) -> Vec<f32> {
    let mut seed = [0; 32];
    for (at, byte) in name.bytes().enumerate() {
        if let Some(place) = seed.get_mut(at % 32) {
            *place = byte.wrapping_add(u8::rotate_left(*place, 3));
        }
    }
    let mut random = ChaCha8Rng::from_seed(seed);
    let mut next = || (random.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
    (0..count).map(|_| next()).collect()
}

/// The same as a tensor on the host.
pub(super) fn drawn(name: &str, shape: &[i64]) -> Result<Tensor, Fault> {
    let count = shape.iter().product::<i64>();
    let numbers = draw(name, usize::try_from(count).unwrap_or(0));
    Ok(Tensor::f_from_slice(&numbers)?.f_view(shape)?)
}

/// Weights under which every part of the network matters: gains near 1, biases near 0, matrices that
/// keep the size of what they multiply.
fn weights(model: &Blip2Qformer) -> Result<HashMap<String, Tensor>, Fault> {
    let mut all = HashMap::new();
    for param in model.params().named_parameters() {
        let shape = param.tensor.size();
        let numbers = drawn(&param.name, &shape)?;
        let value = match shape[..] {
            // The temperature.
            [] => param.tensor.f_detach()?.f_to_device(Device::Cpu)?,
            [_] if param.name.ends_with("bias") => numbers.f_mul_scalar(0.05)?,
            [_] => numbers.f_mul_scalar(0.1)?.f_add_scalar(1.0)?,
            [rows, ..] => {
                let width = (param.tensor.numel() as f64 / rows as f64).max(1.0);
                numbers.f_mul_scalar((3.0 / width).sqrt())?
            }
        };
        all.insert(param.name.clone(), value);
    }
    Ok(all)
}

/// The network of `config` with these weights.
pub(super) fn model(
    config: &ModelConfig,
    device: Device,
    precision: Precision,
    compute: ComputeOptions,
) -> Result<Blip2Qformer, Fault> {
    let mut model = Blip2Qformer::new(config, device, 1)?;
    let weights = weights(&model)?;
    model
        .params_mut()
        .load(&weights, "the weights of the check", LoadScope::All)?;
    model.set_compute(compute);
    model.set_precision(precision)?;
    Ok(model)
}

/// A batch of [`LENGTHS`] pairs and its negatives.
#[derive(Debug)]
pub(super) struct Inputs {
    /// `[B, 3, S, S]`.
    pub(super) images: Tensor,
    /// `[B, T]` i64.
    pub(super) token_ids: Tensor,
    /// `[B, T]` i64.
    pub(super) attention_mask: Tensor,
    /// `[B]` i64: the image that each text is put with.
    pub(super) negative_images: Tensor,
    /// `[B]` i64: the text that each image is put with.
    pub(super) negative_texts: Tensor,
}

impl Inputs {
    /// The batch of this number on `device`, images in `kind`.
    pub(super) fn new(number: i64, device: Device, kind: Kind) -> Result<Inputs, Fault> {
        let batch = LENGTHS.len() as i64;
        let images = drawn(
            &format!("images of batch {number}"),
            &[batch, 3, IMAGE_SIZE, IMAGE_SIZE],
        )?;
        let (mut ids, mut mask) = (Vec::new(), Vec::new());
        for (row, &length) in (0..).zip(&LENGTHS) {
            for column in 0..TEXT_LEN {
                let drawn = 5 + (row * 31 + column * 17 + number * 7) % (DEC - 5);
                ids.push(if column < length { drawn } else { 0 });
                mask.push(i64::from(column < length));
            }
        }
        let shifted = |by: i64| -> Result<Tensor, Fault> {
            let indices: Vec<i64> = (0..batch).map(|row| (row + by) % batch).collect();
            Ok(Tensor::f_from_slice(&indices)?.f_to_device(device)?)
        };
        let texts = |entries: &[i64]| -> Result<Tensor, Fault> {
            let texts = Tensor::f_from_slice(entries)?.f_view([batch, TEXT_LEN])?;
            Ok(texts.f_to_device(device)?)
        };
        Ok(Inputs {
            images: images
                .f_mul_scalar(2.0)?
                .f_to_kind(kind)?
                .f_to_device(device)?,
            token_ids: texts(&ids)?,
            attention_mask: texts(&mask)?,
            negative_images: shifted(1)?,
            negative_texts: shifted(2 + number % 3)?,
        })
    }
}
