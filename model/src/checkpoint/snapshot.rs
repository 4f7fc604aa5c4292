//! A copy of weights and moments on the host, for the writer to take its time with.

use tch::{Device, Kind, Tensor};

use crate::blip2::Blip2Qformer;
use crate::error::ModelError;
use crate::optim::AdamW;
use crate::params::Param;

/// Weights and moments of one step, in host memory that later steps do not touch. Frozen parameters,
/// which no step touches, stay where they are.
#[derive(Default)]
pub(super) struct Snapshot {
    /// Parameters by name.
    pub(super) model: Vec<(String, Tensor)>,
    /// The optimiser's state by name.
    pub(super) optimizer: Vec<(String, Tensor)>,
    /// How many of the parameters are copies: those that are trained come first.
    num_copies: usize,
}

impl Snapshot {
    /// Copies the present values. Buffers of an earlier snapshot are used again where they fit, so
    /// a run allocates them once. Complete when it returns.
    pub(super) fn take(
        &mut self,
        model: &Blip2Qformer,
        optimizer: &AdamW,
    ) -> Result<(), ModelError> {
        let device = model.params().device();
        let named = |param: &Param| (param.name.clone(), param.tensor.shallow_clone());
        let all = model.params().named_parameters();
        self.model.truncate(self.num_copies);
        refill(
            &mut self.model,
            model.params().trainable().map(named),
            device,
        )?;
        self.num_copies = self.model.len();
        let frozen = all.iter().filter(|param| !param.trainable);
        self.model.extend(frozen.map(named));
        refill(&mut self.optimizer, optimizer.state(), device)
    }

    /// The first trained parameter that holds a number that is not finite.
    pub(super) fn first_non_finite(&self) -> Result<Option<&str>, ModelError> {
        for (name, tensor) in self.model.iter().take(self.num_copies) {
            if !is_finite(tensor)? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

fn refill(
    buffers: &mut Vec<(String, Tensor)>,
    values: impl IntoIterator<Item = (String, Tensor)>,
    device: Device,
) -> Result<(), ModelError> {
    let mut old = std::mem::take(buffers).into_iter();
    for (name, value) in values {
        let fits = |buffer: &Tensor| buffer.size() == value.size() && buffer.kind() == value.kind();
        let mut buffer = match old.next() {
            Some((_, buffer)) if fits(&buffer) => buffer,
            _ => allocate(&value, device)?,
        };
        tch::no_grad(|| buffer.f_copy_(&value))?;
        buffers.push((name, buffer));
    }
    Ok(())
}

/// Host memory for a copy of `value`; page-locked for a GPU, which then copies several times as
/// fast.
fn allocate(value: &Tensor, device: Device) -> Result<Tensor, ModelError> {
    let buffer = Tensor::f_empty(value.size(), (value.f_kind()?, Device::Cpu))?;
    if !device.is_cuda() {
        return Ok(buffer);
    }
    match buffer.f_pin_memory(device) {
        Ok(pinned) => Ok(pinned),
        Err(error) => {
            log::debug!("no page-locked memory for checkpoints ({error})");
            Ok(buffer)
        }
    }
}

/// Plain code rather than libtorch's: its kernels would start threads of their own beside those that
/// train.
fn is_finite(tensor: &Tensor) -> Result<bool, ModelError> {
    const CHUNK: i64 = 1 << 20;
    if !tensor.is_floating_point() {
        return Ok(true);
    }
    let flat = tensor.f_view(-1)?;
    let mut values = vec![0f32; flat.numel().min(CHUNK as usize)];
    for part in flat.f_split(CHUNK, 0)? {
        let part = part.f_to_kind(Kind::Float)?;
        let count = part.numel();
        part.f_copy_data(&mut values, count)?;
        if !values[..count].iter().all(|value| value.is_finite()) {
            return Ok(false);
        }
    }
    Ok(true)
}
