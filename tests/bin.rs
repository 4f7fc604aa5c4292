//! The workspace's programs, built once per test process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The `qfdata` program, up to date with the sources.
pub(crate) fn qfdata() -> PathBuf {
    program("qfdata")
}

/// The `qftrain` program, up to date with the sources.
pub(crate) fn qftrain() -> PathBuf {
    program("qftrain")
}

/// An example of `pipeline` or `model`, likewise.
pub(crate) fn example(name: &str) -> PathBuf {
    program(name)
}

fn program(name: &str) -> PathBuf {
    static PROGRAMS: OnceLock<Vec<(String, PathBuf)>> = OnceLock::new();
    let programs = PROGRAMS.get_or_init(build);
    let found = programs.iter().find(|(program, _)| program == name);
    found
        .unwrap_or_else(|| panic!("cargo built no {name}: {programs:?}"))
        .1
        .clone()
}

/// Builds the programs in the profile of this test and says where cargo put them.
///
/// `cargo test --workspace` is what built this test: the same call, without running anything, uses
/// the same features of all dependencies and so compiles none of them again.
#[allow(clippy::disallowed_methods)] // Cargo's own variables, to keep them from cargo.
fn build() -> Vec<(String, PathBuf)> {
    let mut cargo = Command::new(env!("CARGO"));
    // What cargo tells this test of its package would make build scripts that look at the same names
    // (ring's) run again, and with them half of all dependencies compile, and this test be replaced.
    for (name, _) in std::env::vars_os() {
        let of_package = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_CRATE_",
            "CARGO_BIN_",
            "OUT_DIR",
        ];
        let name = name.to_string_lossy();
        if of_package.iter().any(|start| name.starts_with(start)) {
            cargo.env_remove(name.as_ref());
        }
    }
    cargo
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args([
            "test",
            "--workspace",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ])
        .stderr(Stdio::inherit());
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.output().expect("cargo starts");
    assert!(
        output.status.success(),
        "cargo test --workspace --no-run failed"
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| {
            let kind = &message["target"]["kind"][0];
            (kind == "bin" || kind == "example") && message["profile"]["test"] == false
        })
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_string();
            Some((name, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect()
}

/// Sends a signal, `-INT` say, with the shell's own `kill`: a minimal Debian has no other.
pub(crate) fn signal(name: &str, child: &Child) {
    let script = format!("kill {name} {}", child.id());
    let status = Command::new("sh").args(["-c", &script]).status();
    assert!(status.expect("sh starts").success(), "{script}");
}
