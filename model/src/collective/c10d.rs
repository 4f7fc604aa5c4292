//! Handles of what `shim/c10d.cpp` makes.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::marker::PhantomData;
use std::os::raw::c_char;
use std::time::Duration;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::cuda_library::CudaLibrary;
use crate::error::ModelError;
use crate::ops::{shim_message, GradientsThroughAutograd};

type Message = *mut c_char;

/// An object of the shim, of which only the address is known here.
#[repr(C)]
struct Opaque {
    _private: [u8; 0],
}

extern "C" {
    fn qf_store_open(
        host: *const u8,
        host_length: usize,
        port: u16,
        hosts: c_int,
        prefix: *const u8,
        prefix_length: usize,
        timeout_ms: i64,
        out: *mut *mut Opaque,
    ) -> Message;
    fn qf_store_close(store: *mut Opaque);
    fn qf_store_set(
        store: *const Opaque,
        key: *const u8,
        key_length: usize,
        value: *const u8,
        length: usize,
    ) -> Message;
    fn qf_store_get(
        store: *const Opaque,
        key: *const u8,
        key_length: usize,
        timeout_ms: i64,
        out: *mut *mut u8,
        length: *mut usize,
    ) -> Message;
    fn qf_free_bytes(bytes: *mut u8);
    fn qf_store_add(
        store: *const Opaque,
        key: *const u8,
        key_length: usize,
        amount: i64,
        out: *mut i64,
    ) -> Message;
    fn qf_store_has(
        store: *const Opaque,
        key: *const u8,
        key_length: usize,
        out: *mut c_int,
    ) -> Message;
    fn qf_group_join(
        store: *const Opaque,
        prefix: *const u8,
        prefix_length: usize,
        rank: c_int,
        size: c_int,
        join_timeout_ms: i64,
        timeout_ms: i64,
        interface: *const u8,
        interface_length: usize,
        hostname: *const u8,
        hostname_length: usize,
        make_nccl: *const Opaque,
        out: *mut *mut Opaque,
    ) -> Message;
    fn qf_group_leave(group: *mut Opaque);
    fn qf_group_gather(
        group: *const Opaque,
        own: *const C_tensor,
        with_grad: c_int,
        out: *mut *mut C_tensor,
    ) -> Message;
    fn qf_group_reduce(group: *const Opaque, tensor: *mut C_tensor, operation: c_int) -> Message;
    fn qf_group_broadcast(
        group: *const Opaque,
        tensors: *const *const C_tensor,
        count: usize,
        root: c_int,
    ) -> Message;
    fn qf_group_share(
        group: *const Opaque,
        tensors: *const *const C_tensor,
        owners: *const c_int,
        count: usize,
        bucket_bytes: usize,
    ) -> Message;
    fn qf_group_send(
        group: *const Opaque,
        tensors: *const *const C_tensor,
        count: usize,
        to: c_int,
    ) -> Message;
    fn qf_group_receive(
        group: *const Opaque,
        tensors: *const *const C_tensor,
        from: *const c_int,
        count: usize,
    ) -> Message;
    fn qf_group_average(
        group: *const Opaque,
        gradients: *const *const C_tensor,
        count: usize,
        bucket_bytes: usize,
    ) -> Message;
    fn qf_reducer_new(
        group: *const Opaque,
        params: *const *const C_tensor,
        count: usize,
        bucket_bytes: usize,
        may_miss: c_int,
        out: *mut *mut Opaque,
    ) -> Message;
    fn qf_unreached(
        params: *const *const C_tensor,
        count: usize,
        loss: *const C_tensor,
        out: *mut usize,
    ) -> Message;
    fn qf_reducer_free(reducer: *mut Opaque);
    fn qf_reducer_prepare(reducer: *const Opaque, loss: *const C_tensor) -> Message;
    fn qf_reducer_check(reducer: *const Opaque) -> Message;
}

/// What went wrong in the shim, in its words.
pub(super) type C10dError = String;

fn check(message: Message) -> Result<(), C10dError> {
    shim_message(message).map_or(Ok(()), Err)
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn pointers(tensors: &[&Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(|tensor| tensor.as_ptr()).collect()
}

fn unzip(tensors: &[(&Tensor, i32)]) -> (Vec<*const C_tensor>, Vec<c_int>) {
    let pairs = tensors.iter();
    pairs.map(|(tensor, rank)| (tensor.as_ptr(), *rank)).unzip()
}

/// A connection to the key-value store that the ranks meet at.
#[derive(Debug)]
pub(super) struct Store(*mut Opaque);

// SAFETY: c10d's stores lock each of their operations; the handle itself is never written.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Connects to `host:port`, hosting the store there if `hosts`. Waits `timeout` at most.
    pub(super) fn open(
        (host, port): (&str, u16),
        hosts: bool,
        prefix: &str,
        timeout: Duration,
    ) -> Result<Store, C10dError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: the strings live through the call, with their lengths; out is written once.
        check(unsafe {
            qf_store_open(
                host.as_ptr(),
                host.len(),
                port,
                c_int::from(hosts),
                prefix.as_ptr(),
                prefix.len(),
                millis(timeout),
                &mut out,
            )
        })?;
        Ok(Store(out))
    }

    pub(super) fn set(&self, key: &str, value: &[u8]) -> Result<(), C10dError> {
        // SAFETY: the store lives as long as `self`, the slices through the call.
        check(unsafe { qf_store_set(self.0, key.as_ptr(), key.len(), value.as_ptr(), value.len()) })
    }

    /// The value of `key`, once it is there; an error after `timeout`.
    pub(super) fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, C10dError> {
        let (mut bytes, mut length) = (std::ptr::null_mut(), 0);
        // SAFETY: as above; without a message `bytes` holds `length` bytes of the shim's, which are
        // copied and freed.
        unsafe {
            check(qf_store_get(
                self.0,
                key.as_ptr(),
                key.len(),
                millis(timeout),
                &mut bytes,
                &mut length,
            ))?;
            let value = std::slice::from_raw_parts(bytes, length).to_vec();
            qf_free_bytes(bytes);
            Ok(value)
        }
    }

    /// Adds to the number under `key`, 0 at first, and returns the sum.
    pub(super) fn add(&self, key: &str, amount: i64) -> Result<i64, C10dError> {
        let mut sum = 0;
        // SAFETY: as above.
        check(unsafe { qf_store_add(self.0, key.as_ptr(), key.len(), amount, &mut sum) })?;
        Ok(sum)
    }

    pub(super) fn has(&self, key: &str) -> Result<bool, C10dError> {
        let mut has = 0;
        // SAFETY: as above.
        check(unsafe { qf_store_has(self.0, key.as_ptr(), key.len(), &mut has) })?;
        Ok(has != 0)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the handle is this value's alone.
        unsafe { qf_store_close(self.0) }
    }
}

/// The network that Gloo uses.
#[derive(Clone, Copy, Debug)]
pub(super) enum Network<'a> {
    /// That of the address of this machine's name.
    Default,
    /// A network interface by name, `eth0` say.
    Interface(&'a str),
    /// That of an address.
    Address(&'a str),
}

/// One of the groups that a rank belongs to.
#[derive(Debug)]
pub(super) struct Group(*mut Opaque);

// SAFETY: c10d's process groups may be used from any thread; ours makes one call at a time.
unsafe impl Send for Group {}

impl Group {
    /// Joins all ranks under `prefix`, waiting `join` for connections and later `collective` for each
    /// call; on a GPU with `nccl`.
    pub(super) fn join(
        store: &Store,
        prefix: &str,
        (rank, size): (i32, i32),
        (join, collective): (Duration, Duration),
        network: Network<'_>,
        nccl: Option<Nccl>,
    ) -> Result<Group, C10dError> {
        let (interface, address) = match network {
            Network::Default => ("", ""),
            Network::Interface(name) => (name, ""),
            Network::Address(address) => ("", address),
        };
        let mut out = std::ptr::null_mut();
        // SAFETY: the store and the strings live through the call; `make_nccl` is null or the
        // function of that type from the library of this build, which stays loaded.
        check(unsafe {
            qf_group_join(
                store.0,
                prefix.as_ptr(),
                prefix.len(),
                rank,
                size,
                millis(join),
                millis(collective),
                interface.as_ptr(),
                interface.len(),
                address.as_ptr(),
                address.len(),
                nccl.map_or(std::ptr::null(), |nccl| nccl.0),
                &mut out,
            )
        })?;
        Ok(Group(out))
    }

    pub(super) fn gather(&self, own: &Tensor, with_grad: bool) -> Result<Tensor, C10dError> {
        let mut out = std::ptr::null_mut();
        // SAFETY: the group lives as long as `self`; the tensor is live; without a message out holds
        // a new tensor, which the handle owns.
        unsafe {
            check(qf_group_gather(
                self.0,
                own.as_ptr(),
                c_int::from(with_grad),
                &mut out,
            ))?;
            Ok(Tensor::from_ptr(out))
        }
    }

    pub(super) fn reduce(
        &self,
        tensor: &mut Tensor,
        reduction: Reduction,
    ) -> Result<(), C10dError> {
        let operation = match reduction {
            Reduction::Sum => 0,
            Reduction::Max => 1,
        };
        // SAFETY: as above; the tensor is borrowed for writing.
        check(unsafe { qf_group_reduce(self.0, tensor.as_mut_ptr(), operation) })
    }

    pub(super) fn broadcast(&self, tensors: &[&Tensor]) -> Result<(), C10dError> {
        let pointers = pointers(tensors);
        // SAFETY: the pointers are of live tensors.
        check(unsafe { qf_group_broadcast(self.0, pointers.as_ptr(), pointers.len(), 0) })
    }

    /// Pairs of a tensor and the rank it comes from.
    pub(super) fn share(
        &self,
        tensors: &[(&Tensor, i32)],
        bucket_bytes: usize,
    ) -> Result<(), C10dError> {
        let (tensors, owners) = unzip(tensors);
        // SAFETY: `count` pointers of live tensors and as many ranks.
        check(unsafe {
            qf_group_share(
                self.0,
                tensors.as_ptr(),
                owners.as_ptr(),
                tensors.len(),
                bucket_bytes,
            )
        })
    }

    pub(super) fn send(&self, tensors: &[&Tensor], to: i32) -> Result<(), C10dError> {
        let pointers = pointers(tensors);
        // SAFETY: the pointers are of live tensors.
        check(unsafe { qf_group_send(self.0, pointers.as_ptr(), pointers.len(), to) })
    }

    /// Pairs of a tensor and the rank it comes from.
    pub(super) fn receive(&self, tensors: &[(&Tensor, i32)]) -> Result<(), C10dError> {
        let (tensors, from) = unzip(tensors);
        // SAFETY: `count` pointers of live tensors and as many ranks.
        check(unsafe { qf_group_receive(self.0, tensors.as_ptr(), from.as_ptr(), tensors.len()) })
    }

    pub(super) fn average(
        &self,
        gradients: &[&Tensor],
        bucket_bytes: usize,
    ) -> Result<(), C10dError> {
        let pointers = pointers(gradients);
        // SAFETY: the pointers are of live tensors.
        check(unsafe { qf_group_average(self.0, pointers.as_ptr(), pointers.len(), bucket_bytes) })
    }

    pub(super) fn reducer(
        &self,
        params: &[&Tensor],
        bytes: usize,
        gives: Gradients,
    ) -> Result<Reducer<'_>, C10dError> {
        let pointers = pointers(params);
        let mut out = std::ptr::null_mut();
        // SAFETY: the pointers are of live tensors, which the reducer keeps alive.
        check(unsafe {
            qf_reducer_new(
                self.0,
                pointers.as_ptr(),
                pointers.len(),
                bytes,
                c_int::from(gives == Gradients::OfSome),
                &mut out,
            )
        })?;
        Ok(Reducer {
            handle: out,
            _told: GradientsThroughAutograd::new(),
            _group: PhantomData,
        })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: the handle is this value's alone.
        unsafe { qf_group_leave(self.0) }
    }
}

/// What a backward pass gives gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradients {
    /// Every parameter, on every rank and in every pass; one that is missed is an error.
    OfAll,
    /// Some of them, which each pass is searched for, and the ranks tell each other.
    OfSome,
}

/// Averages the gradients of parameters over all ranks while the backward pass computes them
/// (`c10d::Reducer`), until it is dropped. Averaged gradients are views of its buckets:
/// [`AdamW::zero_grad`](crate::AdamW::zero_grad) drops them, `Tensor::zero_grad` cannot.
#[derive(Debug)]
pub struct Reducer<'a> {
    handle: *mut Opaque,
    _told: GradientsThroughAutograd,
    _group: PhantomData<&'a Group>,
}

impl Reducer<'_> {
    /// Makes the next backward pass, from `loss`, average; one that is not announced here only adds
    /// to the gradients of this rank.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails.
    pub fn prepare(&self, loss: &Tensor) -> Result<(), ModelError> {
        // SAFETY: the reducer lives as long as `self`; the tensor is live.
        check(unsafe { qf_reducer_prepare(self.handle, loss.as_ptr()) }).map_err(torch)
    }

    /// Checks that the announced backward pass has averaged all gradients.
    ///
    /// # Errors
    /// [`ModelError::Torch`] if it has not.
    pub fn check(&self) -> Result<(), ModelError> {
        // SAFETY: as above.
        check(unsafe { qf_reducer_check(self.handle) }).map_err(torch)
    }
}

impl Drop for Reducer<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle is this value's alone.
        unsafe { qf_reducer_free(self.handle) }
    }
}

fn torch(said: C10dError) -> ModelError {
    ModelError::Torch(tch::TchError::Torch(said))
}

/// How many of `params` the backward pass from `loss` gives no gradient.
///
/// # Errors
/// [`ModelError::Torch`] where libtorch fails.
pub(crate) fn unreached(params: &[&Tensor], loss: &Tensor) -> Result<usize, ModelError> {
    let pointers = pointers(params);
    let mut count = 0;
    // SAFETY: the pointers are of live tensors; the shim writes one number.
    let said =
        unsafe { qf_unreached(pointers.as_ptr(), pointers.len(), loss.as_ptr(), &mut count) };
    check(said).map_err(torch)?;
    Ok(count)
}

/// The NCCL backend, opened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nccl(*const Opaque);

/// The library of `shim/nccl.cpp`; empty if this build found no CUDA headers.
static NCCL_LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libqf_nccl.so"));

/// Whether this program was built with NCCL's headers, which [`ProcessGroup`](super::ProcessGroup) on
/// GPUs needs.
pub fn carries_nccl() -> bool {
    !NCCL_LIBRARY.is_empty()
}

impl Nccl {
    /// Opens the library, which is part of the program, once `libtorch_cuda.so` is loaded. It stays
    /// for the rest of the process.
    pub(super) fn open() -> Result<Nccl, C10dError> {
        let library = CudaLibrary::open(NCCL_LIBRARY)?;
        // SAFETY: only the address is taken; the shim calls it with the type that both share.
        let address = unsafe { library.function::<*const Opaque>(b"qf_make_nccl")? };
        std::mem::forget(library);
        Ok(Nccl(address))
    }
}

/// How tensors of several ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// The largest of each element.
    Max,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half a library would only be found out on a machine with several GPUs.
    #[test]
    fn the_nccl_library_is_whole_or_absent() {
        if !carries_nccl() {
            let said = Nccl::open().unwrap_err();
            assert!(said.contains("make setup QF_NCCL=1"), "{said}");
            return;
        }
        assert!(NCCL_LIBRARY.starts_with(b"\x7fELF"));
        let symbol = b"qf_make_nccl";
        assert!(NCCL_LIBRARY
            .windows(symbol.len())
            .any(|part| part == symbol));
    }
}
