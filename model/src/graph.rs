//! Recordings of what a GPU is given (CUDA graphs): a recording of thousands of kernels starts in the
//! time of a few.

use std::sync::Arc;

use crate::error::ModelError;

/// Makes recordings; all of one recorder share their memory, so that one runs at a time.
pub(crate) struct Recorder {
    functions: Arc<ffi::Functions>,
    pool: [u64; 2],
}

impl Recorder {
    /// For the GPU whose libraries are open.
    ///
    /// # Errors
    /// What is missing, as a clause.
    pub(crate) fn new() -> Result<Recorder, String> {
        let functions = Arc::new(ffi::Functions::open()?);
        let pool = functions.pool().map_err(|error| error.to_string())?;
        Ok(Recorder { functions, pool })
    }

    /// Records what `work` gives this thread's present stream, which must not be the default one. None
    /// of it is computed; tensors that it makes get their values when the recording is run.
    ///
    /// # Errors
    /// That of `work`, or [`ModelError::Torch`] for work that cannot be recorded.
    pub(crate) fn record<T>(
        &self,
        work: impl FnOnce() -> Result<T, ModelError>,
    ) -> Result<(Recording, T), ModelError> {
        let recording = Recording {
            graph: self.functions.begin(self.pool)?,
            functions: self.functions.clone(),
        };
        let done = work();
        // In any case: a stream that still records can be used for nothing else.
        let ended = self.functions.end(recording.graph);
        let done = done?;
        ended?;
        Ok((recording, done))
    }
}

/// Work of a GPU that can be run again.
#[derive(Debug)]
pub(crate) struct Recording {
    graph: ffi::Graph,
    functions: Arc<ffi::Functions>,
}

impl Recording {
    /// Gives the work to this thread's present stream. Random numbers are drawn anew from torch's
    /// generator, as it stands.
    pub(crate) fn run(&self) -> Result<(), ModelError> {
        self.functions.replay(self.graph)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Err(error) = self.functions.free(self.graph) {
            log::debug!("cannot free a recording: {error}");
        }
    }
}

#[allow(unsafe_code)]
mod ffi {
    //! The C functions of `shim/graph.cpp`.

    use std::ffi::{c_char, c_void};

    use crate::cuda_library::CudaLibrary;
    use crate::error::ModelError;
    use crate::ops::shim_result;

    /// The library of `shim/graph.cpp`; empty if this build found no CUDA headers.
    static LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libqf_graph.so"));

    type Message = *mut c_char;

    #[derive(Clone, Copy, Debug)]
    pub(super) struct Graph(*mut c_void);

    // SAFETY: a recording belongs to no thread; `Recording`, which alone holds it, is not shared.
    unsafe impl Send for Graph {}

    #[derive(Debug)]
    pub(super) struct Functions {
        pool: unsafe extern "C" fn(*mut u64) -> Message,
        begin: unsafe extern "C" fn(*const u64, *mut *mut c_void) -> Message,
        end: unsafe extern "C" fn(*mut c_void) -> Message,
        replay: unsafe extern "C" fn(*mut c_void) -> Message,
        free: unsafe extern "C" fn(*mut c_void) -> Message,
        /// Dropped last.
        _library: CudaLibrary,
    }

    impl Functions {
        pub(super) fn open() -> Result<Functions, String> {
            let library = CudaLibrary::open(LIBRARY)?;
            // SAFETY: these are the names and types of `shim/graph.h`; the library lives as long as
            // the addresses.
            unsafe {
                Ok(Functions {
                    pool: library.function(b"qf_graph_pool")?,
                    begin: library.function(b"qf_graph_begin")?,
                    end: library.function(b"qf_graph_end")?,
                    replay: library.function(b"qf_graph_replay")?,
                    free: library.function(b"qf_graph_free")?,
                    _library: library,
                })
            }
        }

        pub(super) fn pool(&self) -> Result<[u64; 2], ModelError> {
            let mut pool = [0; 2];
            // SAFETY: the function writes two numbers.
            shim_result(unsafe { (self.pool)(pool.as_mut_ptr()) })?;
            Ok(pool)
        }

        pub(super) fn begin(&self, pool: [u64; 2]) -> Result<Graph, ModelError> {
            let mut graph = std::ptr::null_mut();
            // SAFETY: the function reads two numbers and writes a pointer.
            shim_result(unsafe { (self.begin)(pool.as_ptr(), &mut graph) })?;
            Ok(Graph(graph))
        }

        pub(super) fn end(&self, graph: Graph) -> Result<(), ModelError> {
            // SAFETY: `graph` is of `begin` and not freed: `Recording` alone frees it.
            shim_result(unsafe { (self.end)(graph.0) })
        }

        pub(super) fn replay(&self, graph: Graph) -> Result<(), ModelError> {
            // SAFETY: as above.
            shim_result(unsafe { (self.replay)(graph.0) })
        }

        pub(super) fn free(&self, graph: Graph) -> Result<(), ModelError> {
            // SAFETY: as above; called once, by `Drop`.
            shim_result(unsafe { (self.free)(graph.0) })
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// Half a library would only be found out on a machine with a GPU.
        #[test]
        fn the_library_is_whole_or_absent() {
            if LIBRARY.is_empty() {
                let said = Functions::open().err().unwrap();
                assert!(said.contains("make setup QF_NCCL=1"), "{said}");
                return;
            }
            assert!(LIBRARY.starts_with(b"\x7fELF"));
            for name in [
                &b"qf_graph_pool"[..],
                b"qf_graph_begin",
                b"qf_graph_end",
                b"qf_graph_replay",
                b"qf_graph_free",
            ] {
                assert!(LIBRARY.windows(name.len()).any(|part| part == name));
            }
        }
    }
}
