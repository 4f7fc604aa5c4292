//! Frames the messages of an Arrow IPC stream: prefix, metadata, body.
//!
//! The file format is magic and padding (8 bytes), then a stream, then a footer that repeats where
//! the messages lie. Reading it front to back needs no footer, so both formats are one here.
//! Format: <https://arrow.apache.org/docs/format/Columnar.html#encapsulated-message-format>.

use std::io::Read;

use arrow_format::ipc::planus::table_reader::Table;
use arrow_format::ipc::planus::{
    self, errors, ReadAsRoot, SliceWithStartOffset, TableRead, Vector,
};
use arrow_format::ipc::{MessageRef, MetadataVersion};

use super::error::{malformed, ArrowError, ReadError};

/// Opens a message since Arrow 0.15; before, the length came first.
const CONTINUATION: [u8; 4] = [0xff; 4];
/// First bytes of the file format, followed by two of padding.
const FILE_MAGIC: &[u8; 6] = b"ARROW1";
/// Longest accepted metadata (schema, or nodes and buffers of one batch).
const MAX_METADATA_BYTES: u64 = 64 << 20;
/// No metadata of a record batch is as short as this. Files of Arrow before 0.15 have no
/// end-of-stream marker: the footer follows, and its root offset (16 or 20) reads as a length.
const MIN_LEGACY_METADATA_BYTES: u32 = 64;
/// Where the first message of a file must have begun: the largest alignment of a writer.
const MAX_FILE_PADDING_BYTES: u64 = 64 + 4;
/// What is allocated ahead of the bytes really read.
const INITIAL_CAPACITY: u64 = 1 << 20;

// Positions of fields in the tables of Apache's Message.fbs, and a tag of its `MessageHeader`.
const MESSAGE_HEADER_TYPE: usize = 1;
const MESSAGE_HEADER: usize = 2;
const DICTIONARY_BATCH_TAG: u8 = 2;
const DICTIONARY_BATCH_DATA: usize = 1;
const VARIADIC_BUFFER_COUNTS: usize = 4;

/// A flatbuffer table whose fields are read by position.
struct RawTable<'a>(Table<'a>);

impl<'a> RawTable<'a> {
    fn child(&self, position: usize) -> Result<Option<RawTable<'a>>, ArrowError> {
        Ok(self.0.access(position, "RawTable", "child")?)
    }
}

impl<'a> TableRead<'a> for RawTable<'a> {
    fn from_buffer(
        buffer: SliceWithStartOffset<'a>,
        offset: usize,
    ) -> Result<Self, errors::ErrorKind> {
        Table::from_buffer(buffer, offset).map(RawTable)
    }
}

impl<'a> ReadAsRoot<'a> for RawTable<'a> {
    fn read_as_root(slice: &'a [u8]) -> planus::Result<Self> {
        let buffer = SliceWithStartOffset {
            buffer: slice,
            offset_from_start: 0,
        };
        Table::from_buffer(buffer, 0)
            .map(RawTable)
            .map_err(|kind| kind.with_error_location("RawTable", "read_as_root", 0))
    }
}

/// Which of the two formats a shard has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Stream,
    File,
}

/// Metadata of one message, checked to be a flatbuffer with a supported version.
#[derive(Debug)]
pub(super) struct Header {
    /// Where the message begins, in bytes from the beginning of the shard.
    pub(super) offset: u64,
    /// Length of the body that follows.
    pub(super) body_bytes: u64,
    metadata: Vec<u8>,
    /// Whether [`CONTINUATION`] came before its length.
    has_marker: bool,
}

impl Header {
    /// The metadata as a flatbuffer.
    pub(super) fn message(&self) -> Result<MessageRef<'_>, ArrowError> {
        Ok(MessageRef::read_as_root(&self.metadata)?)
    }

    /// CRC-32C of the message as it is stored, given its body.
    pub(super) fn crc32c(&self, body: &[u8]) -> u32 {
        let marker: &[u8] = if self.has_marker { &CONTINUATION } else { &[] };
        let length = (self.metadata.len() as u32).to_le_bytes();
        let parts = [marker, &length, &self.metadata, body];
        parts
            .iter()
            .fold(0, |sum, part| crc32c::crc32c_append(sum, part))
    }

    /// The `variadicBufferCounts` of the record batch that the message is, or holds as a dictionary:
    /// how many data buffers each field of a view type has. They came after the definitions in use.
    pub(super) fn variadic_buffer_counts(&self) -> Result<Vec<usize>, ArrowError> {
        let message = RawTable::read_as_root(&self.metadata)?;
        let Some(header) = message.child(MESSAGE_HEADER)? else {
            return Ok(Vec::new());
        };
        let is_dictionary = message
            .0
            .access(MESSAGE_HEADER_TYPE, "Message", "header_type")?
            == Some(DICTIONARY_BATCH_TAG);
        let batch = match is_dictionary {
            true => header.child(DICTIONARY_BATCH_DATA)?,
            false => Some(header),
        };
        let Some(batch) = batch else {
            return Ok(Vec::new());
        };
        let counts: Option<Vector<'_, i64>> = batch.0.access(
            VARIADIC_BUFFER_COUNTS,
            "RecordBatch",
            "variadicBufferCounts",
        )?;
        counts
            .into_iter()
            .flat_map(|counts| counts.iter())
            .map(|count| {
                usize::try_from(count)
                    .map_err(|_| malformed(format!("a view column of {count} buffers")))
            })
            .collect()
    }
}

/// Reads messages from front to back, counting bytes.
pub(super) struct MessageReader<R> {
    reader: R,
    position: u64,
    format: Format,
    /// Bytes that [`MessageReader::open`] read beyond what tells the format.
    prefix: Option<[u8; 4]>,
    max_body_bytes: u64,
    at_end: bool,
}

impl<R: Read> MessageReader<R> {
    /// Recognises the format and reads the first message, which must be a schema.
    pub(super) fn open(reader: R, max_body_bytes: u64) -> Result<(Self, Header), ReadError> {
        let mut messages = MessageReader {
            reader,
            position: 0,
            format: Format::Stream,
            prefix: None,
            max_body_bytes,
            at_end: false,
        };
        let begins = messages.read_up_to(4)?;
        if begins.is_empty() {
            return Err(ArrowError::Empty.at(0));
        }
        let Ok(prefix) = <[u8; 4]>::try_from(begins.as_slice()) else {
            return Err(not_arrow(begins));
        };
        if prefix[..] == FILE_MAGIC[..4] {
            let rest = messages.read_up_to(4)?;
            if !rest.starts_with(&FILE_MAGIC[4..]) {
                return Err(not_arrow([begins, rest].concat()));
            }
            if rest.len() < 4 {
                return Err(ArrowError::NoFooter.at(messages.position));
            }
            messages.format = Format::File;
            messages.prefix = Some(messages.read_file_padding()?);
        } else {
            messages.prefix = Some(prefix);
        }
        let certain = messages.format == Format::File || prefix == CONTINUATION;
        let header = match messages.next_header() {
            Ok(Some(header)) => header,
            Ok(None) if certain => {
                return Err(malformed("the shard ends before its schema").at(messages.position))
            }
            // Without a magic, a bad first message says that this is something else.
            Err(error) if certain || matches!(error.cause, ArrowError::Io(_)) => return Err(error),
            Ok(None) | Err(_) => return Err(not_arrow(begins)),
        };
        Ok((messages, header))
    }

    /// Passes over the zeros before a file's first message and returns the prefix after them. The
    /// format asks for two bytes of padding, some writers pad to their buffers' alignment.
    fn read_file_padding(&mut self) -> Result<[u8; 4], ReadError> {
        while self.position < MAX_FILE_PADDING_BYTES {
            let bytes = self.read_exactly("a message prefix", 4)?;
            match <[u8; 4]>::try_from(bytes.as_slice()) {
                Ok(prefix) if prefix != [0; 4] => return Ok(prefix),
                _ => {}
            }
        }
        Err(malformed("no schema follows the file's magic").at(self.position))
    }

    /// How many bytes were read.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Goes on with another reader, which begins at a message at `position` of the shard.
    pub(super) fn continue_with(&mut self, reader: R, position: u64) {
        self.reader = reader;
        self.position = position;
        self.prefix = None;
        self.at_end = false;
    }

    /// Passes over everything before `position`, where a message begins.
    pub(super) fn skip_to(&mut self, position: u64) -> Result<(), ReadError> {
        let length = position.saturating_sub(self.position);
        self.skip("the bytes before a record batch", length)
    }

    /// Metadata of the next message, `None` after the last. Its body must be read or skipped
    /// before the next call.
    pub(super) fn next_header(&mut self) -> Result<Option<Header>, ReadError> {
        if self.at_end {
            return Ok(None);
        }
        let (offset, prefix) = match self.prefix.take() {
            Some(prefix) => (self.position.saturating_sub(4), prefix),
            None => {
                let offset = self.position;
                let bytes = self.read_up_to(4)?;
                match (<[u8; 4]>::try_from(bytes.as_slice()), self.format) {
                    (Ok(prefix), _) => (offset, prefix),
                    // The stream format may end at a message boundary without a marker.
                    (Err(_), Format::Stream) if bytes.is_empty() => {
                        self.at_end = true;
                        return Ok(None);
                    }
                    (Err(_), Format::File) if bytes.is_empty() => {
                        return Err(ArrowError::NoFooter.at(offset))
                    }
                    (Err(_), _) => return Err(self.truncated("a message prefix", 4, bytes.len())),
                }
            }
        };
        let with_marker = prefix == CONTINUATION;
        let length = if with_marker {
            let bytes = self.read_exactly("a message prefix", 4)?;
            <[u8; 4]>::try_from(bytes.as_slice()).map_or(0, u32::from_le_bytes)
        } else {
            u32::from_le_bytes(prefix)
        };
        let is_footer = self.format == Format::File && length < MIN_LEGACY_METADATA_BYTES;
        if length == 0 || (!with_marker && is_footer) {
            self.at_end = true;
            self.refuse_second_stream()?;
            return Ok(None);
        }
        if u64::from(length) > MAX_METADATA_BYTES {
            return Err(malformed(format!(
                "message metadata claims {length} bytes (limit {MAX_METADATA_BYTES})"
            ))
            .at(offset));
        }
        let metadata = self.read_exactly("message metadata", u64::from(length))?;
        let body_bytes = self.check(&metadata).map_err(|error| error.at(offset))?;
        Ok(Some(Header {
            offset,
            body_bytes,
            metadata,
            has_marker: with_marker,
        }))
    }

    /// Reads the body of the message whose header came last. Memory follows the bytes that are
    /// really there, not the length that the header claims.
    pub(super) fn read_body(&mut self, header: &Header) -> Result<Vec<u8>, ReadError> {
        self.read_exactly("a message body", header.body_bytes)
    }

    /// Passes over the body of the message whose header came last.
    pub(super) fn skip_body(&mut self, header: &Header) -> Result<(), ReadError> {
        self.skip("a message body", header.body_bytes)
    }

    fn skip(&mut self, what: &'static str, length: u64) -> Result<(), ReadError> {
        let mut passed_over = (&mut self.reader).take(length);
        let skipped = std::io::copy(&mut passed_over, &mut std::io::sink())
            .map_err(|error| ArrowError::Io(error).at(self.position))?;
        self.position = self.position.saturating_add(skipped);
        if skipped < length {
            let got = usize::try_from(skipped).unwrap_or(usize::MAX);
            return Err(self.truncated(what, length, got));
        }
        Ok(())
    }

    /// Length of the body, if the metadata is sound.
    fn check(&self, metadata: &[u8]) -> Result<u64, ArrowError> {
        let message = MessageRef::read_as_root(metadata)?;
        match message.version()? {
            MetadataVersion::V4 | MetadataVersion::V5 => {}
            old => {
                return Err(ArrowError::Unsupported(format!(
                    "metadata version {old:?} (Arrow before 0.8)"
                )))
            }
        }
        let length = message.body_length()?;
        let bytes = u64::try_from(length)
            .map_err(|_| malformed(format!("a message claims a body of {length} bytes")))?;
        if bytes > self.max_body_bytes {
            return Err(ArrowError::TooLarge {
                what: "a message body",
                bytes,
                limit: self.max_body_bytes,
                setting: "max_message_bytes",
            });
        }
        Ok(bytes)
    }

    /// Streams written one after the other into a file are valid one by one, but readers see only
    /// the first: better an error than rows that vanish.
    fn refuse_second_stream(&mut self) -> Result<(), ReadError> {
        if self.format == Format::Stream && self.read_up_to(4)? == CONTINUATION {
            return Err(ArrowError::Unsupported(
                "a second stream follows the end-of-stream marker".into(),
            )
            .at(self.position));
        }
        Ok(())
    }

    fn read_exactly(&mut self, what: &'static str, length: u64) -> Result<Vec<u8>, ReadError> {
        let bytes = self.read_up_to(length)?;
        if (bytes.len() as u64) < length {
            return Err(self.truncated(what, length, bytes.len()));
        }
        Ok(bytes)
    }

    fn read_up_to(&mut self, length: u64) -> Result<Vec<u8>, ReadError> {
        let capacity = usize::try_from(length.min(INITIAL_CAPACITY)).unwrap_or(0);
        let mut bytes = Vec::with_capacity(capacity);
        let result = (&mut self.reader).take(length).read_to_end(&mut bytes);
        self.position = self.position.saturating_add(bytes.len() as u64);
        match result {
            Ok(_) => Ok(bytes),
            Err(error) => Err(ArrowError::Io(error).at(self.position)),
        }
    }

    fn truncated(&self, what: &'static str, expected: u64, got: usize) -> ReadError {
        ArrowError::Truncated {
            what,
            expected,
            got: got as u64,
        }
        .at(self.position)
    }
}

fn not_arrow(begins: Vec<u8>) -> ReadError {
    let hint = match begins.as_slice() {
        [b'F', b'E', b'A', b'1', ..] => "; it is Feather version 1, write it again as version 2",
        [b'P', b'A', b'R', b'1', ..] => "; it is Parquet, convert it to Arrow IPC",
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x1f, 0x8b, ..] | [0x04, 0x22, 0x4d, 0x18, ..] => {
            "; it is compressed as a whole, decompress it (Arrow compresses its own buffers)"
        }
        _ => "; check the file's name and format",
    };
    ArrowError::NotArrow { begins, hint }.at(0)
}
