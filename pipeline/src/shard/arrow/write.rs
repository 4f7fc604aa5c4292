//! Writes Arrow IPC streams that Hugging Face datasets open as they are.

use std::io::Write;
use std::sync::Arc;

use arrow2::array::{
    Array, MutableArray, MutableBinaryArray, MutableListArray, MutableUtf8Array, StructArray,
    TryPush,
};
use arrow2::chunk::Chunk;
use arrow2::datatypes::{DataType, Field, Schema};
use arrow2::io::ipc::write::{StreamWriter, WriteOptions};

use crate::shard::piece::StoredBatch;
use crate::shard::written::Written;

/// Most rows of a record batch: what datasets uses for images.
const MAX_BATCH_ROWS: usize = 100;
/// A record batch is written before its content exceeds this; one larger sample fills its own.
const MAX_BATCH_BYTES: usize = 32 << 20;

/// How many captions a sample has: the type of the `caption` column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaptionType {
    /// `string`: exactly one.
    One,
    /// `list<string>`: any number.
    List,
}

/// Why a shard cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ArrowWriteError {
    /// The writer below failed.
    #[error("cannot write an Arrow shard: {0}")]
    Io(#[from] std::io::Error),
    /// A sample whose captions do not fit [`CaptionType::One`].
    #[error("sample {path} has {count} captions where one is expected; use CaptionType::List")]
    Captions {
        /// Path of its image.
        path: String,
        /// How many captions it has.
        count: usize,
    },
    /// A sample beyond what 32-bit offsets address.
    #[error("sample {path} exceeds the 2 GiB that an Arrow batch can hold; leave it out")]
    TooLarge {
        /// Path of its image.
        path: String,
    },
    /// arrow2 refused a batch.
    #[error("cannot encode an Arrow batch: {0}")]
    Encode(String),
}

impl From<arrow2::error::Error> for ArrowWriteError {
    fn from(error: arrow2::error::Error) -> Self {
        match error {
            arrow2::error::Error::Io(error) => ArrowWriteError::Io(error),
            other => ArrowWriteError::Encode(other.to_string()),
        }
    }
}

/// Writes samples as an uncompressed Arrow IPC stream with the columns
/// `image: struct<bytes: binary, path: string>` and `caption: string` or `list<string>`, and the
/// features of both in the schema's metadata, as datasets 4 and 5 write and parse them.
///
/// Record batches hold at most 100 rows or 32 MiB. Nothing but a finished stream is complete:
/// call [`ArrowShardWriter::finish`].
pub struct ArrowShardWriter<W: Write> {
    stream: StreamWriter<W>,
    batch: PendingBatch,
    /// What the writer below has taken, if it tells.
    written: Arc<Written>,
    /// Where the record batches lie, by that.
    batches: Vec<StoredBatch>,
}

impl<W: Write> ArrowShardWriter<W> {
    /// Writes the schema.
    ///
    /// # Errors
    /// [`ArrowWriteError::Io`] if `writer` fails.
    pub fn new(writer: W, captions: CaptionType) -> Result<Self, ArrowWriteError> {
        Self::noting(writer, captions, Arc::default())
    }

    /// For a writer that keeps what it was given in `written`.
    pub(crate) fn noting(
        writer: W,
        captions: CaptionType,
        written: Arc<Written>,
    ) -> Result<Self, ArrowWriteError> {
        let mut stream = StreamWriter::new(writer, WriteOptions { compression: None });
        stream.start(&schema(captions), None)?;
        Ok(ArrowShardWriter {
            stream,
            batch: PendingBatch::new(captions),
            written,
            batches: Vec::new(),
        })
    }

    /// Adds a sample: the image file's path (whose stem is the key) and bytes, and its captions.
    ///
    /// # Errors
    /// [`ArrowWriteError::Captions`] and [`ArrowWriteError::TooLarge`] leave the sample out and the
    /// writer usable; after any other error the stream is incomplete.
    pub fn write(
        &mut self,
        path: &str,
        image: &[u8],
        captions: &[String],
    ) -> Result<(), ArrowWriteError> {
        self.batch.check(path, image, captions)?;
        let bytes = sample_bytes(path, image, captions);
        let is_full = self.batch.rows >= MAX_BATCH_ROWS
            || self.batch.bytes.saturating_add(bytes) > MAX_BATCH_BYTES;
        if is_full {
            self.flush_batch()?;
        }
        self.batch.push(path, image, captions)?;
        self.batch.bytes = self.batch.bytes.saturating_add(bytes);
        self.batch.rows += 1;
        Ok(())
    }

    /// Bytes of the samples that were added but not written yet: with the bytes already written,
    /// about how long the shard is now.
    pub fn pending_bytes(&self) -> usize {
        self.batch.bytes
    }

    /// Writes the last batch and the end-of-stream marker, and gives the writer back (not flushed).
    ///
    /// # Errors
    /// [`ArrowWriteError::Io`] if the writer fails.
    pub fn finish(self) -> Result<W, ArrowWriteError> {
        self.finish_with_batches().map(|(writer, _)| writer)
    }

    /// [`ArrowShardWriter::finish`], and where the record batches lie by the writer's position.
    pub(crate) fn finish_with_batches(mut self) -> Result<(W, Vec<StoredBatch>), ArrowWriteError> {
        self.flush_batch()?;
        self.stream.finish()?;
        Ok((self.stream.into_inner(), self.batches))
    }

    fn flush_batch(&mut self) -> Result<(), ArrowWriteError> {
        if self.batch.rows == 0 {
            return Ok(());
        }
        let next = PendingBatch::new(self.batch.captions.kind());
        let full = std::mem::replace(&mut self.batch, next);
        let rows = full.rows as u64;
        self.written.begin_sum();
        let start = self.written.bytes();
        self.stream.write(&full.into_chunk()?, None)?;
        self.batches.push(StoredBatch {
            stored: start..self.written.bytes(),
            rows,
            crc32c: self.written.crc32c(),
        });
        Ok(())
    }
}

/// The rows of the batch to come.
struct PendingBatch {
    images: MutableBinaryArray<i32>,
    paths: MutableUtf8Array<i32>,
    captions: CaptionColumn,
    rows: usize,
    bytes: usize,
}

enum CaptionColumn {
    One(MutableUtf8Array<i32>),
    List(MutableListArray<i32, MutableUtf8Array<i32>>),
}

impl CaptionColumn {
    fn kind(&self) -> CaptionType {
        match self {
            CaptionColumn::One(_) => CaptionType::One,
            CaptionColumn::List(_) => CaptionType::List,
        }
    }
}

impl PendingBatch {
    fn new(captions: CaptionType) -> Self {
        let captions = match captions {
            CaptionType::One => CaptionColumn::One(MutableUtf8Array::new()),
            CaptionType::List => CaptionColumn::List(MutableListArray::new_from(
                MutableUtf8Array::new(),
                caption_data_type(CaptionType::List),
                0,
            )),
        };
        PendingBatch {
            images: MutableBinaryArray::new(),
            paths: MutableUtf8Array::new(),
            captions,
            rows: 0,
            bytes: 0,
        }
    }

    /// Refuses what [`PendingBatch::push`] could only add half.
    fn check(&self, path: &str, image: &[u8], captions: &[String]) -> Result<(), ArrowWriteError> {
        if self.captions.kind() == CaptionType::One && captions.len() != 1 {
            return Err(ArrowWriteError::Captions {
                path: path.to_string(),
                count: captions.len(),
            });
        }
        // A sample beyond the batch limit is alone in its batch, so its own size decides. Caption
        // counts are bounded, too: every caption is an offset of the list's values.
        let total = sample_bytes(path, image, captions).saturating_add(captions.len());
        if i32::try_from(total).is_err() {
            return Err(ArrowWriteError::TooLarge {
                path: path.to_string(),
            });
        }
        Ok(())
    }

    fn push(
        &mut self,
        path: &str,
        image: &[u8],
        captions: &[String],
    ) -> Result<(), ArrowWriteError> {
        self.images.try_push(Some(image))?;
        self.paths.try_push(Some(path))?;
        match &mut self.captions {
            CaptionColumn::One(column) => column.try_push(captions.first())?,
            CaptionColumn::List(column) => {
                for caption in captions {
                    column.mut_values().try_push(Some(caption))?;
                }
                column.try_push_valid()?;
            }
        }
        Ok(())
    }

    fn into_chunk(mut self) -> Result<Chunk<Box<dyn Array>>, ArrowWriteError> {
        let image = StructArray::try_new(
            image_data_type(),
            vec![self.images.as_box(), self.paths.as_box()],
            None,
        )?;
        let caption = match &mut self.captions {
            CaptionColumn::One(column) => column.as_box(),
            CaptionColumn::List(column) => column.as_box(),
        };
        Ok(Chunk::try_new(vec![image.boxed(), caption])?)
    }
}

fn sample_bytes(path: &str, image: &[u8], captions: &[String]) -> usize {
    captions.iter().map(String::len).fold(
        path.len().saturating_add(image.len()),
        usize::saturating_add,
    )
}

fn image_data_type() -> DataType {
    DataType::Struct(vec![
        Field::new("bytes", DataType::Binary, true),
        Field::new("path", DataType::Utf8, true),
    ])
}

fn caption_data_type(captions: CaptionType) -> DataType {
    match captions {
        CaptionType::One => DataType::Utf8,
        CaptionType::List => DataType::List(Box::new(Field::new("item", DataType::Utf8, true))),
    }
}

fn schema(captions: CaptionType) -> Schema {
    let caption_feature = match captions {
        CaptionType::One => r#"{"dtype": "string", "_type": "Value"}"#,
        CaptionType::List => {
            r#"{"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"}"#
        }
    };
    let features = format!(
        r#"{{"info": {{"features": {{"image": {{"_type": "Image"}}, "caption": {caption_feature}}}}}}}"#
    );
    Schema {
        fields: vec![
            Field::new("image", image_data_type(), true),
            Field::new("caption", caption_data_type(captions), true),
        ],
        metadata: [("huggingface".to_string(), features)].into(),
    }
}
