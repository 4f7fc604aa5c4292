//! Strips and tiles of a TIFF file, decompressed as they are read.

use std::borrow::Cow;
use std::io::{self, Cursor, Read};

use qf_codecs::jpeg::{Decompressor, Region, Scale};

use super::super::{jpeg, DecodeError, DecodeLimits, ImageFormat, OnTruncated};
use super::fax;

/// Most bytes of a zstd window, that of level 19.
const MAX_WINDOW_LOG: u32 = 24;

/// How a chunk is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Fax(fax::Coding),
    Lzw,
    Deflate,
    PackBits,
    Zstd,
    Jpeg,
}

impl Compression {
    /// Of the tag's value and that of `T4Options`; what is not read is named.
    pub(super) fn of(value: u64, t4_options: u64) -> Result<Compression, &'static str> {
        let two_dimensional = t4_options & 1 != 0;
        Ok(match value {
            1 => Compression::None,
            2 => Compression::Fax(fax::Coding::ModifiedHuffman),
            3 => Compression::Fax(fax::Coding::Group3 { two_dimensional }),
            4 => Compression::Fax(fax::Coding::Group4),
            5 => Compression::Lzw,
            7 => Compression::Jpeg,
            8 | 32946 => Compression::Deflate,
            32773 => Compression::PackBits,
            50000 => Compression::Zstd,
            6 => return Err("old-style JPEG compression"),
            9 | 10 | 34661 => return Err("JBIG compression"),
            32766 => return Err("NeXT compression"),
            32809 => return Err("ThunderScan compression"),
            34676 | 34677 => return Err("SGI LogLuv compression"),
            33003 | 33004 | 33005 | 34712 => return Err("JPEG 2000 compression"),
            34887 => return Err("LERC compression"),
            34925 => return Err("LZMA compression"),
            50001 => return Err("WebP compression"),
            50002 | 52546 => return Err("JPEG XL compression"),
            _ => return Err("an unknown compression"),
        })
    }

    /// Bytes that a reader holds, about.
    pub(super) fn held_bytes(self) -> u64 {
        match self {
            Compression::Zstd => 1 << MAX_WINDOW_LOG,
            _ => 64 << 10,
        }
    }
}

/// A reader of a chunk's rows, packed, which ends with its data.
pub(super) fn open<'a>(
    data: Cow<'a, [u8]>,
    compression: Compression,
    width: u32,
) -> io::Result<Box<dyn Read + 'a>> {
    let invalid = |message: &'static str| io::Error::new(io::ErrorKind::InvalidData, message);
    Ok(match compression {
        Compression::None => Box::new(Cursor::new(data)),
        Compression::Fax(coding) => {
            let width =
                u16::try_from(width).map_err(|_| invalid("a row too long for fax codes"))?;
            Box::new(fax::Rows::new(data, coding, width))
        }
        Compression::Lzw => {
            // Writers before 1988 had the bits of codes the other way round.
            if matches!(*data, [0, second, ..] if second & 1 != 0) {
                return Err(invalid("old-style LZW codes are not supported; convert it"));
            }
            Box::new(Lzw::new(data))
        }
        Compression::Deflate => Box::new(flate2::bufread::ZlibDecoder::new(Cursor::new(data))),
        Compression::PackBits => Box::new(PackBits {
            data,
            at: 0,
            left: Run::None,
        }),
        Compression::Zstd => {
            let mut reader = zstd::stream::read::Decoder::with_buffer(Cursor::new(data))?;
            reader.window_log_max(MAX_WINDOW_LOG)?;
            Box::new(reader)
        }
        Compression::Jpeg => return Err(invalid("JPEG data is not read as rows")),
    })
}

struct Lzw<'a> {
    data: Cow<'a, [u8]>,
    at: usize,
    decoder: weezl::decode::Decoder,
}

impl<'a> Lzw<'a> {
    fn new(data: Cow<'a, [u8]>) -> Lzw<'a> {
        let configuration =
            weezl::decode::Configuration::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
        Lzw {
            data,
            at: 0,
            decoder: configuration.with_yield_on_full_buffer(true).build(),
        }
    }
}

impl Read for Lzw<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let result = self.decoder.decode_bytes(&self.data[self.at..], out);
            self.at += result.consumed_in;
            match result.status {
                Ok(weezl::LzwStatus::Ok) if result.consumed_out == 0 && !out.is_empty() => {}
                Ok(_) => return Ok(result.consumed_out),
                Err(error) => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        error.to_string(),
                    ))
                }
            }
        }
    }
}

struct PackBits<'a> {
    data: Cow<'a, [u8]>,
    at: usize,
    left: Run,
}

/// What is left of a run.
enum Run {
    None,
    Copied(usize),
    Repeated(usize),
}

impl Read for PackBits<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while matches!(self.left, Run::None | Run::Copied(0) | Run::Repeated(0)) {
            let Some(&head) = self.data.get(self.at) else {
                return Ok(0);
            };
            self.at += 1;
            match head as i8 {
                -128 => {} // No run.
                count @ 0.. => self.left = Run::Copied(count as usize + 1),
                count => self.left = Run::Repeated(usize::from(count.unsigned_abs()) + 1),
            }
        }
        let data = &self.data[self.at..];
        Ok(match &mut self.left {
            Run::None => 0,
            Run::Copied(left) => {
                let read = (&data[..(*left).min(data.len())]).read(out)?;
                self.at += read;
                *left -= read;
                read
            }
            Run::Repeated(left) => {
                let (Some(&value), read) = (data.first(), (*left).min(out.len())) else {
                    return Ok(0);
                };
                out[..read].fill(value);
                *left -= read;
                if *left == 0 {
                    self.at += 1;
                }
                read
            }
        })
    }
}

/// Decodes a chunk of JPEG data, `tables` being those that all chunks share, to rows of 8-bit
/// samples; `transform` says whether three components are YCbCr. Returns the rows, and how many
/// samples a pixel has: 3 for RGB, 4 for CMYK.
pub(super) fn jpeg(
    (data, tables): (&[u8], Option<&[u8]>),
    size: (u32, u32),
    transform: bool,
    limits: &DecodeLimits,
) -> Result<(Cursor<Vec<u8>>, usize), DecodeError> {
    // The colour of TIFF's JPEG data is told by tags, that of a JPEG file by Adobe's marker.
    let adobe = [
        0xff,
        0xee,
        0,
        14,
        b'A',
        b'd',
        b'o',
        b'b',
        b'e',
        0,
        100,
        0,
        0,
        0,
        0,
        u8::from(transform),
    ];
    let tables = tables.and_then(|tables| tables.strip_prefix(b"\xff\xd8"));
    let tables = tables.map(|tables| tables.strip_suffix(b"\xff\xd9").unwrap_or(tables));
    let body = data.strip_prefix(b"\xff\xd8").unwrap_or(data);
    let file = [b"\xff\xd8", &adobe[..], tables.unwrap_or_default(), body].concat();
    let header = jpeg::Header::read(&file, limits, OnTruncated::Error)?;
    let (width, height) = (u32::from(header.width), u32::from(header.height));
    if width < size.0 || height < size.1 {
        let message = format!(
            "a chunk of {}×{} pixels holds a JPEG of {width}×{height}",
            size.0, size.1
        );
        return Err(DecodeError::broken(ImageFormat::Tiff, message));
    }
    let region = Region {
        x: 0,
        y: 0,
        width: size.0,
        height: size.1,
    };
    let part = jpeg::part((&file, &header), (Scale::Full, region), OnTruncated::Error);
    let broken =
        |error: qf_codecs::jpeg::Error| DecodeError::broken(ImageFormat::Tiff, error.to_string());
    let mut rows = Vec::new();
    let placed = Decompressor::new()
        .and_then(|mut decompressor| decompressor.decode(&part, &mut rows))
        .map_err(broken)?;
    // Columns beside the region may have come with it.
    let row_bytes = size.0 as usize * placed.channels;
    for row in 0..size.1 as usize {
        let start = placed.offset + row * placed.stride;
        rows.copy_within(start..start + row_bytes, row * row_bytes);
    }
    rows.truncate(row_bytes * size.1 as usize);
    Ok((Cursor::new(rows), placed.channels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_bits() {
        // The example of Apple's technical note 1023.
        let packed = b"\xfe\xaa\x02\x80\x00\x2a\xfd\xaa\x03\x80\x00\x2a\x22\xf7\xaa";
        let expected = b"\xaa\xaa\xaa\x80\x00\x2a\xaa\xaa\xaa\xaa\x80\x00\x2a\x22\xaa\xaa\xaa\xaa\xaa\xaa\xaa\xaa\xaa\xaa";
        for at_once in [1, 3, 100] {
            let mut reader = open(Cow::Borrowed(packed), Compression::PackBits, 1).expect("opens");
            let mut out = Vec::new();
            let mut part = vec![0; at_once];
            while let Ok(read @ 1..) = reader.read(&mut part) {
                out.extend_from_slice(&part[..read]);
            }
            assert_eq!(out, expected, "{at_once} at once");
        }
    }
}
