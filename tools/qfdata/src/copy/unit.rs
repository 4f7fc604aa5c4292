//! What is copied as a whole.

use qf_pipeline::EncodedSample;

/// Neighbouring files of one key, or a row.
pub(crate) struct Unit {
    /// Nothing for files that belong to no sample.
    pub(crate) key: Option<String>,
    pub(crate) content: UnitContent,
}

pub(crate) enum UnitContent {
    /// Path as stored, key, and content; files without a key may lie between those of a sample.
    Files(Vec<UnitFile>),
    Row(Box<EncodedSample>),
}

pub(crate) struct UnitFile {
    pub(crate) path: String,
    pub(crate) has_key: bool,
    pub(crate) bytes: Vec<u8>,
}
