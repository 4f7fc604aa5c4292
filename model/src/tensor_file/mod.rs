//! Named tensors in files: safetensors, `torch.save` and shards of both read, safetensors written.
//!
//! ```text
//! safetensors, pickle, index ──▶ Contents (where each tensor lies) ──▶ WeightsFile ──▶ one tensor at a time
//! ```

mod contents;
mod file;
mod index;
mod pickle;
mod safetensors;
pub(crate) mod vocabulary;
mod write;

pub(crate) use contents::io_error;
pub use file::{read_safetensors, FileDigest, WeightsFile};
pub use write::{write_safetensors, Metadata};
