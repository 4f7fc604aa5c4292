//! Weights in and out: files of other programs, and files for them.
//!
//! ```text
//! .safetensors, shards + index ─┐                                   ┌─▶ Blip2ForImageTextRetrieval
//! .pth, .bin (torch.save) ──────┼─ WeightsFile ─ load_into ─▶ model ┤
//! run and checkpoint folders ───┘                                   └─▶ LAVIS names
//! ```
//!
//! [`WeightsFile::open`] reads the table of contents of any such file; [`load_into`] tells from the
//! names which model it is of ([`Layout`]) and copies tensor by tensor.

mod bert;
mod export;
mod hugging_face;
mod load;
mod names;
mod open;
mod vocabulary;
mod wrappers;

pub use bert::{read_bert_config, BertSizes};
pub use export::{export_hugging_face, export_lavis};
pub use hugging_face::read_config;
pub use load::{load_into, Absent, LoadReport, Part};
pub use names::Layout;
pub use vocabulary::first_difference;

pub use crate::tensor_file::{read_safetensors, FileDigest, WeightsFile};
