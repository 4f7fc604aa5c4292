//! The chunks of a file, and the rows of those that lie side by side.

use std::borrow::Cow;
use std::io::{Cursor, ErrorKind, Read};
use std::ops::Range;

use super::super::buffers::memory_for;
use super::super::tags::{Directory, Field};
use super::super::{DecodeError, DecodeLimits, ImageFormat};
use super::chunks::{jpeg, open, Compression};
use super::fields::{broken, tag};
use super::header::Header;

/// Where the chunks of a file are.
pub(super) struct Chunks<'a> {
    header: &'a Header,
    offsets: Field<'a>,
    lengths: Option<Field<'a>>,
    across: u32,
    per_plane: usize,
    /// Tables that all chunks of JPEG data share.
    tables: Option<&'a [u8]>,
}

impl<'a> Chunks<'a> {
    pub(super) fn of(
        header: &'a Header,
        directory: &Directory<'a>,
    ) -> Result<Chunks<'a>, DecodeError> {
        let (offsets, lengths) = match header.tiled {
            false => (tag::STRIP_OFFSETS, tag::STRIP_BYTES),
            true => (tag::TILE_OFFSETS, tag::TILE_BYTES),
        };
        let offsets = directory
            .field(offsets)
            .ok_or_else(|| broken("it does not say where its pixels are"))?;
        let across = header.width.div_ceil(header.chunk.0);
        let per_plane = across as usize * header.height.div_ceil(header.chunk.1) as usize;
        let count = per_plane * header.planes();
        if offsets.len() < count {
            return Err(broken(format!(
                "it has {} strips or tiles, expected {count}",
                offsets.len()
            )));
        }
        // Columns of chunks are put side by side, byte by byte.
        let bits = u64::from(header.chunk.0)
            * header.chunk_samples() as u64
            * u64::from(header.layout.bits);
        if across > 1 && !bits.is_multiple_of(8) {
            return Err(broken("its tiles end within a byte"));
        }
        Ok(Chunks {
            header,
            offsets,
            lengths: directory.field(lengths),
            across,
            per_plane,
            tables: directory.field(tag::JPEG_TABLES).map(|field| field.bytes()),
        })
    }

    /// Refuses a file that does not hold its chunks.
    pub(super) fn check(&self, bytes: &[u8]) -> Result<(), DecodeError> {
        (0..self.per_plane * self.header.planes())
            .try_for_each(|index| self.stored(index, bytes).map(drop))
    }

    /// The data of a chunk, in the file's order of bits.
    fn stored<'b>(&self, index: usize, bytes: &'b [u8]) -> Result<&'b [u8], DecodeError> {
        let truncated = || {
            broken(format!(
                "it is truncated: strip or tile {index} lies beyond its {} bytes",
                bytes.len()
            ))
        };
        let offset = self
            .offsets
            .number(index)
            .and_then(|offset| usize::try_from(offset).ok());
        let rest = bytes
            .get(offset.ok_or_else(truncated)?..)
            .filter(|rest| !rest.is_empty())
            .ok_or_else(truncated)?;
        let length = self
            .lengths
            .and_then(|lengths| lengths.number(index))
            .filter(|&length| length > 0);
        match length {
            // How long it is follows from the pixels; some writers give other lengths.
            _ if self.header.compression == Compression::None => Ok(rest),
            None => Ok(rest),
            Some(length) => usize::try_from(length)
                .ok()
                .and_then(|length| rest.get(..length))
                .ok_or_else(truncated),
        }
    }

    fn data<'b>(&self, index: usize, bytes: &'b [u8]) -> Result<Cow<'b, [u8]>, DecodeError> {
        let stored = self.stored(index, bytes)?;
        if !self.header.reversed || self.header.compression == Compression::Jpeg {
            return Ok(Cow::Borrowed(stored));
        }
        let mut turned = memory_for(ImageFormat::Tiff, stored.len())?;
        for (turned, byte) in turned.iter_mut().zip(stored) {
            *turned = byte.reverse_bits();
        }
        Ok(Cow::Owned(turned))
    }

    /// Reads a chunk's rows; those of JPEG data are decoded at once.
    fn reader<'b>(
        &self,
        index: usize,
        (bytes, limits): (&'b [u8], &DecodeLimits),
    ) -> Result<Box<dyn Read + 'b>, DecodeError> {
        let header = self.header;
        let data = self.data(index, bytes)?;
        if header.compression == Compression::Jpeg {
            let top = (index % self.per_plane) as u32 / self.across * header.chunk.1;
            let rows = match header.tiled {
                true => header.chunk.1,
                false => header.chunk.1.min(header.height - top),
            };
            let size = (header.chunk.0, rows);
            let (rows, samples) = jpeg((&data, self.tables), size, header.ycbcr, limits)?;
            return match samples == header.layout.samples {
                true => Ok(Box::new(rows)),
                false => Err(broken(
                    "its JPEG data has another number of components than its tags say",
                )),
            };
        }
        open(data, header.compression, header.chunk.0).map_err(|error| broken(error.to_string()))
    }
}

/// The rows of chunks that lie side by side, from the top.
pub(super) struct Band<'a> {
    header: &'a Header,
    /// One for each plane.
    planes: Vec<Box<dyn Read + 'a>>,
    /// Whether rows come as differences: those of tiles were added up before they were put together.
    predicted: bool,
    row: Vec<u8>,
    /// A row of one plane.
    part: Vec<u8>,
}

impl<'a> Band<'a> {
    /// Opens some columns of a row of chunks: the first, and how many.
    pub(super) fn open(
        chunks: &Chunks<'a>,
        file: (&'a [u8], &DecodeLimits),
        band: u32,
        columns: (u32, u32),
    ) -> Result<Band<'a>, DecodeError> {
        let header = chunks.header;
        let mut planes = Vec::new();
        for plane in 0..header.planes() {
            let first = plane * chunks.per_plane + (band * chunks.across + columns.0) as usize;
            planes.push(match header.tiled {
                false => chunks.reader(first, file)?,
                true => tiles(chunks, first..first + columns.1 as usize, file)?,
            });
        }
        let part_bytes = header.chunk_row_bytes() * columns.1 as usize;
        let in_planes = if header.planar { part_bytes } else { 0 };
        Ok(Band {
            header,
            planes,
            predicted: header.predicted && !header.tiled,
            row: memory_for(ImageFormat::Tiff, part_bytes * header.planes())?,
            part: memory_for(ImageFormat::Tiff, in_planes)?,
        })
    }

    /// The next row, all samples of a pixel side by side.
    pub(super) fn next_row(&mut self) -> Result<&[u8], DecodeError> {
        let header = self.header;
        if !header.planar {
            read_row(
                &mut self.planes[0],
                &mut self.row,
                self.predicted.then_some(header),
            )?;
            return Ok(&self.row);
        }
        let (bytes, samples) = (usize::from(header.layout.bits) / 8, header.layout.samples);
        for (plane, reader) in self.planes.iter_mut().enumerate() {
            read_row(reader, &mut self.part, self.predicted.then_some(header))?;
            let pixels = self.row.chunks_exact_mut(bytes * samples);
            for (pixel, sample) in pixels.zip(self.part.chunks_exact(bytes)) {
                pixel[plane * bytes..][..bytes].copy_from_slice(sample);
            }
        }
        Ok(&self.row)
    }
}

/// Tiles side by side, as rows across all of them.
fn tiles<'a>(
    chunks: &Chunks<'a>,
    indices: Range<usize>,
    file: (&'a [u8], &DecodeLimits),
) -> Result<Box<dyn Read + 'a>, DecodeError> {
    let header = chunks.header;
    let (row_bytes, rows) = (header.chunk_row_bytes(), header.chunk.1 as usize);
    let stride = row_bytes * indices.len();
    let mut all = memory_for(ImageFormat::Tiff, stride * rows)?;
    for (column, index) in indices.enumerate() {
        let mut reader = chunks.reader(index, file)?;
        for row in all.chunks_exact_mut(stride) {
            let row = &mut row[column * row_bytes..][..row_bytes];
            read_row(&mut reader, row, header.predicted.then_some(header))?;
        }
    }
    Ok(Box::new(Cursor::new(all)))
}

/// Reads a row of a chunk and, given the header, adds up its differences.
fn read_row(
    reader: &mut dyn Read,
    row: &mut [u8],
    predicted: Option<&Header>,
) -> Result<(), DecodeError> {
    reader.read_exact(row).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => broken("the data of a strip or tile ends before its rows do"),
        _ => broken(format!("the data of a strip or tile is damaged ({error})")),
    })?;
    let Some(header) = predicted else {
        return Ok(());
    };
    let samples = header.chunk_samples();
    match header.layout.bits {
        16 => {
            let big_endian = header.layout.big_endian;
            for at in (samples * 2..row.len()).step_by(2) {
                let number = |at: usize| match big_endian {
                    true => u16::from_be_bytes([row[at], row[at + 1]]),
                    false => u16::from_le_bytes([row[at], row[at + 1]]),
                };
                let sum = number(at).wrapping_add(number(at - samples * 2));
                let sum = if big_endian {
                    sum.to_be_bytes()
                } else {
                    sum.to_le_bytes()
                };
                row[at..at + 2].copy_from_slice(&sum);
            }
        }
        _ => {
            for at in samples..row.len() {
                row[at] = row[at].wrapping_add(row[at - samples]);
            }
        }
    }
    Ok(())
}
