//! What a shard is: tar (plain, gzip, zstd) and Arrow IPC, read and written.

pub mod arrow;
pub mod captions;
pub mod group;
pub mod read;
mod tar;
pub mod write;
