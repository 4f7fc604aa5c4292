//! Buffers of a message body: located within bounds, decompressed within limits.
//!
//! A compressed buffer is an i64 with its decompressed length (-1: stored as it is), then one LZ4
//! or zstd frame; a buffer of no bytes stands for itself.
//! Format: <https://arrow.apache.org/docs/format/Columnar.html#compression>.

use std::io::Read;

use arrow2::buffer::Buffer;
use arrow_format::ipc::{BodyCompressionMethod, BodyCompressionRef, BufferRef, CompressionType};

use super::error::{malformed, ArrowError};

/// Decompressed bytes of a message that are accepted whatever its compressed length.
const ALWAYS_ACCEPTED_BYTES: u64 = 64 << 20;
/// Beyond that, how many times its compressed length a message may expand to.
const MAX_EXPANSION: u64 = 1024;
/// Magic of an LZ4 frame; the decoder would accept the legacy frame format, too.
const LZ4_FRAME_MAGIC: [u8; 4] = [0x04, 0x22, 0x4d, 0x18];
/// What is allocated ahead of the bytes really decompressed.
const INITIAL_CAPACITY: u64 = 1 << 20;

/// The body of one message.
pub(super) struct Body {
    bytes: Buffer<u8>,
    codec: Option<CompressionType>,
    /// How many more bytes may come out of compressed buffers.
    budget_bytes: u64,
    is_limited_by_ratio: bool,
    max_message_bytes: u64,
}

impl Body {
    /// `max_message_bytes` also bounds the sum of what its buffers decompress to.
    pub(super) fn new(
        bytes: Vec<u8>,
        compression: Option<BodyCompressionRef<'_>>,
        max_message_bytes: u64,
    ) -> Result<Self, ArrowError> {
        let codec = match compression {
            None => None,
            Some(compression) => {
                let BodyCompressionMethod::Buffer = compression.method()?;
                Some(compression.codec()?)
            }
        };
        let by_ratio = (bytes.len() as u64)
            .saturating_mul(MAX_EXPANSION)
            .max(ALWAYS_ACCEPTED_BYTES);
        Ok(Body {
            bytes: bytes.into(),
            codec,
            budget_bytes: by_ratio.min(max_message_bytes),
            is_limited_by_ratio: by_ratio < max_message_bytes,
            max_message_bytes,
        })
    }

    /// The content of a buffer; shares the body's memory where nothing is compressed.
    pub(super) fn buffer(&mut self, location: BufferRef<'_>) -> Result<Buffer<u8>, ArrowError> {
        let (offset, length) = (location.offset(), location.length());
        let range = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(length).ok())
            .filter(|(start, length)| {
                start
                    .checked_add(*length)
                    .is_some_and(|end| end <= self.bytes.len())
            });
        let Some((start, length)) = range else {
            return Err(malformed(format!(
                "a buffer of {length} bytes at {offset} exceeds its message body of {}",
                self.bytes.len()
            )));
        };
        let stored = self.bytes.clone().sliced(start, length);
        match self.codec {
            Some(codec) if !stored.is_empty() => self.decompress(codec, stored),
            _ => Ok(stored),
        }
    }

    /// Counts what a buffer claims to decompress to.
    fn spend(&mut self, length: u64) -> Result<(), ArrowError> {
        if let Some(left) = self.budget_bytes.checked_sub(length) {
            self.budget_bytes = left;
            return Ok(());
        }
        if self.is_limited_by_ratio {
            return Err(malformed(format!(
                "a compressed buffer claims {length} bytes, its message would expand more than {MAX_EXPANSION} times"
            )));
        }
        Err(ArrowError::TooLarge {
            what: "a decompressed message",
            bytes: self
                .max_message_bytes
                .saturating_add(length.saturating_sub(self.budget_bytes)),
            limit: self.max_message_bytes,
            setting: "max_message_bytes",
        })
    }

    fn decompress(
        &mut self,
        codec: CompressionType,
        stored: Buffer<u8>,
    ) -> Result<Buffer<u8>, ArrowError> {
        let Some((length, frame)) = stored.as_slice().split_first_chunk::<8>() else {
            return Err(malformed(format!(
                "a compressed buffer of {} bytes has no room for its length",
                stored.len()
            )));
        };
        let length = i64::from_le_bytes(*length);
        if length == -1 {
            let frame_bytes = frame.len();
            return Ok(stored.sliced(8, frame_bytes));
        }
        let length = u64::try_from(length)
            .map_err(|_| malformed(format!("a compressed buffer claims {length} bytes")))?;
        self.spend(length)?;
        if length == 0 {
            return Ok(Buffer::new());
        }
        let bytes = match codec {
            CompressionType::Lz4Frame if frame.starts_with(&LZ4_FRAME_MAGIC) => {
                read_within(lz4_flex::frame::FrameDecoder::new(frame), length)
            }
            CompressionType::Lz4Frame => {
                return Err(malformed("a compressed buffer is no LZ4 frame"))
            }
            CompressionType::Zstd => zstd::stream::read::Decoder::with_buffer(frame)
                .and_then(|decoder| read_within(decoder.single_frame(), length)),
        };
        let bytes = bytes
            .map_err(|error| malformed(format!("a buffer cannot be decompressed: {error}")))?;
        if bytes.len() as u64 != length {
            return Err(malformed(format!(
                "a compressed buffer claims {length} bytes and holds {}",
                if bytes.len() as u64 > length {
                    "more"
                } else {
                    "fewer"
                }
            )));
        }
        Ok(bytes.into())
    }
}

/// Reads to the end, but at most one byte more than `length`.
fn read_within(decoder: impl Read, length: u64) -> std::io::Result<Vec<u8>> {
    let capacity = usize::try_from(length.min(INITIAL_CAPACITY)).unwrap_or(0);
    let mut bytes = Vec::with_capacity(capacity);
    decoder
        .take(length.saturating_add(1))
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
