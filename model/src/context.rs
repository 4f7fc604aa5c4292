//! Switches of libtorch that hold for the whole process: which kernels it may choose.

pub use qf_config::device::Kernels;

use crate::error::ModelError;

/// Makes libtorch choose kernels by `kernels` from here on, in all threads. cuDNN's attention is left
/// out: in this version it plans anew for each shape, which takes about a second, and rounds the
/// probability of dropout to a multiple of 1/16.
///
/// # Errors
/// [`ModelError::Torch`] where libtorch fails.
pub fn choose_kernels(kernels: Kernels) -> Result<(), ModelError> {
    ffi::use_cudnn_attention(false)?;
    ffi::allow_tf32(kernels.allow_tf32)?;
    ffi::use_deterministic(kernels.deterministic)
}

#[allow(unsafe_code)]
mod ffi {
    //! The C functions of `shim/context.cpp`.

    use std::ffi::{c_char, c_int};

    use crate::error::ModelError;
    use crate::ops::shim_result;

    extern "C" {
        fn qf_use_cudnn_attention(on: c_int) -> *mut c_char;
        fn qf_allow_tf32(on: c_int) -> *mut c_char;
        fn qf_use_deterministic(on: c_int) -> *mut c_char;
        #[cfg(test)]
        fn qf_context(out: *mut c_int) -> *mut c_char;
    }

    pub(super) fn use_cudnn_attention(on: bool) -> Result<(), ModelError> {
        // SAFETY: a plain call; the shim catches exceptions.
        shim_result(unsafe { qf_use_cudnn_attention(c_int::from(on)) })
    }

    pub(super) fn allow_tf32(on: bool) -> Result<(), ModelError> {
        // SAFETY: as above.
        shim_result(unsafe { qf_allow_tf32(c_int::from(on)) })
    }

    pub(super) fn use_deterministic(on: bool) -> Result<(), ModelError> {
        // SAFETY: as above.
        shim_result(unsafe { qf_use_deterministic(c_int::from(on)) })
    }

    /// What libtorch says of itself: cuDNN's attention, TF32 in products, TF32 in convolutions,
    /// deterministic.
    #[cfg(test)]
    pub(super) fn context() -> Result<[bool; 4], ModelError> {
        let mut out = [0; 4];
        // SAFETY: the shim writes four numbers.
        shim_result(unsafe { qf_context(out.as_mut_ptr()) })?;
        Ok(out.map(|value| value != 0))
    }
}

/// Held by tests that choose kernels: the choice is one for all threads.
#[cfg(test)]
pub(crate) static CHOOSING: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_says_what_was_chosen() {
        let _alone = CHOOSING.lock();
        let choose = |allow_tf32, deterministic| {
            choose_kernels(Kernels {
                allow_tf32,
                deterministic,
            })
            .unwrap();
            ffi::context().unwrap()
        };
        // As libtorch starts, unless a test before this one chose: cuDNN's attention and TF32 in
        // convolutions are on.
        assert_eq!(choose(true, true), [false, true, true, true]);
        assert_eq!(choose(true, false), [false, true, true, false]);
        assert_eq!(choose(false, false), [false; 4]);
    }
}
