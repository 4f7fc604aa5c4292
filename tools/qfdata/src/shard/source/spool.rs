//! Rows in a temporary file, to be read in any order: what shuffles inputs that are not a list.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use qf_pipeline::shard::arrow::CaptionType;
use serde::{Deserialize, Serialize};

use super::super::plan;
use super::super::row::{CaptionRef, Give, ImageRef, Input, Name, Row, Skip, SkipCause};

/// Rows in a file without a name.
pub(in super::super) struct Spool {
    file: File,
    /// Where each row begins, and how long it is, in the order in which they are read.
    places: Vec<(u64, u64)>,
    pub(super) facts: Facts,
}

/// What is known of the rows.
pub(super) struct Facts {
    pub(super) notes: Vec<String>,
    pub(super) fingerprint: String,
    pub(super) repeats_keys: bool,
    pub(super) caption_type: CaptionType,
    pub(super) has_urls: bool,
}

/// A row without its bytes, which follow in the file.
#[derive(Serialize, Deserialize)]
enum Record {
    Row {
        key: String,
        origin: String,
        url: Option<String>,
        image: Image,
        captions: Vec<String>,
        in_json: bool,
        json: Option<u64>,
        members: Vec<(String, u64)>,
    },
    Skip {
        what: String,
        cause: String,
        message: String,
    },
}

#[derive(Serialize, Deserialize)]
enum Image {
    File(PathBuf),
    Url(String),
    Bytes(u64, String),
}

impl Spool {
    /// Writes all rows that `read` gives into a temporary file in `folder`.
    pub(super) fn of(
        facts: Facts,
        folder: &Path,
        read: &mut dyn FnMut(Give<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Spool> {
        let what = || format!("no temporary file for shuffling in {}", folder.display());
        let file = tempfile::tempfile_in(folder).with_context(what)?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        let mut places = Vec::new();
        let mut at = 0;
        read(&mut |row| {
            let (record, parts) = to_record(row)?;
            let header = serde_json::to_vec(&record)?;
            let mut len = 0;
            let header_len = (header.len() as u64).to_le_bytes();
            let parts = parts.iter().map(Vec::as_slice);
            for part in [&header_len[..], &header].into_iter().chain(parts) {
                file.write_all(part).with_context(what)?;
                len += part.len() as u64;
            }
            places.push((at, len));
            at += len;
            Ok(true)
        })?;
        let file = file.into_inner().map_err(|error| error.into_error());
        Ok(Spool {
            file: file.with_context(what)?,
            places,
            facts,
        })
    }

    pub(super) fn shuffle(&mut self, seed: u64) {
        plan::shuffle(&mut self.places, seed);
    }

    pub(super) fn rows(&self) -> u64 {
        self.places.len() as u64
    }

    pub(super) fn read(&self, range: Range<u64>, give: Give<'_>) -> anyhow::Result<()> {
        let len = self.places.len() as u64;
        // Within the list, so both fit.
        let (start, end) = (range.start.min(len) as usize, range.end.min(len) as usize);
        for &(at, len) in self.places.get(start..end).unwrap_or_default() {
            let mut bytes = vec![0; usize::try_from(len)?];
            self.file
                .read_exact_at(&mut bytes, at)
                .context("cannot read the temporary file for shuffling")?;
            if !give(from_bytes(&bytes)?)? {
                break;
            }
        }
        Ok(())
    }
}

/// What goes into the header, and the bytes behind it.
fn to_record(row: Input) -> anyhow::Result<(Record, Vec<Vec<u8>>)> {
    let row = match row {
        Ok(row) => row,
        Err(skip) => {
            let record = Record::Skip {
                what: skip.what,
                cause: skip.cause.name().to_owned(),
                message: skip.message,
            };
            return Ok((record, Vec::new()));
        }
    };
    let mut parts = Vec::new();
    let image = match row.image {
        ImageRef::File(path) => Image::File(path),
        ImageRef::Url(url) => Image::Url(url.to_string()),
        ImageRef::Bytes(bytes, ending) => {
            let len = bytes.len() as u64;
            parts.push(bytes);
            Image::Bytes(len, ending)
        }
        ImageRef::Zip(..) => bail!("a zip is a list, and needs no temporary file"),
    };
    let (captions, in_json) = match row.captions {
        CaptionRef::Inline(texts) => (texts, false),
        CaptionRef::Json(texts) => (texts, true),
        CaptionRef::Files { .. } => bail!("files are a list, and need no temporary file"),
    };
    let json = row.json.as_ref().map(|json| json.len() as u64);
    parts.extend(row.json);
    let mut members = Vec::new();
    for (name, content) in row.members {
        members.push((name, content.len() as u64));
        parts.push(content);
    }
    let Name { key, origin, url } = row.name;
    let record = Record::Row {
        key,
        origin,
        url: url.map(|url| url.to_string()),
        image,
        captions,
        in_json,
        json,
        members,
    };
    Ok((record, parts))
}

fn from_bytes(bytes: &[u8]) -> anyhow::Result<Input> {
    const DAMAGED: &str = "the temporary file for shuffling is damaged";
    let (len, rest) = bytes.split_first_chunk::<8>().context(DAMAGED)?;
    let len = usize::try_from(u64::from_le_bytes(*len))?;
    let (header, mut rest) = rest.split_at_checked(len).context(DAMAGED)?;
    let mut part = |len: u64| -> anyhow::Result<Vec<u8>> {
        let (part, behind) = rest
            .split_at_checked(usize::try_from(len)?)
            .context(DAMAGED)?;
        rest = behind;
        Ok(part.to_vec())
    };
    Ok(match serde_json::from_slice(header)? {
        Record::Skip {
            what,
            cause,
            message,
        } => {
            let cause = SkipCause::of_name(&cause).context(DAMAGED)?;
            Err(Skip::new(what, cause, message))
        }
        Record::Row {
            key,
            origin,
            url,
            image,
            captions,
            in_json,
            json,
            members,
        } => {
            let image = match image {
                Image::File(path) => ImageRef::File(path),
                Image::Url(url) => ImageRef::Url(url.into()),
                Image::Bytes(len, ending) => ImageRef::Bytes(part(len)?, ending),
            };
            let json = json.map(&mut part).transpose()?;
            let members = members
                .into_iter()
                .map(|(name, len)| Ok((name, part(len)?)))
                .collect::<anyhow::Result<_>>()?;
            Ok(Row {
                name: Name {
                    key,
                    origin,
                    url: url.map(Into::into),
                },
                image,
                captions: match in_json {
                    true => CaptionRef::Json(captions),
                    false => CaptionRef::Inline(captions),
                },
                json,
                members,
            })
        }
    })
}
