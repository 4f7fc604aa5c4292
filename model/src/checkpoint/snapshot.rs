//! A copy of weights and moments on the host, for the writer to take its time with.

use tch::{Device, Kind, Tensor};

use crate::accelerator::HostCopies;
use crate::blip2::Blip2Qformer;
use crate::collective::Ranks;
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
    /// Where the frozen parameters are.
    device: Option<Device>,
}

impl Snapshot {
    /// Where the parameters are that are no copies, once something was taken.
    pub(super) fn device(&self) -> Option<Device> {
        self.device
    }

    /// Copies the present values. Buffers of an earlier snapshot are used again where they fit, so
    /// a run allocates them once. Complete when it returns. What other ranks keep of the optimiser's
    /// state comes from their [`AdamW::send_state`].
    pub(super) fn take(
        &mut self,
        model: &Blip2Qformer,
        optimizer: &AdamW,
        ranks: &dyn Ranks,
    ) -> Result<(), ModelError> {
        let device = model.params().device();
        let copies = HostCopies::new(device);
        self.device = Some(device);
        let named = |param: &Param| (param.name.clone(), param.tensor.shallow_clone());
        let all = model.params().named_parameters();
        self.model.truncate(self.num_copies);
        let mut old = std::mem::take(&mut self.model).into_iter();
        for (name, value) in model.params().trainable().map(named) {
            let mut buffer = fitting(old.next(), &value.size(), value.f_kind()?, device)?;
            copies.begin(&value, &mut buffer)?;
            self.model.push((name, buffer));
        }
        self.num_copies = self.model.len();
        let frozen = all.iter().filter(|param| !param.trainable);
        self.model.extend(frozen.map(named));
        let parts = optimizer.state_parts()?;
        let mut old = std::mem::take(&mut self.optimizer).into_iter();
        for part in &parts {
            let mut buffer = fitting(old.next(), &part.shape, part.kind, device)?;
            if let Some(value) = &part.value {
                copies.begin(value, &mut buffer)?;
            }
            self.optimizer.push((part.name.clone(), buffer));
        }
        copies.wait()?;
        optimizer.receive_state(&parts, &self.optimizer, ranks)
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

/// The buffer of an earlier snapshot if it fits, else a new one. Page-locked for a GPU, which then
/// copies several times as fast.
fn fitting(
    old: Option<(String, Tensor)>,
    shape: &[i64],
    kind: Kind,
    device: Device,
) -> Result<Tensor, ModelError> {
    if let Some((_, buffer)) = old {
        if buffer.size() == shape && buffer.kind() == kind {
            return Ok(buffer);
        }
    }
    let buffer = Tensor::f_empty(shape, (kind, Device::Cpu))?;
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
