//! The C functions of `shim/ops.cpp`.

use std::ffi::{c_char, c_int, CStr};

use qf_config::model::Precision;
use tch::Tensor;
use torch_sys::C_tensor;

use super::arguments::{AdamWStep, AdamWTensors, NormParameters, Rate};
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

pub(super) fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, out: Out<'_>) -> Message {
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
