//! Rows of an Arrow shard as samples.

use std::io::Read;
use std::sync::Arc;

use super::batch::{Batch, BatchReader, Selected};
use super::column::Column;
use super::error::{ArrowError, ReadError};
use super::image_name::{extension_of, key_of};
use super::row_json::{object_of, NoJson, JSON, MAX_JSON_BYTES};
use super::schema::Field;
use super::select::{select_columns, Role, Selection};
use super::ArrowReadOptions;
use crate::captions::names::CAPTION_MEMBER;
use crate::error::{SampleError, ShardError, SkipReason};
use crate::sample::{EncodedSample, Member, MemberData, SampleId};

/// Reads an Arrow IPC shard, stream or file format, row by row.
///
/// Members of a sample, in column order:
/// * the image, as bytes, named by one of `IMAGE_EXTENSIONS`: its path's last extension, else
///   what its bytes begin like, else `jpg`;
/// * [`CAPTION_MEMBER`], the captions as text, nulls left out;
/// * every other binary, string or list-of-strings column that is not null in this row, under its
///   column name. Columns of other types are passed over, and so are those whose name repeats
///   another or is one of the names above;
/// * with [`ArrowReadOptions::other_columns`], `json` instead of the columns of text: an object with a field
///   for each column that is neither image, caption nor bytes. A column `json` gives its own fields. Dates and
///   times are as Python's `isoformat` writes them, `NaN` and infinite numbers are null, and bytes within
///   structs are left out.
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
    chosen: ChosenColumns,
    batch: Option<Batch>,
    next_row: usize,
    next_sample: u32,
    max_member_bytes: u64,
    needs_captions: bool,
    at_end: bool,
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
        let mut chosen = ChosenColumns::default();
        let batches = BatchReader::open(reader, options.max_message_bytes, |fields| {
            let selection = select_columns(fields, options)?;
            chosen = ChosenColumns::of(&selection, fields);
            let (selected, found) = selection.columns.into_iter().unzip();
            roles = found;
            Ok(selected)
        })
        .map_err(|error| shard_error(&shard, error))?;
        Ok(ArrowShardReader {
            shard,
            shard_index,
            batches: batches.with_checksums(options.checksums),
            roles,
            chosen,
            batch: None,
            next_row: 0,
            next_sample: 0,
            max_member_bytes: options.max_member_bytes,
            needs_captions: options.needs_captions,
            at_end: false,
        })
    }

    /// Which columns hold images and captions.
    pub fn columns(&self) -> &ChosenColumns {
        &self.chosen
    }

    /// How much of the shard was read, in bytes.
    pub fn position(&self) -> u64 {
        self.batches.position()
    }

    /// CRC-32C of the current record batch's message, with [`ArrowReadOptions::checksums`].
    pub(crate) fn batch_crc32c(&self) -> Option<u32> {
        self.batch.as_ref().and_then(|batch| batch.crc32c)
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
        match self.members(batch, row, path) {
            Ok(members) => Ok(EncodedSample { id, members }),
            Err((reason, message)) => Err(SampleError {
                id: Box::new(id),
                reason,
                message,
            }),
        }
    }

    fn members(
        &self,
        batch: &Batch,
        row: usize,
        path: Option<&str>,
    ) -> Result<Vec<Member>, (SkipReason, String)> {
        let mut members = Vec::with_capacity(self.roles.len());
        let mut has_caption = false;
        for (role, column) in self.roles.iter().zip(&batch.columns) {
            if !matches!(role, Role::Caption(_)) {
                members.extend(self.member(role, column, row, path)?);
            } else if !has_caption {
                has_caption = true;
                members.extend(self.captions(batch, row)?);
            }
        }
        members.extend(self.json(batch, row)?);
        Ok(members)
    }

    /// The member of the columns that are neither image nor caption, where they are asked for.
    fn json(&self, batch: &Batch, row: usize) -> Result<Option<Member>, (SkipReason, String)> {
        let columns = self.roles.iter().zip(&batch.columns);
        let columns: Vec<_> = columns
            .filter_map(|(role, column)| match role {
                Role::Json(name) => Some((name.as_str(), column)),
                _ => None,
            })
            .collect();
        if columns.is_empty() {
            return Ok(None);
        }
        match object_of(&columns, row) {
            Ok(json) => Ok(Some(Member::new(JSON, MemberData::Bytes(json)))),
            Err(NoJson::TooLong) => Err((
                SkipReason::SampleTooLarge,
                format!(
                    "the columns beside image and captions are more than {MAX_JSON_BYTES} bytes of \
                     JSON; name those to keep"
                ),
            )),
            Err(NoJson::NotUtf8) => Err((
                SkipReason::BadMetadata,
                "a text beside image and captions is not UTF-8".to_string(),
            )),
        }
    }

    /// The captions of all columns that hold some; a row without any is an error where captions are
    /// needed.
    fn captions(&self, batch: &Batch, row: usize) -> Result<Option<Member>, (SkipReason, String)> {
        let mut captions = Vec::new();
        let columns = self.roles.iter().zip(&batch.columns);
        let mut numbered: Vec<_> = columns
            .filter_map(|(role, column)| match role {
                Role::Caption(position) => Some((*position, column)),
                _ => None,
            })
            .collect();
        numbered.sort_by_key(|(position, _)| *position);
        for (_, column) in numbered {
            captions.extend(self.texts(CAPTION_MEMBER, column, row)?.unwrap_or_default());
        }
        if !captions.is_empty() {
            let captions = MemberData::Text(captions);
            return Ok(Some(Member::new(CAPTION_MEMBER, captions)));
        }
        match self.needs_captions {
            true => Err((SkipReason::NoCaption, "the caption is null".to_string())),
            false => Ok(None),
        }
    }

    /// The member that a column without captions contributes; another column's null contributes none.
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
            Role::Caption(_) | Role::Json(_) => Ok(None),
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

/// The columns of a shard that hold images and captions, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChosenColumns {
    /// The image column.
    pub image: String,
    /// The caption column; several, if they are numbered; none in a shard without captions.
    pub captions: Vec<String>,
    /// Columns that were asked for, but are of a type that [JSON](super::OtherColumns) has no place for: name
    /// and type.
    pub left_out: Vec<String>,
}

impl ChosenColumns {
    fn of(selection: &Selection, fields: &[Field]) -> ChosenColumns {
        let mut chosen = ChosenColumns {
            left_out: selection.left_out.clone(),
            ..ChosenColumns::default()
        };
        let mut captions = Vec::new();
        for (Selected { field_index, .. }, role) in &selection.columns {
            let Some(field) = fields.get(*field_index) else {
                continue;
            };
            match role {
                Role::Image => chosen.image.clone_from(&field.name),
                Role::Caption(position) => captions.push((*position, field.name.clone())),
                Role::Bytes(_) | Role::Text(_) | Role::Json(_) => {}
            }
        }
        captions.sort();
        chosen.captions = captions.into_iter().map(|(_, name)| name).collect();
        chosen
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
