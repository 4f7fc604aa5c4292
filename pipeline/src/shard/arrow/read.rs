//! Rows of an Arrow shard as samples.

use std::collections::HashSet;
use std::io::Read;
use std::sync::Arc;

use super::batch::{Batch, BatchReader, Selected};
use super::column::{Column, Shape};
use super::error::{ArrowError, ReadError};
use super::image_name::{extension_of, key_of, IMAGE_EXTENSIONS};
use super::schema::{Field, Kind};
use super::{ArrowReadOptions, CAPTION_MEMBER};
use crate::error::{SampleError, ShardError, SkipReason};
use crate::sample::{EncodedSample, Member, MemberData, SampleId};

/// Reads an Arrow IPC shard, stream or file format, row by row.
///
/// Members of a sample, in column order:
/// * the image, as bytes, named by one of [`IMAGE_EXTENSIONS`]: its path's last extension, else
///   what its bytes begin like, else `jpg`;
/// * [`CAPTION_MEMBER`], the captions as text, nulls left out;
/// * every other binary, string or list-of-strings column that is not null in this row, under its
///   column name. Columns of other types are passed over, and so are those whose name repeats
///   another or is one of the names above.
///
/// The key is the image path up to the first dot of its base name, else the row's number in nine
/// digits. Keys may repeat within a shard: Arrow rows need no name.
///
/// An iterator over rows: `Ok(Ok(sample))` is a sample, `Ok(Err(_))` costs one row, `Err(_)` ends
/// the shard, and nothing follows it. One record batch is in memory at a time, so memory follows
/// the largest batch: at most [`ArrowReadOptions::max_message_bytes`], the same again for what its
/// buffers decompress to, and as much as that for its offsets.
pub struct ArrowShardReader<R: Read> {
    shard: Arc<str>,
    shard_index: u32,
    batches: BatchReader<R>,
    /// What each selected column is to a sample.
    roles: Vec<Role>,
    batch: Option<Batch>,
    next_row: usize,
    next_sample: u32,
    max_member_bytes: u64,
    at_end: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Role {
    Image,
    Caption,
    /// Another member, of this name.
    Bytes(String),
    /// Another member, of this name.
    Text(String),
}

impl<R: Read> ArrowShardReader<R> {
    /// Reads the schema and finds the image and caption columns.
    ///
    /// # Errors
    /// [`ShardError`] if this is no Arrow IPC stream or file, if it is big-endian or older than
    /// Arrow 0.8, or if the image or the caption column is missing, ambiguous, or of a type that
    /// is not read.
    pub fn new(
        shard: Arc<str>,
        shard_index: u32,
        reader: R,
        options: &ArrowReadOptions,
    ) -> Result<Self, ShardError> {
        let mut roles = Vec::new();
        let batches = BatchReader::open(reader, options.max_message_bytes, |fields| {
            let selection = select_columns(fields, options)?;
            let (selected, found) = selection.into_iter().unzip();
            roles = found;
            Ok(selected)
        })
        .map_err(|error| shard_error(&shard, error))?;
        Ok(ArrowShardReader {
            shard,
            shard_index,
            batches,
            roles,
            batch: None,
            next_row: 0,
            next_sample: 0,
            max_member_bytes: options.max_member_bytes,
            at_end: false,
        })
    }

    /// How much of the shard was read, in bytes.
    pub fn position(&self) -> u64 {
        self.batches.position()
    }

    /// Whether rows of a later record batch need dictionaries that came after the first.
    pub(crate) fn has_late_dictionaries(&self) -> bool {
        self.batches.has_late_dictionaries()
    }

    /// Reads the dictionaries before the first record batch, which begins at `end`: what
    /// [`ArrowShardReader::load_batch`] needs.
    pub(crate) fn read_dictionaries(&mut self, end: u64) -> Result<(), ShardError> {
        let read = self.batches.read_dictionaries(end);
        read.map_err(|error| shard_error(&self.shard, error))
    }

    /// Goes on with the message at `position`, which `reader` begins with.
    pub(crate) fn continue_with(&mut self, reader: R, position: u64) {
        self.batches.continue_with(reader, position);
    }

    /// Makes the record batch at `offset`, at or after the current position, the current one.
    ///
    /// # Errors
    /// [`ShardError`] if no sound record batch begins there.
    pub(crate) fn load_batch(&mut self, offset: u64) -> Result<(), ShardError> {
        self.batch = None;
        let mut load = || {
            self.batches.skip_to(offset)?;
            match self.batches.next_batch()? {
                Some(batch) if batch.offset == offset => Ok(batch),
                _ => {
                    let problem = format!("no record batch begins at byte {offset}");
                    Err(ArrowError::Malformed(problem).at(offset))
                }
            }
        };
        self.batch = Some(load().map_err(|error| shard_error(&self.shard, error))?);
        Ok(())
    }

    /// A row of the current batch as the sample of this number; `None` if there is no such row.
    pub(crate) fn row(
        &mut self,
        row: u64,
        sample_index: u32,
    ) -> Option<Result<EncodedSample, SampleError>> {
        self.next_sample = sample_index;
        let batch = self.batch.as_ref()?;
        let row = usize::try_from(row).ok().filter(|&row| row < batch.rows)?;
        Some(self.sample(batch, row))
    }

    /// The next row: see the type's documentation.
    pub fn next_sample(
        &mut self,
    ) -> Option<Result<Result<EncodedSample, SampleError>, ShardError>> {
        if self.at_end {
            return None;
        }
        match self.next_row() {
            Ok(Some(sample)) => Some(Ok(sample)),
            Ok(None) => {
                self.at_end = true;
                None
            }
            Err(error) => {
                self.at_end = true;
                self.batch = None;
                Some(Err(shard_error(&self.shard, error)))
            }
        }
    }

    fn next_row(&mut self) -> Result<Option<Result<EncodedSample, SampleError>>, ReadError> {
        loop {
            if let Some(batch) = self
                .batch
                .as_ref()
                .filter(|batch| self.next_row < batch.rows)
            {
                let sample = self.sample(batch, self.next_row);
                self.next_sample = self.next_sample.checked_add(1).ok_or_else(|| {
                    ArrowError::Unsupported(format!("more than {} rows", u32::MAX)).at(batch.offset)
                })?;
                self.next_row = self.next_row.saturating_add(1);
                return Ok(Some(sample));
            }
            // Dropped before the next is read: one batch in memory at a time.
            self.batch = None;
            self.next_row = 0;
            self.batch = self.batches.next_batch()?;
            if self.batch.is_none() {
                return Ok(None);
            }
        }
    }

    fn sample(&self, batch: &Batch, row: usize) -> Result<EncodedSample, SampleError> {
        let columns = || self.roles.iter().zip(&batch.columns);
        let path = columns()
            .find(|(role, _)| **role == Role::Image)
            .and_then(|(_, column)| column.path(row))
            .and_then(|path| std::str::from_utf8(path).ok());
        let id = SampleId {
            shard: Arc::clone(&self.shard),
            shard_index: self.shard_index,
            sample_index: self.next_sample,
            key: path
                .and_then(key_of)
                .map_or_else(|| format!("{:09}", self.next_sample), str::to_string),
            offset_bytes: batch.offset,
        };
        let mut members = Vec::with_capacity(self.roles.len());
        for (role, column) in columns() {
            match self.member(role, column, row, path) {
                Ok(member) => members.extend(member),
                Err((reason, message)) => {
                    return Err(SampleError {
                        id: Box::new(id),
                        reason,
                        message,
                    })
                }
            }
        }
        Ok(EncodedSample { id, members })
    }

    /// The member that a column contributes; another column's null contributes none.
    fn member(
        &self,
        role: &Role,
        column: &Column,
        row: usize,
        path: Option<&str>,
    ) -> Result<Option<Member>, (SkipReason, String)> {
        match role {
            Role::Image => {
                let bytes = column.bytes(row).ok_or_else(|| {
                    let message = match path {
                        None => "the image is null".to_string(),
                        Some(path) => format!(
                            "the image has no bytes, only the path `{path}`; write the shard again with embedded images"
                        ),
                    };
                    (SkipReason::NoImage, message)
                })?;
                let bytes = self.within_limit("image", bytes)?;
                Ok(Some(Member::new(
                    extension_of(path, bytes),
                    MemberData::Bytes(bytes.to_vec()),
                )))
            }
            Role::Caption => {
                let captions = self.texts(CAPTION_MEMBER, column, row)?;
                match captions {
                    Some(captions) if !captions.is_empty() => Ok(Some(Member::new(
                        CAPTION_MEMBER,
                        MemberData::Text(captions),
                    ))),
                    _ => Err((SkipReason::NoCaption, "the caption is null".to_string())),
                }
            }
            Role::Bytes(name) => match column.bytes(row) {
                None => Ok(None),
                Some(bytes) => {
                    let bytes = self.within_limit(name, bytes)?.to_vec();
                    Ok(Some(Member::new(name, MemberData::Bytes(bytes))))
                }
            },
            Role::Text(name) => {
                let texts = self.texts(name, column, row)?;
                Ok(texts.map(|texts| Member::new(name, MemberData::Text(texts))))
            }
        }
    }

    fn texts(
        &self,
        name: &str,
        column: &Column,
        row: usize,
    ) -> Result<Option<Vec<String>>, (SkipReason, String)> {
        let Some(values) = column.values(row) else {
            return Ok(None);
        };
        // Checked before anything is copied: a dictionary lets a few bytes stand for many.
        let total: u64 = values
            .iter()
            .map(|value| value.len() as u64)
            .fold(0, u64::saturating_add);
        self.check_limit(name, total)?;
        values
            .into_iter()
            .map(|value| match std::str::from_utf8(value) {
                Ok(text) => Ok(text.to_string()),
                Err(error) => Err((
                    SkipReason::BadCaption,
                    format!("{name} is not UTF-8 at byte {}", error.valid_up_to()),
                )),
            })
            .collect::<Result<_, _>>()
            .map(Some)
    }

    fn within_limit<'a>(
        &self,
        name: &str,
        bytes: &'a [u8],
    ) -> Result<&'a [u8], (SkipReason, String)> {
        self.check_limit(name, bytes.len() as u64).map(|()| bytes)
    }

    fn check_limit(&self, name: &str, bytes: u64) -> Result<(), (SkipReason, String)> {
        if bytes <= self.max_member_bytes {
            return Ok(());
        }
        let limit = self.max_member_bytes;
        Err((
            SkipReason::SampleTooLarge,
            format!("{name} of {bytes} bytes exceeds max_member_bytes = {limit}"),
        ))
    }
}

impl<R: Read> Iterator for ArrowShardReader<R> {
    type Item = Result<Result<EncodedSample, SampleError>, ShardError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_sample()
    }
}

fn shard_error(shard: &str, error: ReadError) -> ShardError {
    ShardError {
        shard: shard.to_string(),
        offset_bytes: error.offset,
        message: error.cause.to_string(),
    }
}

/// Finds the image and the caption column, and whatever else can become a member.
fn select_columns(
    fields: &[Field],
    options: &ArrowReadOptions,
) -> Result<Vec<(Selected, Role)>, ArrowError> {
    let image = find_column(fields, &options.image_column, "image_column")?;
    let caption = find_column(fields, &options.caption_column, "caption_column")?;
    if image == caption {
        return Err(ArrowError::Columns(format!(
            "image_column and caption_column are both `{}`; name two columns",
            options.image_column
        )));
    }
    let mut selection: Vec<(Selected, Role)> = Vec::new();
    let mut names = HashSet::new();
    for (field_index, field) in fields.iter().enumerate() {
        let content = content_of(field);
        let (shape, role) = if field_index == image {
            match content {
                Some((shape, Content::Bytes | Content::Image)) => (shape, Role::Image),
                _ => return Err(wrong_type(field, "a binary or a struct<bytes, path>")),
            }
        } else if field_index == caption {
            match content {
                Some((shape, Content::Text)) => (shape, Role::Caption),
                _ => return Err(wrong_type(field, "a string or a list of strings")),
            }
        } else {
            let name = field.name.clone();
            let is_reserved = name == CAPTION_MEMBER || IMAGE_EXTENSIONS.contains(&name.as_str());
            let is_repeated = !names.insert(field.name.as_str());
            match content {
                _ if is_reserved || is_repeated => continue,
                Some((shape, Content::Bytes)) => (shape, Role::Bytes(name)),
                Some((shape, Content::Text)) => (shape, Role::Text(name)),
                Some((_, Content::Image)) | None => continue,
            }
        };
        selection.push((Selected { field_index, shape }, role));
    }
    // Columns that only the batch could pass over are no obstacle behind the last needed one.
    let last_needed = image.max(caption);
    let blocked = fields.iter().skip(last_needed + 1).position(|field| {
        field
            .counts(arrow_format::ipc::MetadataVersion::V5)
            .is_none()
    });
    if let Some(blocked) = blocked {
        let first_blocked = last_needed + 1 + blocked;
        selection.retain(|(selected, _)| selected.field_index < first_blocked);
    }
    Ok(selection)
}

enum Content {
    Bytes,
    Text,
    Image,
}

/// What a member made of this column would hold; `None` for columns that are passed over.
fn content_of(field: &Field) -> Option<(Shape, Content)> {
    let shape = Shape::of(field)?;
    let leaf = shape.leaves(field).first().map(|leaf| leaf.kind);
    match (shape, leaf) {
        (Shape::Image { .. }, _) => Some((shape, Content::Image)),
        (Shape::Leaf, Some(Kind::Binary { .. })) => Some((shape, Content::Bytes)),
        (Shape::Leaf | Shape::List, Some(Kind::Text { .. })) => Some((shape, Content::Text)),
        _ => None,
    }
}

fn find_column(fields: &[Field], name: &str, setting: &str) -> Result<usize, ArrowError> {
    let mut found = fields
        .iter()
        .enumerate()
        .filter(|(_, field)| field.name == name);
    match (found.next(), found.next()) {
        (Some((index, _)), None) => Ok(index),
        (Some(_), Some(_)) => Err(ArrowError::Columns(format!(
            "two columns are named `{name}`; rename one"
        ))),
        (None, _) => {
            const MAX_LISTED: usize = 20;
            let listed: Vec<_> = fields
                .iter()
                .take(MAX_LISTED)
                .map(|field| field.name.as_str())
                .collect();
            Err(ArrowError::Columns(format!(
                "no column `{name}` among [{}]; set {setting}",
                listed.join(", ")
            )))
        }
    }
}

fn wrong_type(field: &Field, expected: &str) -> ArrowError {
    ArrowError::Unsupported(format!(
        "column `{}` is {}, not {expected}",
        field.name,
        field.type_name()
    ))
}
