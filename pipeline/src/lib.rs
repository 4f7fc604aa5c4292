//! Streams shards of captioned images into training batches. No libtorch.
//!
//! ```text
//! shards ──read──▶ EncodedSample ──decode, augment, tokenise──▶ DecodedSample ──collate──▶ Batch
//! ```
//!
//! A [`Loader`] runs all of it on its own threads and hands out batches in an order that depends on the
//! seed alone. Writing a shard and reading it back:
//!
//! ```
//! use std::sync::Arc;
//! use qf_pipeline::write::{ShardFormat, ShardOptions, ShardSample, ShardWriter};
//! use qf_pipeline::text::{train_vocabulary, CaptionTokenizer, VocabularyOptions};
//! use qf_pipeline::{source::resolve_shards, Loader, LoaderConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("cats-000000.tar");
//! let mut writer = ShardWriter::create(&path, &ShardOptions::new(ShardFormat::Tar))?;
//! for number in 0..8u8 {
//!     let mut png = std::io::Cursor::new(Vec::new());
//!     image::RgbImage::from_pixel(64, 48, image::Rgb([number * 30, 90, 90]))
//!         .write_to(&mut png, image::ImageFormat::Png)?;
//!     writer.write(&ShardSample {
//!         key: format!("{number:06}"),
//!         extension: "png".into(),
//!         image: png.into_inner(),
//!         captions: vec!["a grey cat".into(), "a cat at dusk".into()],
//!         text_member: true,
//!         json: None,
//!         members: Vec::new(),
//!     })?;
//! }
//! writer.finish()?;
//!
//! let captions = ["a grey cat", "a cat at dusk"].map(String::from).into_iter();
//! let vocabulary = train_vocabulary(captions, &VocabularyOptions::default());
//! let tokenizer = Arc::new(CaptionTokenizer::from_vocab(vocabulary)?);
//! let config = LoaderConfig { batch_size: 4, epochs: 1, ..LoaderConfig::default() };
//! let shards = resolve_shards(&[path.to_string_lossy()])?;
//! let mut loader = Loader::builder(config).shards(shards).batches(tokenizer)?;
//! let mut images = 0;
//! while let Some(batch) = loader.next_batch()? {
//!     assert_eq!(batch.pixels().shape(), [4, 3, 224, 224]);
//!     assert_eq!((batch.tokens.len(), batch.tokens.text_len()), (4, 32));
//!     images += batch.batch_size;
//! }
//! assert_eq!(images, 8);
//! assert!(loader.state().counters.balance());
//! # Ok(())
//! # }
//! ```
//!
//! # Errors
//!
//! A [`SampleError`] costs one sample and a [`ShardError`] the rest of a shard: both are counted, and
//! skipped, logged or fatal as [`LoaderConfig`] says. A [`PipelineError`] ends the loader.

pub mod atomic_file;
pub mod augment;
pub mod batch;
pub mod captions;
pub mod config;
pub mod decode;
pub mod error;
pub mod filter;
mod guard;
pub mod hex;
pub mod image_file;
mod image_format;
pub mod image_ids;
pub mod image_stage;
pub mod index;
pub mod json;
pub mod loader;
pub mod mistakes;
pub mod order;
pub mod pixels;
pub mod printable;
pub mod process;
pub mod remote;
pub mod resize;
mod resume;
pub mod sample;
pub mod shard;
mod shard_spec;
pub mod source;
pub mod stop;
pub mod survey;
mod sync;
#[cfg(test)]
#[path = "../../tests/test_data.rs"]
mod test_data;
pub mod text;
pub mod trace;
pub mod vocabulary;
pub mod warnings;
pub mod words;
pub mod write;

pub use batch::{Batch, DecodedSample};
pub use config::LoaderConfig;
pub use error::{PipelineError, SampleError, ShardError, SkipReason};
pub use loader::Loader;
pub use sample::{EncodedSample, Member, MemberData, SampleId};
