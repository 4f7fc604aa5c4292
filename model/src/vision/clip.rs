//! The CLIP tower (Radford et al., arXiv 2103.00020) as LAVIS runs it (`lavis/models/clip_vit.py`):
//! patch convolution without bias, `ln_pre`, QuickGELU, layer norms in 32 bits, no final norm.

use qf_config::model::VitConfig;
use tch::Tensor;

use super::parts::{embed_patches, DropPath};
use crate::error::ModelError;
use crate::layers::{attend, merge_heads, split_heads, xavier, LayerNorm, Linear, LinearInit};
use crate::low::LowCopies;
use crate::params::{Init, Scope};

const LAYER_NORM_EPS: f64 = 1e-5;

#[derive(Debug)]
pub(crate) struct ClipVit {
    class_embedding: Tensor,      // [E]
    positional_embedding: Tensor, // [M, E]
    conv1_weight: Tensor,         // [E, 3, patch, patch]
    ln_pre: LayerNorm,
    blocks: Vec<Block>,
}

impl ClipVit {
    pub(crate) fn new(mut scope: Scope<'_>, config: &VitConfig) -> Result<ClipVit, ModelError> {
        let (width, patch) = (config.width, config.patch_size);
        let std = 1.0 / (width as f64).sqrt();
        let normal = Init::Normal { std };
        let bound = 1.0 / ((3 * patch * patch) as f64).sqrt();
        Ok(ClipVit {
            class_embedding: scope.param("class_embedding", &[width], normal)?,
            positional_embedding: scope.param(
                "positional_embedding",
                &[config.tokens(), width],
                normal,
            )?,
            conv1_weight: scope.param(
                "conv1.weight",
                &[width, 3, patch, patch],
                Init::Uniform { bound },
            )?,
            ln_pre: LayerNorm::new(scope.sub("ln_pre"), width, LAYER_NORM_EPS)?,
            blocks: (0..config.depth)
                .map(|index| {
                    let name = format_args!("transformer.resblocks.{index}");
                    Block::new(scope.sub(name), config)
                })
                .collect::<Result<_, _>>()?,
        })
    }

    /// `[B, 3, S, S]` → `[B, M, E]`, before the first block.
    pub(crate) fn embed(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        let class_token = self.class_embedding.f_view([1, 1, -1])?;
        let rows = embed_patches(pixels, &class_token, &self.conv1_weight, None)?;
        self.ln_pre
            .forward_in_f32(&rows.f_add(&self.positional_embedding)?)
    }

    /// See [`VisionTower::use_copies`](super::VisionTower::use_copies).
    pub(super) fn use_copies(
        &mut self,
        mut copies: Option<&mut LowCopies>,
    ) -> Result<(), ModelError> {
        for block in &mut self.blocks {
            for layer in block.layers() {
                layer.use_frozen_copies(copies.as_deref_mut(), &[])?;
            }
        }
        Ok(())
    }

    /// See [`VisionTower::frozen_clone`](super::VisionTower::frozen_clone).
    pub(super) fn frozen_clone(&self) -> ClipVit {
        ClipVit {
            class_embedding: self.class_embedding.shallow_clone(),
            positional_embedding: self.positional_embedding.shallow_clone(),
            conv1_weight: self.conv1_weight.shallow_clone(),
            ln_pre: self.ln_pre.shallow_clone(),
            blocks: self.blocks.iter().map(Block::frozen_clone).collect(),
        }
    }

    /// Rows `[B, M, E]` through block `index`.
    pub(crate) fn block(
        &self,
        index: usize,
        rows: &Tensor,
        drop_path: &DropPath,
    ) -> Result<Tensor, ModelError> {
        self.blocks[index].forward(rows, drop_path)
    }
}

#[derive(Debug)]
struct Block {
    in_proj: Linear, // [3 E, E], rows of Q, K, V in turn, each [heads, d]
    out_proj: Linear,
    ln_1: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
    ln_2: LayerNorm,
    heads: i64,
}

impl Block {
    fn new(mut scope: Scope<'_>, config: &VitConfig) -> Result<Block, ModelError> {
        let width = config.width;
        let mut attention = scope.sub("attn");
        let weight = attention.param(
            "in_proj_weight",
            &[3 * width, width],
            xavier(width, 3 * width),
        )?;
        let bias = attention.param("in_proj_bias", &[3 * width], Init::Constant(0.0))?;
        let mut out = attention.sub("out_proj");
        let bound = 1.0 / (width as f64).sqrt();
        let out_weight = out.param("weight", &[width, width], Init::Uniform { bound })?;
        let out_bias = out.param("bias", &[width], Init::Constant(0.0))?;
        let default = LinearInit::TorchDefault;
        Ok(Block {
            in_proj: Linear::from_tensors(weight, Some(bias)),
            out_proj: Linear::from_tensors(out_weight, Some(out_bias)),
            ln_1: LayerNorm::new(scope.sub("ln_1"), width, LAYER_NORM_EPS)?,
            c_fc: Linear::new(scope.sub("mlp.c_fc"), width, config.mlp, default)?,
            c_proj: Linear::new(scope.sub("mlp.c_proj"), config.mlp, width, default)?,
            ln_2: LayerNorm::new(scope.sub("ln_2"), width, LAYER_NORM_EPS)?,
            heads: config.heads,
        })
    }

    fn layers(&mut self) -> [&mut Linear; 4] {
        [
            &mut self.in_proj,
            &mut self.out_proj,
            &mut self.c_fc,
            &mut self.c_proj,
        ]
    }

    fn frozen_clone(&self) -> Block {
        Block {
            in_proj: self.in_proj.frozen_clone(),
            out_proj: self.out_proj.frozen_clone(),
            ln_1: self.ln_1.shallow_clone(),
            c_fc: self.c_fc.frozen_clone(),
            c_proj: self.c_proj.frozen_clone(),
            ln_2: self.ln_2.shallow_clone(),
            heads: self.heads,
        }
    }

    fn forward(&self, rows: &Tensor, drop_path: &DropPath) -> Result<Tensor, ModelError> {
        let qkv = self
            .in_proj
            .forward(&self.ln_1.forward_in_f32(rows)?)?
            .f_chunk(3, 2)?; // 3 × [B, M, E]
        let part = |index: usize| split_heads(&qkv[index], self.heads); // [B, heads, M, d]
        let mixed = attend(&part(0)?, &part(1)?, &part(2)?)?;
        let rows = drop_path.add(0, rows, &self.out_proj.forward(&merge_heads(&mixed)?)?)?;
        let hidden = quick_gelu(&self.c_fc.forward(&self.ln_2.forward_in_f32(&rows)?)?)?;
        drop_path.add(1, &rows, &self.c_proj.forward(&hidden)?)
    }
}

/// x · σ(1.702 x).
fn quick_gelu(input: &Tensor) -> Result<Tensor, ModelError> {
    Ok(input.f_mul(&input.f_mul_scalar(1.702)?.f_sigmoid()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::ParamStore;
    use tch::{Device, Kind};

    /// The tower's arithmetic written out head by head, without fused attention or layer norms.
    #[test]
    fn one_block_by_hand() {
        let config = VitConfig {
            image_size: 4,
            patch_size: 2,
            width: 6,
            depth: 1,
            heads: 2,
            mlp: 8,
            trainable: true,
            drop_path: 0.0,
            checkpoint_activations: false,
        };
        let mut store = ParamStore::new(Device::Cpu, 5);
        let vit = ClipVit::new(store.root(), &config).unwrap();
        let value = |name: &str| store.get(name).unwrap().tensor.detach();
        let norm = |rows: &Tensor| {
            let centred = rows - rows.mean_dim([-1i64].as_slice(), true, None);
            let variance = centred.square().mean_dim([-1i64].as_slice(), true, None);
            centred / (variance + LAYER_NORM_EPS).sqrt()
        };
        let dense = |rows: &Tensor, name: &str, suffix: &str| {
            let weight = value(&format!("{name}{suffix}weight"));
            rows.matmul(&weight.transpose(0, 1)) + value(&format!("{name}{suffix}bias"))
        };

        let pixels = Tensor::randn([1, 3, 4, 4], (Kind::Float, Device::Cpu));
        let kernel = value("conv1.weight").view([6, 12]);
        let mut rows = vec![value("class_embedding")];
        for (top, left) in [(0, 0), (0, 2), (2, 0), (2, 2)] {
            let patch = pixels.get(0).narrow(1, top, 2).narrow(2, left, 2);
            rows.push(kernel.matmul(&patch.reshape(-1)));
        }
        let rows = norm(&(Tensor::stack(&rows, 0) + value("positional_embedding"))); // [5, 6]
        let block = "transformer.resblocks.0";
        let qkv = dense(&norm(&rows), &format!("{block}.attn.in_proj"), "_"); // [5, 18]
        let heads: Vec<Tensor> = (0..2)
            .map(|head| {
                let part = |index: i64| qkv.narrow(1, index * 6 + head * 3, 3); // [5, 3]
                let scores = part(0).matmul(&part(1).transpose(0, 1)) / 3f64.sqrt();
                scores.softmax(1, None).matmul(&part(2))
            })
            .collect();
        let mixed = Tensor::cat(&heads, 1);
        let rows = &rows + dense(&mixed, &format!("{block}.attn.out_proj"), ".");
        let hidden = quick_gelu(&dense(&norm(&rows), &format!("{block}.mlp.c_fc"), ".")).unwrap();
        let expected = &rows + dense(&hidden, &format!("{block}.mlp.c_proj"), ".");

        let rows = vit.embed(&pixels).unwrap();
        let got = vit.block(0, &rows, &DropPath::default()).unwrap().get(0);
        assert!(
            got.allclose(&expected, 1e-5, 1e-5, false),
            "{got} {expected}"
        );
    }

    #[test]
    fn quick_gelu_values() {
        let output = quick_gelu(&Tensor::from_slice(&[-1.0f64, 0.0, 1.0, 3.0])).unwrap();
        // 1 / (1 + e^(-1.702 x)) by hand.
        let expected = [-0.154_204_2, 0.0, 0.845_795_8, 2.981_928_7];
        for (index, expected) in expected.iter().enumerate() {
            assert!(
                (output.double_value(&[index as i64]) - expected).abs() < 1e-6,
                "{output}"
            );
        }
    }
}
