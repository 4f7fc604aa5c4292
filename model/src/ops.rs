//! Operations beside those that tch wraps: on the CPU in 32 bits fused loops and oneDNN's matrix
//! products (`shim/`), anywhere else the same of torch's own operations.

use tch::Tensor;

use crate::error::ModelError;

/// x Wᵀ + b for x `[…, K]`, weight `[N, K]`, bias `[N]` → `[…, N]`.
pub(crate) fn linear(
    input: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Tensor, ModelError> {
    ffi::new_tensor(|out| ffi::linear(input, weight, bias, out))
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

/// Numbers of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdamWStep<'a> {
    pub(crate) lr: f64,
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

/// Element type of matrix products under automatic mixed precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Autocast {
    /// Off.
    Off,
    /// bfloat16.
    BFloat16,
    /// float16.
    Half,
}

/// Sets automatic mixed precision of this thread.
pub(crate) fn set_autocast(cuda: bool, kind: Autocast) -> Result<(), ModelError> {
    ffi::check(ffi::set_autocast(cuda, kind))
}

/// The C functions of `shim/ops.cpp`.
#[allow(unsafe_code)]
mod ffi {
    use std::ffi::{c_char, c_int, CStr};

    use tch::Tensor;
    use torch_sys::C_tensor;

    use super::{AdamWStep, AdamWTensors, Autocast};
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

    /// The error behind a message, which is freed.
    pub(super) fn check(message: Message) -> Result<(), ModelError> {
        if message.is_null() {
            return Ok(());
        }
        // SAFETY: the shim returns null or a C string of its own, which nobody else frees.
        let text = unsafe {
            let text = CStr::from_ptr(message).to_string_lossy().into_owned();
            qf_free_message(message);
            text
        };
        Err(ModelError::Torch(tch::TchError::Torch(text)))
    }

    /// The tensor that `call` makes.
    pub(super) fn new_tensor(call: impl FnOnce(Out<'_>) -> Message) -> Result<Tensor, ModelError> {
        let mut out = std::ptr::null_mut();
        check(call(&mut out))?;
        // SAFETY: without a message the shim has put a new tensor there, which this handle owns.
        Ok(unsafe { Tensor::from_ptr(out) })
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
        // SAFETY: five lists of `count` pointers of live tensors (the caller compared the lengths);
        // divisor and skip may be null.
        unsafe {
            qf_fused_adamw(
                params.as_ptr(),
                gradients.as_ptr(),
                exp_avgs.as_ptr(),
                exp_avg_sqs.as_ptr(),
                steps.as_ptr(),
                params.len(),
                step.lr,
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

    pub(super) fn set_autocast(cuda: bool, kind: Autocast) -> Message {
        let kind = match kind {
            Autocast::Off => 0,
            Autocast::BFloat16 => 1,
            Autocast::Half => 2,
        };
        // SAFETY: no pointers.
        unsafe { qf_set_autocast(c_int::from(cuda), kind) }
    }
}
