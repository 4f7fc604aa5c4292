//! What a shard is: tar (plain, gzip, zstd) and Arrow IPC, read and written.

pub mod arrow;
pub mod captions;
pub(crate) mod decompress;
pub(crate) mod forward;
pub mod group;
pub mod note;
pub mod read;
pub(crate) mod tar;
pub mod write;
pub(crate) mod zstd_frames;
