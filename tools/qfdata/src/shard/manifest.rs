//! Lists the images of a CSV, TSV or JSONL manifest.
//!
//! A CSV or TSV file starts with a line of column names. CSV fields may be quoted; TSV fields are
//! taken as they are. A JSONL line is an object whose caption is a string or a list of strings.
//! Several rows of one path are several captions of one sample. Keys are the position of the path
//! among the distinct paths of the file, `000000000` first.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use qf_pipeline::shard::captions::{captions_from_value, one_line};
use serde_json::Value;

use super::input::{Candidate, CaptionSource, Listing, Skip, SkipCause, MAX_CAPTION_BYTES};
use crate::interrupt::Interrupt;

/// Digits of a key.
const KEY_DIGITS: usize = 9;

/// Which columns hold what.
pub(super) struct Columns<'a> {
    pub(super) path: &'a str,
    pub(super) caption: &'a str,
}

/// Syntax of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    Csv,
    Tsv,
    Jsonl,
}

impl Syntax {
    /// By the extension of the file.
    pub(super) fn of(manifest: &Path) -> Option<Self> {
        let extension = manifest.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "csv" => Some(Syntax::Csv),
            "tsv" | "tab" => Some(Syntax::Tsv),
            "jsonl" | "ndjson" => Some(Syntax::Jsonl),
            _ => None,
        }
    }
}

/// All images that a manifest names, in the order in which it first names them.
pub(super) fn list(
    manifest: &Path,
    syntax: Syntax,
    columns: &Columns<'_>,
    interrupt: &Interrupt,
) -> anyhow::Result<Listing> {
    let in_manifest = || format!("cannot read manifest {}", manifest.display());
    let file = File::open(manifest).with_context(in_manifest)?;
    let mut rows = Rows {
        manifest,
        folder: manifest.parent().unwrap_or(Path::new("")),
        samples: Vec::new(),
        by_path: HashMap::new(),
        skips: Vec::new(),
    };
    match syntax {
        Syntax::Csv => read_table(file, b',', true, columns, interrupt, &mut rows),
        Syntax::Tsv => read_table(file, b'\t', false, columns, interrupt, &mut rows),
        Syntax::Jsonl => read_jsonl(file, columns, interrupt, &mut rows),
    }
    .with_context(in_manifest)?;
    Ok(rows.finish())
}

/// A distinct path and what its rows say.
struct Sample {
    path: String,
    line: u64,
    captions: Vec<String>,
    bad: Vec<Skip>,
}

struct Rows<'a> {
    manifest: &'a Path,
    folder: &'a Path,
    samples: Vec<Sample>,
    by_path: HashMap<String, usize>,
    skips: Vec<Skip>,
}

impl Rows<'_> {
    fn at(&self, line: u64) -> String {
        format!("{}:{line}", self.manifest.display())
    }

    fn bad_row(&mut self, line: u64, cause: SkipCause, message: impl Into<String>) {
        let skip = Skip::new(self.at(line), cause, message);
        self.skips.push(skip);
    }

    fn add(&mut self, line: u64, path: &str, captions: Result<Vec<String>, (SkipCause, String)>) {
        let index = match self.by_path.get(path) {
            Some(&index) => index,
            None => {
                self.samples.push(Sample {
                    path: path.to_owned(),
                    line,
                    captions: Vec::new(),
                    bad: Vec::new(),
                });
                self.by_path.insert(path.to_owned(), self.samples.len() - 1);
                self.samples.len() - 1
            }
        };
        let at = self.at(line);
        let sample = &mut self.samples[index];
        match captions {
            Ok(captions) => sample.captions.extend(captions),
            Err((cause, message)) => sample.bad.push(Skip::new(at, cause, message)),
        }
    }

    fn finish(self) -> Listing {
        let mut listing = Listing {
            skips: self.skips,
            ..Listing::default()
        };
        for (position, sample) in self.samples.into_iter().enumerate() {
            let what = format!(
                "{}:{}: {}",
                self.manifest.display(),
                sample.line,
                sample.path
            );
            if sample.captions.is_empty() {
                let skip = sample.bad.into_iter().next();
                let blank = || Skip::new(what, SkipCause::EmptyCaption, "every caption is blank");
                listing.skips.push(skip.unwrap_or_else(blank));
                continue;
            }
            for bad in &sample.bad {
                log::warn!("caption left out: {bad}");
            }
            listing.dropped_captions += sample.bad.len() as u64;
            listing.candidates.push(Candidate {
                key: format!("{position:0KEY_DIGITS$}"),
                image: resolve(self.folder, &sample.path),
                captions: CaptionSource::Inline(sample.captions),
            });
        }
        listing
    }
}

fn resolve(folder: &Path, path: &str) -> PathBuf {
    folder.join(path.strip_prefix("file://").unwrap_or(path))
}

fn caption_of_text(text: &str) -> Result<Vec<String>, (SkipCause, String)> {
    match one_line(text) {
        Some(caption) => Ok(vec![caption.into_owned()]),
        None => Err((SkipCause::EmptyCaption, "the caption is blank".to_owned())),
    }
}

fn read_table(
    file: File,
    delimiter: u8,
    quoting: bool,
    columns: &Columns<'_>,
    interrupt: &Interrupt,
    rows: &mut Rows<'_>,
) -> anyhow::Result<()> {
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .quoting(quoting)
        .flexible(true)
        .from_reader(file);
    let names: Vec<String> = reader
        .byte_headers()?
        .iter()
        .map(|name| String::from_utf8_lossy(name).trim().to_owned())
        .collect();
    let column = |name: &str, option: &str| match names.iter().position(|n| n == name) {
        Some(column) => Ok(column),
        None => bail!(
            "no column `{name}`; the first line names: {}. Choose one with {option}",
            names.join(", ")
        ),
    };
    let path_column = column(columns.path, "--path-column")?;
    let caption_column = column(columns.caption, "--caption-column")?;
    let mut record = csv::ByteRecord::new();
    while reader.read_byte_record(&mut record)? {
        interrupt.check()?;
        let line = record.position().map_or(0, |position| position.line());
        let (Some(path), Some(caption)) = (record.get(path_column), record.get(caption_column))
        else {
            let message = format!("{} fields, expected {}", record.len(), names.len());
            rows.bad_row(line, SkipCause::BadRow, message);
            continue;
        };
        let Ok(path) = std::str::from_utf8(path) else {
            rows.bad_row(line, SkipCause::BadName, "the path is not UTF-8");
            continue;
        };
        if path.is_empty() {
            rows.bad_row(line, SkipCause::BadRow, "the path is empty");
            continue;
        }
        let captions = match std::str::from_utf8(caption) {
            Ok(text) => caption_of_text(text),
            Err(_) => Err((SkipCause::BadCaption, "caption is not UTF-8".to_owned())),
        };
        rows.add(line, path, captions);
    }
    Ok(())
}

fn read_jsonl(
    file: File,
    columns: &Columns<'_>,
    interrupt: &Interrupt,
    rows: &mut Rows<'_>,
) -> anyhow::Result<()> {
    let mut reader = BufReader::new(file);
    let mut content = Vec::new();
    for line in 1.. {
        interrupt.check()?;
        content.clear();
        reader
            .by_ref()
            .take(MAX_CAPTION_BYTES)
            .read_until(b'\n', &mut content)?;
        if content.is_empty() {
            break;
        }
        if content.len() as u64 == MAX_CAPTION_BYTES {
            bail!("line {line} is over {MAX_CAPTION_BYTES} bytes; is this a JSONL file?");
        }
        let text = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&content);
        if text.trim_ascii().is_empty() {
            continue;
        }
        let row = match serde_json::from_slice::<Value>(text) {
            Ok(Value::Object(row)) => row,
            Ok(_) => {
                rows.bad_row(line, SkipCause::BadRow, "not a JSON object");
                continue;
            }
            Err(error) => {
                rows.bad_row(line, SkipCause::BadRow, format!("not JSON: {error}"));
                continue;
            }
        };
        let path = match row.get(columns.path) {
            Some(Value::String(path)) if !path.is_empty() => path,
            _ => {
                let message = format!("no string `{}` (see --path-column)", columns.path);
                rows.bad_row(line, SkipCause::BadRow, message);
                continue;
            }
        };
        let captions = match row.get(columns.caption) {
            None | Some(Value::Null) => Err((
                SkipCause::NoCaption,
                format!("no `{}` (see --caption-column)", columns.caption),
            )),
            Some(value) => match captions_from_value(value) {
                Ok(captions) if captions.is_empty() => {
                    Err((SkipCause::EmptyCaption, "the caption is blank".to_owned()))
                }
                Ok(captions) => Ok(captions),
                Err(error) => Err((SkipCause::BadCaption, error.to_string())),
            },
        };
        rows.add(line, path, captions);
    }
    Ok(())
}
