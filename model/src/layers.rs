//! The three layers that everything is built from.

use tch::{Kind, Tensor};

use crate::error::ModelError;
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
        })
    }

    /// A layer of parameters that were declared under other names.
    pub(crate) fn from_tensors(weight: Tensor, bias: Option<Tensor>) -> Linear {
        Linear { weight, bias }
    }

    pub(crate) fn forward(&self, input: &Tensor) -> Tensor {
        input.linear(&self.weight, self.bias.as_ref())
    }

    /// [`Linear::forward`] with another bias.
    pub(crate) fn forward_with_bias(&self, input: &Tensor, bias: &Tensor) -> Tensor {
        input.linear(&self.weight, Some(bias))
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

    pub(crate) fn forward(&self, input: &Tensor) -> Tensor {
        let shape = self.weight.size();
        input.layer_norm(shape, Some(&self.weight), Some(&self.bias), self.eps, true)
    }

    /// Computed in 32 bits whatever the input's kind, which the result has again.
    pub(crate) fn forward_in_f32(&self, input: &Tensor) -> Tensor {
        let kind = input.kind();
        self.forward(&input.to_kind(Kind::Float)).to_kind(kind)
    }
}

/// Dropout as it applies to one call: with probability 0 outside of training.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dropout {
    pub(crate) probability: f64,
}

impl Dropout {
    pub(crate) fn apply(self, input: Tensor) -> Tensor {
        if self.probability > 0.0 {
            input.dropout(self.probability, true)
        } else {
            input
        }
    }
}

/// `[B, L, heads · d]` → `[B, heads, L, d]`, a view.
pub(crate) fn split_heads(rows: &Tensor, heads: i64) -> Tensor {
    rows.unflatten(2, [heads, -1]).transpose(1, 2)
}

/// `[B, heads, L, d]` → `[B, L, heads · d]`.
pub(crate) fn merge_heads(heads: &Tensor) -> Tensor {
    heads.transpose(1, 2).flatten(2, 3)
}

/// softmax(Q Kᵀ / √d + mask) V for `[B, heads, L, d]` queries, `[B, heads, S, d]` keys and values
/// and an additive mask that broadcasts to `[B, heads, L, S]`; dropout acts on the softmax.
pub(crate) fn attend(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
    dropout: Dropout,
) -> Tensor {
    let probability = dropout.probability;
    Tensor::scaled_dot_product_attention(
        query,
        key,
        value,
        mask,
        probability,
        false,
        None::<f64>,
        false,
    )
}
