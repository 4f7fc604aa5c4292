//! Tells the programs which commit they are built from, in builds with optimisation alone: in everyday
//! builds every commit would link both programs anew.

// A build script is configured by its environment.
#![allow(clippy::disallowed_methods)]

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=QF_COMMIT");
    let given = std::env::var("QF_COMMIT").ok();
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = match (given, is_release) {
        (Some(given), _) => given,
        (None, true) => commit().unwrap_or_else(|| "unknown".into()),
        (None, false) => "development build".into(),
    };
    println!("cargo:rustc-env=QF_COMMIT={commit}");
}

/// The commit of the checkout, with `-dirty` where a file differs from it; none without git or `.git`.
fn commit() -> Option<String> {
    for name in ["HEAD", "index"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&[
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
