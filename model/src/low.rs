//! 16-bit copies of 32-bit parameters, and linear layers that multiply with them.
//!
//! The numbers are those of torch's automatic mixed precision (Micikevicius et al., arXiv
//! 1710.03740): products in 16 bits over parameters in 32. The copies are made once a step instead of
//! in every forward and backward pass, and weight gradients stay in 32 bits.

use std::cell::RefCell;
use std::ops::Range;

use qf_config::model::Precision;
use tch::{Kind, Tensor};

use crate::error::ModelError;
use crate::ops;

/// The element type of products in 16 bits.
pub(crate) fn low_kind(precision: Precision) -> Option<Kind> {
    match precision {
        Precision::F32 => None,
        Precision::Bf16 => Some(Kind::BFloat16),
        Precision::F16 => Some(Kind::Half),
    }
}

/// All copies of a model.
#[derive(Debug)]
pub(crate) struct LowCopies {
    kind: Kind,
    sources: Vec<Tensor>,
    targets: Vec<Tensor>,
    /// Of each source, the version that its target holds.
    versions: RefCell<Vec<i64>>,
}

impl LowCopies {
    /// No copies yet; they will be of `kind`, `BFloat16` or `Half`.
    pub(crate) fn new(kind: Kind) -> LowCopies {
        LowCopies {
            kind,
            sources: Vec::new(),
            targets: Vec::new(),
            versions: RefCell::new(Vec::new()),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// A product with `weight` `[N, K]` and `bias` `[N]`, N filled up with zeros to a multiple of
    /// `multiple`: the result has that many columns.
    pub(crate) fn padded(
        &mut self,
        weight: &Tensor,
        bias: &Tensor,
        multiple: i64,
    ) -> Result<LowLinear, ModelError> {
        let parameters = (weight.shallow_clone(), bias.shallow_clone());
        self.copies_of(vec![parameters], multiple)
    }

    /// Layers of one input, weight and bias, as a single product, filled up as in [`LowCopies::padded`].
    pub(crate) fn copies_of(
        &mut self,
        layers: Vec<(Tensor, Tensor)>,
        multiple: i64,
    ) -> Result<LowLinear, ModelError> {
        let sizes: Vec<i64> = layers.iter().map(|(_, bias)| bias.size()[0]).collect();
        let outputs: i64 = sizes.iter().sum();
        let rows = ops::round_up(outputs, multiple);
        let first = &layers[0].0;
        let options = (self.kind, first.device());
        let weight = Tensor::f_zeros([rows, first.size()[1]], options)?;
        let bias = Tensor::f_zeros([rows], options)?;
        let mut at = 0;
        for ((own_weight, own_bias), size) in layers.iter().zip(sizes) {
            self.keep(own_weight, &weight, at)?;
            self.keep(own_bias, &bias, at)?;
            at += size;
        }
        Ok(LowLinear {
            weight,
            bias,
            layers,
        })
    }

    /// A vector of `size` numbers, zeros but for copies of `parts` from each one's index on.
    pub(crate) fn vector(
        &mut self,
        size: i64,
        parts: &[(i64, &Tensor)],
    ) -> Result<Tensor, ModelError> {
        let device = parts
            .first()
            .map_or(tch::Device::Cpu, |(_, part)| part.device());
        let vector = Tensor::f_zeros([size], (self.kind, device))?;
        for (at, source) in parts {
            self.keep(source, &vector, *at)?;
        }
        Ok(vector)
    }

    /// Has the rows of `copy` from `at` on hold the values of `source`, from the next
    /// [`LowCopies::refresh`] on.
    fn keep(&mut self, source: &Tensor, copy: &Tensor, at: i64) -> Result<(), ModelError> {
        self.sources.push(source.shallow_clone());
        self.targets.push(copy.f_narrow(0, at, source.size()[0])?);
        // No version: stale.
        self.versions.get_mut().push(-1);
        Ok(())
    }

    /// Has the next [`LowCopies::refresh`] make the copies of trained parameters anew.
    pub(crate) fn forget(&self) {
        let mut versions = self.versions.borrow_mut();
        for (source, version) in self.sources.iter().zip(versions.iter_mut()) {
            if source.requires_grad() {
                *version = -1;
            }
        }
    }

    /// Brings the copies of parameters that have changed up to date, all in one call.
    pub(crate) fn refresh(&self) -> Result<(), ModelError> {
        ops::refresh_copies(
            &self.sources,
            &self.targets,
            &mut self.versions.borrow_mut(),
        )
    }
}

/// A linear layer that is not trained, with its weight in 16 bits.
#[derive(Debug)]
pub(crate) struct FrozenLow {
    pub(crate) kind: Kind,
    /// `[N]` in 16 bits.
    pub(crate) bias: Tensor,
}

impl FrozenLow {
    /// `[…, K]` in 16 or 32 bits → `[…, N]` in 16; `weight` `[N, K]` in 16. No gradient.
    pub(crate) fn forward(&self, input: &Tensor, weight: &Tensor) -> Result<Tensor, ModelError> {
        ops::linear(&input.f_to_kind(self.kind)?, weight, Some(&self.bias))
    }
}

/// Linear layers of one input that are computed as one product in 16 bits.
#[derive(Debug)]
pub(crate) struct LowLinear {
    /// `[N, K]` in 16 bits.
    weight: Tensor,
    /// `[N]` in 16 bits.
    bias: Tensor,
    /// Weight `[n, K]` and bias `[n]` of each layer, in 32 bits: the gradients go there.
    layers: Vec<(Tensor, Tensor)>,
}

impl LowLinear {
    /// A layer of values that are computed anew in every step: the copies are made here.
    pub(crate) fn of(weight: Tensor, bias: Tensor, kind: Kind) -> Result<LowLinear, ModelError> {
        Ok(LowLinear {
            weight: weight.f_detach()?.f_to_kind(kind)?,
            bias: bias.f_detach()?.f_to_kind(kind)?,
            layers: vec![(weight, bias)],
        })
    }

    /// `[…, K]` in 16 or 32 bits → `[…, N]` in 16.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, ModelError> {
        self.multiply(input, false)
    }

    /// `[…, K]` → `[…, N]` in 32 bits.
    pub(crate) fn forward_f32(&self, input: &Tensor) -> Result<Tensor, ModelError> {
        self.multiply(input, true)
    }

    /// [`LowLinear::forward`] of a single layer without a gradient of the bias, and the bias: whoever reads
    /// the result makes it.
    pub(crate) fn forward_apart_from_bias(
        &self,
        input: &Tensor,
    ) -> Result<(Tensor, &Tensor), ModelError> {
        let (weight, bias) = &self.layers[0];
        let copies = (&self.weight, &self.bias);
        let output = ops::low_linear(input, copies, &[weight], &[&bias.f_detach()?], false)?;
        Ok((output, bias))
    }

    /// Some of the layers, which are all of one size.
    pub(crate) fn part(&self, layers: Range<usize>) -> Result<LowLinear, ModelError> {
        let clone =
            |(weight, bias): &(Tensor, Tensor)| (weight.shallow_clone(), bias.shallow_clone());
        let size = self.layers[0].1.size()[0];
        let (first, count) = (layers.start as i64 * size, layers.len() as i64 * size);
        Ok(LowLinear {
            weight: self.weight.f_narrow(0, first, count)?,
            bias: self.bias.f_narrow(0, first, count)?,
            layers: self.layers[layers].iter().map(clone).collect(),
        })
    }

    fn multiply(&self, input: &Tensor, f32_out: bool) -> Result<Tensor, ModelError> {
        let copies = (&self.weight, &self.bias);
        let weights: Vec<&Tensor> = self.layers.iter().map(|(weight, _)| weight).collect();
        let biases: Vec<&Tensor> = self.layers.iter().map(|(_, bias)| bias).collect();
        ops::low_linear(input, copies, &weights, &biases, f32_out)
    }
}
