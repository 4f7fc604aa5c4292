//! Sidecars that make shards countable and their samples reachable one by one.
//!
//! `NAME.tar.qfidx` lies beside `NAME.tar` (and likewise for every other format). It is written with
//! the shard ([`crate::write`]) or by one streaming pass over it ([`build_index`]); its bytes
//! are the same either way. [`ShardIndex::open`] reads its header alone, [`read_samples`] reads any
//! samples of the shard, and gives for each exactly what [`read_shard`] gives for it.
//!
//! Which shards can be read at random is [`Access`]: tar files, tar.zst of several frames (the
//! [seekable format], pzstd, concatenated files), Arrow streams and files. Others (tar.gz, a large
//! single zstd frame, compressed Arrow) have an index with their keys and exact count, and are read
//! by streaming.
//!
//! # Format, versions 3 and 4
//!
//! Version 1 had no fingerprint and no checksums of records, version 2 none of samples. Their sidecars are
//! not used ([`Found::Outdated`]): shards beside them are read in order until `qfdata index` has written
//! them anew.
//!
//! Version 4 is version 3 without checksums of shard and samples ([`Checksums::LeftOut`]), which are zero.
//!
//! All numbers are little-endian and unsigned.
//!
//! | bytes | content |
//! |---|---|
//! | 0..8 | `QFINDEX` and a zero |
//! | 8..12 | version: 3, or 4 without checksums |
//! | 12..16 | access: 0 none, 1 tar, 2 zstd frames, 3 Arrow batches |
//! | 16..20 | number of samples |
//! | 20..24 | zero |
//! | 24..32 | length of the shard in bytes |
//! | 32..64 | SHA-256 of the shard |
//! | 64..72 | where the records begin: 176 |
//! | 72..80 | where the names begin: 176 + 76 × number of samples |
//! | 80..88 | length of the names in bytes |
//! | 88..96 | Arrow with access: where the first record batch begins; else 0 |
//! | 96..128 | SHA-256 of records and names |
//! | 128..140 | fingerprint of the shard: CRC-32 of its first 4 KiB, of 4 KiB in its middle, of its last 16 KiB |
//! | 140..144 | zero |
//! | 144..176 | SHA-256 of bytes 0..144 |
//!
//! A record of 76 bytes for each sample, so that one read finds any of them:
//!
//! | bytes | content |
//! |---|---|
//! | 0..16 | first and one past the last byte of the shard that holds the sample: itself (tar), its frames (zstd), its record batch (Arrow); zeros without access |
//! | 16..24 | its offset in the uncompressed stream, as in [`SampleId::offset_bytes`](crate::SampleId) |
//! | 24..32 | its length in the uncompressed stream, from its first header to the padding of its last member; Arrow: 0 |
//! | 32..40 | zstd: uncompressed bytes of its frames before it; Arrow: its row in the batch; else 0 |
//! | 40..52 | offset in the names (8 bytes) and length there (4 bytes) of its entry |
//! | 52..56 | 1 if its key was seen earlier in the shard, else 0 |
//! | 56..64 | first eight bytes of the SHA-256 of its key |
//! | 64..68 | CRC-32 of its entry in the names |
//! | 68..72 | CRC-32C of the sample: of its bytes in the uncompressed stream, headers and padding included; Arrow: of its record batch's message, prefix, metadata and body |
//! | 72..76 | CRC-32 of its number, as four bytes, and bytes 0..72 |
//!
//! An entry of the names is: length of the key, key, number of members, and for each its name's
//! length, name, offset of its data after the sample's offset, and size; numbers in LEB128. An Arrow
//! sample has no members there: its columns are known to the schema.
//!
//! Nothing in a sidecar is believed: the shard's length and fingerprint are compared when it is opened
//! (of a remote shard the length), checksums whenever something is read of it, offsets are checked against
//! the header and the shard's length, memory follows the bytes that are there, and key and checksum of a
//! sample that was read are compared with those that were indexed ([`Verify`](crate::shard::verify::Verify) says what of this can be left
//! out). Times are not looked at: copies have any.
//!
//! [`read_shard`]: crate::shard::read::read_shard
//! [seekable format]: https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md

mod build;
mod faults;
mod fingerprint;
mod format;
mod random;
mod shard_index;
mod sums;
#[cfg(test)]
mod tests;

pub use build::{build_index, Checksums, EncodedIndex};
pub(crate) use build::{IndexBuilder, Layout, ShardIdentity};
pub use format::{Access, IndexEntry, MemberPlace};
pub use random::{read_samples, VisitAt};
pub use shard_index::{Found, ShardIndex};

pub use crate::shard_spec::INDEX_ENDING;
