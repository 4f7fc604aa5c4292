//! Operations beside those that tch wraps: on the CPU in 32 bits fused loops and oneDNN's matrix
//! products (`shim/`), anywhere else the same of torch's own operations.

use tch::{Device, Kind, Tensor};

use crate::config::Precision;
use crate::error::ModelError;

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

/// Gain and shift of a layer norm, and what is added to the variance.
pub(crate) type NormParameters<'a> = (&'a Tensor, &'a Tensor, f64);

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

/// What [`fused_adamw`] changes, one entry per parameter in each list.
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

/// The C functions of `shim/ops.cpp`.
#[allow(unsafe_code)]
mod ffi {
    use std::ffi::{c_char, c_int, CStr};

    use tch::Tensor;
    use torch_sys::C_tensor;

    use super::{AdamWStep, AdamWTensors, NormParameters, Rate};
    use crate::config::Precision;
    use crate::error::ModelError;

    type Message = *mut c_char;
    type Out<'a> = &'a mut *mut C_tensor;

    extern "C" {
        fn qf_free_message(message: Message);
        fn qf_linear(
            x: *const C_tensor,
            weight: *const C_tensor,
            bias: *const C_tensor,
            out: *mut *mut C_tensor,
        ) -> Message;
        fn qf_low_linear(
            x: *const C_tensor,
            low_weight: *const C_tensor,
            low_bias: *const C_tensor,
            weights: *const *const C_tensor,
            biases: *const *const C_tensor,
            layers: usize,
            f32_out: c_int,
            out: *mut *mut C_tensor,
        ) -> Message;
        fn qf_low_has_bias_gradient(
            residual: *const C_tensor,
            gain: *const C_tensor,
            kind: c_int,
        ) -> c_int;
        fn qf_low_dropout_add_norm(
            branch: *const C_tensor,
            residual: *const C_tensor,
            bias: *const C_tensor,
            gain: *const C_tensor,
            shift: *const C_tensor,
            eps: f64,
            probability: f64,
            kind: c_int,
            full: *mut *mut C_tensor,
            low: *mut *mut C_tensor,
        ) -> Message;
        fn qf_low_add_norm(
            branch: *const C_tensor,
            x: *const C_tensor,
            gain: *const C_tensor,
            shift: *const C_tensor,
            eps: f64,
            kind: c_int,
            sum: *mut *mut C_tensor,
            low: *mut *mut C_tensor,
        ) -> Message;
        fn qf_count_reducers(change: c_int);
        fn qf_fused_prepare(index: c_int, width: i64) -> Message;
        fn qf_refresh_copies(
            sources: *const *const C_tensor,
            targets: *const *const C_tensor,
            versions: *mut i64,
            count: usize,
        ) -> Message;
        fn qf_dropout(x: *const C_tensor, probability: f64, out: *mut *mut C_tensor) -> Message;
        fn qf_dropout_add_norm(
            x: *const C_tensor,
            residual: *const C_tensor,
            weight: *const C_tensor,
            bias: *const C_tensor,
            eps: f64,
            probability: f64,
            out: *mut *mut C_tensor,
        ) -> Message;
        fn qf_attention(
            query: *const C_tensor,
            key: *const C_tensor,
            value: *const C_tensor,
            mask: *const C_tensor,
            probability: f64,
            out: *mut *mut C_tensor,
        ) -> Message;
        fn qf_split_rows(
            rows: *const C_tensor,
            slots: *const C_tensor,
            places: *const C_tensor,
            batch: i64,
            length: i64,
            heads: i64,
            out: *mut *mut C_tensor,
        ) -> Message;
        fn qf_merge_rows(
            x: *const C_tensor,
            slots: *const C_tensor,
            places: *const C_tensor,
            out: *mut *mut C_tensor,
        ) -> Message;
        fn qf_clear_gradients(tensors: *const *const C_tensor, count: usize) -> Message;
        fn qf_fused_adamw(
            params: *const *const C_tensor,
            grads: *const *const C_tensor,
            means: *const *const C_tensor,
            squares: *const *const C_tensor,
            steps: *const *const C_tensor,
            count: usize,
            lr: f64,
            lr_on_device: *const C_tensor,
            beta1: f64,
            beta2: f64,
            weight_decay: f64,
            eps: f64,
            scale: *const C_tensor,
            skip: *const C_tensor,
        ) -> Message;
        fn qf_global_norm(
            tensors: *const *const C_tensor,
            count: usize,
            out: *mut *mut C_tensor,
        ) -> Message;
        fn qf_lerp(
            targets: *const *const C_tensor,
            sources: *const *const C_tensor,
            count: usize,
            weight: f64,
        ) -> Message;
        fn qf_set_autocast(cuda: c_int, kind: c_int) -> Message;
    }

    fn optional(tensor: Option<&Tensor>) -> *const C_tensor {
        tensor.map_or(std::ptr::null(), Tensor::as_ptr)
    }

    fn pointers(tensors: &[&Tensor]) -> Vec<*const C_tensor> {
        tensors.iter().map(|tensor| tensor.as_ptr()).collect()
    }

    /// The text of a message, which is freed; none where there is no message.
    pub(super) fn text_of(message: Message) -> Option<String> {
        if message.is_null() {
            return None;
        }
        // SAFETY: the shim returns null or a C string of its own, which nobody else frees.
        let text = unsafe {
            let text = CStr::from_ptr(message).to_string_lossy().into_owned();
            qf_free_message(message);
            text
        };
        Some(text)
    }

    /// The error behind a message.
    pub(super) fn check(message: Message) -> Result<(), ModelError> {
        match text_of(message) {
            None => Ok(()),
            Some(text) => Err(ModelError::Torch(tch::TchError::Torch(text))),
        }
    }

    /// The tensor that `call` makes.
    pub(super) fn new_tensor(call: impl FnOnce(Out<'_>) -> Message) -> Result<Tensor, ModelError> {
        let mut out = std::ptr::null_mut();
        check(call(&mut out))?;
        // SAFETY: without a message the shim has put a new tensor there, which this handle owns.
        Ok(unsafe { Tensor::from_ptr(out) })
    }

    /// The two tensors that `call` makes.
    pub(super) fn new_tensors(
        call: impl FnOnce(Out<'_>, Out<'_>) -> Message,
    ) -> Result<[Tensor; 2], ModelError> {
        let (mut first, mut second) = (std::ptr::null_mut(), std::ptr::null_mut());
        check(call(&mut first, &mut second))?;
        // SAFETY: without a message the shim has put new tensors there, which these handles own.
        Ok(unsafe { [Tensor::from_ptr(first), Tensor::from_ptr(second)] })
    }

    pub(super) fn has_bias_gradient(residual: &Tensor, gain: &Tensor, kind: c_int) -> bool {
        // SAFETY: the pointers are of live tensors.
        unsafe { qf_low_has_bias_gradient(residual.as_ptr(), gain.as_ptr(), kind) != 0 }
    }

    #[allow(clippy::too_many_arguments)] // Those of the C function.
    pub(super) fn low_dropout_add_norm(
        branch: &Tensor,
        residual: &Tensor,
        bias: Option<&Tensor>,
        (gain, shift, eps): NormParameters<'_>,
        probability: f64,
        kind: c_int,
        full: Out<'_>,
        low: Out<'_>,
    ) -> Message {
        // SAFETY: the pointers are of live tensors (bias may be null); full and low are written once.
        unsafe {
            qf_low_dropout_add_norm(
                branch.as_ptr(),
                residual.as_ptr(),
                optional(bias),
                gain.as_ptr(),
                shift.as_ptr(),
                eps,
                probability,
                kind,
                full,
                low,
            )
        }
    }

    pub(super) fn low_add_norm(
        branch: Option<&Tensor>,
        x: &Tensor,
        (gain, shift, eps): NormParameters<'_>,
        kind: c_int,
        sum: Out<'_>,
        low: Out<'_>,
    ) -> Message {
        // SAFETY: the pointers are of live tensors (branch may be null); sum and low are written once.
        unsafe {
            qf_low_add_norm(
                optional(branch),
                x.as_ptr(),
                gain.as_ptr(),
                shift.as_ptr(),
                eps,
                kind,
                sum,
                low,
            )
        }
    }

    pub(super) fn count_reducers(change: c_int) {
        // SAFETY: no pointers; the function adds a number.
        unsafe { qf_count_reducers(change) }
    }

    pub(super) fn prepare_fused_kernels(index: usize, width: i64) -> Message {
        // libtorch counts devices in 8 bits; one beyond them is an error there.
        let index = c_int::try_from(index).unwrap_or(c_int::MAX);
        // SAFETY: no pointers; the shim turns every exception into a message.
        unsafe { qf_fused_prepare(index, width) }
    }

    pub(super) fn linear(
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        out: Out<'_>,
    ) -> Message {
        // SAFETY: the pointers are of live tensors (bias may be null); out is written once.
        unsafe { qf_linear(x.as_ptr(), weight.as_ptr(), optional(bias), out) }
    }

    pub(super) fn low_linear(
        x: &Tensor,
        (low_weight, low_bias): (&Tensor, &Tensor),
        weights: &[&Tensor],
        biases: &[&Tensor],
        f32_out: bool,
        out: Out<'_>,
    ) -> Message {
        let (weights, biases) = (pointers(weights), pointers(biases));
        // SAFETY: the pointers are of live tensors, two lists of `layers` of them (the caller compared
        // the lengths); out is written once.
        unsafe {
            qf_low_linear(
                x.as_ptr(),
                low_weight.as_ptr(),
                low_bias.as_ptr(),
                weights.as_ptr(),
                biases.as_ptr(),
                weights.len(),
                c_int::from(f32_out),
                out,
            )
        }
    }

    pub(super) fn refresh_copies(
        sources: &[Tensor],
        targets: &[Tensor],
        versions: &mut [i64],
    ) -> Message {
        let list = |tensors: &[Tensor]| -> Vec<*const C_tensor> {
            tensors.iter().map(|tensor| tensor.as_ptr()).collect()
        };
        let (from, to) = (list(sources), list(targets));
        // SAFETY: lists of `count` entries each (the caller compared the lengths), pointers of live
        // tensors.
        unsafe {
            qf_refresh_copies(
                from.as_ptr(),
                to.as_ptr(),
                versions.as_mut_ptr(),
                from.len(),
            )
        }
    }

    pub(super) fn dropout(x: &Tensor, probability: f64, out: Out<'_>) -> Message {
        // SAFETY: the pointer is of a live tensor; out is written once.
        unsafe { qf_dropout(x.as_ptr(), probability, out) }
    }

    pub(super) fn dropout_add_norm(
        x: &Tensor,
        residual: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        eps: f64,
        probability: f64,
        out: Out<'_>,
    ) -> Message {
        // SAFETY: the pointers are of live tensors; out is written once.
        unsafe {
            qf_dropout_add_norm(
                x.as_ptr(),
                residual.as_ptr(),
                weight.as_ptr(),
                bias.as_ptr(),
                eps,
                probability,
                out,
            )
        }
    }

    pub(super) fn attention(
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        mask: Option<&Tensor>,
        probability: f64,
        out: Out<'_>,
    ) -> Message {
        // SAFETY: the pointers are of live tensors (mask may be null); out is written once.
        unsafe {
            qf_attention(
                query.as_ptr(),
                key.as_ptr(),
                value.as_ptr(),
                optional(mask),
                probability,
                out,
            )
        }
    }

    pub(super) fn split_rows(
        rows: &Tensor,
        slots: &Tensor,
        places: &Tensor,
        batch: i64,
        length: i64,
        heads: i64,
        out: Out<'_>,
    ) -> Message {
        // SAFETY: the pointers are of live tensors, whose sizes and indices the shim checks; out is
        // written once.
        unsafe {
            qf_split_rows(
                rows.as_ptr(),
                slots.as_ptr(),
                places.as_ptr(),
                batch,
                length,
                heads,
                out,
            )
        }
    }

    pub(super) fn merge_rows(x: &Tensor, slots: &Tensor, places: &Tensor, out: Out<'_>) -> Message {
        // SAFETY: as for `split_rows`.
        unsafe { qf_merge_rows(x.as_ptr(), slots.as_ptr(), places.as_ptr(), out) }
    }

    pub(super) fn clear_gradients(tensors: &[&Tensor]) -> Message {
        let tensors = pointers(tensors);
        // SAFETY: `count` pointers of live tensors.
        unsafe { qf_clear_gradients(tensors.as_ptr(), tensors.len()) }
    }

    pub(super) fn fused_adamw(tensors: &AdamWTensors<'_>, step: &AdamWStep<'_>) -> Message {
        let params = pointers(&tensors.params);
        let gradients = pointers(&tensors.gradients);
        let exp_avgs = pointers(&tensors.exp_avgs);
        let exp_avg_sqs = pointers(&tensors.exp_avg_sqs);
        let steps = pointers(&tensors.steps);
        let (lr, lr_on_device) = match step.lr {
            Rate::Number(lr) => (lr, None),
            Rate::OnDevice(lr) => (0.0, Some(lr)),
        };
        // SAFETY: five lists of `count` pointers of live tensors (the caller compared the lengths);
        // rate, divisor and skip may be null.
        unsafe {
            qf_fused_adamw(
                params.as_ptr(),
                gradients.as_ptr(),
                exp_avgs.as_ptr(),
                exp_avg_sqs.as_ptr(),
                steps.as_ptr(),
                params.len(),
                lr,
                optional(lr_on_device),
                step.beta1,
                step.beta2,
                step.weight_decay,
                step.eps,
                optional(step.divisor),
                optional(step.skip),
            )
        }
    }

    pub(super) fn global_norm(tensors: &[&Tensor], out: Out<'_>) -> Message {
        let tensors = pointers(tensors);
        // SAFETY: `count` pointers of live tensors; out is written once.
        unsafe { qf_global_norm(tensors.as_ptr(), tensors.len(), out) }
    }

    pub(super) fn lerp(targets: &[&Tensor], sources: &[&Tensor], weight: f64) -> Message {
        let (targets, sources) = (pointers(targets), pointers(sources));
        // SAFETY: two lists of `count` pointers of live tensors (the caller compared the lengths).
        unsafe { qf_lerp(targets.as_ptr(), sources.as_ptr(), targets.len(), weight) }
    }

    pub(super) fn set_autocast(cuda: bool, precision: Precision) -> Message {
        let kind = match precision {
            Precision::F32 => 0,
            Precision::Bf16 => 1,
            Precision::F16 => 2,
        };
        // SAFETY: no pointers.
        unsafe { qf_set_autocast(c_int::from(cuda), kind) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn leaf(shape: &[i64]) -> Tensor {
        Tensor::randn(shape, OPTIONS).set_requires_grad(true)
    }

    /// Runs both on the same leaves; outputs and all gradients must agree.
    fn same(
        leaves: &[Tensor],
        ours: impl Fn(&[Tensor]) -> Tensor,
        torch: impl Fn(&[Tensor]) -> Tensor,
    ) {
        let run = |f: &dyn Fn(&[Tensor]) -> Tensor| {
            let copies: Vec<Tensor> = leaves
                .iter()
                .map(|leaf| leaf.detach().copy().set_requires_grad(true))
                .collect();
            let output = f(&copies);
            let count = output.numel() as i64;
            let weights = (Tensor::arange(count, OPTIONS) * 0.9)
                .cos()
                .view_as(&output);
            (&output * weights).sum(Kind::Float).backward();
            let gradients: Vec<Tensor> = copies.iter().map(Tensor::grad).collect();
            (output, gradients)
        };
        let (output, gradients) = run(&ours);
        let (expected, expected_gradients) = run(&torch);
        let close = |a: &Tensor, b: &Tensor| {
            let scale = b.abs().max().double_value(&[]).max(1e-3);
            let difference = (a - b).abs().max().double_value(&[]);
            assert!(difference <= 2e-5 * scale, "{difference} of {scale}");
        };
        assert_eq!(output.size(), expected.size());
        close(&output, &expected);
        for (a, b) in gradients.iter().zip(&expected_gradients) {
            close(a, b);
        }
    }

    #[test]
    fn linear_equals_torch_small_and_large() {
        for (rows, inputs, outputs) in [(3, 5, 7), (1, 1, 1), (700, 400, 900), (64, 256, 9000)] {
            let leaves = [
                leaf(&[2, rows, inputs]),
                leaf(&[outputs, inputs]),
                leaf(&[outputs]),
            ];
            same(
                &leaves,
                |t| linear(&t[0], &t[1], Some(&t[2])).unwrap(),
                |t| t[0].linear(&t[1], Some(&t[2])),
            );
            same(
                &leaves[..2],
                |t| linear(&t[0], &t[1], None).unwrap(),
                |t| t[0].linear(&t[1], None::<Tensor>),
            );
        }
        // A transposed input, and other element types.
        let x = Tensor::randn([6, 4], OPTIONS);
        let weight = Tensor::randn([3, 6], OPTIONS);
        let expected = x.transpose(0, 1).linear(&weight, None::<Tensor>);
        assert_eq!(linear(&x.transpose(0, 1), &weight, None).unwrap(), expected);
        let half = |t: &Tensor| t.to_kind(Kind::BFloat16);
        let low = linear(&half(&x.transpose(0, 1)), &half(&weight), None).unwrap();
        assert_eq!(low.kind(), Kind::BFloat16);
        let error = linear(&x, &weight, None).unwrap_err().to_string();
        assert!(error.contains("shapes cannot be multiplied"), "{error}");
    }

    #[test]
    fn norm_of_a_sum_equals_torch() {
        for (rows, width) in [(1, 4), (3, 5), (37, 768), (300, 64)] {
            let leaves = [
                leaf(&[rows, width]),
                leaf(&[rows, width]),
                leaf(&[width]),
                leaf(&[width]),
            ];
            same(
                &leaves,
                |t| dropout_add_norm(&t[0], &t[1], &t[2], &t[3], 1e-12, 0.0).unwrap(),
                |t| {
                    let sum = &t[0] + &t[1];
                    sum.layer_norm([width], Some(&t[2]), Some(&t[3]), 1e-12, true)
                },
            );
        }
    }

    #[test]
    fn attention_equals_torch_with_every_kind_of_mask() {
        for (batch, heads, length, keys, depth) in [
            (2, 3, 4, 5, 8),
            (1, 1, 1, 1, 1),
            (3, 2, 7, 257, 16),
            (2, 2, 33, 33, 64),
        ] {
            let leaves = [
                leaf(&[batch, heads, length, depth]),
                leaf(&[batch, heads, keys, depth]),
                leaf(&[batch, heads, keys, depth]),
            ];
            let masks = [
                None,
                Some(Tensor::randn([batch, 1, 1, keys], OPTIONS)),
                Some(Tensor::randn([batch, 1, length, keys], OPTIONS) * 10.0),
            ];
            for mask in &masks {
                let mask = mask.as_ref();
                same(
                    &leaves,
                    |t| attention(&t[0], &t[1], &t[2], mask, 0.0).unwrap(),
                    |t| {
                        let scores = t[0].matmul(&t[1].transpose(2, 3)) / (depth as f64).sqrt();
                        let scores = match mask {
                            Some(mask) => scores + mask,
                            None => scores,
                        };
                        scores.softmax(3, None).matmul(&t[2])
                    },
                );
            }
        }
    }

    #[test]
    fn masked_keys_count_for_nothing() {
        let query = Tensor::randn([1, 2, 3, 4], OPTIONS);
        let keys = Tensor::randn([1, 2, 6, 4], OPTIONS);
        let mask = Tensor::from_slice(&[0f32, 0.0, 0.0, 0.0, -1e4, -1e4]).view([1, 1, 1, 6]);
        let masked = attention(&query, &keys, &keys, Some(&mask), 0.0).unwrap();
        let short = keys.narrow(2, 0, 4);
        let without = attention(&query, &short, &short, None, 0.0).unwrap();
        assert!(masked.allclose(&without, 1e-6, 1e-7, false));
    }

    #[test]
    fn dropout_keeps_its_share_and_its_mask() {
        const P: f64 = 0.1;
        let ones = Tensor::ones([1000, 768], OPTIONS).set_requires_grad(true);
        let dropped = dropout(&ones, P).unwrap();
        let zeros = dropped.eq(0.0).to_kind(Kind::Float);
        // 768,000 draws: five standard deviations are 0.0017.
        let share = zeros.mean(Kind::Float).double_value(&[]);
        assert!((share - P).abs() < 0.0018, "{share}");
        let kept = dropped.masked_select(&dropped.ne(0.0));
        assert!(kept.allclose(&(kept.ones_like() / (1.0 - P)), 1e-6, 0.0, false));
        // Rows and columns alike, and neighbours independent.
        for dim in [0i64, 1] {
            let means = zeros.mean_dim([dim].as_slice(), false, Kind::Float);
            let n = zeros.size()[dim as usize] as f64;
            let bound = 6.0 * (P * (1.0 - P) / n).sqrt();
            assert!((means - P).abs().max().double_value(&[]) < bound);
            let size = zeros.size()[1 - dim as usize];
            let other = 1 - dim;
            let pairs = zeros.narrow(other, 0, size - 1) * zeros.narrow(other, 1, size - 1);
            let both = pairs.mean(Kind::Float).double_value(&[]);
            assert!((both - P * P).abs() < 0.001, "{both}");
        }
        // The backward pass meets the same mask.
        dropped.sum(Kind::Float).backward();
        assert!(ones.grad().allclose(&dropped.detach(), 1e-6, 0.0, false));
        assert_ne!(dropout(&ones, P).unwrap(), dropped);
        assert_eq!(dropout(&ones, 0.0).unwrap(), ones);
    }

    /// With the mask read off the output, dropout inside the fused operations is a product.
    #[test]
    fn fused_dropout_has_the_gradients_of_its_mask() {
        const P: f64 = 0.3;
        let [rows, width] = [20, 96];
        // A constant residual of 0 and x of 1: the sum is the mask itself.
        let x = Tensor::ones([rows, width], OPTIONS).set_requires_grad(true);
        let residual = Tensor::zeros([rows, width], OPTIONS).set_requires_grad(true);
        let weight = Tensor::ones([width], OPTIONS);
        let bias = Tensor::zeros([width], OPTIONS);
        let out = dropout_add_norm(&x, &residual, &weight, &bias, 1e-12, P).unwrap();
        let mask = out.detach().gt(0.0).to_kind(Kind::Float) / (1.0 - P);
        let weights = Tensor::randn([rows, width], OPTIONS);
        (&out * &weights).sum(Kind::Float).backward();
        let other = (Tensor::ones([rows, width], OPTIONS) * &mask).set_requires_grad(true);
        let expected = other.layer_norm([width], Some(&weight), Some(&bias), 1e-12, true);
        assert!(out.allclose(&expected, 1e-5, 1e-5, false));
        (&expected * &weights).sum(Kind::Float).backward();
        assert!(residual.grad().allclose(&other.grad(), 1e-4, 1e-5, false));
        assert!(x
            .grad()
            .allclose(&(other.grad() * &mask), 1e-4, 1e-5, false));

        // Attention with identity values puts the dropped probabilities out.
        let [length, keys] = [5, 70];
        let query = leaf(&[1, 1, length, keys]);
        let key = leaf(&[1, 1, keys, keys]);
        let value = Tensor::eye(keys, OPTIONS)
            .view([1, 1, keys, keys])
            .set_requires_grad(true);
        let out = attention(&query, &key, &value, None, P).unwrap();
        let mask = out.detach().gt(0.0).to_kind(Kind::Float) / (1.0 - P);
        let share = 1.0
            - out
                .detach()
                .gt(0.0)
                .to_kind(Kind::Float)
                .mean(Kind::Float)
                .double_value(&[]);
        assert!((share - P).abs() < 0.15, "{share}");
        let weights = out.randn_like();
        (&out * &weights).sum(Kind::Float).backward();
        let copies = [&query, &key, &value].map(|t| t.detach().copy().set_requires_grad(true));
        let scores = copies[0].matmul(&copies[1].transpose(2, 3)) / (keys as f64).sqrt();
        let expected = (scores.softmax(3, None) * &mask).matmul(&copies[2]);
        assert!(out.allclose(&expected, 1e-4, 1e-6, false));
        (&expected * &weights).sum(Kind::Float).backward();
        for (a, b) in [&query, &key, &value].iter().zip(&copies) {
            assert!(a.grad().allclose(&b.grad(), 1e-3, 1e-5, false));
        }
    }

    #[test]
    fn indices_beyond_the_rows_are_errors() {
        let rows = Tensor::zeros([3, 4], OPTIONS);
        let ints = |values: &[i64]| Tensor::from_slice(values);
        let split = |slots: &[i64], places: &[i64], heads: i64| {
            split_rows(&rows, &ints(slots), &ints(places), (1, 2), heads)
        };
        assert!(split(&[0, 2], &[0, -1, 1], 2).is_ok());
        assert!(split(&[0, 3], &[0, -1, 1], 2).is_err());
        assert!(split(&[0, -2], &[0, -1, 1], 2).is_err());
        assert!(split(&[0, 2], &[0, -1, 2], 2).is_err());
        assert!(split(&[0], &[0, -1, 1], 2).is_err());
        assert!(split(&[0, 2], &[0, 1], 2).is_err());
        assert!(split(&[0, 2], &[0, -1, 1], 3).is_err());
    }

    #[test]
    fn norms_and_averages() {
        let (a, b) = (
            Tensor::from_slice(&[3f32, 0.0]),
            Tensor::from_slice(&[4f32]),
        );
        assert_eq!(global_norm(&[&a, &b]).unwrap().double_value(&[]), 5.0);
        lerp(&[&a], &[&Tensor::from_slice(&[5f32, 4.0])], 0.25).unwrap();
        assert_eq!(Vec::<f32>::try_from(&a).unwrap(), [3.5, 1.0]);
        assert!(lerp(&[&a], &[], 0.5).is_err());
    }
}
