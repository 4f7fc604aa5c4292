//! A row of columns that are neither image nor caption, as a JSON object.

use serde_json::{Map, Value};

use super::column::Column;
use crate::json;

/// Longest JSON of a row, in bytes: a dictionary or a run lets a few bytes stand for many.
pub(super) const MAX_JSON_BYTES: usize = 16 << 20;

/// A column that hub sets of tar shards have: the JSON beside image and text, as a struct or as text.
pub(super) const JSON: &str = "json";

/// Columns beside images and captions that go into a member `json`: numbers, strings, booleans, dates,
/// lists, structs and maps of them. Columns of bytes are members of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OtherColumns {
    /// None: columns of text become members of their own, others are passed over.
    #[default]
    None,
    /// All of them.
    All,
    /// Those of these names, which must be there.
    Named(Vec<String>),
}

impl OtherColumns {
    /// Whether a column of this name is wanted.
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            OtherColumns::None => false,
            OtherColumns::All => true,
            OtherColumns::Named(names) => names.iter().any(|wanted| wanted == name),
        }
    }
}

/// Why a row has no JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoJson {
    /// It is longer than [`MAX_JSON_BYTES`].
    TooLong,
    /// A text is not UTF-8.
    NotUtf8,
}

/// The object that a row's columns make. Fields of a column `json` are its own, unless another column has
/// their name.
///
/// # Errors
/// [`NoJson`].
pub(super) fn object_of(columns: &[(&str, &Column)], row: usize) -> Result<Vec<u8>, NoJson> {
    let mut out = Out(vec![b'{']);
    for &(name, column) in columns {
        let is_column = |name: &str| columns.iter().any(|(other, _)| *other == name);
        if name == JSON && column.write_fields(row, &is_column, &mut out)? {
            continue;
        }
        out.name(name)?;
        column.write_json(row, &mut out)?;
    }
    out.push(b"}")?;
    Ok(out.0)
}

/// What was written so far.
struct Out(Vec<u8>);

impl Out {
    fn push(&mut self, text: &[u8]) -> Result<(), NoJson> {
        if self.0.len() + text.len() > MAX_JSON_BYTES {
            return Err(NoJson::TooLong);
        }
        self.0.extend_from_slice(text);
        Ok(())
    }

    fn null(&mut self) -> Result<(), NoJson> {
        self.push(b"null")
    }

    /// A comma, unless this is the first of its list or object.
    fn separate(&mut self) -> Result<(), NoJson> {
        match self.0.last() {
            Some(b'[' | b'{') => Ok(()),
            _ => self.push(b","),
        }
    }

    fn name(&mut self, name: &str) -> Result<(), NoJson> {
        self.separate()?;
        self.string(name)?;
        self.push(b":")
    }

    fn string(&mut self, text: &str) -> Result<(), NoJson> {
        if self.0.len() + text.len() > MAX_JSON_BYTES {
            return Err(NoJson::TooLong);
        }
        // To memory, so that it cannot fail; escapes are a few bytes a character.
        serde_json::to_writer(&mut self.0, text).map_err(|_| NoJson::TooLong)?;
        self.push(b"")
    }
}

impl Column {
    /// The fields of a struct, or of a text that is a JSON object, without those that `is_column` knows;
    /// whether it is one.
    fn write_fields(
        &self,
        row: usize,
        is_column: &dyn Fn(&str) -> bool,
        out: &mut Out,
    ) -> Result<bool, NoJson> {
        match self {
            Column::Record { rows, fields } if rows.is_valid(row) => {
                for (name, field) in fields.iter().filter(|(name, _)| !is_column(name)) {
                    out.name(name)?;
                    field.write_json(row, out)?;
                }
                Ok(true)
            }
            Column::Leaf(leaf) => {
                let text = leaf.get(row).unwrap_or_default();
                let Ok(fields) = json::parse::<Map<String, Value>>(text) else {
                    return Ok(false);
                };
                for (name, value) in fields.iter().filter(|(name, _)| !is_column(name)) {
                    out.name(name)?;
                    out.push(value.to_string().as_bytes())?;
                }
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// The value of a row.
    fn write_json(&self, row: usize, out: &mut Out) -> Result<(), NoJson> {
        match self {
            Column::Leaf(leaf) => match leaf.get(row) {
                None => out.null(),
                Some(text) => {
                    let text = std::str::from_utf8(text).map_err(|_| NoJson::NotUtf8)?;
                    out.string(text)
                }
            },
            Column::Scalars { rows, data, scalar } => match rows.is_valid(row) {
                true => out.push(scalar.json(data, row).as_bytes()),
                false => out.null(),
            },
            Column::List {
                rows,
                offsets,
                values,
            } if rows.is_valid(row) => {
                out.push(b"[")?;
                let (start, end) = offsets.of_row(row);
                for index in start..end {
                    out.separate()?;
                    values.write_json(index, out)?;
                }
                out.push(b"]")
            }
            Column::Map {
                rows,
                offsets,
                keys,
                values,
            } if rows.is_valid(row) => {
                out.push(b"{")?;
                let (start, end) = offsets.of_row(row);
                for index in start..end {
                    let mut key = Out(Vec::new());
                    keys.write_json(index, &mut key)?;
                    // A key that is no string is named by its JSON.
                    let text: String = serde_json::from_slice(&key.0)
                        .unwrap_or_else(|_| String::from_utf8_lossy(&key.0).into_owned());
                    out.name(&text)?;
                    values.write_json(index, out)?;
                }
                out.push(b"}")
            }
            Column::Record { rows, fields } if rows.is_valid(row) => {
                out.push(b"{")?;
                for (name, field) in fields {
                    out.name(name)?;
                    field.write_json(row, out)?;
                }
                out.push(b"}")
            }
            Column::Runs { ends, values } => match ends.run_of(row) {
                Some(run) => values.write_json(run, out),
                None => out.null(),
            },
            Column::List { .. }
            | Column::Map { .. }
            | Column::Record { .. }
            | Column::Nothing { .. }
            // Images and structs of which one child counts are read for other ends.
            | Column::Struct { .. }
            | Column::Image { .. } => out.null(),
        }
    }
}
