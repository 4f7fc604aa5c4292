//! Arrow IPC shards, stream and file format, in the layout of Hugging Face datasets.
//!
//! ```text
//! image:   struct<bytes: binary, path: string>   or binary
//! caption: string                                or list<string>
//! ```
//!
//! Columns of other names are found by [`names`](crate::captions::names). Large, view and
//! fixed-size-list types, dictionary-encoded strings and run-end encoded columns are read as well,
//! and structs with a text under `raw` or a name of captions. Reading goes `message` (framing) →
//! `schema` → `select` (which columns) → `shape` (how they are laid out) → `body` (locate and
//! decompress buffers) → `column`, `leaf` (check them) → `batch` → `read` (rows as samples), with
//! `row_json` and `scalar` for columns that are neither image nor caption.
//!
//! What comes from which crate: the flatbuffer metadata is parsed by `arrow-format`, the
//! definitions under arrow2; frames, decompression and every check are this module's; values are
//! held in arrow2's arrays, made by its checking constructors; writing is arrow2's
//! `StreamWriter`. arrow2's own IPC reader is not used: it panics on compressed batches with an
//! empty buffer and on some damaged ones, and yields no rows where a compressed batch stores a
//! buffer as it is.
//!
//! Not read, with an error that says so: big-endian shards, metadata before version 4, and
//! `list_view`, union or nested dictionary types in the columns that are needed. In other columns
//! all types are passed over.

mod batch;
mod body;
mod column;
mod dictionary;
mod error;
mod image_name;
mod leaf;
mod message;
mod read;
mod row_json;
mod scalar;
mod schema;
mod select;
mod shape;
mod write;

#[cfg(test)]
mod tests;

pub use image_name::IMAGE_EXTENSIONS;
pub use read::{ArrowShardReader, ChosenColumns};
pub use row_json::OtherColumns;
pub use scalar::{iso_date, iso_time, iso_timestamp, Unit};
pub use write::{ArrowShardWriter, ArrowWriteError, CaptionType};

/// How Arrow shards are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArrowReadOptions {
    /// Column with the images. Default the one that [`IMAGE_NAMES`](crate::captions::names) prefers,
    /// else the only one of Hugging Face's image type.
    pub image_column: Option<String>,
    /// Column with the captions. Default the one that [`names::choose`](crate::captions::names)
    /// prefers.
    pub caption_column: Option<String>,
    /// Whether a shard without a caption column is an error. Default true.
    pub needs_captions: bool,
    /// Which columns beside images and captions go into a member `json`. Default none.
    pub other_columns: OtherColumns,
    /// Longest body of a message (a record batch or a dictionary), in bytes, as stored and as
    /// decompressed. Default 2 GiB, the most that a `binary` column of one batch can hold. Memory
    /// follows the bytes that are there, not this limit.
    pub max_message_bytes: u64,
    /// Longest member of a sample, in bytes; a longer one costs its sample. Default 256 MiB.
    pub max_member_bytes: u64,
    /// Whether record batches are summed for an index. Default false.
    pub(crate) checksums: bool,
}

impl Default for ArrowReadOptions {
    fn default() -> Self {
        ArrowReadOptions {
            image_column: None,
            caption_column: None,
            needs_captions: true,
            other_columns: OtherColumns::default(),
            max_message_bytes: 2 << 30,
            max_member_bytes: 256 << 20,
            checksums: false,
        }
    }
}
