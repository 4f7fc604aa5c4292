//! Compressed shards: told by their first bytes, decompressed to their last.
//!
//! Checksums of gzip members and zstd frames are compared where these end, so a reader that wants to
//! know whether a shard is sound goes on to the end of the stream, behind the end of the archive.
//! Zeros behind the compressed data are padding. Anything else ends the stream there, as gzip does
//! with "trailing garbage", and [`Leftover`] says where.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::rc::Rc;

use flate2::bufread::GzDecoder;

use super::stream_end::{skip_zeros, Leftover};
use super::zstd_frames::FrameReader;

/// How a shard is compressed as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Told by the first four bytes.
pub(crate) fn compression_of(magic: &[u8]) -> Compression {
    // Zstandard also begins with one of 16 skippable-frame magics (as the seekable format may).
    let is_zstd = magic == [0x28, 0xb5, 0x2f, 0xfd]
        || (magic.len() == 4 && magic[0] & 0xf0 == 0x50 && magic[1..] == [0x2a, 0x4d, 0x18]);
    if magic.starts_with(&GZIP_MAGIC) {
        Compression::Gzip
    } else if is_zstd {
        Compression::Zstd
    } else {
        Compression::None
    }
}

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What decompressing may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecompressLimits {
    /// The largest window of a zstd frame, as a power of two of bytes.
    pub(crate) window_log: u32,
    /// The most that a stream may expand to, as a multiple of its size; see [`BoundedReader`].
    pub(crate) ratio: u64,
}

/// Decompresses a stream from its beginning.
///
/// # Errors
/// If zstd has no memory.
pub(crate) fn decompressor<'a>(
    compression: Compression,
    input: impl BufRead + 'a,
    limits: DecompressLimits,
    leftover: &Leftover,
) -> io::Result<Box<dyn Read + 'a>> {
    if compression == Compression::None {
        return Ok(Box::new(input));
    }
    let taken = Rc::new(Cell::new(0));
    let input = CountedInput {
        inner: input,
        taken: taken.clone(),
    };
    let inner: Box<dyn Read> = match compression {
        Compression::Zstd => {
            let frames = FrameReader::new(input, limits.window_log)?;
            Box::new(frames.with_leftover(leftover.clone()))
        }
        _ => Box::new(GzipReader::new(input, leftover.clone())),
    };
    Ok(Box::new(BoundedReader {
        inner,
        taken,
        given: 0,
        ratio: limits.ratio,
    }))
}

/// What a stream may expand to before its ratio is looked at, in bytes.
const FREE_BYTES: u64 = 1 << 30;

/// A decompressor that ends with an error where it gives too much for what it took: memory is bounded by
/// others, but a few megabytes could keep a reader busy for days.
struct BoundedReader<R> {
    inner: R,
    /// Compressed bytes so far.
    taken: Rc<Cell<u64>>,
    given: u64,
    ratio: u64,
}

impl<R: Read> Read for BoundedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.given = self.given.saturating_add(count as u64);
        let taken = self.taken.get();
        if self.given > FREE_BYTES && self.given / self.ratio > taken {
            let message = format!(
                "it expands to more than {} times its size ({} bytes of {taken}); if it is to, raise \
                 max_decompression_ratio",
                self.ratio, self.given
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(count)
    }
}

/// Input whose bytes are counted as they are taken.
struct CountedInput<R> {
    inner: R,
    taken: Rc<Cell<u64>>,
}

impl<R: Read> Read for CountedInput<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.taken.set(self.taken.get() + count as u64);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for CountedInput<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.inner.consume(count);
        self.taken.set(self.taken.get() + count as u64);
    }
}

/// Decompresses all members of a gzip stream, and compares their checksums.
struct GzipReader<R> {
    /// Its input is absent while members change.
    decoder: GzDecoder<Input<R>>,
    /// Where the present member begins.
    member_offset: u64,
    is_over: bool,
    leftover: Leftover,
}

impl<R: BufRead> GzipReader<R> {
    fn new(input: R, leftover: Leftover) -> Self {
        GzipReader {
            decoder: GzDecoder::new(Input {
                inner: Some(input),
                position: 0,
            }),
            member_offset: 0,
            is_over: false,
            leftover,
        }
    }

    /// Goes on to the next member; `false` where none follows.
    fn next_member(&mut self) -> io::Result<bool> {
        let input = self.decoder.get_mut();
        if !skip_zeros(input)? {
            return Ok(false);
        }
        let offset = input.position;
        if input.fill_buf()?.first() != GZIP_MAGIC.first() {
            self.leftover.set(offset);
            return Ok(false);
        }
        // The decoder's memory is used again: some writers make a member of every 64 KiB.
        let absent = Input {
            inner: None,
            position: 0,
        };
        let input = self.decoder.reset(absent);
        self.decoder.reset(input);
        self.member_offset = offset;
        Ok(true)
    }
}

impl<R: BufRead> Read for GzipReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !self.is_over && !buffer.is_empty() {
            match self.decoder.read(buffer) {
                Ok(0) => self.is_over = !self.next_member()?,
                // No header of a member after all.
                Err(error)
                    if error.kind() == io::ErrorKind::InvalidInput
                        && self.member_offset > 0
                        && self.decoder.header().is_none() =>
                {
                    self.leftover.set(self.member_offset);
                    self.is_over = true;
                }
                result => return result,
            }
        }
        Ok(0)
    }
}

/// Input that counts what is taken, and can be taken away.
struct Input<R> {
    inner: Option<R>,
    position: u64,
}

impl<R: BufRead> Read for Input<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(inner) = &mut self.inner else {
            return Ok(0);
        };
        let count = inner.read(buffer)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Input<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match &mut self.inner {
            Some(inner) => inner.fill_buf(),
            None => Ok(&[]),
        }
    }

    fn consume(&mut self, count: usize) {
        if let Some(inner) = &mut self.inner {
            inner.consume(count);
            self.position += count as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Write};

    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(content: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.include_checksum(true).unwrap();
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    const LIMITS: DecompressLimits = DecompressLimits {
        window_log: 27,
        ratio: 1032,
    };

    /// Two GiB of zeros in some 200 KB.
    #[test]
    fn a_bomb_is_an_error() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        let zeros = vec![0; 1 << 20];
        for _ in 0..2048 {
            encoder.write_all(&zeros).unwrap();
        }
        let bomb = encoder.finish().unwrap();
        let end = |ratio| {
            let limits = DecompressLimits { ratio, ..LIMITS };
            let leftover = Leftover::default();
            let reader = decompressor(Compression::Zstd, &bomb[..], limits, &leftover);
            io::copy(&mut reader.unwrap(), &mut io::sink())
        };
        let error = end(LIMITS.ratio).unwrap_err().to_string();
        assert!(error.contains("more than 1032 times its size"), "{error}");
        assert_eq!(end(1 << 40).unwrap(), 2 << 30);
    }

    type Read3 = (Vec<u8>, Option<u64>, Option<io::ErrorKind>);

    /// Content, where it is something else, and how it ends.
    fn read(bytes: &[u8], buffer: usize) -> Read3 {
        let leftover = Leftover::default();
        let input = BufReader::with_capacity(buffer, bytes);
        let compression = compression_of(&bytes[..4]);
        assert_ne!(compression, Compression::None);
        let mut reader = decompressor(compression, input, LIMITS, &leftover).unwrap();
        let mut content = Vec::new();
        let end = reader.read_to_end(&mut content);
        (
            content,
            leftover.offset(),
            end.err().map(|error| error.kind()),
        )
    }

    #[test]
    fn several_pieces_padding_and_leftovers() {
        let content: Vec<u8> = (0..100_000u32).map(|at| (at * 7 % 251) as u8).collect();
        for pack in [gzip, zstd] {
            let (one, two) = (pack(&content), pack(&content[..7]));
            let both = [&content[..], &content[..7]].concat();
            for buffer in [1, 3, 1 << 16] {
                let check = |pieces: &[&[u8]], expected: &[u8], leftover: Option<u64>| {
                    let (found, at, error) = read(&pieces.concat(), buffer);
                    assert_eq!((at, error), (leftover, None), "{buffer}");
                    assert!(found == expected);
                };
                let end = one.len() as u64;
                check(&[&one], &content, None);
                check(&[&one, &two], &both, None);
                check(&[&one, &[0; 700]], &content, None);
                check(&[&one, &[0; 700], &two], &both, None);
                check(&[&one, b"garbage"], &content, Some(end));
                check(&[&one, &[0; 9], b"garbage"], &content, Some(end + 9));
                check(
                    &[&one, &two, b"\x1f\x8c garbage"],
                    &both,
                    Some((one.len() + two.len()) as u64),
                );
            }
        }
    }

    #[test]
    fn no_cut_and_no_flipped_bit_passes() {
        let content: Vec<u8> = (0..3000u32).map(|at| ((at * at) >> 5) as u8).collect();
        for pack in [gzip, zstd] {
            let bytes = pack(&content);
            for length in 4..bytes.len() {
                let (_, leftover, error) = read(&bytes[..length], 64);
                assert_eq!(leftover, None);
                assert_eq!(error, Some(io::ErrorKind::UnexpectedEof), "{length}");
            }
            // Behind the header, which has fields that change nothing.
            for at in 12..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << (at % 8);
                let (_, _, error) = read(&flipped, 64);
                assert!(error.is_some(), "byte {at}");
            }
        }
    }
}
