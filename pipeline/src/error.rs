//! What can go wrong, in three strengths: a [`SampleError`] costs one sample, a [`ShardError`] the
//! rest of a shard, a [`PipelineError`] the run.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::image_format::ForeignFormat;
use crate::printable::Printable;
use crate::sample::SampleId;
use crate::shard_spec::DisplayUrl;

/// Why a sample was not delivered; the key of the skip counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// No member that is an image (by extension, or the image column is null).
    NoImage,
    /// No caption member (or the caption column is null).
    NoCaption,
    /// Every caption is empty after the caption processor.
    EmptyCaption,
    /// A caption member that is not UTF-8, or JSON that holds no caption.
    BadCaption,
    /// A `json` member that filters ask for and that is not JSON.
    BadMetadata,
    /// An AVIF image, which is not decoded.
    AvifImage,
    /// A HEIC or HEIF image, which is not decoded.
    HeicImage,
    /// An image of another format that is not decoded (JPEG XL, PSD, ...), or of a kind of one that is.
    UnsupportedImage,
    /// Bytes that are not recognised as an image.
    UnknownImageFormat,
    /// A recognised image that does not decode.
    BrokenImage,
    /// An image beyond the configured size limits.
    ImageTooLarge,
    /// The same extension twice within one sample.
    RepeatedMember,
    /// A key that came back after another key had begun.
    RepeatedKey,
    /// Members that together are beyond the configured size limit.
    SampleTooLarge,
    /// A sample of an indexed shard that cannot be read there.
    UnreadableShard,
    /// A sample of an indexed shard whose bytes are not those that were indexed.
    ChecksumMismatch,
    /// No caption of a length that the filters let through.
    FilteredCaption,
    /// An image of a size that the filters do not let through.
    FilteredSize,
    /// An image of an aspect ratio that the filters do not let through.
    FilteredAspect,
    /// Metadata that the filters do not let through.
    FilteredMetadata,
}

impl SkipReason {
    /// All reasons, in the order in which reports list them.
    pub const ALL: [SkipReason; 20] = [
        SkipReason::NoImage,
        SkipReason::NoCaption,
        SkipReason::EmptyCaption,
        SkipReason::BadCaption,
        SkipReason::BadMetadata,
        SkipReason::AvifImage,
        SkipReason::HeicImage,
        SkipReason::UnsupportedImage,
        SkipReason::UnknownImageFormat,
        SkipReason::BrokenImage,
        SkipReason::ImageTooLarge,
        SkipReason::RepeatedMember,
        SkipReason::RepeatedKey,
        SkipReason::SampleTooLarge,
        SkipReason::UnreadableShard,
        SkipReason::ChecksumMismatch,
        SkipReason::FilteredCaption,
        SkipReason::FilteredSize,
        SkipReason::FilteredAspect,
        SkipReason::FilteredMetadata,
    ];

    /// Whether the sample is good, and left out by a filter.
    pub fn is_filter(self) -> bool {
        matches!(
            self,
            SkipReason::FilteredCaption
                | SkipReason::FilteredSize
                | SkipReason::FilteredAspect
                | SkipReason::FilteredMetadata
        )
    }

    /// The counter of images of a format that is not decoded.
    pub(crate) fn of_foreign(format: ForeignFormat) -> SkipReason {
        match format {
            ForeignFormat::Avif => SkipReason::AvifImage,
            ForeignFormat::Heic => SkipReason::HeicImage,
            ForeignFormat::Other(_) => SkipReason::UnsupportedImage,
        }
    }

    /// The name used in counters and JSON, e.g. `broken_image`.
    pub fn name(self) -> &'static str {
        match self {
            SkipReason::NoImage => "no_image",
            SkipReason::NoCaption => "no_caption",
            SkipReason::EmptyCaption => "empty_caption",
            SkipReason::BadCaption => "bad_caption",
            SkipReason::BadMetadata => "bad_metadata",
            SkipReason::AvifImage => "avif_image",
            SkipReason::HeicImage => "heic_image",
            SkipReason::UnsupportedImage => "unsupported_image",
            SkipReason::UnknownImageFormat => "unknown_image_format",
            SkipReason::BrokenImage => "broken_image",
            SkipReason::ImageTooLarge => "image_too_large",
            SkipReason::RepeatedMember => "repeated_member",
            SkipReason::RepeatedKey => "repeated_key",
            SkipReason::SampleTooLarge => "sample_too_large",
            SkipReason::UnreadableShard => "unreadable_shard",
            SkipReason::ChecksumMismatch => "checksum_mismatch",
            SkipReason::FilteredCaption => "filtered_caption",
            SkipReason::FilteredSize => "filtered_size",
            SkipReason::FilteredAspect => "filtered_aspect",
            SkipReason::FilteredMetadata => "filtered_metadata",
        }
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One sample cannot be used; its neighbours can.
#[derive(Clone, Debug, thiserror::Error)]
#[error("sample {id}: {}", Printable(message))]
pub struct SampleError {
    /// Which sample.
    pub id: Box<SampleId>,
    /// The counter it falls under.
    pub reason: SkipReason,
    /// What is wrong with it, e.g. `image cannot be decoded: JPEG ends after 812 bytes`.
    pub message: String,
}

/// A shard cannot be read any further; what was read before stands.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "shard {} at byte {offset_bytes}: {}",
    Printable(shard),
    Printable(message)
)]
pub struct ShardError {
    /// Path or URL of the shard.
    pub shard: String,
    /// How far reading got, in bytes of the uncompressed stream.
    pub offset_bytes: u64,
    /// What is wrong and what to do.
    pub message: String,
}

/// The pipeline cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A setting that cannot work.
    #[error("setting `{setting}`: {message}")]
    Config {
        /// Name of the setting as in the configuration file.
        setting: &'static str,
        /// What is wrong and which values work.
        message: String,
    },
    /// A shard specification that names no shard.
    #[error("no shard matches `{spec}`; {hint}")]
    NoShards {
        /// The specification as given, without secrets.
        spec: DisplayUrl,
        /// What to check.
        hint: String,
    },
    /// A bad sample under `on_bad_sample = "error"`.
    #[error("{0}; set on_bad_sample = \"warn\" or \"skip\" to go on without it")]
    BadSample(#[from] SampleError),
    /// More bad samples in a data set than `max_bad_share` allows.
    #[error("{}", too_many_bad(set, *.bad, *.looked_at, *.max_bad_share, reasons, last))]
    TooManyBad {
        /// Name of the data set; empty for the only one.
        set: String,
        /// Bad samples so far, on this rank.
        bad: u64,
        /// Samples looked at so far, on this rank.
        looked_at: u64,
        /// The setting.
        max_bad_share: f64,
        /// Bad samples by reason.
        reasons: Vec<(SkipReason, u64)>,
        /// The one that was too many.
        last: SampleError,
    },
    /// A bad shard under `on_bad_shard = "error"`.
    #[error("{0}; set on_bad_shard = \"warn\" or \"skip\" to go on without the rest of it")]
    BadShard(#[from] ShardError),
    /// A store that did not answer any request for longer than an outage may last. No `on_bad_shard`
    /// goes on without all of its shards.
    #[error("{0}")]
    StoreLost(ShardError),
    /// An index that does not fit its shard, or is damaged.
    #[error("{0}")]
    Index(ShardError),
    /// The shards hold too few usable samples.
    #[error("{0}")]
    TooFewSamples(String),
    /// A tokenizer or vocabulary that cannot be used.
    #[error("tokenizer {origin}: {message}")]
    Tokenizer {
        /// The file, or what else it came from.
        origin: String,
        /// What is wrong.
        message: String,
    },
    /// A saved loader state that does not fit this loader.
    #[error("loader state: {0}")]
    State(String),
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// Something that a shard cannot hold.
    #[error("cannot write sample `{}` to {}: {message}", Printable(key), shard.display())]
    Unwritable {
        /// The shard that was being written.
        shard: PathBuf,
        /// Key of the sample; empty when it is not about one.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// A thread could not be started, or died: the message says which and why.
    #[error("{0}")]
    Thread(String),
}

fn too_many_bad(
    set: &str,
    bad: u64,
    looked_at: u64,
    max_bad_share: f64,
    reasons: &[(SkipReason, u64)],
    last: &SampleError,
) -> String {
    let of = match set {
        "" => String::new(),
        set => format!(" of data set `{set}`"),
    };
    let reasons: Vec<String> = (reasons.iter())
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    format!(
        "{bad} of {looked_at} samples{of} are bad, {:.1} %, and max_bad_share = {max_bad_share} allows \
         {:.1} %: {}; the last is {last}; repair or leave out this data, or raise max_bad_share",
        100.0 * bad as f64 / looked_at.max(1) as f64,
        100.0 * max_bad_share,
        reasons.join(", ")
    )
}

/// An error with its causes, `what failed: why`, for the user to read. A cause that the message of
/// the error above it quotes already is not said twice.
pub fn full_message(error: &(dyn Error + 'static)) -> String {
    let mut message = error.to_string().trim_end().to_owned();
    let mut above = error;
    while let Some(cause) = above.source() {
        let text = cause.to_string();
        if !message.contains(text.trim_end()) {
            message.push_str(": ");
            message.push_str(text.trim_end());
        }
        above = cause;
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("saving fails")]
    struct Outer(#[source] PipelineError);

    #[test]
    fn a_cause_is_said_once() {
        let source = std::io::Error::other("disk full");
        let path = PathBuf::from("a/b");
        let error = Outer(PipelineError::Io { path, source });
        assert_eq!(full_message(&error), "saving fails: a/b: disk full");
        let bad = PipelineError::from(ShardError {
            shard: "s.tar".into(),
            offset_bytes: 7,
            message: "truncated".into(),
        });
        assert_eq!(full_message(&bad), bad.to_string());
    }
}
