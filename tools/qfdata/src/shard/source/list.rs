//! Rows in memory, and lists in which several rows may be captions of one image.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use base64::Engine;
use qf_pipeline::captions::{captions_from_value, one_line};
use qf_pipeline::shard::arrow::CaptionType;
use qf_pipeline::source::DisplayUrl;
use qf_pipeline::warnings::Warnings;
use rayon::prelude::*;
use serde_json::{Map, Value};

use super::super::load;
use super::super::row::{CaptionRef, Give, ImageRef, Input, Name, Row, Skip, SkipCause};
use crate::hash128::hash128;

/// Digits of a key.
const KEY_DIGITS: usize = 9;

/// The key of a row that has no name of its own.
pub(super) fn key_of(position: u64) -> String {
    format!("{position:0KEY_DIGITS$}")
}

/// Every row of an input, in memory.
#[derive(Debug, Default)]
pub(in super::super) struct List {
    pub(in super::super) rows: Vec<Input>,
    /// Samples whose key had to be made unique.
    pub(in super::super) renamed_keys: u64,
    /// Blank or undecodable captions of samples that have others.
    pub(in super::super) dropped_captions: u64,
    /// Files that are no part of any sample.
    pub(in super::super) other_files: u64,
    /// Caption files without an image.
    pub(in super::super) captions_without_image: u64,
    pub(super) notes: Vec<String>,
    pub(super) fingerprint: String,
}

impl List {
    pub(super) fn read(&self, range: Range<u64>, give: Give<'_>) -> anyhow::Result<()> {
        let len = self.rows.len() as u64;
        // Within the list, so both fit.
        let (start, end) = (range.start.min(len) as usize, range.end.min(len) as usize);
        for row in self.rows.get(start..end).unwrap_or_default() {
            if !give(row.clone())? {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn caption_type(&self) -> CaptionType {
        let is_one = |row: &Input| match row {
            Err(_) => true,
            Ok(row) => match &row.captions {
                CaptionRef::Inline(texts) | CaptionRef::Json(texts) => texts.len() == 1,
                CaptionRef::Files { .. } => {
                    let captions = load::captions(&mut row.clone());
                    captions.map_or(true, |captions| captions.texts.len() == 1)
                }
            },
        };
        match self.rows.par_iter().all(is_one) {
            true => CaptionType::One,
            false => CaptionType::List,
        }
    }

    pub(super) fn has_urls(&self) -> bool {
        let has_url = |row: &Input| matches!(row, Ok(row) if matches!(row.image, ImageRef::Url(_)));
        self.rows.iter().any(has_url)
    }
}

/// Why a row has no captions, where it has none.
pub(super) type Captions = Result<Vec<String>, (SkipCause, String)>;

/// The one caption of a text.
pub(super) fn caption_of_text(text: &str) -> Captions {
    match one_line(text) {
        Some(caption) => Ok(vec![caption.into_owned()]),
        None => Err((SkipCause::EmptyCaption, "the caption is blank".to_owned())),
    }
}

/// The captions of a value: a string, a list, an object.
pub(super) fn captions_of_value(value: &Value) -> Captions {
    match captions_from_value(value) {
        Ok(captions) if captions.is_empty() => {
            Err((SkipCause::EmptyCaption, "the caption is blank".to_owned()))
        }
        Ok(captions) => Ok(captions),
        Err(error) => Err((SkipCause::BadCaption, error.to_string())),
    }
}

/// A distinct image and what its rows say.
struct Sample {
    image: String,
    line: u64,
    captions: Vec<String>,
    bad: Vec<Skip>,
    /// Further fields of its rows.
    more: Vec<Map<String, Value>>,
}

/// Rows of a list, those of one image together, in the order in which images are first named.
pub(super) struct Grouped<'a> {
    /// As messages name the list.
    name: &'a str,
    /// Where relative paths start.
    folder: PathBuf,
    samples: Vec<Sample>,
    /// Positions in `samples`, by the hash of the image's name.
    by_image: HashMap<[u64; 2], usize>,
    bad: Vec<(u64, Skip)>,
    pub(super) notes: Vec<String>,
}

impl<'a> Grouped<'a> {
    pub(super) fn new(name: &'a str, folder: &Path) -> Grouped<'a> {
        Grouped {
            name,
            folder: folder.to_owned(),
            samples: Vec::new(),
            by_image: HashMap::new(),
            bad: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn at(&self, line: u64) -> String {
        format!("{}:{line}", self.name)
    }

    /// A row that names no image.
    pub(super) fn bad_row(&mut self, line: u64, cause: SkipCause, message: impl Into<String>) {
        let skip = Skip::new(self.at(line), cause, message);
        self.bad.push((line, skip));
    }

    /// A row (line or position, from 1) of `image`: a path, a URL, or base64.
    pub(super) fn add(
        &mut self,
        line: u64,
        image: &str,
        captions: Captions,
        more: Map<String, Value>,
    ) {
        let new = self.samples.len();
        let index = *self.by_image.entry(hash128(image)).or_insert(new);
        if index == new {
            self.samples.push(Sample {
                image: image.to_owned(),
                line,
                captions: Vec::new(),
                bad: Vec::new(),
                more: Vec::new(),
            });
        }
        let at = self.at(line);
        let sample = &mut self.samples[index];
        if !more.is_empty() && !sample.more.contains(&more) {
            sample.more.push(more);
        }
        match captions {
            // No more room than they take.
            Ok(captions) if sample.captions.is_empty() => sample.captions = captions,
            Ok(captions) => sample.captions.extend(captions),
            Err((cause, message)) => sample.bad.push(Skip::new(at, cause, message)),
        }
    }

    pub(super) fn finish(self, fingerprint: String) -> List {
        let mut list = List {
            notes: self.notes,
            fingerprint,
            ..List::default()
        };
        // Room for the rows, which take more than the samples.
        drop(self.by_image);
        list.rows.reserve_exact(self.samples.len() + self.bad.len());
        let mut warnings = Warnings::default();
        let mut bad = self.bad.into_iter().peekable();
        for (position, sample) in self.samples.into_iter().enumerate() {
            while let Some((_, skip)) = bad.next_if(|(line, _)| *line < sample.line) {
                list.rows.push(Err(skip));
            }
            let image = image_ref(&self.folder, &sample.image);
            let shown = match image {
                ImageRef::Bytes(..) => "image".to_owned(),
                ImageRef::Url(_) => DisplayUrl::of(&sample.image).to_string(),
                _ => sample.image.clone(),
            };
            let origin = format!("{}:{}: {shown}", self.name, sample.line);
            if sample.captions.is_empty() {
                let skip = sample.bad.into_iter().next();
                let blank = || Skip::new(origin, SkipCause::EmptyCaption, "every caption is blank");
                list.rows.push(Err(skip.unwrap_or_else(blank)));
                continue;
            }
            for bad in &sample.bad {
                warnings.warn("caption left out", format_args!("caption left out: {bad}"));
            }
            list.dropped_captions += sample.bad.len() as u64;
            // Shared: a list may have millions.
            let url = match &image {
                ImageRef::Url(url) => Some(url.clone()),
                _ => None,
            };
            list.rows.push(Ok(Row {
                name: Name {
                    key: key_of(position as u64),
                    origin: match &image {
                        ImageRef::File(path) => path.display().to_string(),
                        _ => origin,
                    },
                    url,
                },
                image,
                captions: CaptionRef::Inline(sample.captions),
                json: json_of(sample.more),
                members: Vec::new(),
            }));
        }
        list.rows.extend(bad.map(|(_, skip)| Err(skip)));
        list
    }
}

/// The `.json` member of a sample whose rows say this: the fields of its row, or of its `rows`.
fn json_of(mut more: Vec<Map<String, Value>>) -> Option<Vec<u8>> {
    let value = match more.len() {
        0 => return None,
        1 => Value::Object(more.remove(0)),
        _ => serde_json::json!({ "rows": more }),
    };
    serde_json::to_vec(&value).ok()
}

/// What a text names: a URL, bytes in base64, or a path.
pub(super) fn image_ref(folder: &Path, text: &str) -> ImageRef {
    let text = text.trim();
    let lower = text.get(..8).unwrap_or(text).to_ascii_lowercase();
    if lower.starts_with("http://") || lower.starts_with("https://") {
        return ImageRef::Url(text.into());
    }
    if let Some(bytes) = inline_bytes(text) {
        return ImageRef::Bytes(bytes, String::new());
    }
    ImageRef::File(folder.join(text.strip_prefix("file://").unwrap_or(text)))
}

/// The bytes of a `data:` URL, or of base64 that holds an image.
fn inline_bytes(text: &str) -> Option<Vec<u8>> {
    /// Shorter than any image of a pixel.
    const LEAST_CHARS: usize = 44;
    let engine = base64::engine::general_purpose::STANDARD;
    if text.starts_with("data:") {
        let (kind, data) = text.split_once(',')?;
        return kind
            .ends_with(";base64")
            .then(|| engine.decode(data).ok())?;
    }
    // What JPEG, PNG, GIF, WebP, BMP and TIFF begin with, in base64.
    let begins = [
        "/9j/",
        "iVBORw0KGgo",
        "R0lGOD",
        "UklGR",
        "Qk",
        "SUkqA",
        "TU0AK",
    ];
    if text.len() < LEAST_CHARS || !begins.iter().any(|begin| text.starts_with(begin)) {
        return None;
    }
    let bytes = engine.decode(text).ok()?;
    image::guess_format(&bytes).is_ok().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_name_files_urls_and_bytes() {
        let folder = Path::new("/data");
        let file = |text: &str| match image_ref(folder, text) {
            ImageRef::File(path) => path.display().to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(file("a/b.jpg"), "/data/a/b.jpg");
        assert_eq!(file("/x.jpg"), "/x.jpg");
        assert_eq!(file("file:///x.jpg"), "/x.jpg");
        assert_eq!(file("/9j/short.jpg"), "/9j/short.jpg");
        assert_eq!(file("日本.jpg"), "/data/日本.jpg");
        for url in ["http://h/x.jpg", "HTTPS://h/x?y"] {
            assert!(matches!(image_ref(folder, url), ImageRef::Url(_)));
        }
        let png = b"\x89PNG\r\n\x1a\n and forty more bytes of it, at the least of all";
        let encoded = base64::engine::general_purpose::STANDARD.encode(png);
        for text in [encoded.clone(), format!("data:image/png;base64,{encoded}")] {
            match image_ref(folder, &text) {
                ImageRef::Bytes(bytes, _) => assert_eq!(bytes, png),
                other => panic!("{other:?}"),
            }
        }
    }
}
