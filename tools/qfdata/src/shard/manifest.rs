//! Lists the images of a CSV, TSV or JSONL manifest.
//!
//! A CSV or TSV file starts with a line of column names, and every row has as many fields. CSV fields
//! may be quoted; TSV fields are taken as they are. A JSONL line is an object whose caption is a string
//! or a list of strings. Several rows of one path are several captions of one sample. Keys are the
//! position of the path among the distinct paths of the file, `000000000` first.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use qf_pipeline::captions::names::{self, CAPTION_NAMES, PATH_NAMES};
use qf_pipeline::captions::{captions_from_value, one_line};
use qf_pipeline::json;
use qf_pipeline::warnings::Warnings;
use qf_pipeline::words::counted;
use serde_json::{Map, Value};

use super::input::{Candidate, CaptionSource, Listing, Skip, SkipCause, MAX_CAPTION_BYTES};
use super::table::{Dialect, Table};
use crate::interrupt::Interrupt;

/// Digits of a key.
const KEY_DIGITS: usize = 9;

/// Which columns hold what; those that are not named are found by name.
pub(super) struct Columns<'a> {
    pub(super) path: Option<&'a str>,
    pub(super) caption: Option<&'a str>,
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
        columns: None,
    };
    match syntax {
        Syntax::Csv => read_table(file, CSV, columns, interrupt, &mut rows),
        Syntax::Tsv => read_table(file, TSV, columns, interrupt, &mut rows),
        Syntax::Jsonl => read_jsonl(file, columns, interrupt, &mut rows),
    }
    .with_context(in_manifest)?;
    Ok(rows.finish())
}

const CSV: Dialect = Dialect {
    delimiter: b',',
    quoting: true,
};
const TSV: Dialect = Dialect {
    delimiter: b'\t',
    quoting: false,
};

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
    /// The columns that the first row was read by.
    columns: Option<String>,
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
            columns: self.columns,
            ..Listing::default()
        };
        let mut warnings = Warnings::default();
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
                warnings.warn("caption left out", format_args!("caption left out: {bad}"));
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
    dialect: Dialect,
    columns: &Columns<'_>,
    interrupt: &Interrupt,
    rows: &mut Rows<'_>,
) -> anyhow::Result<()> {
    // `MAX_CAPTION_BYTES` fits everywhere.
    let mut table = Table::new(file, dialect, MAX_CAPTION_BYTES as usize);
    let Some(header) = table.next_row()? else {
        return Ok(());
    };
    let names: Vec<String> = (0..header.len())
        .filter_map(|index| header.get(index))
        .map(|name| String::from_utf8_lossy(name).trim().to_owned())
        .collect();
    let (path_column, caption_columns) = table_columns(&names, columns)?;
    let named = |index: usize| names.get(index).map_or("", String::as_str);
    let captions: Vec<_> = caption_columns.iter().map(|&index| named(index)).collect();
    rows.columns = Some(described(named(path_column), &captions));
    while let Some(row) = table.next_row()? {
        interrupt.check()?;
        let line = row.line;
        if row.len() != names.len() {
            let message = wrong_count(row.len(), names.len(), dialect);
            rows.bad_row(line, SkipCause::BadRow, message);
            continue;
        }
        let Ok(path) = std::str::from_utf8(row.get(path_column).unwrap_or_default()) else {
            rows.bad_row(line, SkipCause::BadName, "the path is not UTF-8");
            continue;
        };
        if path.is_empty() {
            rows.bad_row(line, SkipCause::BadRow, "the path is empty");
            continue;
        }
        let mut captions = Vec::new();
        let mut problem = None;
        for &column in &caption_columns {
            let found = match std::str::from_utf8(row.get(column).unwrap_or_default()) {
                Ok(text) => caption_of_text(text),
                Err(_) => Err((SkipCause::BadCaption, "caption is not UTF-8".to_owned())),
            };
            match found {
                Ok(mut found) => captions.append(&mut found),
                Err(found) => problem = problem.or(Some(found)),
            }
        }
        match problem {
            // A blank one of several is no loss.
            Some(problem) if captions.is_empty() => rows.add(line, path, Err(problem)),
            _ => rows.add(line, path, Ok(captions)),
        }
    }
    Ok(())
}

/// The columns of a table that hold the path and the captions.
fn table_columns(names: &[String], columns: &Columns<'_>) -> anyhow::Result<(usize, Vec<usize>)> {
    let all: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(index, name)| (name.as_str(), index))
        .collect();
    let listed = names.join(", ");
    let missing = |what: &str, option: &str| {
        anyhow::anyhow!(
            "no column {what}; the first line names: {listed}. Choose one with {option}"
        )
    };
    let only = |wanted: &str, option: &str| -> anyhow::Result<usize> {
        let mut found = all.iter().filter(|(name, _)| *name == wanted);
        match (found.next(), found.next()) {
            (Some((_, index)), None) => Ok(*index),
            (Some(_), Some(_)) => bail!("two columns are named `{wanted}`; rename one"),
            (None, _) => Err(missing(&format!("`{wanted}`"), option)),
        }
    };
    let path = match columns.path {
        Some(name) => only(name, "--path-column")?,
        None => match names::find(&PATH_NAMES, &all) {
            Some((name, _)) => only(name, "--path-column")?,
            None => return Err(missing(&like("path", &PATH_NAMES), "--path-column")),
        },
    };
    let captions = match columns.caption {
        Some(name) => vec![only(name, "--caption-column")?],
        None => {
            let chosen = names::choose(all.iter().map(|(name, _)| (*name, *name)));
            let chosen: Result<Vec<_>, _> = chosen
                .into_iter()
                .map(|name| only(name, "--caption-column"))
                .collect();
            chosen?
        }
    };
    if captions.is_empty() {
        return Err(missing(
            &like("caption", &CAPTION_NAMES),
            "--caption-column",
        ));
    }
    Ok((path, captions))
}

/// `first`, or another usual name of the same.
fn like(first: &str, names: &[&str]) -> String {
    let others: Vec<_> = names
        .iter()
        .filter(|name| **name != first)
        .take(4)
        .collect();
    let others = others.into_iter().copied().collect::<Vec<_>>().join(", ");
    format!("`{first}`, or of another usual name ({others}, ...)")
}

fn described(path: &str, captions: &[&str]) -> String {
    format!(
        "paths from `{path}`, captions from `{}`",
        captions.join("`, `")
    )
}

/// What a row of another number of fields than the first line has may be.
fn wrong_count(found: usize, expected: usize, dialect: Dialect) -> String {
    let advice = match (found > expected, dialect.quoting) {
        (true, true) => "put a field that holds a comma in quotes: \"A man, a dog\"",
        (true, false) => "a field cannot hold a tab",
        (false, _) => "is it cut short, or broken by a line end within a field?",
    };
    let found = counted(found as u64, "field", "fields");
    format!("{found} where the first line has {expected}; {advice}")
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
        let row = match json::parse::<Value>(text) {
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
        let (path_name, path) = match json_path(&row, columns.path) {
            Ok(found) => found,
            Err(message) => {
                rows.bad_row(line, SkipCause::BadRow, message);
                continue;
            }
        };
        if rows.columns.is_none() {
            rows.columns = Some(described(
                path_name,
                &json_caption_fields(&row, columns.caption),
            ));
        }
        let path = path.to_owned();
        let captions = json_captions(row, columns.caption);
        rows.add(line, &path, captions);
    }
    Ok(())
}

/// The field with the path, and the path.
fn json_path<'a>(
    row: &'a Map<String, Value>,
    column: Option<&'a str>,
) -> Result<(&'a str, &'a str), String> {
    let texts = || {
        let texts = row
            .iter()
            .filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)));
        texts.filter(|(_, text)| !text.is_empty())
    };
    let held = || row.keys().take(12).cloned().collect::<Vec<_>>().join(", ");
    match column {
        Some(column) => texts()
            .find(|(name, _)| *name == column)
            .ok_or_else(|| format!("no string `{column}` among {} (see --path-column)", held())),
        None => names::find(&PATH_NAMES, &texts().collect::<Vec<_>>()).ok_or_else(|| {
            let names = PATH_NAMES.join(", ");
            format!(
                "no string named {names} among {} (see --path-column)",
                held()
            )
        }),
    }
}

fn json_caption_fields<'a>(row: &'a Map<String, Value>, column: Option<&'a str>) -> Vec<&'a str> {
    match column {
        Some(column) => vec![column],
        None => names::choose(row.keys().map(|name| (name.as_str(), name.as_str()))),
    }
}

fn json_captions(
    mut row: Map<String, Value>,
    column: Option<&str>,
) -> Result<Vec<String>, (SkipCause, String)> {
    let value = match column {
        Some(column) => row.remove(column).filter(|value| !value.is_null()),
        None => {
            let has_name = !json_caption_fields(&row, None).is_empty();
            has_name.then_some(Value::Object(row))
        }
    };
    let Some(value) = value else {
        let name = column.unwrap_or("caption");
        let message = format!("no `{name}` (see --caption-column)");
        return Err((SkipCause::NoCaption, message));
    };
    match captions_from_value(&value) {
        Ok(captions) if captions.is_empty() => {
            Err((SkipCause::EmptyCaption, "the caption is blank".to_owned()))
        }
        Ok(captions) => Ok(captions),
        Err(error) => Err((SkipCause::BadCaption, error.to_string())),
    }
}
