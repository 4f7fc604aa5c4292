//! Small inputs that once gave a wrong result or a wrong refusal: `tests/data/cases/NAME`, each with a
//! README that says where it comes from and what is right.

/// Captions, keys, JSON members, columns and what is printed of them.
mod captions;
/// Odd, damaged and hostile images.
mod decode;
/// Shards on servers.
mod remote;
/// Training runs: how they end and go on.
mod runs;
/// Archives, compression and indices.
mod shards;
/// Weights, vocabularies, and the commands that use a trained model.
mod weights;
/// Writing shards.
mod writing;

use std::path::{Path, PathBuf};

/// A case's folder.
fn case(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("data/cases")
        .join(name);
    assert!(path.is_dir(), "no case {name}");
    path
}

/// No case lies about untested, neither one of this repository nor one of the shared folder.
#[test]
fn every_case_is_tested() {
    let tests = [
        include_str!("captions.rs"),
        include_str!("decode.rs"),
        include_str!("remote.rs"),
        include_str!("runs.rs"),
        include_str!("shards.rs"),
        include_str!("weights.rs"),
        include_str!("writing.rs"),
    ]
    .concat();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/cases");
    let shared = crate::test_data::find("every_case_is_tested", "data/cases");
    let mut untested = Vec::new();
    for folder in [Some(own), shared].into_iter().flatten() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            let is_named = [
                format!("\"{name}\""),
                format!("`{name}`"),
                format!("fn {}(", name.replace('-', "_")),
            ]
            .iter()
            .any(|words| tests.contains(words));
            if path.is_dir() && !is_named {
                untested.push(name);
            }
        }
    }
    assert!(untested.is_empty(), "cases without a test: {untested:?}");
}
