//! The EVA-CLIP tower (Fang et al., arXiv 2211.07636) as LAVIS runs it
//! (`lavis/models/eva_vit.py`): pre-norm, exact GELU, biases on Q and V but not on K, no final norm.

use qf_config::model::VitConfig;
use tch::Tensor;

use super::parts::{embed_patches, DropPath};
use crate::error::ModelError;
use crate::layers::{attend, merge_heads, split_heads, LayerNorm, Linear, LinearInit};
use crate::low::LowCopies;
use crate::params::{Init, Scope};

const INIT_STD: f64 = 0.02;
const LAYER_NORM_EPS: f64 = 1e-6;

#[derive(Debug)]
pub(crate) struct EvaVit {
    cls_token: Tensor, // [1, 1, E]
    pos_embed: Tensor, // [1, M, E]
    patch_weight: Tensor,
    patch_bias: Tensor,
    blocks: Vec<Block>,
}

impl EvaVit {
    pub(crate) fn new(mut scope: Scope<'_>, config: &VitConfig) -> Result<EvaVit, ModelError> {
        let (width, patch) = (config.width, config.patch_size);
        let normal = Init::Normal { std: INIT_STD };
        let cls_token = scope.param("cls_token", &[1, 1, width], normal)?;
        let pos_embed = scope.param("pos_embed", &[1, config.tokens(), width], normal)?;
        let bound = 1.0 / ((3 * patch * patch) as f64).sqrt();
        let mut projection = scope.sub("patch_embed.proj");
        let patch_weight =
            projection.param("weight", &[width, 3, patch, patch], Init::Uniform { bound })?;
        let patch_bias = projection.param("bias", &[width], Init::Uniform { bound })?;
        let blocks = (0..config.depth)
            .map(|index| Block::new(scope.sub(format_args!("blocks.{index}")), config, index))
            .collect::<Result<_, _>>()?;
        Ok(EvaVit {
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

    /// All blocks of a tower whose products run in 16 bits and that is not trained: `[B, M, E]` f32 →
    /// the same. A sum and the norm behind it are one pass over the rows. `None` of any other tower.
    pub(crate) fn frozen_blocks(&self, rows: &Tensor) -> Result<Option<Tensor>, ModelError> {
        let mut rows = rows.shallow_clone();
        let mut branch: Option<Tensor> = None;
        for block in &self.blocks {
            let Some(kind) = block.qkv.frozen_kind() else {
                return Ok(None);
            };
            let norm = &block.norm1;
            let [sum, normed] = norm.add_and_normalize(&rows, branch.as_ref(), kind)?;
            let mixed = block.attention(&normed)?;
            let norm = &block.norm2;
            let [sum, normed] = norm.add_and_normalize(&sum, Some(&mixed), kind)?;
            (rows, branch) = (sum, Some(block.network(&normed)?));
        }
        match branch {
            Some(branch) => Ok(Some(rows.f_add(&branch)?)),
            None => Ok(None),
        }
    }

    /// See [`VisionTower::use_copies`](super::VisionTower::use_copies).
    pub(super) fn use_copies(
        &mut self,
        mut copies: Option<&mut LowCopies>,
    ) -> Result<(), ModelError> {
        let mut blocks = self.blocks.iter_mut();
        blocks.try_for_each(|block| block.use_copies(copies.as_deref_mut()))
    }

    /// See [`VisionTower::frozen_clone`](super::VisionTower::frozen_clone).
    pub(super) fn frozen_clone(&self) -> EvaVit {
        EvaVit {
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
    q_bias: Tensor, // [E]
    v_bias: Tensor, // [E]
    qkv: Linear,    // [3 E, E], rows of Q, K, V in turn, each [heads, d]
    proj: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: i64,
}

impl Block {
    fn new(mut scope: Scope<'_>, config: &VitConfig, index: i64) -> Result<Block, ModelError> {
        let width = config.width;
        let normal = LinearInit::Normal(INIT_STD);
        // The residual branches of block k start √(2k) smaller.
        let residual = LinearInit::Normal(INIT_STD / (2.0 * (index + 1) as f64).sqrt());
        let norm1 = LayerNorm::new(scope.sub("norm1"), width, LAYER_NORM_EPS)?;
        let mut attention = scope.sub("attn");
        let q_bias = attention.param("q_bias", &[width], Init::Constant(0.0))?;
        let v_bias = attention.param("v_bias", &[width], Init::Constant(0.0))?;
        let qkv_weight = attention.param(
            "qkv.weight",
            &[3 * width, width],
            Init::Normal { std: INIT_STD },
        )?;
        let proj = Linear::new(attention.sub("proj"), width, width, residual)?;
        Ok(Block {
            norm1,
            q_bias,
            v_bias,
            qkv: Linear::from_tensors(qkv_weight, None),
            proj,
            norm2: LayerNorm::new(scope.sub("norm2"), width, LAYER_NORM_EPS)?,
            fc1: Linear::new(scope.sub("mlp.fc1"), width, config.mlp, normal)?,
            fc2: Linear::new(scope.sub("mlp.fc2"), config.mlp, width, residual)?,
            heads: config.heads,
        })
    }

    fn use_copies(&mut self, mut copies: Option<&mut LowCopies>) -> Result<(), ModelError> {
        let width = self.q_bias.size()[0];
        let bias = [(0, &self.q_bias), (2 * width, &self.v_bias)];
        self.qkv.use_frozen_copies(copies.as_deref_mut(), &bias)?;
        for layer in [&mut self.proj, &mut self.fc1, &mut self.fc2] {
            layer.use_frozen_copies(copies.as_deref_mut(), &[])?;
        }
        Ok(())
    }

    fn frozen_clone(&self) -> Block {
        Block {
            norm1: self.norm1.shallow_clone(),
            q_bias: self.q_bias.shallow_clone(),
            v_bias: self.v_bias.shallow_clone(),
            qkv: self.qkv.frozen_clone(),
            proj: self.proj.frozen_clone(),
            norm2: self.norm2.shallow_clone(),
            fc1: self.fc1.frozen_clone(),
            fc2: self.fc2.frozen_clone(),
            heads: self.heads,
        }
    }

    /// Q, K and V of rows, `[B, M, 3 E]`.
    fn project(&self, rows: &Tensor) -> Result<Tensor, ModelError> {
        if self.qkv.frozen_kind().is_some() {
            return self.qkv.forward(rows);
        }
        let none = self.v_bias.f_zeros_like()?;
        let bias = Tensor::f_cat(&[&self.q_bias, &none, &self.v_bias], 0)?;
        self.qkv.forward_with_bias(rows, &bias)
    }

    /// The attention branch of rows behind the first norm.
    fn attention(&self, normed: &Tensor) -> Result<Tensor, ModelError> {
        let qkv = self.project(normed)?.f_chunk(3, 2)?; // 3 × [B, M, E]
        let part = |index: usize| split_heads(&qkv[index], self.heads); // [B, heads, M, d]
        let mixed = attend(&part(0)?, &part(1)?, &part(2)?)?;
        self.proj.forward(&merge_heads(&mixed)?)
    }

    /// The feed-forward branch of rows behind the second norm.
    fn network(&self, normed: &Tensor) -> Result<Tensor, ModelError> {
        self.fc2.forward(&self.fc1.forward(normed)?.f_gelu("none")?)
    }

    fn forward(&self, rows: &Tensor, drop_path: &DropPath) -> Result<Tensor, ModelError> {
        let rows = drop_path.add(0, rows, &self.attention(&self.norm1.forward(rows)?)?)?;
        drop_path.add(1, &rows, &self.network(&self.norm2.forward(&rows)?)?)
    }
}
