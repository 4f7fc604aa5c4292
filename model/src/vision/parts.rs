//! What all towers have: patches as rows, and stochastic depth.

use qf_config::model::VisionConfig;
use tch::Tensor;

use crate::error::ModelError;

/// Stochastic depth (Huang et al., arXiv 1603.09382) of one block: factors `[B, 1, 1]` of its two
/// branches, 0 or 1 / (1 - p); none without.
#[derive(Debug, Default)]
pub(crate) struct DropPath(pub(super) Option<[Tensor; 2]>);

impl DropPath {
    /// rows + branch, the branch of some images left out.
    pub(super) fn add(
        &self,
        which: usize,
        rows: &Tensor,
        branch: &Tensor,
    ) -> Result<Tensor, ModelError> {
        Ok(match &self.0 {
            Some(factors) => rows.f_add(&branch.f_mul(&factors[which])?)?,
            None => rows.f_add(branch)?,
        })
    }
}

/// One per block, the probability growing from 0 at the first to the configured one at the last, as
/// in timm. Drawn with torch's generator.
pub(super) fn drop_paths(
    input: &Tensor,
    config: &VisionConfig,
    train: bool,
) -> Result<Vec<DropPath>, ModelError> {
    let Some(vit) = config.vit() else {
        return Ok(Vec::new());
    };
    let draw = |index: i64| -> Result<DropPath, ModelError> {
        let probability = vit.drop_path * index as f64 / (vit.depth - 1).max(1) as f64;
        if !train || !vit.trainable || probability <= 0.0 {
            return Ok(DropPath::default());
        }
        let factors = || -> Result<Tensor, ModelError> {
            let shape = [input.size()[0], 1, 1];
            let keep = Tensor::f_empty(shape, (tch::Kind::Float, input.device()))?;
            let keep = keep.f_uniform(0.0, 1.0)?.f_ge(probability)?;
            Ok(keep
                .f_to_kind(tch::Kind::Float)?
                .f_divide_scalar(1.0 - probability)?)
        };
        Ok(DropPath(Some([factors()?, factors()?])))
    };
    (0..vit.depth).map(draw).collect()
}

/// Patches as rows with the class token before them: `[B, 3, S, S]` → `[B, 1 + patches, E]`.
///
/// `class_token` is `[1, 1, E]`, `weight` `[E, 3, patch, patch]`; the rows have the kind of the weight.
pub(super) fn embed_patches(
    pixels: &Tensor,
    class_token: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, ModelError> {
    let (size, kind) = (weight.size(), weight.f_kind()?);
    let (width, patch) = (size[0], size[2]);
    let bias = bias.map(|bias| bias.f_to_kind(kind)).transpose()?;
    let patches = pixels
        .f_to_kind(kind)?
        .f_conv2d(weight, bias.as_ref(), [patch, patch], [0, 0], [1, 1], 1)? // [B, E, g, g]
        .f_flatten(2, 3)?
        .f_transpose(1, 2)?; // [B, g², E]
    let class_token = class_token
        .f_to_kind(patches.f_kind()?)?
        .f_expand([patches.size()[0], 1, width], false)?;
    Ok(Tensor::f_cat(&[class_token, patches], 1)?) // [B, 1 + g², E]
}
