//! Reads what a row names: its captions, its image.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use qf_pipeline::captions::CaptionLines;
use qf_pipeline::captions::{captions_from_json, captions_from_text};

use super::row::{CaptionRef, ImageRef, Row, Skip, SkipCause, TextFile};

/// The largest caption file, and manifest line, in bytes.
pub(super) const MAX_CAPTION_BYTES: u64 = 16 << 20;

/// Captions of a row, and how they are stored.
pub(super) struct Captions {
    /// At least one.
    pub(super) texts: Vec<String>,
    /// Whether they go into a `.txt` member; if not they are those of `json`.
    pub(super) text_member: bool,
    /// The `.json` member.
    pub(super) json: Option<Vec<u8>>,
}

/// The captions of a row; takes those that are in it out of it.
///
/// # Errors
/// Why there are none.
pub(super) fn captions(row: &mut Row) -> Result<Captions, Skip> {
    let json = row.json.take();
    let found = match &mut row.captions {
        CaptionRef::Inline(texts) => Captions {
            texts: std::mem::take(texts),
            text_member: true,
            json,
        },
        CaptionRef::Json(texts) => Captions {
            texts: std::mem::take(texts),
            text_member: false,
            json,
        },
        CaptionRef::Files {
            text,
            json: beside,
            lines,
        } => from_files(text.as_ref(), beside.as_ref(), *lines, &row.name.origin)?,
    };
    if found.texts.is_empty() {
        let message = "every caption is blank";
        return Err(Skip::new(
            caption_file(row),
            SkipCause::EmptyCaption,
            message,
        ));
    }
    Ok(found)
}

fn caption_file(row: &Row) -> String {
    match &row.captions {
        CaptionRef::Files {
            text: Some(file), ..
        }
        | CaptionRef::Files {
            json: Some(file), ..
        } => file.name(),
        _ => row.name.origin.clone(),
    }
}

fn from_files(
    text: Option<&TextFile>,
    json: Option<&TextFile>,
    lines: CaptionLines,
    image: &str,
) -> Result<Captions, Skip> {
    match (text, json) {
        (None, None) => Err(Skip::new(
            image,
            SkipCause::NoCaption,
            "no .txt or .json file of the same name",
        )),
        (Some(text), json) => {
            let content = small(text)?;
            let texts = captions_from_text(&content, lines).map_err(|error| {
                Skip::new(text.name(), SkipCause::BadCaption, error.to_string())
            })?;
            Ok(Captions {
                texts: texts.into_iter().map(Cow::into_owned).collect(),
                text_member: true,
                json: json.map(small).transpose()?,
            })
        }
        (None, Some(file)) => {
            let json = small(file)?;
            let texts = captions_from_json(&json).map_err(|error| {
                Skip::new(file.name(), SkipCause::BadCaption, error.to_string())
            })?;
            Ok(Captions {
                texts,
                text_member: false,
                json: Some(json),
            })
        }
    }
}

/// Reads a caption file whole.
///
/// # Errors
/// That it is missing or too large.
pub(super) fn small(file: &TextFile) -> Result<Vec<u8>, Skip> {
    let unreadable =
        |error: io::Error| Skip::new(file.name(), SkipCause::Unreadable, error.to_string());
    let content = match file {
        TextFile::Path(path) => read_file(path, MAX_CAPTION_BYTES).map_err(unreadable)?,
        TextFile::Zip(zip, entry) => zip.read(*entry, MAX_CAPTION_BYTES).map_err(unreadable)?,
    };
    content.ok_or_else(|| {
        let message = format!("over the limit of {MAX_CAPTION_BYTES} bytes");
        Skip::new(file.name(), SkipCause::BadCaption, message)
    })
}

/// The bytes of a row's image, and the ending of its name, lower case; takes bytes that are in the row
/// out of it. URLs are not for it.
///
/// # Errors
/// That it is missing or over `max_bytes`.
pub(super) fn image(row: &mut Row, max_bytes: u64) -> Result<(Vec<u8>, String), Skip> {
    let origin = row.name.origin.clone();
    let found = match &mut row.image {
        ImageRef::Bytes(bytes, ending) => {
            return Ok((std::mem::take(bytes), std::mem::take(ending)))
        }
        ImageRef::File(path) => read_file(path, max_bytes).map(|bytes| (bytes, ending_of(path))),
        ImageRef::Zip(zip, entry) => zip
            .read(*entry, max_bytes)
            .map(|bytes| (bytes, ending_of(Path::new(&zip.name(*entry))))),
        ImageRef::Url(_) => Err(io::Error::other("not downloaded")),
    };
    match found {
        Ok((Some(bytes), ending)) => Ok((bytes, ending)),
        Ok((None, _)) => {
            let message = format!("over the limit of {max_bytes} bytes");
            Err(Skip::new(origin, SkipCause::SampleTooLarge, message))
        }
        Err(error) => Err(Skip::new(origin, SkipCause::Unreadable, error.to_string())),
    }
}

/// The ending of a path, lower case, or nothing.
pub(super) fn ending_of(path: &Path) -> String {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.unwrap_or("").to_ascii_lowercase()
}

/// A regular file whole; `None` if it is over `max_bytes`.
fn read_file(path: &Path, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    // Looked at before it is opened: opening a pipe waits for a writer.
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if metadata.len() > max_bytes {
        return Ok(None);
    }
    let mut content = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0) + 1);
    File::open(path)?
        .take(max_bytes.saturating_add(1))
        .read_to_end(&mut content)?;
    Ok((content.len() as u64 <= max_bytes).then_some(content))
}
