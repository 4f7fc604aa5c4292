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

use std::ffi::OsStr;

const WAIT_POLICY: &str = "OMP_WAIT_POLICY";
const TORCH_LOG: &str = "TORCH_CPP_LOG_LEVEL";
const PROFILER_LOG: &str = "KINETO_LOG_LEVEL";
const CUBLAS_WORKSPACE: &str = "CUBLAS_WORKSPACE_CONFIG";

/// Returns at once when policy and log levels are set; else they are, and the program starts over in the
/// same process.
#[cfg(unix)]
#[allow(clippy::disallowed_methods)] // The environment belongs to the tools.
pub(crate) fn wait_passively() {
    use std::os::unix::process::CommandExt;
    let is_set = |name: &str| std::env::var_os(name).is_some();
    let waits = is_set(WAIT_POLICY) || is_set("GOMP_SPINCOUNT");
    if waits && is_set(TORCH_LOG) && is_set(PROFILER_LOG) && is_set(CUBLAS_WORKSPACE) {
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
    if !waits {
        command.env(WAIT_POLICY, "passive");
    }
    if !is_set(TORCH_LOG) {
        command.env(TORCH_LOG, "FATAL");
    }
    if !is_set(PROFILER_LOG) {
        command.env(PROFILER_LOG, "99"); // Above all its levels.
    }
    if !is_set(CUBLAS_WORKSPACE) {
        command.env(CUBLAS_WORKSPACE, ":4096:8");
    }
    let error = command.exec();
    // `exec` returns only when it failed; training works all the same.
    log::debug!(
        "cannot set {WAIT_POLICY}, {TORCH_LOG}, {PROFILER_LOG} and {CUBLAS_WORKSPACE}: {error}"
    );
}

/// Other systems keep their default.
#[cfg(not(unix))]
pub(crate) fn wait_passively() {}
