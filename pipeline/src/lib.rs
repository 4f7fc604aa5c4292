//! Streams shards of captioned images into training batches. No libtorch.
//!
//! ```text
//! shards ──read──▶ EncodedSample ──decode, augment, tokenise──▶ DecodedSample ──collate──▶ Batch
//! ```

pub mod atomic_file;
pub mod augment;
pub mod batch;
pub mod captions;
pub mod config;
pub mod decode;
pub mod error;
pub mod loader;
pub mod order;
pub mod process;
pub mod sample;
pub mod shard;
pub mod source;
pub mod text;
pub mod vocabulary;

pub use batch::Batch;
pub use config::LoaderConfig;
pub use error::{PipelineError, SampleError, ShardError, SkipReason};
pub use loader::Loader;
pub use sample::{DecodedSample, EncodedSample, Member, MemberData, SampleId};
