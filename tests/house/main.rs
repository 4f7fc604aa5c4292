//! What holds for the sources of the whole workspace: who may import whom, and how long a function is.
//!
//! They are read as text: nothing else is built for it.

/// The order of modules that ARCHITECTURE.md lists.
mod floors;
/// Which file uses an item of which other.
mod imports;
/// Lengths of functions and files.
mod lengths;
/// Rust sources as tokens.
mod tokens;

use std::path::PathBuf;

/// The root of the checkout.
fn root() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
