//! A small pre-norm ViT (Dosovitskiy et al., arXiv 2010.11929) for training from scratch: exact
//! GELU, biases everywhere, no final norm because `ln_vision` follows.

use qf_config::model::VitConfig;
use tch::Tensor;

use super::parts::{embed_patches, DropPath};
use crate::error::ModelError;
use crate::layers::{attend, merge_heads, split_heads, xavier, LayerNorm, Linear, LinearInit};
use crate::low::LowCopies;
use crate::params::{Init, Scope};

const POSITION_STD: f64 = 0.02;
const LAYER_NORM_EPS: f64 = 1e-6;

#[derive(Debug)]
pub(crate) struct SmallVit {
    cls_token: Tensor, // [1, 1, E]
    pos_embed: Tensor, // [1, M, E]
    patch_weight: Tensor,
    patch_bias: Tensor,
    blocks: Vec<Block>,
}

impl SmallVit {
    pub(crate) fn new(mut scope: Scope<'_>, config: &VitConfig) -> Result<SmallVit, ModelError> {
        let (width, patch) = (config.width, config.patch_size);
        let normal = Init::Normal { std: POSITION_STD };
        let cls_token = scope.param("cls_token", &[1, 1, width], normal)?;
        let pos_embed = scope.param("pos_embed", &[1, config.tokens(), width], normal)?;
        let mut projection = scope.sub("patch_embed.proj");
        let patch_weight = projection.param(
            "weight",
            &[width, 3, patch, patch],
            xavier(3 * patch * patch, width),
        )?;
        let patch_bias = projection.param("bias", &[width], Init::Constant(0.0))?;
        let blocks = (0..config.depth)
            .map(|index| Block::new(scope.sub(format_args!("blocks.{index}")), config))
            .collect::<Result<_, _>>()?;
        Ok(SmallVit {
            cls_token,
            pos_embed,
            patch_weight,
            patch_bias,
            blocks,
        })
    }

    /// `[B, 3, S, S]` → `[B, M, E]`, before the first block.
    pub(crate) fn embed(&self, pixels: &Tensor) -> Result<Tensor, ModelError> {
        let bias = Some(&self.patch_bias);
        let rows = embed_patches(pixels, &self.cls_token, &self.patch_weight, bias)?;
        Ok(rows.f_add(&self.pos_embed)?)
    }

    /// See [`VisionTower::use_copies`](super::VisionTower::use_copies).
    pub(super) fn use_copies(
        &mut self,
        mut copies: Option<&mut LowCopies>,
    ) -> Result<(), ModelError> {
        for block in &mut self.blocks {
            for layer in [
                &mut block.qkv,
                &mut block.proj,
                &mut block.fc1,
                &mut block.fc2,
            ] {
                layer.use_frozen_copies(copies.as_deref_mut(), &[])?;
            }
        }
        Ok(())
    }

    /// See [`VisionTower::frozen_clone`](super::VisionTower::frozen_clone).
    pub(super) fn frozen_clone(&self) -> SmallVit {
        SmallVit {
            cls_token: self.cls_token.shallow_clone(),
            pos_embed: self.pos_embed.shallow_clone(),
            patch_weight: self.patch_weight.shallow_clone(),
            patch_bias: self.patch_bias.shallow_clone(),
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
    norm1: LayerNorm,
    qkv: Linear, // [3 E, E], rows of Q, K, V in turn, each [heads, d]
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: i64,
}

impl Block {
    fn new(mut scope: Scope<'_>, config: &VitConfig) -> Result<Block, ModelError> {
        let (width, mlp) = (config.width, config.mlp);
        let init = LinearInit::Xavier;
        Ok(Block {
            norm1: LayerNorm::new(scope.sub("norm1"), width, LAYER_NORM_EPS)?,
            qkv: Linear::new(scope.sub("attn.qkv"), width, 3 * width, init)?,
            proj: Linear::new(scope.sub("attn.proj"), width, width, init)?,
            norm2: LayerNorm::new(scope.sub("norm2"), width, LAYER_NORM_EPS)?,
            fc1: Linear::new(scope.sub("mlp.fc1"), width, mlp, init)?,
            fc2: Linear::new(scope.sub("mlp.fc2"), mlp, width, init)?,
            heads: config.heads,
        })
    }

    fn frozen_clone(&self) -> Block {
        Block {
            norm1: self.norm1.shallow_clone(),
            qkv: self.qkv.frozen_clone(),
            proj: self.proj.frozen_clone(),
            norm2: self.norm2.shallow_clone(),
            fc1: self.fc1.frozen_clone(),
            fc2: self.fc2.frozen_clone(),
            heads: self.heads,
        }
    }

    fn forward(&self, rows: &Tensor, drop_path: &DropPath) -> Result<Tensor, ModelError> {
        let qkv = self
            .qkv
            .forward(&self.norm1.forward(rows)?)?
            .f_chunk(3, 2)?; // 3 × [B, M, E]
        let part = |index: usize| split_heads(&qkv[index], self.heads); // [B, heads, M, d]
        let mixed = attend(&part(0)?, &part(1)?, &part(2)?)?;
        let rows = drop_path.add(0, rows, &self.proj.forward(&merge_heads(&mixed)?)?)?;
        let hidden = self
            .fc1
            .forward(&self.norm2.forward(&rows)?)?
            .f_gelu("none")?;
        drop_path.add(1, &rows, &self.fc2.forward(&hidden)?)
    }
}
