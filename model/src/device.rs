//! Which device computes; one binary for CPU and CUDA.

use std::fmt;
use std::str::FromStr;

use tch::Device;

use crate::error::ModelError;

/// The device a user asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU that libtorch can use, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this index.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(DeviceChoice::Auto),
            "cpu" => Ok(DeviceChoice::Cpu),
            "cuda" => Ok(DeviceChoice::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(DeviceChoice::Cuda)
                .ok_or_else(|| format!("`{text}` is no device; take auto, cpu, cuda or cuda:N")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceChoice::Auto => f.write_str("auto"),
            DeviceChoice::Cpu => f.write_str("cpu"),
            DeviceChoice::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// Opens what the choice needs and returns the device.
///
/// # Errors
/// [`ModelError::Config`] when a GPU is asked for and cannot be used, saying which part is missing.
pub fn open_device(choice: DeviceChoice) -> Result<Device, ModelError> {
    let missing = |message: String| ModelError::Config {
        setting: "device",
        message,
    };
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto => match cuda::open() {
            Ok(()) if tch::Cuda::is_available() => Ok(Device::Cuda(0)),
            _ => Ok(Device::Cpu),
        },
        DeviceChoice::Cuda(index) => {
            cuda::open().map_err(|error| {
                missing(format!(
                    "the CUDA libraries of libtorch cannot be opened ({error}); run `make setup` \
                     on a machine with an NVIDIA GPU, or set device = \"cpu\""
                ))
            })?;
            let count = tch::Cuda::device_count();
            if !tch::Cuda::is_available() || count <= 0 {
                return Err(missing(
                    "the CUDA libraries are there, but the NVIDIA driver shows no GPU; check \
                     nvidia-smi, or set device = \"cpu\""
                        .into(),
                ));
            }
            if index as i64 >= count {
                return Err(missing(format!(
                    "cuda:{index} is asked for, of {count} GPUs"
                )));
            }
            Ok(Device::Cuda(index))
        }
    }
}

#[allow(unsafe_code)]
mod cuda {
    //! libtorch registers its CUDA kernels when `libtorch_cuda.so` is loaded; the program itself
    //! links the CPU library alone.

    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

    /// Loads `libtorch_cuda.so` for the rest of the process.
    pub(super) fn open() -> Result<(), libloading::Error> {
        // SAFETY: the initialisers of libtorch_cuda register kernels and have no precondition but
        // that libtorch_cpu is loaded, which this program links.
        let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL)? };
        // Kernels stay registered until the process ends, so the library must stay too.
        std::mem::forget(library);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(0)),
            ("cuda:3", DeviceChoice::Cuda(3)),
        ] {
            assert_eq!(text.parse(), Ok(choice));
        }
        for wrong in ["gpu", "cuda:", "cuda:x", "CPU", ""] {
            assert!(wrong.parse::<DeviceChoice>().is_err(), "{wrong}");
        }
        assert_eq!(open_device(DeviceChoice::Cpu).unwrap(), Device::Cpu);
    }
}
