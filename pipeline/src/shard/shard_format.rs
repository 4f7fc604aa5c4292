//! The formats of shards, by name.

use std::fmt;
use std::str::FromStr;

/// Container and compression of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ShardFormat {
    /// WebDataset tar.
    Tar,
    /// WebDataset tar, gzip.
    TarGz,
    /// WebDataset tar, Zstandard.
    TarZst,
    /// Arrow IPC stream in the layout of Hugging Face datasets.
    Arrow,
}

impl ShardFormat {
    /// All formats.
    pub const ALL: [ShardFormat; 4] = [
        ShardFormat::Tar,
        ShardFormat::TarGz,
        ShardFormat::TarZst,
        ShardFormat::Arrow,
    ];

    /// The ending of a shard's file name, which is also the format's name: `tar`, `tar.gz`,
    /// `tar.zst` or `arrow`.
    pub fn extension(self) -> &'static str {
        match self {
            ShardFormat::Tar => "tar",
            ShardFormat::TarGz => "tar.gz",
            ShardFormat::TarZst => "tar.zst",
            ShardFormat::Arrow => "arrow",
        }
    }
}

impl fmt::Display for ShardFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.extension())
    }
}

/// Not the name of a [`ShardFormat`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown shard format `{0}`; use tar, tar.gz, tar.zst or arrow")]
pub struct UnknownShardFormat(String);

impl FromStr for ShardFormat {
    type Err = UnknownShardFormat;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        ShardFormat::ALL
            .into_iter()
            .find(|format| format.extension() == name)
            .ok_or_else(|| UnknownShardFormat(name.to_owned()))
    }
}
