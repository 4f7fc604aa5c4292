//! Operations beside those that tch wraps: on the CPU in 32 bits fused loops and oneDNN's matrix
//! products (`shim/`), anywhere else the same of torch's own operations.

mod arguments;
#[allow(unsafe_code)]
mod ffi;
#[cfg(test)]
mod tests;

use tch::{Device, Kind, Tensor};

pub(crate) use arguments::{AdamWStep, AdamWTensors, NormParameters, Rate};

use qf_config::model::Precision;

use crate::error::ModelError;

/// The smallest multiple of `multiple` that is not below `number`; both are above zero.
pub(crate) fn round_up(number: i64, multiple: i64) -> i64 {
    (number + multiple - 1) / multiple * multiple
}

/// x Wᵀ + b for x `[…, K]`, weight `[N, K]`, bias `[N]` → `[…, N]`.
pub(crate) fn linear(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, ModelError> {
    ffi::new_tensor(|out| ffi::linear(input, weight, bias, out))
}

/// Linear layers of one input as one product in 16 bits: x `[…, K]`, `copies` weight `[N, K]` and bias
/// `[N]` in 16 bits → `[…, N]`, in 16 bits or, with `f32_out`, in 32.
///
/// The gradients go to `weights` and `biases` in 32 bits, of one to three layers, whose rows the copies
/// hold one after the other.
pub(crate) fn low_linear(
    input: &Tensor,
    copies: (&Tensor, &Tensor),
    weights: &[&Tensor],
    biases: &[&Tensor],
    f32_out: bool,
) -> Result<Tensor, ModelError> {
    if weights.len() != biases.len() {
        return Err(ModelError::Input {
            what: "layers of one product",
            message: "lists of different lengths".into(),
        });
    }
    ffi::new_tensor(|out| ffi::low_linear(input, copies, weights, biases, f32_out, out))
}

/// Copies the sources that have changed to their targets, converted, in one call. `versions` holds of
/// each source the version that its target has (-1: none).
pub(crate) fn refresh_copies(
    sources: &[Tensor],
    targets: &[Tensor],
    versions: &mut [i64],
) -> Result<(), ModelError> {
    if sources.len() != targets.len() || sources.len() != versions.len() {
        return Err(ModelError::Input {
            what: "16-bit copies",
            message: "lists of different lengths".into(),
        });
    }
    ffi::check(ffi::refresh_copies(sources, targets, versions))
}

/// Dropout with a mask that is drawn again in the backward pass instead of being kept.
pub(crate) fn dropout(input: &Tensor, probability: f64) -> Result<Tensor, ModelError> {
    ffi::new_tensor(|out| ffi::dropout(input, probability, out))
}

/// Layer norm of dropout(x) + residual, all `[…, D]`.
pub(crate) fn dropout_add_norm(
    input: &Tensor,
    residual: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    probability: f64,
) -> Result<Tensor, ModelError> {
    ffi::new_tensor(|out| {
        ffi::dropout_add_norm(input, residual, weight, bias, eps, probability, out)
    })
}

/// Whether [`low_dropout_add_norm`] makes the gradient of a bias that is part of its input.
pub(crate) fn has_bias_gradient(residual: &Tensor, gain: &Tensor, kind: Kind) -> bool {
    ffi::has_bias_gradient(residual, gain, number(kind))
}

/// [`dropout_add_norm`] in 32 bits, and the same numbers in `kind`. The gradient of `bias`, which was
/// added to the input outside of its graph, is made here; only where [`has_bias_gradient`] says so.
pub(crate) fn low_dropout_add_norm(
    input: &Tensor,
    residual: &Tensor,
    bias: Option<&Tensor>,
    norm: NormParameters<'_>,
    probability: f64,
    kind: Kind,
) -> Result<[Tensor; 2], ModelError> {
    ffi::new_tensors(|full, low| {
        let kind = number(kind);
        ffi::low_dropout_add_norm(input, residual, bias, norm, probability, kind, full, low)
    })
}

/// rows + branch in 32 bits, and its layer norm in `kind`. No gradient.
pub(crate) fn low_add_norm(
    branch: Option<&Tensor>,
    rows: &Tensor,
    norm: NormParameters<'_>,
    kind: Kind,
) -> Result<[Tensor; 2], ModelError> {
    ffi::new_tensors(|sum, low| ffi::low_add_norm(branch, rows, norm, number(kind), sum, low))
}

/// While there is one, every gradient goes through autograd, where a reducer is told of it; on a GPU they
/// are else added to where they belong by those who make them.
#[derive(Debug)]
pub(crate) struct GradientsThroughAutograd(());

impl GradientsThroughAutograd {
    pub(crate) fn new() -> Self {
        ffi::count_reducers(1);
        GradientsThroughAutograd(())
    }
}

impl Drop for GradientsThroughAutograd {
    fn drop(&mut self) {
        ffi::count_reducers(-1);
    }
}

/// Makes the fused kernels for rows of `width` numbers ready on a GPU; where it cannot, torch's own
/// operations do their work.
pub(crate) fn prepare_fused_kernels(index: usize, width: i64) -> Result<(), ModelError> {
    ffi::check(ffi::prepare_fused_kernels(index, width))
}

/// An element type as the shim counts them.
fn number(kind: Kind) -> i32 {
    match kind {
        Kind::BFloat16 => 1,
        Kind::Half => 2,
        _ => 0,
    }
}

/// softmax(Q Kᵀ / √d + mask) V, dropout on the softmax: query `[R, H, L, d]`, key and value
/// `[R, H, S, d]`, additive mask `[R, 1, L or 1, S]` → `[R, H, L, d]`.
pub(crate) fn attention(
    query: &Tensor,
    key: &Tensor,
    value: &Tensor,
    mask: Option<&Tensor>,
    probability: f64,
) -> Result<Tensor, ModelError> {
    ffi::new_tensor(|out| ffi::attention(query, key, value, mask, probability, out))
}

/// Rows `[M, heads · d]` → `[R, heads, L, d]`: slot r · L + l takes row `slots[r · L + l]`, or zeros
/// for -1. `places` `[M]` is the inverse (-1: the row goes nowhere); a row has one slot at most.
pub(crate) fn split_rows(
    rows: &Tensor,
    slots: &Tensor,
    places: &Tensor,
    (batch, length): (i64, i64),
    heads: i64,
) -> Result<Tensor, ModelError> {
    ffi::new_tensor(|out| ffi::split_rows(rows, slots, places, batch, length, heads, out))
}

/// The inverse of [`split_rows`]: `[R, heads, L, d]` → `[M, heads · d]`.
pub(crate) fn merge_rows(
    heads: &Tensor,
    slots: &Tensor,
    places: &Tensor,
) -> Result<Tensor, ModelError> {
    ffi::new_tensor(|out| ffi::merge_rows(heads, slots, places, out))
}

/// Removes the gradients: the next backward pass writes instead of adding.
pub(crate) fn clear_gradients(tensors: &[&Tensor]) -> Result<(), ModelError> {
    ffi::check(ffi::clear_gradients(tensors))
}

/// One AdamW step of all tensors in one call (`at::_fused_adamw_`).
pub(crate) fn fused_adamw(
    tensors: &AdamWTensors<'_>,
    step: &AdamWStep<'_>,
) -> Result<(), ModelError> {
    let lists = [
        &tensors.params,
        &tensors.gradients,
        &tensors.exp_avgs,
        &tensors.exp_avg_sqs,
        &tensors.steps,
    ];
    if lists.iter().any(|list| list.len() != tensors.params.len()) {
        return Err(ModelError::Input {
            what: "optimiser tensors",
            message: "lists of different lengths".into(),
        });
    }
    ffi::check(ffi::fused_adamw(tensors, step))
}

/// The 2-norm over all tensors together, a scalar on their device.
pub(crate) fn global_norm(tensors: &[&Tensor]) -> Result<Tensor, ModelError> {
    ffi::new_tensor(|out| ffi::global_norm(tensors, out))
}

/// target += weight · (source − target) for every pair.
pub(crate) fn lerp(
    targets: &[&Tensor],
    sources: &[&Tensor],
    weight: f64,
) -> Result<(), ModelError> {
    if targets.len() != sources.len() {
        return Err(ModelError::Input {
            what: "averaged tensors",
            message: "lists of different lengths".into(),
        });
    }
    ffi::check(ffi::lerp(targets, sources, weight))
}

/// Runs `f` with the matrix products of this thread in the element type of `precision`: torch's
/// automatic mixed precision for `device`.
pub(crate) fn with_autocast<T>(
    precision: Precision,
    device: Device,
    f: impl FnOnce() -> Result<T, ModelError>,
) -> Result<T, ModelError> {
    if precision == Precision::F32 {
        return f();
    }
    /// Switches it off again, whatever happens.
    struct Off(bool);
    impl Drop for Off {
        fn drop(&mut self) {
            let _ = ffi::check(ffi::set_autocast(self.0, Precision::F32));
        }
    }
    let cuda = device.is_cuda();
    ffi::check(ffi::set_autocast(cuda, precision))?;
    let _off = Off(cuda);
    f()
}

/// The text of a message from the shim, which is freed; none for null.
pub(crate) fn shim_message(message: *mut std::ffi::c_char) -> Option<String> {
    ffi::text_of(message)
}

/// The error behind a message from the shim, which is freed.
pub(crate) fn shim_result(message: *mut std::ffi::c_char) -> Result<(), ModelError> {
    ffi::check(message)
}
