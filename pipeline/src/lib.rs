//! Streams shards of captioned images into training batches. No libtorch.
//!
//! ```text
//! shards ──read──▶ EncodedSample ──decode, augment, tokenise──▶ DecodedSample ──collate──▶ Batch
//! ```

pub mod atomic_file;
pub mod error;
pub mod sample;

pub use error::{PipelineError, SampleError, ShardError, SkipReason};
pub use sample::{DecodedSample, EncodedSample, Member, MemberData, SampleId};

pub mod augment;
pub mod decode;
pub mod shard;
pub mod text;
