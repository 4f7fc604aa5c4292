//! Makes libtorch's CPU threads sleep, not spin, while they wait for each other.
//!
//! libtorch's kernels run on OpenMP threads that spin at the end of each parallel loop by default. The
//! loader's threads need those cores: on two cores shared with anything else, spinning made training
//! an order of magnitude slower. OpenMP reads its wait policy when it is loaded, before `main`, so
//! the program starts itself once more with the policy set. A policy that the user has set stands.
//!
//! libtorch's own logs are set at the same moment, for the same reason: what goes wrong between ranks it
//! logs with its stack, beside the error that this program prints, and its profiler calls a machine
//! without a GPU an error.
//!
//! So is the workspace of cuBLAS, which reads it when its first product comes: with eight buffers of 4 MiB,
//! libtorch's own size on Hopper, its products give the same bits each time (`deterministic = true`).
//!
//! CUDA's profiler (CUPTI) must not be taken down between recordings and set up again: with CUDA graphs that
//! ends in a crash (torch/profiler sets the same where it knows of graphs).

use std::ffi::OsStr;

/// What is set unless the user has: name and value.
const SETTINGS: [(&str, &str); 6] = [
    (WAIT_POLICY, "passive"),
    ("TORCH_CPP_LOG_LEVEL", "FATAL"),
    // Above all its levels.
    ("KINETO_LOG_LEVEL", "99"),
    ("CUBLAS_WORKSPACE_CONFIG", ":4096:8"),
    ("DISABLE_CUPTI_LAZY_REINIT", "1"),
    ("TEARDOWN_CUPTI", "0"),
];

const WAIT_POLICY: &str = "OMP_WAIT_POLICY";

/// Another setting of the same.
const SPIN_COUNT: &str = "GOMP_SPINCOUNT";

/// Returns at once when everything is set; else it is, and the program starts over in the same process.
#[cfg(unix)]
#[allow(clippy::disallowed_methods)] // The environment belongs to the tools.
pub(crate) fn wait_passively() {
    use std::os::unix::process::CommandExt;
    let is_set = |name: &str| {
        let other = name == WAIT_POLICY && std::env::var_os(SPIN_COUNT).is_some();
        other || std::env::var_os(name).is_some()
    };
    let missing = SETTINGS.iter().filter(|(name, _)| !is_set(name));
    let missing: Vec<&(&str, &str)> = missing.collect();
    if missing.is_empty() {
        return;
    }
    let Ok(program) = std::env::current_exe() else {
        return;
    };
    let mut args = std::env::args_os();
    let name = args
        .next()
        .unwrap_or_else(|| OsStr::new("qftrain").to_owned());
    let mut command = std::process::Command::new(program);
    command.arg0(name).args(args);
    for (name, value) in &missing {
        command.env(name, value);
    }
    let error = command.exec();
    // `exec` returns only when it failed; training works all the same.
    log::debug!("cannot set {missing:?}: {error}");
}

/// Other systems keep their default.
#[cfg(not(unix))]
pub(crate) fn wait_passively() {}
