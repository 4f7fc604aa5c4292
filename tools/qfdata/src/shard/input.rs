//! What goes in: candidates as listed, then inspected into planned samples or named skips.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use image::ImageFormat;
use qf_pipeline::captions::CaptionLines;
use qf_pipeline::captions::{captions_from_json, captions_from_text};
use qf_pipeline::printable::Printable;
use qf_pipeline::shard::read::ReadOptions;
use qf_pipeline::survey::TextEvidence;
use qf_pipeline::write::ShardSample;
use serde::Serialize;

/// The largest caption file, and manifest line, in bytes.
pub(super) const MAX_CAPTION_BYTES: u64 = 16 << 20;

/// Text files that are compared with the JSON beside them.
const EVIDENCE_FILES: usize = 256;

/// Bytes that are enough to recognise every format of [`IMAGE_TYPES`].
const MAGIC_BYTES: u64 = 32;

/// Formats that the pipeline decodes, the extensions under which they are stored (others become the
/// first) and further ones under which they are found.
const IMAGE_TYPES: [(ImageFormat, &[&str], &[&str]); 6] = [
    (ImageFormat::Jpeg, &["jpg", "jpeg"], &["jpe", "jfif"]),
    (ImageFormat::Png, &["png"], &[]),
    (ImageFormat::WebP, &["webp"], &[]),
    (ImageFormat::Gif, &["gif"], &[]),
    (ImageFormat::Bmp, &["bmp"], &["dib"]),
    (ImageFormat::Tiff, &["tif", "tiff"], &[]),
];

/// Why an input does not become a sample; the key of the skip counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SkipCause {
    /// No caption file, or a null caption.
    NoCaption,
    /// Every caption is blank.
    EmptyCaption,
    /// Captions that are not UTF-8, not JSON, or JSON without a caption.
    BadCaption,
    /// Content that is no image format the pipeline decodes.
    UnknownImageFormat,
    /// Image and captions together are more than a reader takes by default.
    SampleTooLarge,
    /// The file or folder is missing or cannot be read.
    Unreadable,
    /// A name that is not UTF-8, or too long for a key.
    BadName,
    /// A manifest row without a path, or that does not parse.
    BadRow,
}

impl SkipCause {
    /// The name used in reports, e.g. `no_caption`.
    pub(super) fn name(self) -> &'static str {
        match self {
            SkipCause::NoCaption => "no_caption",
            SkipCause::EmptyCaption => "empty_caption",
            SkipCause::BadCaption => "bad_caption",
            SkipCause::UnknownImageFormat => "unknown_image_format",
            SkipCause::SampleTooLarge => "sample_too_large",
            SkipCause::Unreadable => "unreadable",
            SkipCause::BadName => "bad_name",
            SkipCause::BadRow => "bad_row",
        }
    }
}

/// An input that does not become a sample.
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

    fn of(path: &Path, cause: SkipCause, message: impl Into<String>) -> Self {
        Self::new(path.display().to_string(), cause, message)
    }
}

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (what, message) = (Printable(&self.what), Printable(&self.message));
        write!(f, "{what}: {message} ({})", self.cause.name())
    }
}

/// Everything that an input names.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Images, in order, with unique keys.
    pub(super) candidates: Vec<Candidate>,
    /// What is known not to become a sample.
    pub(super) skips: Vec<Skip>,
    /// Samples whose key had to be made unique.
    pub(super) renamed_keys: u64,
    /// Blank or undecodable captions of samples that have others (manifests).
    pub(super) dropped_captions: u64,
    /// Files that are no part of any sample (folders).
    pub(super) other_files: u64,
    /// Caption files without an image (folders).
    pub(super) captions_without_image: u64,
    /// Which columns were read (manifests).
    pub(super) columns: Option<String>,
}

/// An image that may become a sample.
#[derive(Debug)]
pub(super) struct Candidate {
    /// WebDataset key.
    pub(super) key: String,
    /// The image file.
    pub(super) image: PathBuf,
    /// Where its captions are.
    pub(super) captions: CaptionSource,
}

/// Where captions come from.
#[derive(Debug)]
pub(super) enum CaptionSource {
    /// Files beside the image. With both, `text` holds the captions and `json` is passed through.
    Files {
        /// The `.txt` file.
        text: Option<PathBuf>,
        /// The `.json` file.
        json: Option<PathBuf>,
        /// What `text` holds.
        lines: CaptionLines,
    },
    /// A manifest.
    Inline(Vec<String>),
}

/// A sample that will be written.
#[derive(Debug)]
pub(super) struct Planned {
    /// As it was listed.
    pub(super) candidate: Candidate,
    /// Extension under which the image is stored.
    pub(super) extension: &'static str,
    /// Size of the image.
    pub(super) image_bytes: u64,
    /// Number of captions.
    pub(super) captions: usize,
    /// Size of the captions, one a line.
    pub(super) caption_bytes: u64,
    /// Size of the `.json` member, if there is one.
    pub(super) json_bytes: Option<u64>,
}

impl Planned {
    /// Whether the shard gets a `.txt` member.
    pub(super) fn has_text_member(&self) -> bool {
        !matches!(
            self.candidate.captions,
            CaptionSource::Files { text: None, .. }
        )
    }
}

/// Whether a file of this extension is looked at as an image.
pub(super) fn is_image_extension(extension: &str) -> bool {
    IMAGE_TYPES
        .iter()
        .any(|(_, stored, found)| stored.contains(&extension) || found.contains(&extension))
}

/// Reads captions and file header (where asked) without keeping them.
pub(super) fn inspect(candidate: Candidate, check_header: bool) -> Result<Planned, Skip> {
    let (captions, json) = read_captions(&candidate)?;
    let image = &candidate.image;
    let unreadable = |error: io::Error| Skip::of(image, SkipCause::Unreadable, error.to_string());
    let metadata = fs::metadata(image).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(Skip::of(image, SkipCause::Unreadable, "not a regular file"));
    }
    let caption_bytes =
        (captions.iter().map(String::len).sum::<usize>() + captions.len() - 1) as u64;
    let json_bytes = json.map(|json| json.len() as u64);
    let sample_bytes = metadata.len() + caption_bytes + json_bytes.unwrap_or(0);
    let most_bytes = ReadOptions::default().max_sample_bytes;
    if sample_bytes > most_bytes {
        let message = format!("{sample_bytes} bytes, over the limit of {most_bytes}");
        return Err(Skip::of(image, SkipCause::SampleTooLarge, message));
    }
    let found_extension = image
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or("")
        .to_ascii_lowercase();
    let content = if check_header {
        let mut magic = Vec::new();
        File::open(image)
            .and_then(|file| file.take(MAGIC_BYTES).read_to_end(&mut magic))
            .map_err(unreadable)?;
        Some(image::guess_format(&magic).ok())
    } else {
        None
    };
    let extension = stored_extension(&found_extension, content).ok_or_else(|| {
        let message = if metadata.len() == 0 {
            "the file is empty"
        } else if content.is_some() {
            "not a JPEG, PNG, WebP, GIF, BMP or TIFF image"
        } else {
            "extension of no JPEG, PNG, WebP, GIF, BMP or TIFF image"
        };
        Skip::of(image, SkipCause::UnknownImageFormat, message)
    })?;
    Ok(Planned {
        extension,
        image_bytes: metadata.len(),
        captions: captions.len(),
        caption_bytes,
        json_bytes,
        candidate,
    })
}

/// Reads a planned sample whole.
///
/// # Errors
/// A message if the files are no longer those that were inspected.
pub(super) fn load(planned: &Planned) -> Result<ShardSample, String> {
    const CHANGED: &str = "the file changed while the shards were written; run again";
    let candidate = &planned.candidate;
    let (captions, json) = read_captions(candidate).map_err(|skip| format!("{skip}; {CHANGED}"))?;
    let path = candidate.image.display();
    let mut image = Vec::with_capacity(usize::try_from(planned.image_bytes).unwrap_or(0));
    File::open(&candidate.image)
        .and_then(|file| file.take(planned.image_bytes + 1).read_to_end(&mut image))
        .map_err(|error| format!("{path}: {error}"))?;
    if image.len() as u64 != planned.image_bytes {
        return Err(format!("{path}: {CHANGED}"));
    }
    if captions.len() != planned.captions {
        return Err(format!("captions of {path}: {CHANGED}"));
    }
    Ok(ShardSample {
        key: candidate.key.clone(),
        extension: planned.extension.to_owned(),
        image,
        captions,
        text_member: planned.has_text_member(),
        json,
    })
}

/// Captions (at least one) and the `.json` member.
fn read_captions(candidate: &Candidate) -> Result<(Vec<String>, Option<Vec<u8>>), Skip> {
    let (captions, json, source) = match &candidate.captions {
        CaptionSource::Inline(captions) => (captions.clone(), None, &candidate.image),
        CaptionSource::Files {
            text: None,
            json: None,
            ..
        } => {
            return Err(Skip::of(
                &candidate.image,
                SkipCause::NoCaption,
                "no .txt or .json file of the same name",
            ))
        }
        CaptionSource::Files {
            text: Some(text),
            json,
            lines,
        } => {
            let content = read_small(text)?;
            let captions = captions_from_text(&content, *lines)
                .map_err(|error| Skip::of(text, SkipCause::BadCaption, error.to_string()))?;
            let captions = captions.into_iter().map(Cow::into_owned).collect();
            let json = json.as_deref().map(read_small).transpose()?;
            (captions, json, text)
        }
        CaptionSource::Files {
            text: None,
            json: Some(path),
            ..
        } => {
            let json = read_small(path)?;
            let captions = captions_from_json(&json)
                .map_err(|error| Skip::of(path, SkipCause::BadCaption, error.to_string()))?;
            (captions, Some(json), path)
        }
    };
    if captions.is_empty() {
        let message = "every caption is blank";
        return Err(Skip::of(source, SkipCause::EmptyCaption, message));
    }
    Ok((captions, json))
}

/// Takes every text file for what the most are, as far as the JSON beside them tells; a caption a line
/// where it does not. `given` decides.
pub(super) fn decide_lines(listing: &mut Listing, given: Option<CaptionLines>) {
    let decided = given.unwrap_or_else(|| {
        let mut evidence = TextEvidence::default();
        let files = listing
            .candidates
            .iter()
            .filter_map(|candidate| match &candidate.captions {
                CaptionSource::Files {
                    text: Some(text),
                    json: Some(json),
                    ..
                } => Some((text, json)),
                _ => None,
            });
        for (text, json) in files.take(EVIDENCE_FILES) {
            if let (Ok(text), Ok(json)) = (read_small(text), read_small(json)) {
                evidence.add(&text, Some(&json));
            }
        }
        match evidence.json_says_one > evidence.json_says_each {
            true => CaptionLines::One,
            false => CaptionLines::Each,
        }
    });
    for candidate in &mut listing.candidates {
        if let CaptionSource::Files { lines, .. } = &mut candidate.captions {
            *lines = decided;
        }
    }
    if decided == CaptionLines::One && given.is_none() {
        listing.columns = Some(
            "each .txt is one caption, for the .json beside it says so (--caption-lines each takes \
             every line for one)"
                .to_string(),
        );
    }
}

fn read_small(path: &Path) -> Result<Vec<u8>, Skip> {
    let unreadable = |error: io::Error| Skip::of(path, SkipCause::Unreadable, error.to_string());
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(Skip::of(path, SkipCause::Unreadable, "not a regular file"));
    }
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_CAPTION_BYTES + 1).read_to_end(&mut content))
        .map_err(unreadable)?;
    if content.len() as u64 > MAX_CAPTION_BYTES {
        let message = format!("over the limit of {MAX_CAPTION_BYTES} bytes");
        return Err(Skip::of(path, SkipCause::BadCaption, message));
    }
    Ok(content)
}

/// The extension of the content where it was looked at (`Some(None)`: it is nothing known), else of
/// the name.
fn stored_extension(found: &str, content: Option<Option<ImageFormat>>) -> Option<&'static str> {
    let (_, stored, _) = IMAGE_TYPES
        .iter()
        .find(|(format, stored, other)| match content {
            Some(content) => content == Some(*format),
            None => stored.contains(&found) || other.contains(&found),
        })?;
    stored
        .iter()
        .find(|extension| **extension == found)
        .or(stored.first())
        .copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions() {
        use ImageFormat::{Avif, Jpeg, Png, Tiff};
        for (found, content, expected) in [
            ("jpg", Some(Some(Jpeg)), Some("jpg")),
            ("jpeg", Some(Some(Jpeg)), Some("jpeg")),
            ("jfif", Some(Some(Jpeg)), Some("jpg")),
            ("jpg", Some(Some(Png)), Some("png")),
            ("", Some(Some(Tiff)), Some("tif")),
            ("avif", Some(Some(Avif)), None),
            ("jpg", Some(None), None),
            ("jpe", None, Some("jpg")),
            ("tiff", None, Some("tiff")),
            ("txt", None, None),
        ] {
            assert_eq!(stored_extension(found, content), expected, "{found}");
        }
    }
}
