//! Which device computes, and what libtorch decides for the whole process; one binary for CPU and CUDA.

pub use qf_config::device::DeviceChoice;
use qf_config::model::Precision;
use tch::Device;

use crate::context::{choose_kernels, Kernels};
use crate::error::ModelError;

/// What a run takes that asks for no element type: bf16 on a GPU, f32 on the CPU.
pub fn default_precision(device: Device) -> Precision {
    match device {
        Device::Cuda(_) => Precision::Bf16,
        _ => Precision::F32,
    }
}

/// Opens what the choice needs and returns the device. libtorch's kernels on a GPU are
/// [chosen](choose_kernels) by the defaults of [`Kernels`].
///
/// The first call that asks for a GPU comes before everything else that libtorch is asked to do:
/// libtorch looks for its CUDA part once. [`seed`] does not look.
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
        came_too_late: libraries.is_ok() && gpus == 0 && cuda_versions().is_none(),
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
    /// libtorch looked for its CUDA part before it was opened, and does not see it.
    came_too_late: bool,
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
        (true, Ok(())) if found.gpus == 0 && found.came_too_late => Err(
            "libtorch was used before its CUDA libraries were opened, and does not see them; call \
             open_device before anything that draws random numbers or asks for an accelerator"
                .into(),
        ),
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

/// Seeds the generator that `device` draws from, and that of the CPU. `tch::manual_seed`, called before
/// [`open_device`], would keep libtorch from seeing a GPU.
///
/// # Errors
/// [`ModelError::Torch`] for a GPU that is not opened.
pub fn seed(number: i64, device: Device) -> Result<(), ModelError> {
    let index = match device {
        Device::Cuda(index) => i32::try_from(index).unwrap_or(i32::MAX),
        _ => -1,
    };
    cuda::seed(number, index)
}

/// Versions of what libtorch's CUDA part was built with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaVersions {
    /// Of the CUDA runtime, e.g. 13000 for 13.0.
    pub runtime: i64,
    /// Of cuDNN, e.g. 91900 for 9.19; 0 where there is none.
    pub cudnn: i64,
}

/// The versions of libtorch's CUDA part, once it is opened; `None` where libtorch does not see it.
pub fn cuda_versions() -> Option<CudaVersions> {
    match cuda::versions() {
        Ok([runtime, cudnn]) => Some(CudaVersions { runtime, cudnn }),
        Err(error) => {
            log::debug!("no CUDA part of libtorch: {error}");
            None
        }
    }
}

/// What the driver says of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its name, e.g. `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// The newest version of CUDA that the driver knows, e.g. 13000 for 13.0.
    pub driver_cuda: i32,
}

/// Asks the driver about the GPU of this index.
///
/// # Errors
/// [`ModelError::Input`] where there is no driver, or it answers with an error.
pub fn gpu(index: usize) -> Result<Gpu, ModelError> {
    cuda::gpu(index).map_err(|message| ModelError::Input {
        what: "NVIDIA driver",
        message,
    })
}

#[allow(unsafe_code)]
mod cuda {
    //! libtorch registers its CUDA kernels when `libtorch_cuda.so` is loaded; the program itself
    //! links the CPU library alone.

    use std::ffi::{c_char, c_int};

    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

    use super::Gpu;
    use crate::error::ModelError;
    use crate::ops::shim_result;

    extern "C" {
        fn qf_cuda_versions(out: &mut [i64; 2]) -> *mut c_char;
        fn qf_seed(number: u64, index: c_int) -> *mut c_char;
    }

    pub(super) fn versions() -> Result<[i64; 2], ModelError> {
        let mut out = [0; 2];
        // SAFETY: the shim writes two numbers and turns every exception into a message.
        shim_result(unsafe { qf_cuda_versions(&mut out) })?;
        Ok(out)
    }

    pub(super) fn seed(number: i64, index: i32) -> Result<(), ModelError> {
        // SAFETY: no pointers. torch takes the same bits for a number without sign.
        shim_result(unsafe { qf_seed(number as u64, index) })
    }

    /// Asks through the driver's own interface, whose functions have kept their types since CUDA 3.2.
    pub(super) fn gpu(index: usize) -> Result<Gpu, String> {
        const MULTIPROCESSORS: c_int = 16;
        const MAJOR: c_int = 75;
        const MINOR: c_int = 76;
        type Init = unsafe extern "C" fn(u32) -> c_int;
        type Version = unsafe extern "C" fn(*mut c_int) -> c_int;
        type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
        type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
        type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;

        let ordinal = c_int::try_from(index).map_err(|error| error.to_string())?;
        let checked = |call: &str, code: c_int| match code {
            0 => Ok(()),
            code => Err(format!("{call} fails with CUDA's error {code}")),
        };
        let missing = |error: libloading::Error| error.to_string();
        let mut name = [0u8; 256];
        let (mut driver_cuda, mut device) = (0, 0);
        let mut attributes = [0; 3];
        // SAFETY: the initialisers of the driver's library have no preconditions, the types are those
        // of cuda.h, and every pointer is to a variable of this function, the name's with its length.
        unsafe {
            let driver = Library::open(Some("libcuda.so.1"), RTLD_NOW).map_err(missing)?;
            let init = driver.get::<Init>(b"cuInit").map_err(missing)?;
            checked("cuInit", init(0))?;
            let version = driver.get::<Version>(b"cuDriverGetVersion");
            checked(
                "cuDriverGetVersion",
                version.map_err(missing)?(&mut driver_cuda),
            )?;
            let get = driver.get::<Get>(b"cuDeviceGet").map_err(missing)?;
            checked("cuDeviceGet", get(&mut device, ordinal))?;
            let get_name = driver.get::<Name>(b"cuDeviceGetName").map_err(missing)?;
            let room = name.len() as c_int - 1;
            checked(
                "cuDeviceGetName",
                get_name(name.as_mut_ptr().cast(), room, device),
            )?;
            let attribute = driver
                .get::<Attribute>(b"cuDeviceGetAttribute")
                .map_err(missing)?;
            for (out, which) in attributes.iter_mut().zip([MULTIPROCESSORS, MAJOR, MINOR]) {
                checked("cuDeviceGetAttribute", attribute(out, which, device))?;
            }
        }
        let length = name
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(name.len());
        let [multiprocessors, major, minor] = attributes;
        Ok(Gpu {
            name: String::from_utf8_lossy(&name[..length]).into_owned(),
            capability: (major, minor),
            multiprocessors,
            driver_cuda,
        })
    }

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
        let found = |driver, libraries: Result<(), &str>, gpus| Found {
            driver,
            libraries: libraries.map_err(String::from),
            came_too_late: false,
            gpus,
        };
        let choose = |choice, driver, libraries: Result<(), &str>, gpus| {
            super::choose(choice, &found(driver, libraries, gpus))
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
        let late = |gpus| Found {
            came_too_late: true,
            ..found(true, Ok(()), gpus)
        };
        let missing = super::choose(Cuda(0), &late(0)).unwrap_err();
        assert!(missing.contains("call open_device before"), "{missing}");
        // Libraries that tell no version are no reason to refuse GPUs that are seen.
        assert_eq!(super::choose(Cuda(0), &late(1)), Ok(Device::Cuda(0)));
    }
}
