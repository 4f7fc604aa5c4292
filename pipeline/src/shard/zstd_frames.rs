//! Zstandard frames: where each begins, read and written one by one.
//!
//! The writer makes the [seekable format]: frames that decompress independently, then a table of
//! their lengths in a skippable frame, which every other decoder passes over.
//!
//! [seekable format]: https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md

use std::fmt;
use std::io::{self, BufRead, Read, Write};

use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

use super::piece::StoredPiece;
use super::stream_end::{skip_zeros, Leftover};

/// Largest zstd window accepted by default, as a power of two: 128 MiB, as `zstd -d` does.
pub(crate) const DEFAULT_MAX_WINDOW_LOG: u32 = 27;

/// Longest header of a frame, magic included.
const MAX_FRAME_HEADER_BYTES: usize = 18;

/// A frame ends with the sample that brings its content to this many bytes: small enough that a
/// sample costs little more than itself, large enough that frames cost little in size.
pub(crate) const FRAME_CONTENT_BYTES: u64 = 256 << 10;

/// No frame holds more, so that a larger sample takes several; the format's own limit.
const MAX_FRAME_CONTENT_BYTES: u64 = 1 << 30;

/// Magic of the skippable frame that holds the seek table.
const SEEK_TABLE_FRAME_MAGIC: u32 = 0x184D_2A5E;
/// Last bytes of a file in the seekable format.
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
/// Bytes after the entries: number of frames, descriptor, magic.
const SEEK_TABLE_FOOTER_BYTES: usize = 9;
/// Compressed and uncompressed length; without checksums, which the frames have themselves.
const SEEK_TABLE_ENTRY_BYTES: usize = 8;
/// Most frames of the format.
const MAX_FRAMES: usize = 0x0800_0000;

/// Size of the buffer for compressed bytes.
const OUTPUT_BUFFER_BYTES: usize = 128 << 10;

/// Neighbouring frames of a [`FrameReader`] that together hold no more than this count as one, so
/// that its list stays small whatever the frames.
const MIN_PIECE_CONTENT_BYTES: u64 = 64 << 10;

/// Decompresses all frames of a stream. Zeros behind a frame are passed over; anything else that is no
/// frame ends the stream, and is left over.
pub(crate) struct FrameReader<R> {
    input: R,
    decoder: Decoder<'static>,
    max_window_log: u32,
    leftover: Leftover,
    is_over: bool,
    /// First bytes of the present frame.
    header: Vec<u8>,
    /// Compressed bytes consumed.
    position: u64,
    frame_start: u64,
    frame_content: u64,
    in_frame: bool,
    /// The frames with content so far, if they are asked for.
    frames: Option<Vec<StoredPiece>>,
}

impl<R: BufRead> FrameReader<R> {
    /// # Errors
    /// If zstd has no memory.
    pub(crate) fn new(input: R, max_window_log: u32) -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(max_window_log))?;
        Ok(FrameReader {
            input,
            decoder,
            max_window_log,
            leftover: Leftover::default(),
            is_over: false,
            header: Vec::with_capacity(MAX_FRAME_HEADER_BYTES),
            position: 0,
            frame_start: 0,
            frame_content: 0,
            in_frame: false,
            frames: None,
        })
    }

    /// Says there where something begins that is no frame.
    pub(crate) fn with_leftover(self, leftover: Leftover) -> Self {
        FrameReader { leftover, ..self }
    }

    /// Also notes where the frames are.
    pub(crate) fn noting_frames(self) -> Self {
        FrameReader {
            frames: Some(Vec::new()),
            ..self
        }
    }

    /// The frames with content that were read to their end, in order; small ones joined.
    pub(crate) fn into_frames(self) -> Vec<StoredPiece> {
        self.frames.unwrap_or_default()
    }

    fn end_frame(&mut self) {
        self.in_frame = false;
        let content = self.frame_content;
        let Some(frames) = self.frames.as_mut().filter(|_| content > 0) else {
            return;
        };
        let is_small = |last: &&mut StoredPiece| {
            last.content.saturating_add(content) <= MIN_PIECE_CONTENT_BYTES
        };
        match frames.last_mut().filter(is_small) {
            Some(last) => {
                last.stored.end = self.position;
                last.content += content;
            }
            None => frames.push(StoredPiece {
                stored: self.frame_start..self.position,
                content,
            }),
        }
    }
}

impl<R: BufRead> FrameReader<R> {
    /// Stands at the next frame; `false` if there is none.
    fn begin_frame(&mut self) -> io::Result<bool> {
        let mut input = Counted {
            input: &mut self.input,
            count: 0,
        };
        // Padding lies behind frames, never before the first.
        let is_more = match self.position {
            0 => !input.fill_buf()?.is_empty(),
            _ => skip_zeros(&mut input)?,
        };
        self.position = self.position.saturating_add(input.count);
        if !is_more {
            return Ok(false);
        }
        self.decoder.reinit()?;
        self.frame_start = self.position;
        self.frame_content = 0;
        self.header.clear();
        self.in_frame = true;
        Ok(true)
    }

    /// Decompresses what is at hand: bytes taken, bytes made, and whether the frame ended.
    fn step(&mut self, buffer: &mut [u8]) -> io::Result<(usize, usize, bool)> {
        let input = self.input.fill_buf()?;
        let mut source = InBuffer::around(input);
        let mut target = OutBuffer::around(&mut *buffer);
        let room = MAX_FRAME_HEADER_BYTES - self.header.len();
        match self.decoder.run(&mut source, &mut target) {
            Ok(left) => {
                let (consumed, produced) = (source.pos(), target.pos());
                self.header.extend(&input[..consumed.min(room)]);
                self.input.consume(consumed);
                self.position = self.position.saturating_add(consumed as u64);
                self.frame_content = self.frame_content.saturating_add(produced as u64);
                Ok((consumed, produced, left == 0))
            }
            Err(error) => {
                self.header.extend(&input[..input.len().min(room)]);
                let too_large = window_bytes(&self.header)
                    .filter(|window| *window > 1 << self.max_window_log)
                    .map(|window_bytes| WindowTooLarge {
                        window_bytes,
                        max_log: self.max_window_log,
                    });
                Err(too_large.map_or(error, io::Error::other))
            }
        }
    }
}

impl<R: BufRead> Read for FrameReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.is_over || (!self.in_frame && !self.begin_frame()?) {
                return Ok(0);
            }
            let (consumed, produced, is_end) = match self.step(buffer) {
                // What follows a frame and does not begin like one.
                Err(_) if self.frame_start > 0 && !is_frame(&self.header) => {
                    self.leftover.set(self.frame_start);
                    self.is_over = true;
                    return Ok(0);
                }
                step => step?,
            };
            if is_end {
                self.end_frame();
            }
            if produced > 0 || buffer.is_empty() {
                return Ok(produced);
            }
            if consumed == 0 && self.in_frame && self.input.fill_buf()?.is_empty() {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "incomplete frame",
                ));
            }
        }
    }
}

/// A reader that counts what is taken.
struct Counted<'a, R> {
    input: &'a mut R,
    count: u64,
}

impl<R: BufRead> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.count += count as u64;
    }
}

/// Whether these first bytes can be those of a frame, with content or skippable.
fn is_frame(header: &[u8]) -> bool {
    let magic = &header[..header.len().min(4)];
    let is_skippable = match magic {
        [first, rest @ ..] => first & 0xf0 == 0x50 && [0x2a, 0x4d, 0x18].starts_with(rest),
        [] => true,
    };
    is_skippable || [0x28, 0xb5, 0x2f, 0xfd].starts_with(magic)
}

/// The window that a frame needs, in bytes, from its header (RFC 8878, 3.1.1.1); `None` while the header
/// is not complete.
fn window_bytes(header: &[u8]) -> Option<u64> {
    let (magic, fields) = header.split_first_chunk::<4>()?;
    if *magic != [0x28, 0xb5, 0x2f, 0xfd] {
        return None;
    }
    let (&descriptor, fields) = fields.split_first()?;
    let is_single_segment = descriptor & 0x20 != 0;
    if !is_single_segment {
        let &window = fields.first()?;
        let base = 1u64 << (10 + (window >> 3));
        return Some(base + base / 8 * u64::from(window & 7));
    }
    // The window is the content, whose length stands behind the dictionary's number.
    let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size_bytes = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let size = fields.get(dictionary_bytes..)?.get(..size_bytes)?;
    let size = size
        .iter()
        .rev()
        .fold(0, |size, &byte| size << 8 | u64::from(byte));
    Some(if size_bytes == 2 { size + 256 } else { size })
}

/// Compresses a stream into frames; [`SeekableWriter::end_sample`] says where one may end.
pub(crate) struct SeekableWriter<W> {
    output: W,
    encoder: Encoder<'static>,
    buffer: Vec<u8>,
    frame_content: u64,
    frame_stored: u64,
    /// Compressed and uncompressed length of each frame.
    frames: Vec<[u32; 2]>,
}

impl<W> fmt::Debug for SeekableWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SeekableWriter({} frames)", self.frames.len())
    }
}

impl<W: Write> SeekableWriter<W> {
    /// # Errors
    /// If zstd has no memory or does not know the level.
    pub(crate) fn new(output: W, level: i32) -> io::Result<Self> {
        let mut encoder = Encoder::new(level)?;
        encoder.set_parameter(CParameter::ChecksumFlag(true))?;
        Ok(SeekableWriter {
            output,
            encoder,
            buffer: vec![0; OUTPUT_BUFFER_BYTES],
            frame_content: 0,
            frame_stored: 0,
            frames: Vec::new(),
        })
    }

    /// Ends the frame if it is long enough.
    ///
    /// # Errors
    /// Those of the writer below.
    pub(crate) fn end_sample(&mut self) -> io::Result<()> {
        if self.frame_content >= FRAME_CONTENT_BYTES {
            self.end_frame()?;
        }
        Ok(())
    }

    /// Writes the last frame and the seek table; returns the writer below and the frames.
    ///
    /// # Errors
    /// Those of the writer below, and `InvalidInput` where the table cannot hold so many frames.
    pub(crate) fn finish(mut self) -> io::Result<(W, Vec<StoredPiece>)> {
        if self.frame_content > 0 {
            self.end_frame()?;
        }
        let table_bytes = self.frames.len() * SEEK_TABLE_ENTRY_BYTES + SEEK_TABLE_FOOTER_BYTES;
        let number = |count: usize| {
            u32::try_from(count).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
        };
        let mut table = Vec::with_capacity(table_bytes + 8);
        table.extend(SEEK_TABLE_FRAME_MAGIC.to_le_bytes());
        table.extend(number(table_bytes)?.to_le_bytes());
        for [stored, content] in &self.frames {
            table.extend(stored.to_le_bytes());
            table.extend(content.to_le_bytes());
        }
        table.extend(number(self.frames.len())?.to_le_bytes());
        table.push(0); // no checksums in the table
        table.extend(SEEKABLE_MAGIC.to_le_bytes());
        self.output.write_all(&table)?;
        let mut at = 0;
        let pieces = self.frames.iter().map(|[stored, content]| {
            let start = at;
            at += u64::from(*stored);
            StoredPiece {
                stored: start..at,
                content: u64::from(*content),
            }
        });
        let pieces = pieces.collect();
        Ok((self.output, pieces))
    }

    fn end_frame(&mut self) -> io::Result<()> {
        loop {
            let mut target = OutBuffer::around(&mut self.buffer[..]);
            let left = self.encoder.finish(&mut target, true)?;
            let produced = target.pos();
            self.write_output(produced)?;
            if left == 0 {
                break;
            }
        }
        self.encoder.reinit()?;
        let length =
            |bytes: u64| u32::try_from(bytes).map_err(|_| io::Error::other("a frame of 4 GiB"));
        if self.frames.len() >= MAX_FRAMES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("more than {MAX_FRAMES} zstd frames; write smaller shards"),
            ));
        }
        self.frames
            .push([length(self.frame_stored)?, length(self.frame_content)?]);
        (self.frame_content, self.frame_stored) = (0, 0);
        Ok(())
    }

    fn write_output(&mut self, bytes: usize) -> io::Result<()> {
        self.frame_stored = self.frame_stored.saturating_add(bytes as u64);
        self.output.write_all(&self.buffer[..bytes])
    }
}

impl<W: Write> Write for SeekableWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.frame_content >= MAX_FRAME_CONTENT_BYTES {
            self.end_frame()?;
        }
        let room = MAX_FRAME_CONTENT_BYTES - self.frame_content;
        let bytes =
            &bytes[..usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()))];
        let mut source = InBuffer::around(bytes);
        while source.pos() < bytes.len() {
            let mut target = OutBuffer::around(&mut self.buffer[..]);
            self.encoder.run(&mut source, &mut target)?;
            let produced = target.pos();
            self.write_output(produced)?;
        }
        self.frame_content = self.frame_content.saturating_add(bytes.len() as u64);
        Ok(bytes.len())
    }

    /// Flushes the writer below; what the frame has not put out yet stays in it, so that flushing
    /// does not change the bytes.
    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// A zstd frame whose window is beyond the limit: the shard is sound, and memory the question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowTooLarge {
    /// What the frame needs.
    pub(super) window_bytes: u64,
    /// The limit, as a power of two.
    pub(super) max_log: u32,
}

impl WindowTooLarge {
    /// The least limit under which the frame is read, as a power of two.
    fn log(self) -> u32 {
        u64::BITS - (self.window_bytes.max(1) - 1).leading_zeros()
    }
}

impl fmt::Display for WindowTooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let (needed, limit) = (mib(self.window_bytes), mib(1 << self.max_log));
        write!(
            f,
            "needs a zstd window of {needed} MiB, and the limit is {limit} MiB"
        )?;
        match self.log() {
            log if log <= MAX_WINDOW_LOG => write!(
                f,
                "; raise it with `max_zstd_window_log` (--max-zstd-window-log {log}; for training \
                 --set data.max_zstd_window_log={log}), at that much memory a reader, or compress \
                 the shard again without --long"
            ),
            _ => f.write_str(
                ", which cannot be raised so far; compress the shard again without --long",
            ),
        }
    }
}

impl std::error::Error for WindowTooLarge {}

/// Limits of a window's size that can be set, as powers of two; zstd's own.
pub(crate) const MIN_WINDOW_LOG: u32 = 10;

pub(crate) const MAX_WINDOW_LOG: u32 = 31;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_window_of_any_frame_has_a_logarithm() {
        let log = |window_bytes| {
            let window = WindowTooLarge {
                window_bytes,
                max_log: 27,
            };
            (
                window.log(),
                window.to_string().contains("cannot be raised"),
            )
        };
        assert_eq!(log(1 << 28), (28, false));
        assert_eq!(log((1 << 28) + 1), (29, false));
        assert_eq!(log((1 << 31) + 1), (32, true));
        assert_eq!(log(0), (0, false));
        // A frame of one segment declares any length that 64 bits hold.
        assert_eq!(log(u64::MAX), (64, true));
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut state = 1u32;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        std::iter::repeat_with(next).take(bytes).collect()
    }

    fn number(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn seek_table_says_where_frames_are_and_any_decoder_reads_them() {
        let samples = [100_000, 200_000, 400_000, 10, 300_000, 7].map(noise);
        let write = || {
            let mut writer = SeekableWriter::new(Vec::new(), 3).unwrap();
            for sample in &samples {
                writer.write_all(sample).unwrap();
                writer.end_sample().unwrap();
            }
            writer.finish().unwrap()
        };
        let (bytes, frames) = write();
        assert_eq!(write().0, bytes, "equal input, equal bytes");
        let content = samples.concat();
        assert_eq!(zstd::decode_all(&bytes[..]).unwrap(), content);

        // The table, by the format's own description, from the end of the file.
        let end = bytes.len();
        assert_eq!(number(&bytes, end - 4), 0x8F92_EAB1);
        assert_eq!(bytes[end - 5], 0);
        let count = number(&bytes, end - 9) as usize;
        assert_eq!(count, 4);
        let table = end - 9 - 8 * count;
        assert_eq!(number(&bytes, table - 8), 0x184D_2A5E);
        assert_eq!(number(&bytes, table - 4) as usize, 8 * count + 9);
        let (mut stored_at, mut content_at) = (0, 0);
        for (frame, cut) in frames.iter().zip([300_000, 400_000, 300_010, 7]) {
            let entry = table + 8 * frames.iter().position(|other| other == frame).unwrap();
            let stored = number(&bytes, entry) as usize;
            assert_eq!(number(&bytes, entry + 4), cut);
            assert_eq!(frame.stored, stored_at as u64..(stored_at + stored) as u64);
            let frame = &bytes[stored_at..stored_at + stored];
            assert_eq!(frame[4] & 4, 4, "content checksum");
            let expected = &content[content_at..content_at + cut as usize];
            assert_eq!(zstd::decode_all(frame).unwrap(), expected);
            stored_at += stored;
            content_at += cut as usize;
        }
        assert_eq!(stored_at, table - 8);

        let mut reader = FrameReader::new(&bytes[..], 27).unwrap().noting_frames();
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert!(read == content);
        assert_eq!(reader.into_frames(), frames);
    }

    #[test]
    fn frames_are_found_whoever_wrote_them() {
        let mut bytes = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]; // skippable
        let mut expected = Vec::new();
        for content in [&b""[..], b"abc", &noise(300_000)] {
            let start = bytes.len() as u64;
            bytes.extend(zstd::encode_all(content, 1).unwrap());
            if !content.is_empty() {
                expected.push(StoredPiece {
                    stored: start..bytes.len() as u64,
                    content: content.len() as u64,
                });
            }
        }
        // However small the pieces in which it comes.
        for capacity in [1, 7, 1 << 20] {
            let input = io::BufReader::with_capacity(capacity, &bytes[..]);
            let mut reader = FrameReader::new(input, 27).unwrap().noting_frames();
            io::copy(&mut reader, &mut io::sink()).unwrap();
            assert_eq!(reader.into_frames(), expected);
        }
        let tiny = zstd::encode_all(&[0; 1000][..], 1).unwrap().repeat(1000);
        let mut reader = FrameReader::new(&tiny[..], 27).unwrap().noting_frames();
        io::copy(&mut reader, &mut io::sink()).unwrap();
        let pieces = reader.into_frames();
        assert_eq!(
            pieces.iter().map(|piece| piece.content).sum::<u64>(),
            1_000_000
        );
        assert_eq!(pieces.len(), 1000usize.div_ceil(65));
        let mut cut = FrameReader::new(&bytes[..bytes.len() - 1], 27).unwrap();
        let error = io::copy(&mut cut, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        let (bytes, frames) = SeekableWriter::new(Vec::new(), 3)
            .unwrap()
            .finish()
            .unwrap();
        assert!(frames.is_empty() && zstd::decode_all(&bytes[..]).unwrap().is_empty());
    }
}
