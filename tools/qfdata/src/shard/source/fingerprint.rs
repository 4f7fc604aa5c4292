//! What the files of an input were.

use qf_pipeline::hex::hex;
use sha2::{Digest, Sha256};

/// What the files of an input were, as one number.
pub(super) struct Fingerprint(Sha256);

impl Fingerprint {
    pub(super) fn new() -> Fingerprint {
        Fingerprint(Sha256::new())
    }

    /// A file: its name, size and time of change.
    pub(super) fn file(&mut self, name: &str, metadata: &std::fs::Metadata) {
        use std::os::unix::fs::MetadataExt;
        let (size, time) = (metadata.len(), (metadata.mtime(), metadata.mtime_nsec()));
        self.text(&format!("{name}\0{size}\0{time:?}\n"));
    }

    /// A file as it stands at `path`; only its name where there is none.
    pub(super) fn path(&mut self, name: &str, path: &std::path::Path) {
        match std::fs::metadata(path) {
            Ok(metadata) => self.file(name, &metadata),
            Err(_) => self.text(name),
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        self.0.update(text.as_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// 32 hexadecimal digits.
    pub(super) fn finish(self) -> String {
        let digest = self.0.finalize();
        hex(&digest[..16])
    }
}
