//! PNG: rows through the `png` crate, which is given the chunks that make up the picture and no
//! others; profiles and texts are never inflated, but for an orientation in one.
//!
//! A file may end behind its last row, without the chunks that should follow. One that ends before
//! is an error or, under [`OnTruncated::Grey`], black from there on, both as in PIL.

use std::borrow::Cow;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::ops::Range;

use image::metadata::Orientation;
use png::Transformations;

use super::buffers::{memory_for, RowSink};
use super::metadata::{raw_profile, Metadata, MAX_TEXT_BYTES};
use super::samples::{palette, Colour, Layout};
use super::{CropBox, DecodeError, DecodeLimits, ImageFormat, OnTruncated};

/// Most bytes that a byte of deflated data inflates to.
const MAX_INFLATION: u64 = 1032;

/// An end chunk, for files that lack theirs.
const END: &[u8] = b"\0\0\0\0IEND\xae\x42\x60\x82";

/// What the chunks of a file tell.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) orientation: Orientation,
    layout: Layout,
    interlaced: bool,
    /// Signature and header; palette; image data. Whole chunks, but for the last.
    parts: [Range<usize>; 3],
    /// Bytes of the last checksum that are missing; `None` if even image data is.
    lacks: Option<usize>,
    /// Whether the chunks up to the end chunk are there.
    ended: bool,
}

impl Header {
    pub(super) fn read(
        bytes: &[u8],
        limits: &DecodeLimits,
        on_truncated: OnTruncated,
    ) -> Result<Header, DecodeError> {
        let chunks = Chunks::read(bytes)?;
        let data = &bytes[chunks.header.start + 8..];
        let word = |at: usize| {
            data[at..at + 4]
                .iter()
                .fold(0, |word, byte| word << 8 | u32::from(*byte))
        };
        let (width, height, bits) = (word(0), word(4), data[8]);
        let known = match data[9] {
            0 => {
                matches!(bits, 1 | 2 | 4 | 8 | 16).then_some((1, Colour::Grey { inverted: false }))
            }
            2 => matches!(bits, 8 | 16).then_some((3, Colour::Rgb)),
            3 => matches!(bits, 1 | 2 | 4 | 8).then(|| {
                (
                    1,
                    Colour::Palette(palette(bytes.get(chunks.colours()).unwrap_or_default())),
                )
            }),
            4 => matches!(bits, 8 | 16).then_some((2, Colour::Grey { inverted: false })),
            6 => matches!(bits, 8 | 16).then_some((4, Colour::Rgb)),
            _ => None,
        };
        let (samples, colour) = known.ok_or_else(|| {
            broken(format!(
                "colour type {} of {bits} bits does not exist",
                data[9]
            ))
        })?;
        let layout = Layout {
            bits,
            samples,
            big_endian: true,
            colour,
        };
        limits.check(ImageFormat::Png, width, height)?;
        let header = Header {
            width,
            height,
            orientation: chunks.metadata.orientation(),
            interlaced: data[12] != 0,
            parts: [0..chunks.header.end, chunks.palette, chunks.image.clone()],
            lacks: chunks.lacks,
            ended: chunks.ended,
            layout,
        };
        let inflated = (header.layout.row_bytes(width) as u64 + 1) * u64::from(height);
        if on_truncated == OnTruncated::Error
            && inflated / MAX_INFLATION > chunks.image.len() as u64
        {
            return Err(broken(format!(
                "{} bytes of data cannot hold {width}×{height} pixels",
                chunks.image.len()
            )));
        }
        Ok(header)
    }

    /// Bytes of all rows as stored, where they are all held.
    pub(super) fn held_bytes(&self) -> u64 {
        match self.interlaced {
            true => self.layout.row_bytes(self.width) as u64 * u64::from(self.height),
            false => 0,
        }
    }

    /// Hands over the rows of a region.
    pub(super) fn rows(
        &self,
        bytes: &[u8],
        region: CropBox,
        on_truncated: OnTruncated,
        sink: RowSink<'_>,
    ) -> Result<(), DecodeError> {
        let mut reader = match self.reader(bytes, on_truncated) {
            Ok(reader) => Some(reader),
            Err(_) if self.is_cut(on_truncated) => None,
            Err(error) => return Err(self.unreadable(error)),
        };
        let mut out = memory_for(ImageFormat::Png, region.width as usize * 3)?;
        let (mut scratch, first) = (Vec::new(), region.x as usize);
        let mut hand_over = |row: &[u8]| {
            self.layout.to_rgb(row, first, &mut scratch, &mut out);
            sink(&out);
        };
        let rows = region.y as usize..(region.y + region.height) as usize;
        let row_bytes = self.layout.row_bytes(self.width);
        if self.interlaced {
            let mut all = memory_for(ImageFormat::Png, row_bytes * self.height as usize)?;
            if let Some(reader) = &mut reader {
                self.passes(reader, &mut all, on_truncated)?;
            }
            all.chunks_exact(row_bytes)
                .take(rows.end)
                .skip(rows.start)
                .for_each(hand_over);
            return Ok(());
        }
        // Where the end is missing, it is looked whether all rows are there.
        let last = if self.ended {
            rows.end
        } else {
            self.height as usize
        };
        let mut row = memory_for(ImageFormat::Png, row_bytes)?;
        for at in 0..last {
            if let Some(some) = &mut reader {
                match some.read_row(&mut row) {
                    Ok(Some(_)) => {}
                    Ok(None) => return Err(broken("it has fewer rows than it declares")),
                    Err(_) if on_truncated == OnTruncated::Grey => {
                        reader = None;
                        row.fill(0);
                    }
                    Err(error) => return Err(self.unreadable(error)),
                }
            }
            if rows.contains(&at) {
                hand_over(&row);
            }
        }
        Ok(())
    }

    /// All passes of an interlaced picture, into rows as stored.
    fn passes(
        &self,
        reader: &mut png::Reader<Joined<'_>>,
        all: &mut [u8],
        on_truncated: OnTruncated,
    ) -> Result<(), DecodeError> {
        let bits = self.layout.bits * self.layout.samples as u8;
        let stride = self.layout.row_bytes(self.width);
        // What follows the last row is not asked for: it may be missing.
        for _ in 0..self.rows_of_passes() {
            match reader.next_interlaced_row() {
                Ok(Some(row)) => {
                    if let png::InterlaceInfo::Adam7(pass) = row.interlace() {
                        png::expand_interlaced_row(all, stride, row.data(), pass, bits);
                    }
                }
                Ok(None) => return Err(broken("it has fewer rows than it declares")),
                Err(_) if on_truncated == OnTruncated::Grey => return Ok(()),
                Err(error) => return Err(self.unreadable(error)),
            }
        }
        Ok(())
    }

    /// Rows of all passes of an interlaced picture: those without columns do not exist.
    fn rows_of_passes(&self) -> u32 {
        // First column and row of each pass, and the steps of both.
        const PASSES: [(u32, u32, u32, u32); 7] = [
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        ];
        let there = PASSES.into_iter().filter(|(x, ..)| self.width > *x);
        there
            .map(|(_, y, _, step)| self.height.saturating_sub(y).div_ceil(step))
            .sum()
    }

    fn reader<'a>(
        &self,
        bytes: &'a [u8],
        on_truncated: OnTruncated,
    ) -> Result<png::Reader<Joined<'a>>, png::DecodingError> {
        let [header, palette, image] = self.parts.clone().map(|part| &bytes[part]);
        let end: [&[u8]; 2] = match self.lacks {
            Some(lacks) => [&[0; 4][..lacks], END],
            None => [&[], &[]],
        };
        let joined = Joined([header, palette, image, end[0], end[1]]);
        let mut decoder = png::Decoder::new_with_limits(joined, png::Limits { bytes: usize::MAX });
        decoder.set_transformations(Transformations::IDENTITY);
        decoder.ignore_checksums(on_truncated == OnTruncated::Grey || self.lacks != Some(0));
        decoder.read_info()
    }

    fn is_cut(&self, on_truncated: OnTruncated) -> bool {
        !self.ended && on_truncated == OnTruncated::Grey
    }

    fn unreadable(&self, error: png::DecodingError) -> DecodeError {
        match self.ended {
            true => broken(error.to_string()),
            false => broken("it is truncated; on_truncated = \"grey\" takes what there is"),
        }
    }
}

fn broken(message: impl Into<String>) -> DecodeError {
    DecodeError::broken(ImageFormat::Png, message)
}

/// The chunks of a file that are looked at.
#[derive(Debug, Default)]
struct Chunks<'a> {
    header: Range<usize>,
    palette: Range<usize>,
    image: Range<usize>,
    lacks: Option<usize>,
    ended: bool,
    metadata: Metadata<'a>,
    /// A text with an EXIF block, which counts where there is no other.
    profile: Option<Vec<u8>>,
}

impl<'a> Chunks<'a> {
    fn read(bytes: &'a [u8]) -> Result<Chunks<'a>, DecodeError> {
        const SIGNATURE: usize = 8;
        let mut chunks = Chunks::default();
        let mut at = SIGNATURE;
        while let Some(start) = bytes.get(at..at + 8) {
            let kind = &start[4..];
            if !kind
                .iter()
                .all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
            {
                break;
            }
            let len = u32::from_be_bytes([start[0], start[1], start[2], start[3]]) as usize;
            let (data, end) = (at + 8, at + 8 + len);
            let chunk = at..bytes.len().min(end + 4);
            let is_image = kind == b"IDAT";
            if is_image && chunks.image.is_empty() {
                chunks.image = chunk.clone();
            } else if is_image && chunks.image.end == at {
                chunks.image.end = chunk.end;
            } else if kind == b"IEND" {
                chunks.ended = true;
            }
            if is_image {
                let lacks = (end + 4).saturating_sub(bytes.len());
                chunks.lacks = (lacks <= 4).then_some(lacks);
            }
            let Some(content) = bytes.get(data..end).filter(|_| !chunks.ended) else {
                break;
            };
            match kind {
                b"IHDR" if chunks.header.is_empty() && len == 13 => chunks.header = chunk,
                b"PLTE" if chunks.image.is_empty() => chunks.palette = chunk,
                b"eXIf" => chunks.metadata.exif = Some(Cow::Borrowed(content)),
                b"tEXt" | b"zTXt" | b"iTXt" => chunks.text(kind, content),
                _ => {}
            }
            at = end + 4;
        }
        if chunks.header.start != SIGNATURE {
            return Err(broken("it does not begin with a header chunk"));
        }
        if chunks.header.is_empty() || chunks.header.end - chunks.header.start < 25 {
            return Err(broken("its header chunk is cut off"));
        }
        if chunks.image.is_empty() {
            return Err(broken(match chunks.ended {
                true => "it holds no picture",
                false => "it is truncated before its picture begins",
            }));
        }
        if let (None, Some(profile)) = (&chunks.metadata.exif, chunks.profile.take()) {
            chunks.metadata.exif = Some(Cow::Owned(profile));
        }
        Ok(chunks)
    }

    /// The colours of the palette chunk.
    fn colours(&self) -> Range<usize> {
        match self.palette.is_empty() {
            true => 0..0,
            false => self.palette.start + 8..(self.palette.end - 4).max(self.palette.start + 8),
        }
    }

    /// Keeps a text that may hold an orientation.
    fn text(&mut self, kind: &[u8], content: &'a [u8]) {
        let Some(end) = content.iter().position(|&byte| byte == 0) else {
            return;
        };
        let (name, rest) = (&content[..end], &content[end + 1..]);
        let is_profile = name == b"Raw profile type exif";
        if !is_profile && name != b"XML:com.adobe.xmp" {
            return;
        }
        let Some(text) = value(kind, rest) else {
            return;
        };
        match is_profile {
            true => self.profile = raw_profile(&text),
            false => self.metadata.xmp = Some(text),
        }
    }
}

/// The text of a chunk, behind its keyword.
fn value<'a>(kind: &[u8], rest: &'a [u8]) -> Option<Cow<'a, [u8]>> {
    let (compressed, text) = match (kind, rest) {
        (b"tEXt", text) => (false, text),
        (b"zTXt", [0, text @ ..]) => (true, text),
        (b"iTXt", [compressed, method, texts @ ..]) => {
            // Language and translated keyword come first.
            let text = texts.splitn(3, |&byte| byte == 0).nth(2)?;
            let compressed = *compressed != 0;
            if compressed && *method != 0 {
                return None;
            }
            (compressed, text)
        }
        _ => return None,
    };
    if !compressed {
        return Some(Cow::Borrowed(text));
    }
    let mut inflated = Vec::new();
    let mut reader = flate2::read::ZlibDecoder::new(text).take(MAX_TEXT_BYTES);
    reader.read_to_end(&mut inflated).ok()?;
    Some(Cow::Owned(inflated))
}

/// Parts of a file as one stream.
struct Joined<'a>([&'a [u8]; 5]);

impl Read for Joined<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(out)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Joined<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self
            .0
            .iter()
            .find(|part| !part.is_empty())
            .copied()
            .unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        if let Some(part) = self.0.iter_mut().find(|part| !part.is_empty()) {
            *part = &part[amount..];
        }
    }
}

impl Seek for Joined<'_> {
    // The decoder demands it and does not use it.
    fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
