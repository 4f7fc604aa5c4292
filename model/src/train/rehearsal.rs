//! A few steps that leave no trace but how long they took and how much memory: what a run will need.

use std::fs;
use std::time::Instant;

use tch::Device;

use super::{TrainConfig, Trainer};
use crate::accelerator::{memory, restart_memory};
use crate::error::ModelError;

/// Share of the memory that is free which a batch is proposed for: what is left is lost between blocks,
/// and goes to the loader.
const USABLE: f64 = 0.9;

/// Steps that are timed, after one that warms up.
const TIMED: usize = 3;

/// The smallest batch: the matching loss needs a negative.
const SMALLEST: usize = 2;

/// The first batch whose memory is measured, where the system would rather kill a program than refuse it.
const FIRST: usize = 8;

/// What steps of a run take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rehearsal {
    /// Seconds of a step of the configured batch, loader apart; `None` where that batch does not fit.
    pub step_secs: Option<f64>,
    /// Memory by the number of images in a batch; `None` where the system does not tell.
    pub memory: Option<StepMemory>,
}

/// Memory of a step, in bytes: a part that every batch has, and one for each image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepMemory {
    /// Weights, gradients, moments and whatever else does not grow with the batch.
    pub fixed: f64,
    /// What an image of the batch adds.
    pub per_image: f64,
    /// What there is: free, or in use by this program.
    pub available: f64,
}

impl StepMemory {
    /// The line through the peaks of two batches.
    fn through(small: (usize, f64), large: (usize, f64), available: f64) -> StepMemory {
        let images = large.0.saturating_sub(small.0).max(1) as f64;
        let per_image = ((large.1 - small.1) / images).max(1.0);
        StepMemory {
            fixed: (small.1 - per_image * small.0 as f64).max(0.0),
            per_image,
            available,
        }
    }

    /// What a batch of `images` takes.
    pub fn of(&self, images: usize) -> f64 {
        self.fixed + self.per_image * images as f64
    }

    /// The largest batch that fits, with a tenth of the memory to spare; 0 if not even two images do.
    pub fn largest_batch(&self) -> usize {
        let most = ((self.available * USABLE - self.fixed) / self.per_image).max(0.0) as usize;
        match most >= SMALLEST {
            true => most,
            false => 0,
        }
    }
}

impl Trainer {
    /// Makes steps on batches of zeros: small ones first, from whose memory that of the configured batch
    /// follows, then the configured one, if it fits. Weights and moments are of no use afterwards.
    ///
    /// # Errors
    /// [`ModelError::Torch`] where libtorch fails for another reason than memory.
    pub fn rehearse(&mut self, config: &TrainConfig) -> Result<Rehearsal, ModelError> {
        let batch = config.data.batch_size;
        let large = batch.clamp(2 * SMALLEST, FIRST);
        let (Some(small_peak), Some(large_peak)) = (
            self.peak_of(SMALLEST, config)?,
            self.peak_of(large, config)?,
        ) else {
            return Ok(Rehearsal {
                step_secs: None,
                memory: None,
            });
        };
        let device = self.model.params().device();
        let memory = available(device, large_peak).map(|available| {
            StepMemory::through((SMALLEST, small_peak), (large, large_peak), available)
        });
        let fits = memory.is_none_or(|memory| memory.largest_batch() >= batch);
        let step_secs = match fits {
            true => self.timed(batch, config)?,
            false => None,
        };
        Ok(Rehearsal { step_secs, memory })
    }

    /// The most memory at once in a step of `size` images, in bytes; `None` where it does not fit.
    fn peak_of(&mut self, size: usize, config: &TrainConfig) -> Result<Option<f64>, ModelError> {
        let device = self.model.params().device();
        restart_memory(device)?;
        restart_host_peak();
        match self.rehearse_step(size, config) {
            Ok(()) => {}
            Err(error) if error.is_out_of_memory() => {
                self.optimizer.zero_grad()?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let peak = match memory(device) {
            Some(memory) => memory.peak as f64,
            None => status_bytes("VmHWM").unwrap_or(0.0),
        };
        Ok(Some(peak))
    }

    /// Seconds of a step of `size` images; `None` where it does not fit after all.
    fn timed(&mut self, size: usize, config: &TrainConfig) -> Result<Option<f64>, ModelError> {
        if self.peak_of(size, config)?.is_none() {
            return Ok(None);
        }
        let mut secs = Vec::with_capacity(TIMED);
        for _ in 0..TIMED {
            let started = Instant::now();
            self.rehearse_step(size, config)?;
            secs.push(started.elapsed().as_secs_f64());
        }
        secs.sort_by(f64::total_cmp);
        Ok(secs.get(TIMED / 2).copied())
    }

    /// Forward, backward and update, until the device is done.
    fn rehearse_step(&mut self, size: usize, config: &TrainConfig) -> Result<(), ModelError> {
        self.trial_backward(size, config)?;
        self.optimizer.step(0.0)?;
        self.optimizer.zero_grad()?;
        if let Device::Cuda(index) = self.model.params().device() {
            tch::Cuda::synchronize(i64::try_from(index).unwrap_or(0));
        }
        Ok(())
    }
}

/// Bytes that a program may use which uses `used` now: of the GPU, or of this machine and its container.
fn available(device: Device, used: f64) -> Option<f64> {
    if let Some(memory) = memory(device) {
        return Some((memory.free + memory.allocated) as f64);
    }
    let resident = status_bytes("VmRSS").unwrap_or(used);
    let free = fs::read_to_string("/proc/meminfo").ok();
    let free = free.and_then(|text| kilobytes(&text, "MemAvailable"))?;
    let number = |path: &str| -> Option<f64> {
        let text = fs::read_to_string(path).ok()?;
        text.trim().parse().ok()
    };
    // `max` where there is no limit.
    let limit = number("/sys/fs/cgroup/memory.max");
    let current = number("/sys/fs/cgroup/memory.current");
    let within = limit
        .zip(current)
        .map(|(limit, current)| (limit - current).max(0.0));
    Some(resident + within.map_or(free, |within| within.min(free)))
}

/// Begins a new peak of resident memory. Elsewhere than on Linux the old one goes on.
fn restart_host_peak() {
    // `man 5 proc`: 5 resets the peak resident set size. A kernel without it changes nothing.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

fn status_bytes(name: &str) -> Option<f64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, name)
}

/// The value of a line `NAME:   123 kB`, in bytes.
fn kilobytes(text: &str, name: &str) -> Option<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let number: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(number * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::super::non_finite::tests::{config_of, trainer_and_loader};
    use super::*;

    #[test]
    fn memory_grows_with_the_batch() {
        let memory = StepMemory::through((2, 1200.0), (8, 1800.0), 10_000.0);
        assert_eq!((memory.fixed, memory.per_image), (1000.0, 100.0));
        assert_eq!(memory.of(16), 2600.0);
        assert_eq!(memory.largest_batch(), 80);
        let little = StepMemory::through((2, 1200.0), (8, 1800.0), 1200.0);
        assert_eq!(little.largest_batch(), 0);
        // A measurement that noise has turned round divides by nothing.
        assert!(StepMemory::through((2, 9.0), (4, 8.0), 100.0).per_image > 0.0);
    }

    #[test]
    fn lines_of_proc_are_read() {
        let text = "VmHWM:\t    1024 kB\nVmRSS:\t 512 kB\nThreads:\t3\n";
        assert_eq!(kilobytes(text, "VmRSS"), Some(512.0 * 1024.0));
        assert_eq!(kilobytes(text, "Vm"), None);
        assert_eq!(kilobytes(text, "Threads"), None);
    }

    #[test]
    fn a_rehearsal_times_the_batch_and_tells_what_fits() {
        let folder = tempfile::tempdir().unwrap();
        let (mut trainer, _) = trainer_and_loader(folder.path(), 2);
        let mut config = config_of(&trainer, 6);
        let rehearsal = trainer.rehearse(&config).unwrap();
        assert!(rehearsal.step_secs.unwrap() > 0.0);
        let memory = rehearsal.memory.unwrap();
        assert!(memory.available > 1e6 && memory.of(6) < memory.available);
        assert!(memory.largest_batch() > 6, "{memory:?}");
        config.data.batch_size = usize::MAX / 2;
        let too_much = trainer.rehearse(&config).unwrap();
        assert_eq!(too_much.step_secs, None, "{too_much:?}");
    }
}
