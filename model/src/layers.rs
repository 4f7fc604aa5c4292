//! The three layers that everything is built from.

use tch::{Kind, Tensor};

use crate::error::ModelError;
use crate::low::{FrozenLow, LowCopies, LowLinear};
use crate::ops;
use crate::params::{Init, Scope};

/// How the weights of a fresh linear layer are drawn; biases are zero except for the torch default.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LinearInit<'a> {
    /// Weight normal with this standard deviation, bias zero.
    Normal(f64),
    /// Weight uniform as of Glorot and Bengio (2010), bias zero.
    Xavier,
    /// What `torch.nn.Linear` does: weight and bias uniform within ±1/√in.
    TorchDefault,
    /// A copy of another layer.
    CopyOf(&'a Linear),
}

/// y = x Wᵀ + b.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,       // [out, in]
    bias: Option<Tensor>, // [out]
    /// What computes the product in 16 bits, if anything does.
    low: Option<Low>,
}

#[derive(Debug)]
enum Low {
    Trained(LowLinear),
    Frozen(FrozenLow),
}

impl Linear {
    pub(crate) fn new(
        mut scope: Scope<'_>,
        in_features: i64,
        out_features: i64,
        init: LinearInit<'_>,
    ) -> Result<Linear, ModelError> {
        let (weight, bias) = match init {
            LinearInit::Normal(std) => (Init::Normal { std }, Init::Constant(0.0)),
            LinearInit::Xavier => (xavier(in_features, out_features), Init::Constant(0.0)),
            LinearInit::TorchDefault => {
                let bound = 1.0 / (in_features as f64).sqrt();
                (Init::Uniform { bound }, Init::Uniform { bound })
            }
            LinearInit::CopyOf(other) => (
                Init::CopyOf(&other.weight),
                match &other.bias {
                    Some(bias) => Init::CopyOf(bias),
                    None => Init::Constant(0.0),
                },
            ),
        };
        Ok(Linear {
            weight: scope.param("weight", &[out_features, in_features], weight)?,
            bias: Some(scope.param("bias", &[out_features], bias)?),
            low: None,
        })
    }

    /// A layer of parameters that were declared under other names.
    pub(crate) fn from_tensors(weight: Tensor, bias: Option<Tensor>) -> Linear {
        Linear {
            weight,
            bias,
            low: None,
        }
    }

    /// `[…, in]` → `[…, out]`; in 16 bits where [`Linear::use_copies`] says so.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, ModelError> {
        match &self.low {
            Some(Low::Trained(low)) => low.forward(input),
            Some(Low::Frozen(low)) => low.forward(input, &self.weight),
            None => ops::linear(input, &self.weight, self.bias.as_ref()),
        }
    }

    /// Computes in 16 bits from here on, with copies of the parameters; in 32 without any.
    pub(crate) fn use_copies(&mut self, copies: Option<&mut LowCopies>) -> Result<(), ModelError> {
        let low = copies.map(|copies| copies.joint(&[self])).transpose()?;
        self.low = low.map(Low::Trained);
        Ok(())
    }

    /// Computes in 16 bits from here on, without a gradient, if the weight has become such; in 32
    /// without `copies`. The bias is put together of `bias` parts, or is the layer's own.
    pub(crate) fn use_frozen_copies(
        &mut self,
        copies: Option<&mut LowCopies>,
        bias: &[(i64, &Tensor)],
    ) -> Result<(), ModelError> {
        let size = self.weight.size()[0];
        let own: Vec<(i64, &Tensor)> = self.bias.iter().map(|bias| (0, bias)).collect();
        let parts = if bias.is_empty() { &own } else { bias };
        let frozen = |copies: &mut LowCopies| -> Result<Low, ModelError> {
            Ok(Low::Frozen(FrozenLow {
                kind: copies.kind(),
                bias: copies.vector(size, parts)?,
            }))
        };
        self.low = copies.map(frozen).transpose()?;
        Ok(())
    }

    /// The element type of products of [`Linear::use_frozen_copies`].
    pub(crate) fn frozen_kind(&self) -> Option<Kind> {
        match &self.low {
            Some(Low::Frozen(low)) => Some(low.kind),
            _ => None,
        }
    }

    /// Another handle of a layer that is not trained.
    pub(crate) fn frozen_clone(&self) -> Linear {
        let low = match &self.low {
            Some(Low::Frozen(low)) => Some(Low::Frozen(FrozenLow {
                kind: low.kind,
                bias: low.bias.shallow_clone(),
            })),
            _ => None,
        };
        Linear {
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            low,
        }
    }

    /// Weight and bias.
    pub(crate) fn parameters(&self) -> Result<(Tensor, Tensor), ModelError> {
        let bias = match &self.bias {
            Some(bias) => bias.shallow_clone(),
            None => Tensor::f_zeros(
                [self.weight.size()[0]],
                (self.weight.f_kind()?, self.weight.device()),
            )?,
        };
        Ok((self.weight.shallow_clone(), bias))
    }

    /// [`Linear::forward`] with another bias.
    pub(crate) fn forward_with_bias(
        &self,
        input: &Tensor,
        bias: &Tensor,
    ) -> Result<Tensor, ModelError> {
        ops::linear(input, &self.weight, Some(bias))
    }

    /// The layer for inputs that still miss the gain and shift of the norm before:
    /// `W (γ ∘ x + β) + b = (W ∘ γ) x + (W β + b)`.
    ///
    /// Where x needs no gradient, γ and β get theirs through the weights, and the product that a
    /// gradient of the norm's output would take is saved.
    pub(crate) fn after(&self, norm: &LayerNorm) -> Result<Linear, ModelError> {
        let shift = ops::linear(&norm.bias.f_unsqueeze(0)?, &self.weight, self.bias.as_ref())?;
        Ok(Linear {
            weight: self.weight.f_mul(&norm.weight)?,
            bias: Some(shift.f_squeeze_dim(0)?),
            low: None,
        })
    }
}

/// The bound of Glorot and Bengio (2010).
pub(crate) fn xavier<'a>(in_features: i64, out_features: i64) -> Init<'a> {
    Init::Uniform {
        bound: (6.0 / (in_features + out_features) as f64).sqrt(),
    }
}

/// Layer normalisation over the last dimension.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor, // [width]
    bias: Tensor,   // [width]
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(mut scope: Scope<'_>, width: i64, eps: f64) -> Result<LayerNorm, ModelError> {
        Ok(LayerNorm {
            weight: scope.param("weight", &[width], Init::Constant(1.0))?,
            bias: scope.param("bias", &[width], Init::Constant(0.0))?,
            eps,
        })
    }

    pub(crate) fn copy_of(
        mut scope: Scope<'_>,
        other: &LayerNorm,
    ) -> Result<LayerNorm, ModelError> {
        let shape = other.weight.size();
        Ok(LayerNorm {
            weight: scope.param("weight", &shape, Init::CopyOf(&other.weight))?,
            bias: scope.param("bias", &shape, Init::CopyOf(&other.bias))?,
            eps: other.eps,
        })
    }

    /// Computed in the kind of the parameters, 32 bits, which the result has: a GPU takes no mixture.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, ModelError> {
        let shape = self.weight.size();
        let input = input.f_to_kind(self.weight.f_kind()?)?;
        Ok(input.f_layer_norm(shape, Some(&self.weight), Some(&self.bias), self.eps, true)?)
    }

    /// Another handle of the same norm.
    pub(crate) fn shallow_clone(&self) -> LayerNorm {
        LayerNorm {
            weight: self.weight.shallow_clone(),
            bias: self.bias.shallow_clone(),
            eps: self.eps,
        }
    }

    /// Gain and shift.
    pub(crate) fn parameters(&self) -> (&Tensor, &Tensor) {
        (&self.weight, &self.bias)
    }

    /// [`LayerNorm::forward`] with a result that has the input's kind again.
    pub(crate) fn forward_in_f32(&self, input: &Tensor) -> Result<Tensor, ModelError> {
        Ok(self.forward(input)?.f_to_kind(input.f_kind()?)?)
    }

    /// The norm without gain and shift, in 32 bits; the result has the input's kind.
    pub(crate) fn normalize(&self, input: &Tensor) -> Result<Tensor, ModelError> {
        let (shape, kind) = (self.weight.size(), input.f_kind()?);
        let none = None::<Tensor>;
        Ok(input
            .f_to_kind(Kind::Float)?
            .f_layer_norm(shape, none.as_ref(), none.as_ref(), self.eps, true)?
            .f_to_kind(kind)?)
    }

    /// Gain and shift, for an input from [`LayerNorm::normalize`].
    pub(crate) fn scale_and_shift(&self, normalized: &Tensor) -> Result<Tensor, ModelError> {
        Ok(normalized.f_mul(&self.weight)?.f_add(&self.bias)?)
    }

    /// Of dropout(`linear` of input) + residual: BERT's output block. The input has the residual's rows.
    pub(crate) fn after_linear(
        &self,
        linear: &Linear,
        input: &Tensor,
        residual: &Rows,
        dropout: Dropout,
    ) -> Result<Rows, ModelError> {
        let (rows, probability) = (&residual.full, dropout.probability);
        let Some(low) = &residual.low else {
            let branch = linear.forward(input)?.f_view_as(rows)?;
            let (weight, bias, eps) = (&self.weight, &self.bias, self.eps);
            let full = ops::dropout_add_norm(&branch, rows, weight, bias, eps, probability)?;
            return Ok(Rows { full, low: None });
        };
        let kind = low.f_kind()?;
        let (branch, bias) = match &linear.low {
            Some(Low::Trained(low)) if ops::has_bias_gradient(rows, &self.weight, kind) => {
                let (branch, bias) = low.forward_apart_from_bias(input)?;
                (branch, Some(bias))
            }
            _ => (linear.forward(input)?, None),
        };
        let branch = branch.f_view_as(rows)?;
        let norm = (&self.weight, &self.bias, self.eps);
        let [full, low] = ops::low_dropout_add_norm(&branch, rows, bias, norm, probability, kind)?;
        Ok(Rows {
            full,
            low: Some(low),
        })
    }

    /// Adds `branch` to rows in 32 bits: the sum, and its norm in `kind`. No gradient.
    pub(crate) fn add_and_normalize(
        &self,
        rows: &Tensor,
        branch: Option<&Tensor>,
        kind: Kind,
    ) -> Result<[Tensor; 2], ModelError> {
        ops::low_add_norm(branch, rows, (&self.weight, &self.bias, self.eps), kind)
    }
}

/// Rows between layers: in 32 bits, for sums, and in 16, where products read them so.
#[derive(Debug)]
pub(crate) struct Rows {
    /// `[…, D]` f32.
    pub(crate) full: Tensor,
    /// The same numbers in 16 bits.
    pub(crate) low: Option<Tensor>,
}

impl Rows {
    /// Rows in 32 bits alone, or in `low` too.
    pub(crate) fn new(full: Tensor, low: Option<Kind>) -> Result<Rows, ModelError> {
        let low = low.map(|kind| full.f_to_kind(kind)).transpose()?;
        Ok(Rows { full, low })
    }

    /// What products read.
    pub(crate) fn for_products(&self) -> &Tensor {
        self.low.as_ref().unwrap_or(&self.full)
    }

    /// The same rows in another arrangement.
    pub(crate) fn map(
        &self,
        arrange: impl Fn(&Tensor) -> Result<Tensor, ModelError>,
    ) -> Result<Rows, ModelError> {
        Ok(Rows {
            full: arrange(&self.full)?,
            low: self.low.as_ref().map(&arrange).transpose()?,
        })
    }
}

/// Dropout as it applies to one call: with probability 0 outside of training.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    pub(crate) probability: f64,
}

impl Dropout {
    pub(crate) fn apply(self, input: &Tensor) -> Result<Tensor, ModelError> {
        ops::dropout(input, self.probability)
    }
}

/// `[B, L, heads · d]` → `[B, heads, L, d]`, a view.
pub(crate) fn split_heads(rows: &Tensor, heads: i64) -> Result<Tensor, ModelError> {
    Ok(rows.f_unflatten(2, [heads, -1])?.f_transpose(1, 2)?)
}

/// `[B, heads, L, d]` → `[B, L, heads · d]`.
pub(crate) fn merge_heads(heads: &Tensor) -> Result<Tensor, ModelError> {
    Ok(heads.f_transpose(1, 2)?.f_flatten(2, 3)?)
}

/// softmax(Q Kᵀ / √d) V for `[B, heads, L, d]` queries, keys and values, without mask or dropout.
pub(crate) fn attend(query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor, ModelError> {
    Ok(Tensor::f_scaled_dot_product_attention(
        query,
        key,
        value,
        None::<&Tensor>,
        0.0,
        false,
        None::<f64>,
        false,
    )?)
}

impl LowCopies {
    /// Up to three layers of one input as a single product: outputs one after the other.
    pub(crate) fn joint(&mut self, layers: &[&Linear]) -> Result<LowLinear, ModelError> {
        let parameters = layers.iter().map(|layer| layer.parameters());
        let parameters: Vec<(Tensor, Tensor)> = parameters.collect::<Result<_, _>>()?;
        self.copies_of(parameters, 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// torch.nn.init.xavier_uniform_: √6 / √(inputs + outputs).
    #[test]
    fn bounds_of_xavier() {
        for (inputs, outputs, expected) in [(1, 5, 1.0), (768, 3 * 768, 0.044_194_173_824_159_22)] {
            let Init::Uniform { bound } = xavier(inputs, outputs) else {
                panic!("uniform");
            };
            assert!((bound - expected).abs() < 1e-15, "{bound} {expected}");
        }
    }
}
