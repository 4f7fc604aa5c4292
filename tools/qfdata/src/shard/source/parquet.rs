//! Rows of Parquet files: images as bytes, Hugging Face's image struct, paths or URLs.
//!
//! Rows come as they are read, a row group at a time, and are not put together: a row is a sample.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row as Record};
use parquet::schema::types::TypePtr;
use qf_pipeline::captions::is_caption_member;
use qf_pipeline::shard::arrow::{CaptionType, IMAGE_EXTENSIONS};
use serde_json::{Map, Value};

use super::super::load::ending_of;
use super::super::row::{CaptionRef, Give, ImageRef, Input, Name, Row, Skip, SkipCause};
use super::columns::{Chosen, Wanted};
use super::fingerprint::Fingerprint;
use super::folder::natural_key;
use super::list::{captions_of_value, image_ref, key_of};
use super::parquet_json::{json_of, member_name, value_of};

/// Parquet files of one schema.
pub(in super::super) struct Files {
    /// With the number of rows of each.
    files: Vec<(PathBuf, u64)>,
    /// Names of the columns of the first.
    names: Vec<String>,
    /// Their types.
    types: Vec<TypePtr>,
    chosen: Chosen,
    wanted: Wanted,
    images: PathBuf,
    holds_texts: bool,
    /// Whether images are structs of bytes and a path, which names the sample.
    names_samples: bool,
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
        let mut chosen = Chosen::of(&names, is_binary, &wanted)
            .with_context(|| format!("cannot read {}", files[0].0.display()))?;
        let mut notes = vec![format!(
            "{}: {}",
            files[0].0.display(),
            chosen.described(&names)
        )];
        // A member of such a name would be taken for the sample's image or caption.
        chosen.more.retain(|&column| {
            let name = member_name(&names[column]);
            let is_image = IMAGE_EXTENSIONS.contains(&name.as_str()) || is_caption_member(&name);
            let has_place = !(is_image && fields[column].is_primitive() && is_binary(column));
            if !has_place {
                notes.push(format!(
                    "column `{}` (binary) is left out: a sample has one image; rename the column to keep it",
                    names[column]
                ));
            }
            has_place
        });
        let is_text = |at: &usize| fields.get(*at).is_some_and(|field| field.is_primitive());
        let folder = files[0].0.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Files {
            notes,
            holds_texts: !is_binary(chosen.image),
            names_samples: fields
                .get(chosen.image)
                .is_some_and(|field| field.is_group()),
            one_caption: chosen.captions.len() == 1 && chosen.captions.iter().all(is_text),
            fingerprint: fingerprint.finish(),
            images: images.map_or(folder, Path::to_owned),
            types: fields,
            files,
            names,
            chosen,
            wanted,
        })
    }

    pub(super) fn rows(&self) -> u64 {
        self.files.iter().map(|(_, rows)| rows).sum()
    }

    /// Whether two rows may have one key.
    pub(super) fn repeats_keys(&self) -> bool {
        self.names_samples
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
        let (image, path) = match self.image(take(self.chosen.image)) {
            Some(found) => found,
            None => return Err(skip(SkipCause::BadRow, "it has no image".to_owned())),
        };
        let mut captions = Vec::new();
        let mut problem = (SkipCause::NoCaption, "it has no caption".to_owned());
        for &column in &self.chosen.captions {
            match self.value(column, &take(column)) {
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
        let mut members = Vec::new();
        for &column in &self.chosen.more {
            let name = self.names.get(column).cloned().unwrap_or_default();
            match take(column) {
                Field::Bytes(bytes) => members.push((member_name(&name), bytes.data().to_vec())),
                field => {
                    more.insert(name, self.value(column, &field));
                }
            }
        }
        let url = match &image {
            ImageRef::Url(url) => Some(url.clone()),
            _ => None,
        };
        Ok(Row {
            name: Name {
                key: path
                    .and_then(|path| natural_key(Path::new(&path)).ok())
                    .unwrap_or_else(|| key_of(position)),
                origin,
                url,
            },
            image,
            captions: CaptionRef::Inline(captions),
            json: json_of(more),
            members,
        })
    }

    fn value(&self, column: usize, field: &Field) -> Value {
        value_of(field, self.types.get(column).map(|field| field.as_ref()))
    }

    /// An image, and the path that names it beside its bytes.
    fn image(&self, field: Field) -> Option<(ImageRef, Option<String>)> {
        match field {
            Field::Str(text) if text.trim().is_empty() => None,
            Field::Str(text) => Some((image_ref(&self.images, &text), None)),
            Field::Bytes(bytes) => {
                let image = ImageRef::Bytes(bytes.data().to_vec(), String::new());
                Some((image, None))
            }
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
                        let ending = path.as_deref().map(|path| ending_of(Path::new(path)));
                        Some((ImageRef::Bytes(bytes, ending.unwrap_or_default()), path))
                    }
                    (None, Some(path)) => Some((image_ref(&self.images, &path), Some(path))),
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
