//! What a shard is: tar (plain, gzip, zstd) and Arrow IPC, read and written.

pub mod arrow;
pub(crate) mod decompress;
pub mod entries;
pub(crate) mod forward;
pub mod group;
pub mod note;
mod observe;
pub(crate) mod piece;
pub mod read;
pub mod shard_format;
pub(crate) mod stream_end;
pub(crate) mod tar;
pub mod verify;
pub(crate) mod written;
pub(crate) mod zstd_frames;
