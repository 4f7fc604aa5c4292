//! Record batches of a shard, one at a time: the selected columns decoded, the others passed over.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use arrow_format::ipc::{
    DictionaryBatchRef, MessageHeaderRef, MessageRef, MetadataVersion, RecordBatchRef,
};

use super::column::{cannot_be_passed_over, Column, Cursor, Dictionaries};
use super::error::{malformed, ArrowError, ReadError};
use super::message::{Header, MessageReader};
use super::schema::{read_schema, Counts, Field};
use super::shape::Shape;
use crate::guard::guarded;

/// Key under which Arrow 0.17 announced its experimental compression.
const EXPERIMENTAL_COMPRESSION_KEY: &str = "ARROW:experimental_compression";

/// A column that the caller wants.
#[derive(Clone, Debug)]
pub(super) struct Selected {
    /// Index among the fields of the schema.
    pub(super) field_index: usize,
    pub(super) shape: Shape,
}

/// One decoded record batch.
#[derive(Debug)]
pub(super) struct Batch {
    /// Where its message begins, in bytes from the beginning of the shard.
    pub(super) offset: u64,
    pub(super) rows: usize,
    /// One for each selected column, in schema order.
    pub(super) columns: Vec<Column>,
    /// CRC-32C of its message, if it was asked for.
    pub(super) crc32c: Option<u32>,
}

/// Reads record batches from front to back.
pub(super) struct BatchReader<R> {
    messages: MessageReader<R>,
    fields: Vec<Field>,
    selected: Vec<Selected>,
    /// First node and buffer of each selected column in a batch of metadata version 4; `None` if
    /// a column before it cannot be passed over.
    starts_v4: Vec<Option<Counts>>,
    /// The same for version 5.
    starts_v5: Vec<Option<Counts>>,
    /// The leaf that tells the value type of each dictionary that is needed.
    dictionary_fields: HashMap<i64, Field>,
    dictionaries: Dictionaries,
    dictionary_bytes: u64,
    max_message_bytes: u64,
    /// Whether batches are summed.
    checksums: bool,
    /// A record batch was read.
    has_batch: bool,
    has_late_dictionaries: bool,
}

impl<R: Read> BatchReader<R> {
    /// Reads the schema and lets `select` choose columns, in rising order of their index.
    pub(super) fn open(
        reader: R,
        max_message_bytes: u64,
        select: impl FnOnce(&[Field]) -> Result<Vec<Selected>, ArrowError>,
    ) -> Result<Self, ReadError> {
        let opened = guarded(|| BatchReader::open_guarded(reader, max_message_bytes, select));
        opened.map_err(|what| malformed(format!("Arrow's reader {what}")).at(0))?
    }

    fn open_guarded(
        reader: R,
        max_message_bytes: u64,
        select: impl FnOnce(&[Field]) -> Result<Vec<Selected>, ArrowError>,
    ) -> Result<Self, ReadError> {
        let (mut messages, header) = MessageReader::open(reader, max_message_bytes)?;
        let in_schema = |error: ArrowError| error.at(header.offset);
        let fields = header.message().and_then(read_schema).map_err(in_schema)?;
        let selected = select(&fields).map_err(in_schema)?;
        let dictionary_fields = dictionary_fields(&fields, &selected).map_err(in_schema)?;
        messages.skip_body(&header)?;
        Ok(BatchReader {
            messages,
            starts_v4: starts(&fields, &selected, MetadataVersion::V4),
            starts_v5: starts(&fields, &selected, MetadataVersion::V5),
            fields,
            selected,
            dictionary_fields,
            dictionaries: Dictionaries::new(),
            dictionary_bytes: 0,
            max_message_bytes,
            checksums: false,
            has_batch: false,
            has_late_dictionaries: false,
        })
    }

    /// The same, with the checksums of batches if they are asked for.
    pub(super) fn with_checksums(self, checksums: bool) -> Self {
        BatchReader { checksums, ..self }
    }

    /// How many bytes were read.
    pub(super) fn position(&self) -> u64 {
        self.messages.position()
    }

    /// Whether dictionaries came after the first record batch: then a batch cannot be read without
    /// those before it.
    pub(super) fn has_late_dictionaries(&self) -> bool {
        self.has_late_dictionaries
    }

    /// Reads the dictionaries before the first record batch, which begins at `end`.
    pub(super) fn read_dictionaries(&mut self, end: u64) -> Result<(), ReadError> {
        while self.position() < end {
            if self.next_message()?.is_none_or(|batch| batch.is_some()) {
                let problem = format!("no record batch begins at byte {end}");
                return Err(malformed(problem).at(self.position()));
            }
        }
        Ok(())
    }

    /// Goes on with the message at `position`, which `reader` begins with.
    pub(super) fn continue_with(&mut self, reader: R, position: u64) {
        self.messages.continue_with(reader, position);
    }

    /// Passes over everything before `position`, where a message begins.
    pub(super) fn skip_to(&mut self, position: u64) -> Result<(), ReadError> {
        self.messages.skip_to(position)
    }

    /// The next record batch, `None` after the last. After an error the reader is not to be used.
    pub(super) fn next_batch(&mut self) -> Result<Option<Batch>, ReadError> {
        while let Some(batch) = self.next_message()? {
            if batch.is_some() {
                return Ok(batch);
            }
        }
        Ok(None)
    }

    /// Takes in the next message: `None` after the last, `Some(None)` for one without rows to give.
    fn next_message(&mut self) -> Result<Option<Option<Batch>>, ReadError> {
        let position = self.position();
        let taken = guarded(|| self.next_message_guarded());
        taken.map_err(|what| malformed(format!("Arrow's reader {what}")).at(position))?
    }

    fn next_message_guarded(&mut self) -> Result<Option<Option<Batch>>, ReadError> {
        if let Some(header) = self.messages.next_header()? {
            let in_message = |error: ArrowError| error.at(header.offset);
            let message = header.message().map_err(in_message)?;
            let content = message
                .header()
                .map_err(|error| in_message(error.into()))?
                .ok_or_else(|| in_message(malformed("a message without content")))?;
            let version = message
                .version()
                .map_err(|error| in_message(error.into()))?;
            match content {
                MessageHeaderRef::RecordBatch(batch) => {
                    refuse_experimental_compression(message).map_err(in_message)?;
                    let body = self.messages.read_body(&header)?;
                    let crc32c = self.checksums.then(|| header.crc32c(&body));
                    let mut batch = self
                        .record_batch(&header, batch, version, body)
                        .map_err(in_message)?;
                    batch.crc32c = crc32c;
                    self.has_batch = true;
                    return Ok(Some(Some(batch)));
                }
                MessageHeaderRef::DictionaryBatch(batch) => {
                    refuse_experimental_compression(message).map_err(in_message)?;
                    let id = batch.id().map_err(|error| in_message(error.into()))?;
                    if self.dictionary_fields.contains_key(&id) {
                        let body = self.messages.read_body(&header)?;
                        self.dictionary_batch(&header, id, batch, version, body)
                            .map_err(in_message)?;
                        self.has_late_dictionaries |= self.has_batch;
                    } else {
                        self.messages.skip_body(&header)?;
                    }
                    return Ok(Some(None));
                }
                MessageHeaderRef::Schema(_) => {
                    return Err(in_message(malformed("a second schema message")));
                }
                MessageHeaderRef::Tensor(_) | MessageHeaderRef::SparseTensor(_) => {
                    return Err(in_message(ArrowError::Unsupported(
                        "a tensor among the record batches".into(),
                    )));
                }
            }
        }
        Ok(None)
    }

    fn record_batch(
        &self,
        header: &Header,
        batch: RecordBatchRef<'_>,
        version: MetadataVersion,
        body: Vec<u8>,
    ) -> Result<Batch, ArrowError> {
        let rows = row_count(batch)?;
        let variadic = header.variadic_buffer_counts()?;
        let mut cursor = Cursor::new(batch, version, variadic, body, self.max_message_bytes)?;
        let mut columns = Vec::with_capacity(self.selected.len());
        let starts = match version {
            MetadataVersion::V4 => &self.starts_v4,
            _ => &self.starts_v5,
        };
        for (selected, start) in self.selected.iter().zip(starts) {
            let Some(field) = self.fields.get(selected.field_index) else {
                return Err(malformed("a selected column that does not exist"));
            };
            let Some(start) = *start else {
                let mut before = self.fields.iter().take(selected.field_index);
                let obstacle = before.find(|field| field.counts(version).is_none());
                return Err(cannot_be_passed_over(obstacle.unwrap_or(field)));
            };
            let column = cursor
                .seek(start)
                .and_then(|()| cursor.column(field, &selected.shape, rows, &self.dictionaries))
                .map_err(|error| in_column(error, &field.name))?;
            columns.push(column);
        }
        Ok(Batch {
            offset: header.offset,
            rows,
            columns,
            crc32c: None,
        })
    }

    fn dictionary_batch(
        &mut self,
        header: &Header,
        id: i64,
        batch: DictionaryBatchRef<'_>,
        version: MetadataVersion,
        body: Vec<u8>,
    ) -> Result<(), ArrowError> {
        let Some(field) = self.dictionary_fields.get(&id) else {
            return Ok(());
        };
        let Some(data) = batch.data()? else {
            return Err(malformed(format!("dictionary {id} has no data")));
        };
        let rows = row_count(data)?;
        let variadic = header.variadic_buffer_counts()?;
        let mut cursor = Cursor::new(data, version, variadic, body, self.max_message_bytes)?;
        let values = cursor
            .column(field, &Shape::Leaf, rows, &Dictionaries::new())
            .map_err(|error| in_column(error, &field.name))?;
        let Column::Leaf(values) = values else {
            return Err(malformed(format!("dictionary {id} holds no values")));
        };
        let dictionary = self.dictionaries.entry(id).or_default();
        let others_bytes = self
            .dictionary_bytes
            .saturating_sub(dictionary.memory_bytes());
        if !batch.is_delta()? {
            *dictionary = Arc::default();
        }
        // The batch that shared it is gone by now, so nothing is copied here.
        Arc::make_mut(dictionary).append((0..rows).map(|row| values.get(row)));
        // Delta batches are bounded one by one; their sum is bounded here.
        self.dictionary_bytes = others_bytes.saturating_add(dictionary.memory_bytes());
        if self.dictionary_bytes > self.max_message_bytes {
            return Err(ArrowError::TooLarge {
                what: "the dictionaries",
                bytes: self.dictionary_bytes,
                limit: self.max_message_bytes,
                setting: "max_message_bytes",
            });
        }
        Ok(())
    }
}

/// Where each selected column begins among the nodes and buffers of a batch.
fn starts(
    fields: &[Field],
    selected: &[Selected],
    version: MetadataVersion,
) -> Vec<Option<Counts>> {
    let mut at = Some(Counts::default());
    let mut next_field = 0;
    let mut starts = Vec::with_capacity(selected.len());
    for column in selected {
        let before = fields.get(next_field..column.field_index);
        for field in before.unwrap_or_default() {
            at = at.and_then(|at| Some(at.plus(field.counts(version)?)));
        }
        starts.push(at);
        next_field = column.field_index;
    }
    starts
}

/// One plain field for each dictionary id below the selected columns.
fn dictionary_fields(
    fields: &[Field],
    selected: &[Selected],
) -> Result<HashMap<i64, Field>, ArrowError> {
    let mut by_id: HashMap<i64, Field> = HashMap::new();
    for column in selected {
        let Some(field) = fields.get(column.field_index) else {
            continue;
        };
        for leaf in column.shape.leaves(field) {
            let Some(encoding) = leaf.dictionary else {
                continue;
            };
            let values = Field {
                name: field.name.clone(),
                kind: leaf.kind,
                dictionary: None,
                children: Vec::new(),
            };
            if let Some(other) = by_id.insert(encoding.id, values) {
                if other.kind != leaf.kind {
                    return Err(malformed(format!(
                        "columns `{}` and `{}` share dictionary {} but not its type",
                        other.name, field.name, encoding.id
                    )));
                }
            }
        }
    }
    Ok(by_id)
}

fn row_count(batch: RecordBatchRef<'_>) -> Result<usize, ArrowError> {
    let length = batch.length()?;
    usize::try_from(length).map_err(|_| malformed(format!("a batch of {length} rows")))
}

fn refuse_experimental_compression(message: MessageRef<'_>) -> Result<(), ArrowError> {
    for pair in message
        .custom_metadata()?
        .iter()
        .flat_map(|list| list.iter())
    {
        if pair?.key()? == Some(EXPERIMENTAL_COMPRESSION_KEY) {
            return Err(ArrowError::Unsupported(
                "the experimental compression of Arrow 0.17".into(),
            ));
        }
    }
    Ok(())
}

fn in_column(error: ArrowError, column: &str) -> ArrowError {
    match error {
        ArrowError::Malformed(problem) => ArrowError::BadColumn {
            column: column.to_string(),
            problem,
        },
        other => other,
    }
}
