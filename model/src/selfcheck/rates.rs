//! How fast the device takes and multiplies numbers. These checks fail on wrong numbers alone: what is
//! slow on one machine is fast on another.

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::check::{Bench, NotOk};
use super::compare::same_bits;
use crate::accelerator::OwnStream;
use crate::flops::matmul_peak;

/// Bytes of a copy: more than most caches.
const BYTES: i64 = 64 << 20;
const COPIES: usize = 4;

/// Copies from page-locked memory by way of the upload's stream.
pub(super) fn copies(bench: &mut Bench) -> Result<(), NotOk> {
    let stream = OwnStream::enter(bench.device)?;
    let source = Tensor::f_arange(BYTES / 8, (Kind::Int64, Device::Cpu))?;
    let source = match bench.device {
        Device::Cuda(_) => source.f_pin_memory(bench.device)?,
        _ => source,
    };
    let mut best = f64::INFINITY;
    for _ in 0..COPIES {
        let started = Instant::now();
        let copy = stream.copy(&source)?;
        stream.wait()?;
        best = best.min(started.elapsed().as_secs_f64());
        same_bits("a copy from the host", &copy, &source)?;
    }
    bench.note("bytes_per_s", BYTES as f64 / best);
    Ok(())
}

/// A large matrix product in the element type of runs, and in 32 bits.
pub(super) fn products(bench: &mut Bench) -> Result<(), NotOk> {
    let peak = matmul_peak(bench.device, bench.precision)?;
    bench.note(
        "precision",
        serde_json::to_value(bench.precision).unwrap_or_default(),
    );
    bench.note("flop_per_s", peak);
    Ok(())
}
