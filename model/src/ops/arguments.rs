//! What operations take together.

use tch::Tensor;

/// Gain and shift of a layer norm, and what is added to the variance.
pub(crate) type NormParameters<'a> = (&'a Tensor, &'a Tensor, f64);

/// What [`fused_adamw`](super::fused_adamw) changes, one entry per parameter in each list.
#[derive(Debug, Default)]
pub(crate) struct AdamWTensors<'a> {
    pub(crate) params: Vec<&'a Tensor>,
    pub(crate) gradients: Vec<&'a Tensor>,
    pub(crate) exp_avgs: Vec<&'a Tensor>,
    pub(crate) exp_avg_sqs: Vec<&'a Tensor>,
    /// f32 scalars; this step adds one.
    pub(crate) steps: Vec<&'a Tensor>,
}

/// A learning rate.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Rate<'a> {
    Number(f64),
    /// An f32 scalar on the device.
    OnDevice(&'a Tensor),
}

/// Numbers of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamWStep<'a> {
    pub(crate) lr: Rate<'a>,
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) weight_decay: f64,
    pub(crate) eps: f64,
    /// Gradients are divided by this scalar.
    pub(crate) divisor: Option<&'a Tensor>,
    /// Nothing changes if this scalar is 1.
    pub(crate) skip: Option<&'a Tensor>,
}
