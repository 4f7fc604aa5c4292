//! Finds what tests need beside the code: test data, and the Python of `make test`. Says what it
//! does not find. Crates whose tests need it include this file.

#![allow(dead_code)] // Each test program uses a part.
#![allow(clippy::disallowed_methods)] // Tests are told by the environment where their data lies.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A file or folder of the test data, `golden/golden_a.json` or `data/pairs`: in `$QF_SHARED`, else in
/// `shared` beside the checkout; what is not there, in [`committed`]. `None` after [`missing`].
pub(crate) fn find(test: &str, relative: &str) -> Option<PathBuf> {
    let beside = || workspace().join("../shared");
    let shared = std::env::var_os("QF_SHARED").map_or_else(beside, PathBuf::from);
    let own = committed().join(relative.strip_prefix("data/").unwrap_or(relative));
    let found = [shared.join(relative), own]
        .into_iter()
        .find(|path| path.exists());
    if found.is_none() {
        missing(test, &format!("no {relative} in {}", shared.display()));
    }
    found
}

/// The test data that are part of the repository.
pub(crate) fn committed() -> PathBuf {
    workspace().join("tests/data")
}

/// The interpreter with tests/requirements.txt. `None` after [`missing`].
pub(crate) fn python(test: &str) -> Option<PathBuf> {
    let pointer = workspace().join("target/test-python");
    let python = std::fs::read_to_string(pointer).map(|path| PathBuf::from(path.trim()));
    match python {
        Ok(python) if python.exists() => Some(python),
        _ => {
            missing(test, "no test Python (scripts/setup.sh --with-test-venv)");
            None
        }
    }
}

/// Whether a test that misses something has to fail: `QF_REQUIRE_SHARED=1`.
pub(crate) fn is_required() -> bool {
    std::env::var_os("QF_REQUIRE_SHARED").is_some_and(|value| value == "1")
}

/// Says that something which set-up or `shared` provides is missing, so that `test` cannot run.
///
/// # Panics
/// If it is required.
pub(crate) fn missing(test: &str, what: &str) {
    assert!(!is_required(), "{test}: {what}");
    skip(test, what);
}

/// Says that `test`, or a part of it, cannot run on this machine: on standard output, past the test
/// harness, which keeps the output of tests that pass; and in the file `$QF_SKIPPED`, which `make test`
/// shows at the end.
pub(crate) fn skip(test: &str, why: &str) {
    let line = format!("skipped: {test}: {why}\n");
    // Written at once, so that lines of several tests do not mix.
    let _ = std::io::stdout().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("QF_SKIPPED") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.expect("QF_SKIPPED names a file that can be written");
    }
}

/// The folder of Cargo.lock, from the folder of the crate that includes this file.
fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = package.ancestors();
    folders
        .find(|folder| folder.join("Cargo.lock").is_file())
        .expect("a crate of the workspace")
}
