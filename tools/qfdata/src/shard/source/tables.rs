//! Lists the images of a CSV, TSV or JSONL manifest.
//!
//! A CSV or TSV file starts with a line of column names, and every row has as many fields. CSV fields
//! may be quoted; TSV fields are taken as they are. A JSONL line is an object whose caption is a string
//! or a list of strings. Several rows of one image are several captions of one sample. Keys are the
//! position of the image among the distinct images of the file, `000000000` first.

use std::io::{BufRead, Read};

use anyhow::bail;
use qf_pipeline::json;
use qf_pipeline::words::counted;
use serde_json::{Map, Value};

use super::super::load::MAX_CAPTION_BYTES;
use super::super::row::SkipCause;
use super::columns::{described, Chosen, Fields, Wanted};
use super::list::{caption_of_text, captions_of_value, Captions, Grouped};
use super::table::{Dialect, Table};
use crate::interrupt::Interrupt;

pub(super) const CSV: Dialect = Dialect {
    delimiter: b',',
    quoting: true,
};
pub(super) const TSV: Dialect = Dialect {
    delimiter: b'\t',
    quoting: false,
};

/// Reads a table with a line of column names.
///
/// # Errors
/// Columns that are missing; what keeps rows from being told apart.
pub(super) fn read_table(
    file: impl Read,
    dialect: Dialect,
    wanted: &Wanted,
    interrupt: &Interrupt,
    rows: &mut Grouped<'_>,
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
    let chosen = Chosen::of(&names, |_| false, wanted)?;
    rows.notes.push(chosen.described(&names));
    while let Some(row) = table.next_row()? {
        interrupt.check()?;
        let line = row.line;
        if row.len() != names.len() {
            let message = wrong_count(row.len(), names.len(), dialect);
            rows.bad_row(line, SkipCause::BadRow, message);
            continue;
        }
        let text = |column: usize| std::str::from_utf8(row.get(column).unwrap_or_default());
        if let Some(split) = chosen.split {
            if !wanted.takes_split(text(split).ok().map(str::trim)) {
                continue;
            }
        }
        let Ok(image) = text(chosen.image) else {
            rows.bad_row(line, SkipCause::BadName, "the path is not UTF-8");
            continue;
        };
        if image.trim().is_empty() {
            rows.bad_row(line, SkipCause::BadRow, "the path is empty");
            continue;
        }
        let captions = table_captions(&chosen.captions, text);
        let mut more = Map::new();
        for &column in &chosen.more {
            let value = String::from_utf8_lossy(row.get(column).unwrap_or_default());
            let name = names.get(column).cloned().unwrap_or_default();
            more.insert(name, Value::String(value.into_owned()));
        }
        rows.add(line, image.trim(), captions, more);
    }
    Ok(())
}

fn table_captions<'a>(
    columns: &[usize],
    text: impl Fn(usize) -> Result<&'a str, std::str::Utf8Error>,
) -> Captions {
    let mut captions = Vec::new();
    let mut problem = None;
    for &column in columns {
        let found = match text(column) {
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
        Some(problem) if captions.is_empty() => Err(problem),
        _ => Ok(captions),
    }
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

/// Reads objects, one a line.
///
/// # Errors
/// A line beyond all bounds.
pub(super) fn read_jsonl(
    mut reader: impl BufRead,
    wanted: &Wanted,
    interrupt: &Interrupt,
    rows: &mut Grouped<'_>,
) -> anyhow::Result<()> {
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
        match json::parse::<Value>(text) {
            Ok(Value::Object(row)) => add_object(line, row, wanted, rows),
            Ok(_) => rows.bad_row(line, SkipCause::BadRow, "not a JSON object"),
            Err(error) => rows.bad_row(line, SkipCause::BadRow, format!("not JSON: {error}")),
        }
    }
    Ok(())
}

/// A row that is an object.
pub(super) fn add_object(
    line: u64,
    mut row: Map<String, Value>,
    wanted: &Wanted,
    rows: &mut Grouped<'_>,
) {
    if !wanted.takes_split(row.get("split").and_then(Value::as_str)) {
        return;
    }
    let fields = match Fields::of(&row, wanted) {
        Ok(fields) => fields,
        Err(message) => return rows.bad_row(line, SkipCause::BadRow, message),
    };
    if rows.notes.is_empty() {
        let captions: Vec<_> = fields.caption_names.iter().map(String::as_str).collect();
        let note = described(&fields.image_name, &captions);
        rows.notes.push(note);
    }
    let mut captions = Vec::new();
    let mut problem = None;
    for name in &fields.caption_names {
        match row.remove(name).filter(|value| !value.is_null()) {
            Some(value) => match captions_of_value(&value) {
                Ok(found) => captions.extend(found),
                Err(found) => problem = problem.or(Some(found)),
            },
            None => {
                let message = format!("no `{name}` (see --caption-column)");
                problem = problem.or(Some((SkipCause::NoCaption, message)));
            }
        }
    }
    let captions = match (captions.is_empty(), problem) {
        (false, _) => Ok(captions),
        (true, Some(problem)) => Err(problem),
        (true, None) => {
            let message = "no `caption` (see --caption-column)".to_owned();
            Err((SkipCause::NoCaption, message))
        }
    };
    row.remove(&fields.image_name);
    row.retain(|name, _| wanted.keep.has(name));
    rows.add(line, &fields.image, captions, row);
}
