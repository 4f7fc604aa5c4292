//! Starts the program over where the environment lacks what its libraries read when they are loaded: it was
//! called by itself, not by way of `qftrain`.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;

use qftrain::library_environment::missing;

/// Returns at once when all is set; else it is, and the program starts over in the same process.
pub(crate) fn with_library_environment() {
    let missing = missing();
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
    command.arg0(name).args(args).envs(missing.iter().copied());
    let error = command.exec();
    // `exec` returns only when it failed; training works all the same.
    log::debug!("cannot set {missing:?} for libraries: {error}");
}
