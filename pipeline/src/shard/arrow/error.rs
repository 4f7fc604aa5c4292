//! What can be wrong with an Arrow shard, before it has the shard's name and becomes a
//! [`ShardError`](crate::ShardError).

use arrow_format::ipc::planus;

/// Why a shard, or the rest of it, cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArrowError {
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("the file is empty; re-create or re-fetch the shard")]
    Empty,
    #[error("not an Arrow IPC stream or file (it begins with {begins:02x?}){hint}")]
    NotArrow { begins: Vec<u8>, hint: &'static str },
    #[error("{what} ends after {got} of {expected} bytes; the shard is truncated, re-fetch it")]
    Truncated {
        what: &'static str,
        expected: u64,
        got: u64,
    },
    #[error("the file ends before its footer; the shard is truncated, re-fetch it")]
    NoFooter,
    #[error("{what} of {bytes} bytes exceeds the limit of {limit}; raise {setting} if the shard is sound")]
    TooLarge {
        what: &'static str,
        bytes: u64,
        limit: u64,
        setting: &'static str,
    },
    #[error("message metadata is damaged: {0}; re-fetch the shard")]
    Metadata(planus::Error),
    #[error("{0}; the shard is damaged, re-fetch it")]
    Malformed(String),
    #[error("column `{column}`: {problem}; the shard is damaged, re-fetch it")]
    BadColumn { column: String, problem: String },
    #[error("{0}; write the shard again with plain string, binary and list columns")]
    Unsupported(String),
    #[error("{0}")]
    Columns(String),
}

impl From<planus::Error> for ArrowError {
    fn from(error: planus::Error) -> Self {
        ArrowError::Metadata(error)
    }
}

/// An [`ArrowError`] and how far reading had got.
#[derive(Debug, thiserror::Error)]
#[error("at byte {offset}: {cause}")]
pub(super) struct ReadError {
    /// In bytes of the uncompressed stream.
    pub(super) offset: u64,
    pub(super) cause: ArrowError,
}

impl ArrowError {
    /// Adds the place.
    pub(super) fn at(self, offset: u64) -> ReadError {
        ReadError {
            offset,
            cause: self,
        }
    }
}

/// Shorthand for damage that names no column.
pub(super) fn malformed(message: impl Into<String>) -> ArrowError {
    ArrowError::Malformed(message.into())
}
