//! Streams and memory of a GPU. On the CPU work is done when a call returns, and memory is the
//! system's.

use tch::{Device, Tensor};

use crate::error::ModelError;

/// Memory of a GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Not in use by anybody.
    pub free: u64,
    /// All there is.
    pub total: u64,
    /// Held by this program's tensors.
    pub allocated: u64,
    /// The most that its tensors held at once, since the start or [`restart_memory`].
    pub peak: u64,
}

/// The memory of a GPU; `None` on the CPU, and where libtorch does not tell.
pub fn memory(device: Device) -> Option<DeviceMemory> {
    let Device::Cuda(index) = device else {
        return None;
    };
    match ffi::memory(index) {
        Ok([free, total, allocated, peak]) => Some(DeviceMemory {
            free,
            total,
            allocated,
            peak,
        }),
        Err(error) => {
            log::debug!("GPU {index} does not tell its memory: {error}");
            None
        }
    }
}

/// Gives what no tensor holds back to a GPU, and begins a new [peak](DeviceMemory::peak).
///
/// # Errors
/// [`ModelError::Torch`] where libtorch fails.
pub fn restart_memory(device: Device) -> Result<(), ModelError> {
    match device {
        Device::Cuda(index) => ffi::restart_memory(index),
        _ => Ok(()),
    }
}

/// Gives memory that no tensor holds back to a GPU.
pub(crate) fn empty_cache(device: Device) -> Result<(), ModelError> {
    match device {
        Device::Cuda(_) => ffi::empty_cache(),
        _ => Ok(()),
    }
}

/// A stream for this thread alone, on which its work overlaps that of other threads.
///
/// It stays the thread's present stream.
#[derive(Debug)]
pub(crate) struct OwnStream {
    device: Device,
}

impl OwnStream {
    pub(crate) fn enter(device: Device) -> Result<OwnStream, ModelError> {
        if let Device::Cuda(index) = device {
            ffi::enter_stream(index)?;
        }
        Ok(OwnStream { device })
    }

    /// Waits for all that was given to the stream.
    pub(crate) fn wait(&self) -> Result<(), ModelError> {
        wait_for_present_stream(self.device)
    }

    pub(crate) fn device(&self) -> Device {
        self.device
    }

    /// Begins a copy of `source` to the device; it is complete after [`OwnStream::wait`], until when
    /// `source` must stay as it is.
    pub(crate) fn copy(&self, source: &Tensor) -> Result<Tensor, ModelError> {
        match self.device {
            Device::Cuda(index) => ffi::begin_copy(source, index),
            _ => Ok(source.f_detach_copy()?),
        }
    }
}

/// Waits for all that this thread's present stream was given.
fn wait_for_present_stream(device: Device) -> Result<(), ModelError> {
    match device {
        Device::Cuda(index) => ffi::wait_for_stream(index),
        _ => Ok(()),
    }
}

/// Says that this thread's present stream reads a tensor that was made on another: its memory is not
/// used again before what that stream was given up to the tensor's end is done.
pub(crate) fn use_here(tensor: &Tensor) -> Result<(), ModelError> {
    match tensor.device() {
        Device::Cuda(_) => ffi::share(tensor),
        _ => Ok(()),
    }
}

/// Copies tensors of a device to the host, one behind the other, without waiting for each.
#[derive(Debug)]
pub(crate) struct HostCopies {
    device: Device,
}

impl HostCopies {
    pub(crate) fn new(device: Device) -> HostCopies {
        HostCopies { device }
    }

    /// Begins to write the values of `source` to `target`, a tensor of its shape and kind on the host,
    /// page-locked where it is to take no time. They are there after [`HostCopies::wait`].
    pub(crate) fn begin(&self, source: &Tensor, target: &mut Tensor) -> Result<(), ModelError> {
        match self.device {
            Device::Cuda(_) => ffi::copy_into(source, target),
            _ => tch::no_grad(|| Ok(target.f_copy_(source)?)),
        }
    }

    /// Waits for all of them.
    pub(crate) fn wait(self) -> Result<(), ModelError> {
        wait_for_present_stream(self.device)
    }
}

/// A stream beside the default one, for work that stands in order with this thread's other work, before
/// and after. On the CPU nothing at all.
#[derive(Debug)]
pub(crate) struct SideStream(Option<(usize, [i64; 3])>);

impl SideStream {
    /// For training steps: their kernels go ahead of those of other streams where the GPU has a choice. A
    /// step is many small kernels in a row, beside which a tower's large ones fill the gaps.
    pub(crate) fn for_steps(device: Device) -> Result<SideStream, ModelError> {
        SideStream::of(device, true)
    }

    /// One that goes ahead of nothing.
    pub(crate) fn ordinary(device: Device) -> Result<SideStream, ModelError> {
        SideStream::of(device, false)
    }

    fn of(device: Device, is_urgent: bool) -> Result<SideStream, ModelError> {
        let stream = match device {
            Device::Cuda(index) => Some((index, ffi::pool_stream(index, is_urgent)?)),
            _ => None,
        };
        Ok(SideStream(stream))
    }

    /// Runs `step` with this stream as the thread's present one.
    pub(crate) fn run<T, E: From<ModelError>>(
        &self,
        step: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let Some((index, stream)) = self.0 else {
            return step();
        };
        /// Returns to the stream before, whatever happens.
        struct Back(usize, [i64; 3]);
        impl Drop for Back {
            fn drop(&mut self) {
                if let Err(error) = ffi::switch_stream(self.0, self.1) {
                    log::error!("cannot leave a stream: {error}");
                }
            }
        }
        let before = ffi::switch_stream(index, stream)?;
        let _back = Back(index, before);
        step()
    }
}

#[allow(unsafe_code)]
mod ffi {
    //! The C functions of `shim/stream.cpp`.

    use std::ffi::{c_char, c_int};

    use tch::Tensor;
    use torch_sys::C_tensor;

    use crate::error::ModelError;
    use crate::ops::shim_result;

    extern "C" {
        fn qf_stream_enter(index: c_int) -> *mut c_char;
        fn qf_stream_wait(index: c_int) -> *mut c_char;
        fn qf_stream_of_pool(index: c_int, is_urgent: c_int, out: &mut [i64; 3]) -> *mut c_char;
        fn qf_stream_switch(index: c_int, to: &[i64; 3], before: &mut [i64; 3]) -> *mut c_char;
        fn qf_stream_share(tensor: *const C_tensor) -> *mut c_char;
        fn qf_copy_begin(
            source: *const C_tensor,
            index: c_int,
            out: &mut *mut C_tensor,
        ) -> *mut c_char;
        fn qf_copy_into(source: *const C_tensor, target: *mut C_tensor) -> *mut c_char;
        fn qf_memory(index: c_int, out: &mut [u64; 4]) -> *mut c_char;
        fn qf_memory_empty_cache() -> *mut c_char;
        fn qf_memory_restart(index: c_int) -> *mut c_char;
    }

    fn number(index: usize) -> Result<c_int, ModelError> {
        // libtorch counts devices in 8 bits.
        match i8::try_from(index) {
            Ok(index) => Ok(c_int::from(index)),
            Err(_) => Err(ModelError::Config {
                setting: "device",
                message: format!("cuda:{index} is out of range"),
            }),
        }
    }

    pub(super) fn enter_stream(index: usize) -> Result<(), ModelError> {
        let index = number(index)?;
        // SAFETY: no pointers; the shim turns every exception into a message.
        shim_result(unsafe { qf_stream_enter(index) })
    }

    pub(super) fn wait_for_stream(index: usize) -> Result<(), ModelError> {
        let index = number(index)?;
        // SAFETY: as above.
        shim_result(unsafe { qf_stream_wait(index) })
    }

    pub(super) fn pool_stream(index: usize, is_urgent: bool) -> Result<[i64; 3], ModelError> {
        let index = number(index)?;
        let mut stream = [0; 3];
        // SAFETY: the shim writes three numbers.
        shim_result(unsafe { qf_stream_of_pool(index, c_int::from(is_urgent), &mut stream) })?;
        Ok(stream)
    }

    /// Returns the stream before.
    pub(super) fn switch_stream(index: usize, to: [i64; 3]) -> Result<[i64; 3], ModelError> {
        let index = number(index)?;
        let mut before = [0; 3];
        // SAFETY: the shim reads three numbers and writes three.
        shim_result(unsafe { qf_stream_switch(index, &to, &mut before) })?;
        Ok(before)
    }

    pub(super) fn share(tensor: &Tensor) -> Result<(), ModelError> {
        // SAFETY: the tensor lives during the call, which keeps nothing of it.
        shim_result(unsafe { qf_stream_share(tensor.as_ptr()) })
    }

    pub(super) fn begin_copy(source: &Tensor, index: usize) -> Result<Tensor, ModelError> {
        let index = number(index)?;
        let mut out = std::ptr::null_mut();
        // SAFETY: `source` lives during the call.
        shim_result(unsafe { qf_copy_begin(source.as_ptr(), index, &mut out) })?;
        // SAFETY: without a message `out` is a new tensor, which nobody else owns.
        Ok(unsafe { Tensor::from_ptr(out) })
    }

    pub(super) fn copy_into(source: &Tensor, target: &mut Tensor) -> Result<(), ModelError> {
        // SAFETY: both live during the call; libtorch keeps page-locked memory until the copy is done.
        shim_result(unsafe { qf_copy_into(source.as_ptr(), target.as_mut_ptr()) })
    }

    pub(super) fn memory(index: usize) -> Result<[u64; 4], ModelError> {
        let index = number(index)?;
        let mut out = [0; 4];
        // SAFETY: the shim writes four numbers.
        shim_result(unsafe { qf_memory(index, &mut out) })?;
        Ok(out)
    }

    pub(super) fn empty_cache() -> Result<(), ModelError> {
        // SAFETY: no pointers; the shim turns every exception into a message.
        shim_result(unsafe { qf_memory_empty_cache() })
    }

    pub(super) fn restart_memory(index: usize) -> Result<(), ModelError> {
        let index = number(index)?;
        // SAFETY: no pointers.
        shim_result(unsafe { qf_memory_restart(index) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_has_one_stream() {
        let stream = OwnStream::enter(Device::Cpu).unwrap();
        let source = Tensor::from_slice(&[1u8, 2, 3]);
        let copy = stream.copy(&source).unwrap();
        stream.wait().unwrap();
        use_here(&copy).unwrap();
        let step = SideStream::for_steps(Device::Cpu).unwrap();
        assert_eq!(step.run(|| Ok::<_, ModelError>(3)).unwrap(), 3);
        assert_eq!(Vec::<u8>::try_from(&copy).unwrap(), [1, 2, 3]);
        assert_ne!(source.data_ptr(), copy.data_ptr());
        assert_eq!(memory(Device::Cpu), None);
        restart_memory(Device::Cpu).unwrap();
    }

    /// Every call for a GPU gives an error, and no crash, where there is none.
    #[test]
    fn without_a_gpu_there_is_an_error() {
        if tch::Cuda::is_available() {
            return;
        }
        assert!(OwnStream::enter(Device::Cuda(0)).is_err());
        assert!(OwnStream::enter(Device::Cuda(1 << 20)).is_err());
        let stream = OwnStream {
            device: Device::Cuda(0),
        };
        assert!(stream.copy(&Tensor::from_slice(&[1u8])).is_err());
        assert!(stream.wait().is_err());
        assert!(SideStream::ordinary(Device::Cuda(0)).is_err());
        assert!(ffi::switch_stream(0, [0; 3]).is_err());
        assert!(ffi::share(&Tensor::from_slice(&[1u8])).is_err());
        assert_eq!(memory(Device::Cuda(0)), None);
        assert!(restart_memory(Device::Cuda(0)).is_err());
    }
}
