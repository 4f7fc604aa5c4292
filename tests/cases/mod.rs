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
