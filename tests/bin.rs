//! The workspace's programs, built once per test process, and the shared test data.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The `qfdata` program, up to date with the sources.
pub(crate) fn qfdata() -> PathBuf {
    programs().0.clone()
}

/// The `qftrain` program, up to date with the sources.
pub(crate) fn qftrain() -> PathBuf {
    programs().1.clone()
}

/// Builds both in the profile of this test, at once, so that they share their dependencies.
fn programs() -> &'static (PathBuf, PathBuf) {
    static PROGRAMS: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .args(["build", "--message-format=json-render-diagnostics"])
            .args(["--package", "qfdata", "--package", "qftrain"])
            .stderr(Stdio::inherit());
        if !cfg!(debug_assertions) {
            cargo.arg("--release");
        }
        let output = cargo.output().expect("cargo starts");
        assert!(
            output.status.success(),
            "cargo build of the programs failed"
        );
        let messages: Vec<Value> = String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let program = |name: &str| {
            messages
                .iter()
                .filter(|message| message["target"]["name"] == name)
                .find_map(|message| message["executable"].as_str().map(PathBuf::from))
                .expect("cargo names the program it built")
        };
        (program("qfdata"), program("qftrain"))
    })
}

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
