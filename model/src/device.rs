//! Which device computes; one binary for CPU and CUDA.

use std::fmt;
use std::str::FromStr;

use tch::Device;

use crate::context::{choose_kernels, Kernels};
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

/// Opens what the choice needs and returns the device. libtorch's kernels on a GPU are
/// [chosen](choose_kernels) by the defaults of [`Kernels`].
///
/// [`DeviceChoice::Auto`] logs a warning where there is a GPU that cannot be used.
///
/// # Errors
/// [`ModelError::Config`] when a GPU is asked for and cannot be used, saying which part is missing.
pub fn open_device(choice: DeviceChoice) -> Result<Device, ModelError> {
    if choice == DeviceChoice::Cpu {
        return Ok(Device::Cpu);
    }
    let libraries = cuda::open();
    // Only now can libtorch tell.
    let gpus = match libraries {
        Ok(()) if tch::Cuda::is_available() => tch::Cuda::device_count(),
        _ => 0,
    };
    let found = Found {
        driver: cuda::has_driver(),
        libraries: libraries.map_err(|error| error.to_string()),
        gpus: usize::try_from(gpus).unwrap_or(0),
    };
    match (choice, choose(choice, &found)) {
        (_, Ok(device)) => {
            choose_kernels(Kernels::default())?;
            Ok(device)
        }
        (DeviceChoice::Auto, Err(missing)) => {
            // A machine without a GPU misses nothing.
            if found.driver {
                log::warn!("{missing}; going on with the CPU");
            }
            Ok(Device::Cpu)
        }
        (_, Err(message)) => Err(ModelError::Config {
            setting: "device",
            message: format!("{message}, or set device = \"cpu\""),
        }),
    }
}

/// What a machine has of what a GPU needs.
struct Found {
    /// The driver's library.
    driver: bool,
    /// The CUDA libraries of libtorch, or why they cannot be opened.
    libraries: Result<(), String>,
    /// GPUs that libtorch can use.
    gpus: usize,
}

/// The device, or what is missing and what to do about it.
fn choose(choice: DeviceChoice, found: &Found) -> Result<Device, String> {
    let index = match choice {
        DeviceChoice::Cpu => return Ok(Device::Cpu),
        DeviceChoice::Auto => 0,
        DeviceChoice::Cuda(index) => index,
    };
    match (found.driver, &found.libraries) {
        (true, Err(error)) => Err(format!(
            "there is an NVIDIA driver, but the CUDA libraries of libtorch are not there ({error}); run \
             `make setup QF_CUDA=1`"
        )),
        (false, Err(_)) => Err("there is no NVIDIA driver (libcuda.so.1), and the CUDA libraries of \
             libtorch are not there; install the driver and run `make setup QF_CUDA=1`"
            .into()),
        (false, Ok(())) => Err("the CUDA libraries are there, but no NVIDIA driver (libcuda.so.1); \
             install it, or give a container access to the GPU"
            .into()),
        (true, Ok(())) if found.gpus == 0 => Err(
            "driver and CUDA libraries are there, but libtorch can use no GPU; look at nvidia-smi, \
             CUDA_VISIBLE_DEVICES and the driver's version"
                .into(),
        ),
        (true, Ok(())) if index >= found.gpus => Err(format!(
            "cuda:{index} is asked for, of {} GPUs (cuda:0 is the first)",
            found.gpus
        )),
        (true, Ok(())) => Ok(Device::Cuda(index)),
    }
}

#[allow(unsafe_code)]
mod cuda {
    //! libtorch registers its CUDA kernels when `libtorch_cuda.so` is loaded; the program itself
    //! links the CPU library alone.

    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

    /// Whether the driver's library is there. It does nothing before it is asked to.
    pub(super) fn has_driver() -> bool {
        // SAFETY: the initialisers of the driver's library have no preconditions.
        unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW) }.is_ok()
    }

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

    #[test]
    fn what_is_missing_is_said() {
        let choose = |choice, driver, libraries: Result<(), &str>, gpus| {
            let found = Found {
                driver,
                libraries: libraries.map_err(String::from),
                gpus,
            };
            super::choose(choice, &found)
        };
        use DeviceChoice::{Auto, Cpu, Cuda};
        let none = Err("no such file");
        assert_eq!(choose(Cpu, false, none, 0), Ok(Device::Cpu));
        assert_eq!(choose(Auto, true, Ok(()), 2), Ok(Device::Cuda(0)));
        assert_eq!(choose(Cuda(1), true, Ok(()), 2), Ok(Device::Cuda(1)));
        for (choice, driver, libraries, gpus, words) in [
            (Auto, true, none, 0, "make setup QF_CUDA=1"),
            (Cuda(0), false, none, 0, "install the driver"),
            (Cuda(0), false, Ok(()), 0, "no NVIDIA driver"),
            (Cuda(0), true, Ok(()), 0, "nvidia-smi"),
            (Cuda(2), true, Ok(()), 2, "cuda:2 is asked for, of 2 GPUs"),
        ] {
            let missing = choose(choice, driver, libraries, gpus).unwrap_err();
            assert!(missing.contains(words), "{missing}");
        }
    }
}
