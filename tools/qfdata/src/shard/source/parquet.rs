//! Rows of Parquet files: images as bytes, Hugging Face's image struct, paths or URLs.
//!
//! Rows come as they are read, a row group at a time, and are not put together: a row is a sample.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as Record};
use qf_pipeline::shard::arrow::CaptionType;
use serde_json::{Map, Number, Value};

use super::super::load::ending_of;
use super::super::row::{CaptionRef, Give, ImageRef, Input, Name, Row, Skip, SkipCause};
use super::columns::{Chosen, Wanted};
use super::fingerprint::Fingerprint;
use super::list::{captions_of_value, image_ref, key_of};

/// Parquet files of one schema.
pub(in super::super) struct Files {
    /// With the number of rows of each.
    files: Vec<(PathBuf, u64)>,
    /// Names of the columns of the first.
    names: Vec<String>,
    chosen: Chosen,
    wanted: Wanted,
    images: PathBuf,
    holds_texts: bool,
    one_caption: bool,
    pub(super) notes: Vec<String>,
    pub(super) fingerprint: String,
}

impl Files {
    /// Opens files, and chooses columns by the first.
    ///
    /// # Errors
    /// What cannot be read; columns that are missing.
    pub(super) fn open(
        paths: Vec<PathBuf>,
        images: Option<&Path>,
        wanted: Wanted,
    ) -> anyhow::Result<Files> {
        let mut fingerprint = Fingerprint::new();
        let mut files = Vec::new();
        let mut first = None;
        for path in paths {
            let reader = open(&path)?;
            let rows = reader.metadata().file_metadata().num_rows();
            fingerprint.path(&path.display().to_string(), &path);
            let schema = reader.metadata().file_metadata().schema_descr_ptr();
            let fields = schema.root_schema().get_fields().to_vec();
            let names: Vec<String> = fields.iter().map(|field| field.name().to_owned()).collect();
            match &first {
                None => first = Some((names, fields)),
                Some((expected, _)) if *expected != names => bail!(
                    "{} has the columns {}, but the files before it {}; give files of one schema",
                    path.display(),
                    names.join(", "),
                    expected.join(", ")
                ),
                Some(_) => {}
            }
            files.push((path, u64::try_from(rows).unwrap_or(0)));
        }
        let Some((names, fields)) = first else {
            bail!("no Parquet files");
        };
        let is_binary = |at: usize| fields.get(at).is_some_and(|field| holds_bytes(field));
        let chosen = Chosen::of(&names, is_binary, &wanted)
            .with_context(|| format!("cannot read {}", files[0].0.display()))?;
        let is_text = |at: &usize| fields.get(*at).is_some_and(|field| field.is_primitive());
        let folder = files[0].0.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Files {
            notes: vec![format!(
                "{}: {}",
                files[0].0.display(),
                chosen.described(&names)
            )],
            holds_texts: !is_binary(chosen.image),
            one_caption: chosen.captions.len() == 1 && chosen.captions.iter().all(is_text),
            fingerprint: fingerprint.finish(),
            images: images.map_or(folder, Path::to_owned),
            files,
            names,
            chosen,
            wanted,
        })
    }

    pub(super) fn rows(&self) -> u64 {
        self.files.iter().map(|(_, rows)| rows).sum()
    }

    pub(super) fn has_urls(&self) -> bool {
        self.holds_texts
    }

    pub(super) fn caption_type(&self) -> CaptionType {
        match self.one_caption {
            true => CaptionType::One,
            false => CaptionType::List,
        }
    }

    pub(super) fn read(&self, range: Range<u64>, give: Give<'_>) -> anyhow::Result<()> {
        let mut position = 0;
        for (path, rows) in &self.files {
            let of_file = position..position + rows;
            position = of_file.end;
            if of_file.end <= range.start || of_file.start >= range.end {
                continue;
            }
            let go_on = self
                .read_file(path, of_file.start, &range, &mut *give)
                .with_context(|| format!("cannot read {}", path.display()))?;
            if !go_on {
                break;
            }
        }
        Ok(())
    }

    /// Reads what of a file, whose first row has this position, is in the range.
    fn read_file(
        &self,
        path: &Path,
        start: u64,
        range: &Range<u64>,
        give: Give<'_>,
    ) -> anyhow::Result<bool> {
        let reader = open(path)?;
        let mut position = start;
        for group in 0..reader.num_row_groups() {
            let rows = u64::try_from(reader.metadata().row_group(group).num_rows()).unwrap_or(0);
            if position + rows <= range.start {
                position += rows;
                continue;
            }
            let group = reader.get_row_group(group)?;
            for record in group.get_row_iter(None)? {
                if position >= range.end {
                    return Ok(false);
                }
                let record = record?;
                if position >= range.start {
                    let line = position - start + 1;
                    if !give(self.row(path, line, position, record))? {
                        return Ok(false);
                    }
                }
                position += 1;
            }
        }
        Ok(true)
    }

    fn row(&self, path: &Path, line: u64, position: u64, record: Record) -> Input {
        let origin = format!("{}:{line}", path.display());
        let skip = |cause, message: String| Skip::new(origin.clone(), cause, message);
        let mut fields: Vec<Option<Field>> = record
            .into_columns()
            .into_iter()
            .map(|(_, field)| Some(field))
            .collect();
        let mut take = |at: usize| {
            fields
                .get_mut(at)
                .and_then(Option::take)
                .unwrap_or(Field::Null)
        };
        if let Some(split) = self.chosen.split {
            let split = take(split);
            let is_wanted = match &split {
                Field::Str(name) => self.wanted.takes_split(Some(name)),
                _ => false,
            };
            if !is_wanted {
                let message = "its split was not asked for".to_owned();
                return Err(skip(SkipCause::OtherSplit, message));
            }
        }
        let image = match self.image(take(self.chosen.image)) {
            Some(image) => image,
            None => return Err(skip(SkipCause::BadRow, "it has no image".to_owned())),
        };
        let mut captions = Vec::new();
        let mut problem = (SkipCause::NoCaption, "it has no caption".to_owned());
        for &column in &self.chosen.captions {
            match value_of(&take(column)) {
                Value::Null => {}
                value => match captions_of_value(&value) {
                    Ok(found) => captions.extend(found),
                    Err(found) => problem = found,
                },
            }
        }
        if captions.is_empty() {
            return Err(skip(problem.0, problem.1));
        }
        let mut more = Map::new();
        for &column in &self.chosen.more {
            let value = value_of(&take(column));
            let name = self.names.get(column).cloned().unwrap_or_default();
            more.insert(name, value);
        }
        let url = match &image {
            ImageRef::Url(url) => Some(url.clone()),
            _ => None,
        };
        Ok(Row {
            name: Name {
                key: key_of(position),
                origin,
                url,
            },
            image,
            captions: CaptionRef::Inline(captions),
            json: (!more.is_empty()).then(|| serde_json::to_vec(&more).unwrap_or_default()),
            members: Vec::new(),
        })
    }

    fn image(&self, field: Field) -> Option<ImageRef> {
        match field {
            Field::Str(text) if text.trim().is_empty() => None,
            Field::Str(text) => Some(image_ref(&self.images, &text)),
            Field::Bytes(bytes) => Some(ImageRef::Bytes(bytes.data().to_vec(), String::new())),
            // Hugging Face's image: bytes, or the path of a file.
            Field::Group(group) => {
                let mut path = None;
                let mut bytes = None;
                for (name, field) in group.into_columns() {
                    match (name.as_str(), field) {
                        ("bytes", Field::Bytes(data)) => bytes = Some(data.data().to_vec()),
                        ("path", Field::Str(text)) => path = Some(text),
                        _ => {}
                    }
                }
                match (bytes, path) {
                    (Some(bytes), path) => {
                        let ending = path.map(|path| ending_of(Path::new(&path)));
                        Some(ImageRef::Bytes(bytes, ending.unwrap_or_default()))
                    }
                    (None, Some(path)) => Some(image_ref(&self.images, &path)),
                    (None, None) => None,
                }
            }
            _ => None,
        }
    }
}

fn open(path: &Path) -> anyhow::Result<SerializedFileReader<File>> {
    let what = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(what)?;
    SerializedFileReader::new(file).with_context(what)
}

/// Whether a column is binary, or a struct with a binary `bytes`.
fn holds_bytes(field: &parquet::schema::types::Type) -> bool {
    use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
    let is_binary = |field: &parquet::schema::types::Type| {
        let info = field.get_basic_info();
        field.is_primitive()
            && field.get_physical_type() == Physical::BYTE_ARRAY
            && info.converted_type() == ConvertedType::NONE
            && !matches!(info.logical_type_ref(), Some(LogicalType::String))
    };
    match field.is_primitive() {
        true => is_binary(field),
        false => {
            let mut fields = field.get_fields().iter();
            fields.any(|field| field.name() == "bytes" && is_binary(field))
        }
    }
}

/// A field as JSON. Bytes have no place there.
fn value_of(field: &Field) -> Value {
    let float = |value: f64| Number::from_f64(value).map_or(Value::Null, Value::Number);
    match field {
        Field::Null | Field::Bytes(_) => Value::Null,
        Field::Bool(value) => Value::Bool(*value),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) | Field::Date(value) | Field::TimeMillis(value) => (*value).into(),
        Field::Long(value)
        | Field::TimeMicros(value)
        | Field::TimestampMillis(value)
        | Field::TimestampMicros(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Float16(value) => float(f64::from(value.to_f32())),
        // As it is written: 0.3, not 0.30000001192092896.
        Field::Float(value) => float(value.to_string().parse().unwrap_or(f64::from(*value))),
        Field::Double(value) => float(*value),
        Field::Decimal(_) => Value::String(field.to_string()),
        Field::Str(text) => Value::String(text.clone()),
        Field::Group(group) => {
            let fields = group.get_column_iter();
            Value::Object(
                fields
                    .map(|(name, field)| (name.clone(), value_of(field)))
                    .collect(),
            )
        }
        Field::ListInternal(list) => list.elements().iter().map(value_of).collect(),
        Field::MapInternal(map) => {
            let entry = |(key, value): &(Field, Field)| {
                let key = match key {
                    Field::Str(key) => key.clone(),
                    key => key.to_string(),
                };
                (key, value_of(value))
            };
            Value::Object(map.entries().iter().map(entry).collect())
        }
    }
}
