//! For tests: the folder of shared test data.

use std::path::{Path, PathBuf};

/// A file or folder of the shared test data, which lies at `$QF_SHARED` or beside the checkout;
/// `None`, and a printed line, where there is none, unless `QF_REQUIRE_SHARED=1` demands it.
#[allow(clippy::disallowed_methods)] // Tests are told by the environment where their data lies.
pub(crate) fn shared(test: &str, relative: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let root = std::env::var_os("QF_SHARED").map_or(beside, PathBuf::from);
    let path = root.join(relative);
    if path.exists() {
        return Some(path);
    }
    let required = std::env::var("QF_REQUIRE_SHARED").is_ok_and(|value| value == "1");
    assert!(!required, "{test}: {} is missing", path.display());
    println!("skipped: {test}: no shared folder");
    None
}
