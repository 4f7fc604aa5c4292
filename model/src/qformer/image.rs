//! Images as cross attention sees them.

use tch::Tensor;

use super::key_value::{ImageKeyValues, KeyValue};
use super::layer::Layer;
use super::Qformer;
use crate::error::ModelError;
use crate::layers::{split_heads, LayerNorm, Linear};
use crate::low::LowLinear;

/// Computes keys and values of images; one serves a whole step.
pub(crate) struct ImageProjection<'a> {
    qformer: &'a Qformer,
    norm: &'a LayerNorm,
    /// All layers as one product in 16 bits, unless they are computed one by one in 32.
    joint: Option<LowLinear>,
}

impl Qformer {
    /// For image features `[B, M, E]` that still miss gain and shift of `norm`.
    pub(crate) fn image_projection<'a>(
        &'a self,
        norm: &'a LayerNorm,
    ) -> Result<ImageProjection<'a>, ModelError> {
        Ok(ImageProjection {
            qformer: self,
            norm,
            joint: self
                .low_kind
                .map(|kind| {
                    let layers = self.layers.iter().filter_map(Layer::image_layers);
                    let (weight, bias) = folded(&layers.flatten().collect::<Vec<_>>(), norm)?;
                    LowLinear::of(weight, bias, kind)
                })
                .transpose()?,
        })
    }
}

/// The layers one under the other, with gain γ and shift β of the norm before in them: weight
/// W ∘ γ and bias W β + b.
fn folded(layers: &[&Linear], norm: &LayerNorm) -> Result<(Tensor, Tensor), ModelError> {
    let parameters = layers.iter().map(|layer| layer.parameters());
    let (weights, biases): (Vec<Tensor>, Vec<Tensor>) = parameters
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .unzip();
    let (weight, bias) = (Tensor::f_cat(&weights, 0)?, Tensor::f_cat(&biases, 0)?);
    let (gain, shift) = norm.parameters();
    Ok((weight.f_mul(gain)?, bias.f_addmv(&weight, shift)?))
}

impl ImageProjection<'_> {
    /// Whether keys and values are views of one tensor: then it is as cheap to project an image
    /// twice as to copy its keys and values, and the gradient is a product instead of a scattered sum.
    pub(crate) fn is_joint(&self) -> bool {
        self.joint.is_some()
    }

    /// Keys and values of image features `[B, M, E]` for every layer with cross attention.
    pub(crate) fn project(&self, features: &Tensor) -> Result<ImageKeyValues, ModelError> {
        let layers = self.qformer.layers.iter();
        let Some(joint) = &self.joint else {
            let projected = layers.filter_map(|l| l.project_image(features, self.norm).transpose());
            return Ok(ImageKeyValues(projected.collect::<Result<_, _>>()?));
        };
        let count = layers.filter(|layer| layer.has_cross_attention()).count() as i64;
        let columns = joint.forward(features)?; // [B, M, 2 layers · D]
        let mut parts = columns
            .f_unflatten(2, [2 * count, -1])?
            .f_unbind(2)?
            .into_iter();
        let mut all = Vec::with_capacity(parts.len() / 2);
        while let (Some(key), Some(value)) = (parts.next(), parts.next()) {
            all.push(KeyValue {
                key: split_heads(&key, self.qformer.heads)?,
                value: split_heads(&value, self.qformer.heads)?,
            });
        }
        Ok(ImageKeyValues(all))
    }
}
