//! Start values of parameters, drawn by all processors at once.
//!
//! A parameter's numbers come from a stream of its own (ChaCha8, keyed by the model's seed and the
//! parameter's name). A stream can be entered anywhere, so threads draw parts of one tensor, and the
//! numbers depend neither on their count nor on the device.

use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;
use tch::{Device, Kind, Tensor};

use crate::error::ModelError;

/// Numbers a thread draws in one go; even, since they are drawn in pairs.
const PART: usize = 1 << 15;

/// Numbers that are drawn on the host before they go to a GPU: 32 MiB.
const STAGED: usize = 8 << 20;

/// What a parameter starts from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    /// One value throughout.
    Constant(f64),
    /// Numbers of a stream.
    Drawn(Stream),
}

/// Random numbers of one parameter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    key: u64,
    distribution: Distribution,
}

/// How a stream's numbers are distributed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Distribution {
    /// Normal with mean 0.
    Normal { std: f64 },
    /// Uniform in `[-bound, bound)`.
    Uniform { bound: f64 },
}

impl Stream {
    /// The stream of the parameter `name` in a model of this seed.
    pub(super) fn new(seed: u64, name: &str, distribution: Distribution) -> Stream {
        Stream {
            key: seed ^ fnv1a(name),
            distribution,
        }
    }

    /// Fills `values` with the stream's numbers from `first` on, which is even.
    fn fill(&self, values: &mut [f32], first: usize) {
        values
            .par_chunks_mut(PART)
            .enumerate()
            .for_each(|(index, part)| self.fill_part(part, first + index * PART));
    }

    fn fill_part(&self, part: &mut [f32], first: usize) {
        debug_assert!(first.is_multiple_of(2));
        // Own generator rather than torch's: that one is global to the process and differs by device.
        let mut rng = ChaCha8Rng::seed_from_u64(self.key);
        // A number takes one word of 32 bits.
        rng.set_word_pos(first as u128);
        match self.distribution {
            Distribution::Normal { std } => {
                in_pairs(part, || normal_pair(rng.next_u64(), std));
            }
            Distribution::Uniform { bound } => {
                in_pairs(part, || uniform_pair(rng.next_u64(), bound));
            }
        }
    }
}

/// Fills `values` two at a time; of an odd number of values the last pair's second is dropped.
fn in_pairs(values: &mut [f32], mut draw: impl FnMut() -> [f32; 2]) {
    for pair in values.chunks_mut(2) {
        pair.copy_from_slice(&draw()[..pair.len()]);
    }
}

/// Two independent normal numbers (Box and Muller, 1958).
fn normal_pair(bits: u64, std: f64) -> [f32; 2] {
    // In (0, 1], so that the logarithm is finite.
    let radius_share = (f64::from(bits as u32) + 1.0) * 2f64.powi(-32);
    let angle = f64::from((bits >> 32) as u32) * 2f64.powi(-32) * std::f64::consts::TAU;
    let radius = std * (-2.0 * radius_share.ln()).sqrt();
    let (sin, cos) = angle.sin_cos();
    [(radius * cos) as f32, (radius * sin) as f32]
}

fn uniform_pair(bits: u64, bound: f64) -> [f32; 2] {
    let at = |bits: u32| ((f64::from(bits) * 2f64.powi(-31) - 1.0) * bound) as f32;
    [at(bits as u32), at((bits >> 32) as u32)]
}

/// FNV-1a over the bytes of `text`, 64 bits.
fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Writes start values into f32 tensors of one device.
pub(super) struct Filler {
    /// Page-locked memory on the way to a GPU, made when first needed.
    staging: Option<Tensor>,
}

impl Filler {
    pub(super) fn new() -> Filler {
        Filler { staging: None }
    }

    /// Writes `start` into a new, contiguous f32 tensor.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails.
    pub(super) fn fill(&mut self, tensor: &Tensor, start: Start) -> Result<(), ModelError> {
        let mut tensor = tensor.f_detach()?;
        let stream = match start {
            Start::Constant(value) => {
                let _ = tensor.f_fill_(value)?;
                return Ok(());
            }
            Start::Drawn(stream) => stream,
        };
        match tensor.device() {
            Device::Cpu => {
                memory::with_values(&mut tensor, |values| stream.fill(values, 0))?;
                Ok(())
            }
            device => self.upload(&tensor, &stream, device),
        }
    }

    /// Draws on the host, part after part, and copies each to the device.
    fn upload(
        &mut self,
        tensor: &Tensor,
        stream: &Stream,
        device: Device,
    ) -> Result<(), ModelError> {
        let staging = match &mut self.staging {
            Some(staging) => staging,
            empty => {
                let plain = Tensor::f_empty([STAGED as i64], (Kind::Float, Device::Cpu))?;
                // Without page-locked memory copies take longer, no more.
                let pinned = plain.f_pin_memory(device);
                empty.insert(pinned.unwrap_or(plain))
            }
        };
        let flat = tensor.f_view([-1])?;
        let count = flat.numel();
        for first in (0..count).step_by(STAGED) {
            let length = STAGED.min(count - first) as i64;
            let mut part = staging.f_narrow(0, 0, length)?;
            memory::with_values(&mut part, |values| stream.fill(values, first))?;
            // Returns when the copy is done, so that the memory can be written again.
            flat.f_narrow(0, first as i64, length)?.f_copy_(&part)?;
        }
        Ok(())
    }
}

#[allow(unsafe_code)]
mod memory {
    //! The numbers of a tensor as a slice.

    use tch::{Device, Kind, Tensor};

    use crate::error::ModelError;

    /// Runs `write` on the numbers of a contiguous f32 tensor on the host.
    pub(super) fn with_values(
        tensor: &mut Tensor,
        write: impl FnOnce(&mut [f32]),
    ) -> Result<(), ModelError> {
        let is_plain = tensor.device() == Device::Cpu
            && tensor.f_kind()? == Kind::Float
            && tensor.is_contiguous();
        if !is_plain {
            return Err(ModelError::Kind {
                what: "start values",
                expected: "contiguous 32-bit floating-point",
                got: tensor.f_kind()?,
            });
        }
        if tensor.numel() == 0 {
            // Its pointer is null.
            return Ok(());
        }
        // SAFETY: a contiguous f32 tensor on the host has that many numbers behind its pointer, and
        // any bits are an f32. The caller lends the only handle that is in use.
        let values = unsafe {
            std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel())
        };
        write(values);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    const NORMAL: Distribution = Distribution::Normal { std: 0.02 };
    const UNIFORM: Distribution = Distribution::Uniform { bound: 0.3 };

    fn drawn(name: &str, count: usize, distribution: Distribution) -> Vec<f32> {
        let tensor = Tensor::empty([count as i64], (Kind::Float, Device::Cpu));
        let start = Start::Drawn(Stream::new(42, name, distribution));
        Filler::new().fill(&tensor, start).unwrap();
        Vec::<f32>::try_from(tensor).unwrap()
    }

    /// Digests of what version 0.1 drew, which did so one number after the other.
    #[test]
    fn numbers_of_a_seed_are_what_they_always_were() {
        for (name, count, distribution, expected) in [
            (
                "n",
                200_001,
                NORMAL,
                "74152bb920aebb22abaf98cffd114c88f8827607311a5a32a1077055b1577207",
            ),
            (
                "u",
                200_001,
                UNIFORM,
                "dcb3ed371b26fa6b72a5d1501e77cba93109fef6ac0df84a4959ab5f2c9010b5",
            ),
            (
                "one",
                1,
                Distribution::Normal { std: 1.0 },
                "37ae49496ebbee5bfea9ea7a560a957b9fe8432015482fbc8997356db0279e39",
            ),
        ] {
            let mut digest = Sha256::new();
            for value in drawn(name, count, distribution) {
                digest.update(value.to_le_bytes());
            }
            let digest = digest.finalize();
            let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(digest, expected, "`{name}`");
        }
    }

    #[test]
    fn parts_join_without_a_seam() {
        for count in [2, 3, PART - 1, PART, PART + 1, 3 * PART + 5] {
            for distribution in [NORMAL, UNIFORM] {
                let stream = Stream::new(7, "x", distribution);
                let mut whole = vec![0.0; count];
                stream.fill_part(&mut whole, 0);
                assert_eq!(
                    whole,
                    {
                        let mut parts = vec![0.0; count];
                        stream.fill(&mut parts, 0);
                        parts
                    },
                    "{count} numbers"
                );
                // As on the way to a GPU: staged part by part.
                let mut staged = vec![0.0; count];
                for (index, part) in staged.chunks_mut(PART).enumerate() {
                    stream.fill(part, index * PART);
                }
                assert_eq!(whole, staged, "{count} numbers");
            }
        }
    }

    /// The way to a GPU, with the host in its stead.
    #[test]
    fn what_is_uploaded_is_what_is_drawn_in_place() {
        for count in [1, 10_001, STAGED + 3] {
            let stream = Stream::new(42, "up", UNIFORM);
            let tensor = Tensor::zeros([count as i64], (Kind::Float, Device::Cpu));
            Filler {
                staging: Some(Tensor::zeros([STAGED as i64], (Kind::Float, Device::Cpu))),
            }
            .upload(&tensor, &stream, Device::Cpu)
            .unwrap();
            let expected = Tensor::from_slice(&drawn("up", count, UNIFORM));
            assert!(tensor.equal(&expected), "{count} numbers");
        }
    }

    #[test]
    fn only_plain_tensors_are_written() {
        let mut column = Tensor::zeros([4, 4], (Kind::Float, Device::Cpu)).select(1, 0);
        assert!(memory::with_values(&mut column, |_| ()).is_err());
        let mut half = Tensor::zeros([4], (Kind::Half, Device::Cpu));
        assert!(memory::with_values(&mut half, |_| ()).is_err());
    }
}
