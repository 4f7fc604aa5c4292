//! Memory of tensors on the CPU: large ones in blocks of their own, which are kept for the next.
//!
//! libtorch's own allocator leaves glibc's heap full of holes that fit nothing else, and the resident set
//! of a long run creeps up. With this one it is bounded by what was in use at a time.

use qf_pipeline::process::release_free_memory;

use crate::error::ModelError;

/// Makes libtorch take the memory of all further tensors on the CPU from blocks that are kept and used
/// again: in use and kept together, at most 5/4 of the most that was in use at a time since the last
/// [`release`]. Tensors of less than 128 KiB stay on the heap.
///
/// # Errors
/// [`ModelError::Torch`] where libtorch fails.
pub fn keep_blocks() -> Result<(), ModelError> {
    ffi::use_host_allocator()
}

/// Gives memory that no tensor uses back to the system, that of the heap too. Costs some milliseconds,
/// and page faults when it is needed again: for the end of a phase that needed much.
pub fn release() {
    ffi::release_host_memory();
    release_free_memory();
}

/// Bytes in blocks, of all tensors of 128 KiB or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockBytes {
    /// Of tensors that live.
    pub used: usize,
    /// Kept for further ones.
    pub kept: usize,
    /// The most that were used at a time since the last [`release`].
    pub peak: usize,
}

/// What blocks take at present.
pub fn block_bytes() -> BlockBytes {
    let [used, kept, peak] = ffi::host_memory();
    BlockBytes { used, kept, peak }
}

#[allow(unsafe_code)]
mod ffi {
    //! The C functions of `shim/host_memory.cpp`.

    use std::ffi::c_char;

    use crate::error::ModelError;
    use crate::ops::shim_result;

    extern "C" {
        fn qf_use_host_allocator() -> *mut c_char;
        fn qf_release_host_memory();
        fn qf_host_memory(out: *mut usize);
    }

    pub(super) fn use_host_allocator() -> Result<(), ModelError> {
        // SAFETY: a plain call; the shim catches exceptions. Tensors that exist keep the function that
        // frees their memory.
        shim_result(unsafe { qf_use_host_allocator() })
    }

    pub(super) fn release_host_memory() {
        // SAFETY: a plain call that takes a lock and touches no memory in use.
        unsafe { qf_release_host_memory() }
    }

    pub(super) fn host_memory() -> [usize; 3] {
        let mut out = [0; 3];
        // SAFETY: the shim writes three numbers.
        unsafe { qf_host_memory(out.as_mut_ptr()) };
        out
    }
}
