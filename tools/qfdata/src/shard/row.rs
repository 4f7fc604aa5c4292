//! A row of the input, which may become a sample, and why one does not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use qf_pipeline::captions::CaptionLines;
use qf_pipeline::printable::Printable;

use super::zip_file::ZipFile;

/// How a row is named, in the shard, in messages and in the metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Name {
    /// WebDataset key.
    pub(super) key: String,
    /// The file, or the file and line, that it comes from.
    pub(super) origin: String,
    /// Where the image is downloaded from.
    pub(super) url: Option<Arc<str>>,
}

/// What may become a sample.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Its names.
    pub(super) name: Name,
    /// Where its image is.
    pub(super) image: ImageRef,
    /// Where its captions are.
    pub(super) captions: CaptionRef,
    /// What goes into the `.json` member, beside what `captions` names.
    pub(super) json: Option<Vec<u8>>,
    /// Further members, by extension.
    pub(super) members: Vec<(String, Vec<u8>)>,
}

/// Where an image is.
#[derive(Clone, Debug)]
pub(super) enum ImageRef {
    File(PathBuf),
    /// `http://` or `https://`.
    Url(Arc<str>),
    /// In the row itself; with the ending of the name it had, lower case, or nothing.
    Bytes(Vec<u8>, String),
    /// An entry of a zip, by its position.
    Zip(Arc<ZipFile>, usize),
}

/// Where captions are.
#[derive(Clone, Debug)]
pub(super) enum CaptionRef {
    /// Files beside the image. With both, `text` holds the captions and `json` is passed through.
    Files {
        /// The `.txt` file.
        text: Option<TextFile>,
        /// The `.json` file.
        json: Option<TextFile>,
        /// What `text` holds.
        lines: CaptionLines,
    },
    /// In the row.
    Inline(Vec<String>),
    /// In the row's `json`, where they are those given here.
    Json(Vec<String>),
}

impl CaptionRef {
    /// Caption files of an image, a caption a line.
    pub(super) fn files(text: Option<TextFile>, json: Option<TextFile>) -> CaptionRef {
        CaptionRef::Files {
            text,
            json,
            lines: CaptionLines::Each,
        }
    }
}

/// A small file, on disk or in a zip.
#[derive(Clone, Debug)]
pub(super) enum TextFile {
    Path(PathBuf),
    Zip(Arc<ZipFile>, usize),
}

impl TextFile {
    /// As messages name it.
    pub(super) fn name(&self) -> String {
        match self {
            TextFile::Path(path) => path.display().to_string(),
            TextFile::Zip(zip, entry) => zip.name(*entry),
        }
    }
}

/// A row, or why it is none.
pub(super) type Input = Result<Row, Skip>;

/// Receives rows; returns false for no more.
pub(super) type Give<'a> = &'a mut dyn FnMut(Input) -> anyhow::Result<bool>;

/// Why a row does not become a sample; the key of the skip counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum SkipCause {
    /// No caption file, or a null caption.
    NoCaption,
    /// Every caption is blank.
    EmptyCaption,
    /// Captions that are not UTF-8, not JSON, or JSON without a caption.
    BadCaption,
    /// Content that is no image format the pipeline decodes.
    UnknownImageFormat,
    /// An image that does not decode, or cannot be encoded.
    BrokenImage,
    /// Image and captions together are more than a reader takes by default, or an image has more pixels
    /// than are decoded.
    SampleTooLarge,
    /// A side is below `--min-size`.
    TooSmall,
    /// A side is above `--max-size`.
    TooBig,
    /// The sides differ by more than `--max-aspect`.
    BadAspect,
    /// The file or folder is missing or cannot be read.
    Unreadable,
    /// A name that is not UTF-8, or too long for a key.
    BadName,
    /// A row without an image, or that does not parse.
    BadRow,
    /// Of another split than `--split`.
    OtherSplit,
    /// The image of an earlier sample, byte for byte.
    Double,
    /// An image like that of an earlier sample.
    NearDouble,
    /// A URL that is none, or of a kind that is not downloaded.
    BadUrl,
    /// An address of this machine or a private network.
    PrivateAddress,
    /// The name of the host has no address.
    NoHost,
    /// The server did not answer in time.
    TimedOut,
    /// The connection failed or broke off.
    NoConnection,
    /// The server answered with an error.
    HttpStatus,
    /// A redirect that is not followed.
    BadRedirect,
    /// More bytes than `--max-download`.
    DownloadTooLarge,
    /// The server says that the image is not for training.
    OptedOut,
}

impl SkipCause {
    /// All of them.
    pub(super) const ALL: [SkipCause; 24] = [
        SkipCause::NoCaption,
        SkipCause::EmptyCaption,
        SkipCause::BadCaption,
        SkipCause::UnknownImageFormat,
        SkipCause::BrokenImage,
        SkipCause::SampleTooLarge,
        SkipCause::TooSmall,
        SkipCause::TooBig,
        SkipCause::BadAspect,
        SkipCause::Unreadable,
        SkipCause::BadName,
        SkipCause::BadRow,
        SkipCause::OtherSplit,
        SkipCause::Double,
        SkipCause::NearDouble,
        SkipCause::BadUrl,
        SkipCause::PrivateAddress,
        SkipCause::NoHost,
        SkipCause::TimedOut,
        SkipCause::NoConnection,
        SkipCause::HttpStatus,
        SkipCause::BadRedirect,
        SkipCause::DownloadTooLarge,
        SkipCause::OptedOut,
    ];

    /// The name used in reports and metadata, e.g. `no_caption`.
    pub(super) fn name(self) -> &'static str {
        match self {
            SkipCause::NoCaption => "no_caption",
            SkipCause::EmptyCaption => "empty_caption",
            SkipCause::BadCaption => "bad_caption",
            SkipCause::UnknownImageFormat => "unknown_image_format",
            SkipCause::BrokenImage => "broken_image",
            SkipCause::SampleTooLarge => "sample_too_large",
            SkipCause::TooSmall => "too_small",
            SkipCause::TooBig => "too_big",
            SkipCause::BadAspect => "bad_aspect",
            SkipCause::Unreadable => "unreadable",
            SkipCause::BadName => "bad_name",
            SkipCause::BadRow => "bad_row",
            SkipCause::OtherSplit => "other_split",
            SkipCause::Double => "double",
            SkipCause::NearDouble => "near_double",
            SkipCause::BadUrl => "bad_url",
            SkipCause::PrivateAddress => "private_address",
            SkipCause::NoHost => "no_host",
            SkipCause::TimedOut => "timed_out",
            SkipCause::NoConnection => "no_connection",
            SkipCause::HttpStatus => "http_status",
            SkipCause::BadRedirect => "bad_redirect",
            SkipCause::DownloadTooLarge => "download_too_large",
            SkipCause::OptedOut => "opted_out",
        }
    }

    /// The cause of this name.
    pub(super) fn of_name(name: &str) -> Option<SkipCause> {
        let mut causes = SkipCause::ALL.into_iter();
        causes.find(|cause| cause.name() == name)
    }

    /// How many rows could not become a sample, of the counts by cause; those that were left out as asked do
    /// not count.
    pub(super) fn bad_rows(skipped: &BTreeMap<String, u64>) -> u64 {
        let is_bad = |cause: &str| !SkipCause::of_name(cause).is_some_and(SkipCause::is_wanted);
        let bad = skipped.iter().filter(|(cause, _)| is_bad(cause));
        bad.map(|(_, count)| count).sum()
    }

    /// Whether the row was left out because the user asked for it, not because something is wrong.
    pub(super) fn is_wanted(self) -> bool {
        matches!(
            self,
            SkipCause::TooSmall
                | SkipCause::TooBig
                | SkipCause::BadAspect
                | SkipCause::OtherSplit
                | SkipCause::Double
                | SkipCause::NearDouble
        )
    }
}

/// A row that does not become a sample.
#[derive(Clone, Debug)]
pub(super) struct Skip {
    /// The file or manifest row.
    pub(super) what: String,
    /// The counter it falls under.
    pub(super) cause: SkipCause,
    /// What is wrong with it.
    pub(super) message: String,
}

impl Skip {
    pub(super) fn new(
        what: impl Into<String>,
        cause: SkipCause,
        message: impl Into<String>,
    ) -> Self {
        Self {
            what: what.into(),
            cause,
            message: message.into(),
        }
    }
}

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, message) = (Printable(&self.what), Printable(&self.message));
        write!(f, "{what}: {message} ({})", self.cause.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_causes_lead_back_to_them() {
        for cause in SkipCause::ALL {
            assert_eq!(SkipCause::of_name(cause.name()), Some(cause));
        }
        assert_eq!(SkipCause::of_name("?"), None);
    }
}
