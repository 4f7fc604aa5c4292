//! What there is to compute with.

use tch::Device;

use super::check::{Bench, NotOk};
use crate::accelerator::memory;
use crate::collective::carries_nccl;
use crate::device::{cuda_versions, gpu};

/// libtorch, its CUDA part, the driver and the device, by name and version.
pub(super) fn libraries(bench: &mut Bench) -> Result<(), NotOk> {
    bench.note("program", env!("CARGO_PKG_VERSION"));
    bench.note("libtorch", env!("QF_LIBTORCH_VERSION"));
    bench.note("carries_nccl", carries_nccl());
    let Device::Cuda(index) = bench.device else {
        bench.note("device", "CPU");
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        bench.note("cores", cores);
        bench.note("libtorch_threads", tch::get_num_threads());
        return Ok(());
    };
    bench.note("device", format!("cuda:{index}"));
    if let Some(versions) = cuda_versions() {
        bench.note("cuda", dotted(versions.runtime));
        bench.note("cudnn", versions.cudnn);
    }
    if let Ok(text) = std::fs::read_to_string("/proc/driver/nvidia/version") {
        bench.note("driver", text.lines().next().unwrap_or_default().trim());
    }
    if let Some(memory) = memory(bench.device) {
        bench.note("memory_bytes", memory.total);
        bench.note("free_bytes", memory.free);
    }
    let gpu = gpu(index)?;
    let (major, minor) = gpu.capability;
    bench.note("gpu", gpu.name);
    bench.note("capability", format!("{major}.{minor}"));
    bench.note("multiprocessors", gpu.multiprocessors);
    bench.note("driver_cuda", dotted(i64::from(gpu.driver_cuda)));
    Ok(())
}

/// CUDA's number of a version: 13000 is 13.0.
fn dotted(version: i64) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}
