//! Makes libtorch's CPU threads sleep, not spin, while they wait for each other.
//!
//! libtorch's kernels run on OpenMP threads that spin at the end of each parallel loop by default. The
//! loader's threads need those cores: on two cores shared with anything else, spinning made training
//! an order of magnitude slower. OpenMP reads its wait policy when it is loaded, before `main`, so
//! the program starts itself once more with the policy set. A policy that the user has set stands.

use std::ffi::OsStr;

const WAIT_POLICY: &str = "OMP_WAIT_POLICY";

/// Returns at once when a policy is set; else it is, and the program starts over in the same
/// process.
#[cfg(unix)]
#[allow(clippy::disallowed_methods)] // The environment belongs to the tools.
pub(crate) fn wait_passively() {
    use std::os::unix::process::CommandExt;
    let is_set = |name: &str| std::env::var_os(name).is_some();
    if is_set(WAIT_POLICY) || is_set("GOMP_SPINCOUNT") {
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
    let error = command
        .arg0(name)
        .args(args)
        .env(WAIT_POLICY, "passive")
        .exec();
    // `exec` returns only when it failed; training works all the same.
    log::debug!("cannot set {WAIT_POLICY}: {error}");
}

/// Other systems keep their default.
#[cfg(not(unix))]
pub(crate) fn wait_passively() {}
