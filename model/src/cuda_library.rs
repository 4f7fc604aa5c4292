//! Libraries of `shim/` that only a GPU has a use for. They are part of the program, and opened once
//! `libtorch_cuda.so` is loaded, whose symbols they need.
#![allow(unsafe_code)]

use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// A library in memory, for the rest of the process.
#[derive(Debug)]
pub(crate) struct CudaLibrary(Library);

impl CudaLibrary {
    /// Opens a library that was compiled into the program.
    ///
    /// # Errors
    /// What is missing, as a clause. `bytes` are empty where the program was built without CUDA's headers.
    pub(crate) fn open(bytes: &[u8]) -> Result<CudaLibrary, String> {
        if bytes.is_empty() {
            return Err(
                "this program was compiled without the headers of CUDA and NCCL; run \
                 `make setup QF_NCCL=1`, then build it again"
                    .into(),
            );
        }
        let in_memory = |error: std::io::Error| format!("cannot unpack its library ({error})");
        // SAFETY: the name is a C string; the call makes a file descriptor or returns -1.
        let fd = unsafe { libc::memfd_create(c"libqf_cuda.so".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(in_memory(std::io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is new and nobody else's.
        let mut file = unsafe { std::fs::File::from_raw_fd(fd) };
        file.write_all(bytes).map_err(in_memory)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // SAFETY: the library has no initialisers of its own but those of torch's headers.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
        let library = library.map_err(|error| format!("cannot open its library ({error})"))?;
        Ok(CudaLibrary(library))
    }

    /// The address of a function, as a pointer or function pointer type `T`.
    ///
    /// # Safety
    /// The library has a function of this name and type; the address is not used after the library is
    /// dropped.
    pub(crate) unsafe fn function<T: Copy>(&self, name: &[u8]) -> Result<T, String> {
        let symbol = self.0.get::<T>(name);
        symbol
            .map(|symbol| *symbol)
            .map_err(|error| format!("cannot use its library ({error})"))
    }
}
