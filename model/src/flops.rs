//! Floating-point operations of a training step, counted from the shapes.
//!
//! Two per multiplication of a matrix product; element-wise work is not counted. The reference's
//! count is that of LAVIS with PyTorch's `FlopCounterMode` (80.2 GFLOP an image forward at the
//! published size).

use std::time::Instant;

use qf_config::model::{ModelConfig, Precision, QformerConfig, VitConfig};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use crate::blip2::ComputeOptions;
use crate::error::ModelError;

/// The shapes of one step.
#[derive(Clone, Debug)]
pub struct StepShape<'a> {
    /// Tokens of each text (B of them).
    pub lengths: &'a [i64],
    /// Columns of the token ids (T).
    pub text_len: i64,
    /// Image tokens (M).
    pub image_tokens: i64,
}

/// Floating-point operations of one step's forward and backward pass, by part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct StepFlops {
    /// The vision tower.
    pub tower: Pass,
    /// Keys and values of the images for cross attention.
    pub image_keys: Pass,
    /// Queries alone.
    pub queries: Pass,
    /// Text alone.
    pub text: Pass,
    /// The three pairs of the matching loss.
    pub matching: Pass,
    /// Text that continues the queries.
    pub decoder: Pass,
    /// The language-model head.
    pub head: Pass,
}

/// Operations of one part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Pass {
    /// Forward.
    pub forward: f64,
    /// Backward.
    pub backward: f64,
}

impl Pass {
    /// Both gradients of every product.
    fn trained(forward: f64) -> Pass {
        Pass {
            forward,
            backward: 2.0 * forward,
        }
    }

    /// Forward and backward.
    pub fn total(&self) -> f64 {
        self.forward + self.backward
    }
}

impl StepFlops {
    /// The parts by name.
    pub fn parts(&self) -> [(&'static str, Pass); 7] {
        [
            ("vision tower", self.tower),
            ("image keys and values", self.image_keys),
            ("queries", self.queries),
            ("text", self.text),
            ("matching", self.matching),
            ("decoder", self.decoder),
            ("language-model head", self.head),
        ]
    }

    /// Forward and backward of all parts.
    pub fn total(&self) -> f64 {
        self.parts().iter().map(|(_, pass)| pass.total()).sum()
    }

    /// What the reference computes: text padded, every row of every layer, keys and values of the
    /// image anew for each of the four rows it takes part in.
    pub fn reference(config: &ModelConfig, shape: &StepShape<'_>) -> StepFlops {
        let sizes = &config.qformer;
        let (batch, text, queries) = (
            shape.lengths.len() as f64,
            shape.text_len as f64,
            sizes.num_queries as f64,
        );
        let keys = image_keys(sizes, shape.image_tokens);
        let image_tokens = shape.image_tokens as f64;
        let whole = |rows: f64, keys: f64, looking: f64| Sequence {
            keys_made: rows,
            keys_seen: keys,
            rows,
            looking,
            last_rows: rows,
        };
        let queries_alone = whole(queries, queries, queries);
        let text_alone = whole(text, text, 0.0);
        let pair = whole(queries + text, queries + text, queries);
        let decoder = whole(text, queries + text, 0.0);
        StepFlops {
            tower: tower(config, batch),
            image_keys: Pass::trained(4.0 * batch * keys),
            queries: Pass::trained(batch * queries_alone.flops(sizes, image_tokens)),
            text: Pass::trained(batch * text_alone.flops(sizes, image_tokens)),
            matching: Pass::trained(3.0 * batch * pair.flops(sizes, image_tokens)),
            decoder: Pass::trained(batch * decoder.flops(sizes, image_tokens)),
            head: Pass::trained(batch * head(sizes, text)),
        }
    }

    /// What a step here computes with `compute`, on a host that knows the lengths. Of the matching
    /// loss the negative texts count as long as the average; on one rank.
    pub fn step(config: &ModelConfig, shape: &StepShape<'_>, compute: ComputeOptions) -> StepFlops {
        let sizes = &config.qformer;
        let queries = sizes.num_queries as f64;
        let image_tokens = shape.image_tokens as f64;
        let cut = compute.skip_unread;
        let mut flops = StepFlops {
            tower: tower(config, shape.lengths.len() as f64),
            ..StepFlops::default()
        };
        for &length in shape.lengths {
            let text = match compute.skip_padding {
                true => length.min(shape.text_len) as f64,
                false => shape.text_len as f64,
            };
            let decoded = if cut { text - 1.0 } else { text };
            let sequence = |rows: f64, before: f64, looking: f64, last_rows: f64| Sequence {
                keys_made: rows,
                keys_seen: before + rows,
                rows,
                looking,
                last_rows: if cut { last_rows } else { rows },
            };
            let add = |pass: &mut Pass, sequence: Sequence, times: f64| {
                let forward = times * sequence.flops(sizes, image_tokens);
                pass.forward += forward;
                pass.backward += 2.0 * forward;
            };
            add(
                &mut flops.queries,
                sequence(queries, 0.0, queries, queries),
                1.0,
            );
            add(&mut flops.text, sequence(text, 0.0, 0.0, 1.0), 1.0);
            let pair = sequence(queries + text, 0.0, queries, queries);
            add(&mut flops.matching, pair, 3.0);
            add(
                &mut flops.decoder,
                sequence(decoded, queries, 0.0, decoded),
                1.0,
            );
            let head = head(sizes, (length - 1).max(0) as f64);
            flops.head.forward += head;
            flops.head.backward += 2.0 * head;
            let keys = image_keys(sizes, shape.image_tokens);
            let trained = config.vision.vit().is_some_and(|vit| vit.trainable);
            flops.image_keys.forward += keys;
            // Towards a frozen tower no gradient goes.
            flops.image_keys.backward += if trained { 2.0 * keys } else { keys };
        }
        flops
    }
}

/// What each thing that is done only where it is needed saves of the reference's operations, by
/// name: together the difference between [`StepFlops::reference`] and [`StepFlops::step`] with
/// everything left out. `shape.text_len` is the reference's.
pub fn savings(config: &ModelConfig, shape: &StepShape<'_>) -> [(&'static str, f64); 5] {
    let reference = StepFlops::reference(config, shape);
    let keys = shape.lengths.len() as f64 * image_keys(&config.qformer, shape.image_tokens);
    let once = Pass::trained(keys).total();
    let all = StepFlops::step(config, shape, ComputeOptions::ALL_ROWS);
    let dense = ComputeOptions {
        skip_padding: true,
        skip_unread: false,
    };
    let dense = StepFlops::step(config, shape, dense).total();
    let needed = StepFlops::step(config, shape, ComputeOptions::default()).total();
    [
        (
            "keys and values of an image once instead of four times",
            reference.image_keys.total() - once,
        ),
        (
            "no gradient towards a frozen tower: ln_vision folded into the projections",
            once - all.image_keys.total(),
        ),
        (
            "language-model head on labelled positions",
            reference.head.total() - all.head.total(),
        ),
        ("no rows of padding", all.total() - dense),
        ("no rows that nothing reads", dense - needed),
    ]
}

/// One sequence through the layers.
struct Sequence {
    /// Rows whose keys and values are computed.
    keys_made: f64,
    /// Keys that each row attends to.
    keys_seen: f64,
    /// Rows that attend and go through the networks.
    rows: f64,
    /// Those among them that look at the image.
    looking: f64,
    /// `rows` in the last layer.
    last_rows: f64,
}

impl Sequence {
    fn flops(&self, sizes: &QformerConfig, image_tokens: f64) -> f64 {
        let (width, inner) = (sizes.hidden as f64, sizes.intermediate as f64);
        let mut total = 0.0;
        for layer in 0..sizes.layers {
            let rows = match layer + 1 == sizes.layers {
                true => self.last_rows,
                false => self.rows,
            };
            let projections = (2.0 * self.keys_made + 2.0 * rows) * width * width;
            let attention = 2.0 * rows * self.keys_seen * width;
            let networks = 2.0 * rows * width * inner;
            let cross = match sizes.has_cross_attention(layer) {
                true => self.looking.min(rows) * (2.0 * width * width + 2.0 * image_tokens * width),
                false => 0.0,
            };
            total += 2.0 * (projections + attention + networks + cross);
        }
        total
    }
}

/// Keys and values of one image in all layers that look at it.
fn image_keys(sizes: &QformerConfig, image_tokens: i64) -> f64 {
    let layers = (0..sizes.layers).filter(|&layer| sizes.has_cross_attention(layer));
    let product = 2.0 * (image_tokens * sizes.encoder_width * sizes.hidden) as f64;
    layers.count() as f64 * 2.0 * product
}

/// The language-model head on `rows` rows.
fn head(sizes: &QformerConfig, rows: f64) -> f64 {
    let width = sizes.hidden as f64;
    2.0 * rows * width * (width + sizes.vocab_size as f64)
}

fn tower(config: &ModelConfig, batch: f64) -> Pass {
    let Some(vit) = config.vision.vit() else {
        return Pass::default();
    };
    let forward = batch * tower_forward(vit);
    match vit.trainable {
        true => Pass::trained(forward),
        false => Pass {
            forward,
            backward: 0.0,
        },
    }
}

/// One image through a vision transformer.
fn tower_forward(vit: &VitConfig) -> f64 {
    let (tokens, width, mlp) = (vit.tokens() as f64, vit.width as f64, vit.mlp as f64);
    let patches = (tokens - 1.0) * 3.0 * (vit.patch_size * vit.patch_size) as f64 * width;
    let block = tokens * width * (4.0 * width + 2.0 * mlp) + 2.0 * tokens * tokens * width;
    2.0 * (patches + vit.depth as f64 * block)
}

/// FLOP/s of a large matrix product on `device` in the element type of `precision`: the best of
/// several. (Of a small one for `f16` on a CPU, where a large one takes minutes.)
///
/// # Errors
/// [`ModelError::Torch`] where libtorch fails.
pub fn matmul_peak(device: Device, precision: Precision) -> Result<f64, ModelError> {
    let tries = 10;
    let (size, wait): (i64, &dyn Fn()) = match (device, precision) {
        (Device::Cuda(index), _) => (8192, &move || tch::Cuda::synchronize(index as i64)),
        (_, Precision::F16) => (256, &|| ()),
        _ => (2048, &|| ()),
    };
    let kind = match precision {
        Precision::F32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
        Precision::F16 => Kind::Half,
    };
    // Random numbers: a GPU is faster on constant ones, which cost it less power.
    let operand = || Tensor::f_randn([size, size], (Kind::Float, device))?.f_to_kind(kind);
    let (a, b) = (operand()?, operand()?);
    let mut best = f64::INFINITY;
    for _ in 0..tries {
        wait();
        let start = Instant::now();
        let product = a.f_matmul(&b)?;
        wait();
        best = best.min(start.elapsed().as_secs_f64());
        drop(product);
    }
    Ok(2.0 * (size as f64).powi(3) / best)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gflop(flops: f64) -> f64 {
        (flops / 1e7).round() / 100.0
    }

    fn shape(lengths: &[i64]) -> StepShape<'_> {
        StepShape {
            lengths,
            text_len: 32,
            image_tokens: 257,
        }
    }

    #[test]
    fn the_reference_count_is_the_published_one() {
        // QFORMER.md, section 13: GFLOP per image, forward.
        let flops = StepFlops::reference(&ModelConfig::vit_g(), &shape(&[32]));
        let close = |got: f64, expected: f64| {
            assert!(
                (gflop(got) - expected).abs() <= 0.01 * expected,
                "{got} {expected}"
            );
        };
        close(flops.tower.forward, 520.7);
        close(
            flops.queries.forward + flops.image_keys.forward / 4.0,
            12.75,
        );
        close(flops.text.forward, 5.47);
        close(
            flops.matching.forward + flops.image_keys.forward * 0.75,
            54.89,
        );
        close(flops.decoder.forward, 5.51);
        close(flops.head.forward, 1.54);
        close((flops.total() - flops.tower.forward) / 3.0, 80.2);
        assert_eq!(flops.tower.backward, 0.0);
        let vit_l = StepFlops::reference(&ModelConfig::vit_l(), &shape(&[32]));
        close(vit_l.tower.forward, 155.3);
    }

    #[test]
    fn the_savings_add_up() {
        let lengths = [13, 20, 8, 32];
        for trainable in [false, true] {
            let mut config = ModelConfig::vit_g();
            if let crate::VisionConfig::Eva(vit) = &mut config.vision {
                vit.trainable = trainable;
            }
            let saved = savings(&config, &shape(&lengths));
            assert!(saved.iter().all(|(_, flops)| *flops >= 0.0));
            assert_eq!(saved[1].1 == 0.0, trainable);
            let total: f64 = saved.iter().map(|(_, flops)| flops).sum();
            let ours = StepFlops::step(&config, &shape(&lengths), ComputeOptions::default());
            let expected = StepFlops::reference(&config, &shape(&lengths)).total() - ours.total();
            assert!((total - expected).abs() < 1e-9 * expected);
        }
    }

    #[test]
    fn what_is_left_out_is_saved() {
        let config = ModelConfig::vit_g();
        let reference = StepFlops::reference(&config, &shape(&[32, 32]));
        // Full captions: only the image's keys and values, computed once, and no gradient to them.
        let all = StepFlops::step(&config, &shape(&[32, 32]), ComputeOptions::ALL_ROWS);
        assert_eq!(all.image_keys.forward * 4.0, reference.image_keys.forward);
        assert_eq!(all.image_keys.backward, all.image_keys.forward);
        assert_eq!(all.matching, reference.matching);
        let unread = ComputeOptions {
            skip_padding: false,
            skip_unread: true,
        };
        let cut = StepFlops::step(&config, &shape(&[32, 32]), unread);
        assert!(cut.matching.forward < all.matching.forward);
        assert!(cut.text.forward < all.text.forward);
        assert_eq!(cut.queries, all.queries);
        let short = StepFlops::step(&config, &shape(&[13, 13]), ComputeOptions::default());
        assert!(short.text.forward < 0.45 * cut.text.forward);
        assert_eq!(short.head.forward, reference.head.forward * 12.0 / 32.0);
    }
}
