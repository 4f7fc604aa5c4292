//! TIFF: the first page, a row of its region at a time.
//!
//! A file is a directory of tags and chunks of pixels, strips or tiles, which are compressed one by
//! one. Kinds are read that PIL reads, or else refused by name; of strips nothing is held but a row,
//! of tiles a row of them.

mod band;
mod chunks;
mod fax;
mod layout;

use image::metadata::Orientation;

use super::metadata::{in_directory, in_xmp};
use super::samples::Layout;
use super::tags::Directory;
use super::{memory_for, DecodeError, DecodeLimits, ImageFormat, RowSink};
use crate::augment::CropBox;
use band::{Band, Chunks};
use chunks::Compression;

/// The tags that are looked at.
mod tag {
    pub(super) const WIDTH: u16 = 256;
    pub(super) const HEIGHT: u16 = 257;
    pub(super) const BITS: u16 = 258;
    pub(super) const COMPRESSION: u16 = 259;
    pub(super) const PHOTOMETRIC: u16 = 262;
    pub(super) const FILL_ORDER: u16 = 266;
    pub(super) const STRIP_OFFSETS: u16 = 273;
    pub(super) const SAMPLES: u16 = 277;
    pub(super) const ROWS_PER_STRIP: u16 = 278;
    pub(super) const STRIP_BYTES: u16 = 279;
    pub(super) const PLANAR: u16 = 284;
    pub(super) const T4_OPTIONS: u16 = 292;
    pub(super) const PREDICTOR: u16 = 317;
    pub(super) const COLOUR_MAP: u16 = 320;
    pub(super) const TILE_WIDTH: u16 = 322;
    pub(super) const TILE_HEIGHT: u16 = 323;
    pub(super) const TILE_OFFSETS: u16 = 324;
    pub(super) const TILE_BYTES: u16 = 325;
    pub(super) const EXTRA_SAMPLES: u16 = 338;
    pub(super) const SAMPLE_FORMAT: u16 = 339;
    pub(super) const JPEG_TABLES: u16 = 347;
    pub(super) const XMP: u16 = 700;
}

/// What the directory tells.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) orientation: Orientation,
    /// Of a pixel, all planes together; of JPEG data, once it is decoded.
    layout: Layout,
    compression: Compression,
    /// Whether the bits of each byte come in reverse.
    reversed: bool,
    /// Whether samples are differences from those to the left.
    predicted: bool,
    /// Whether each sample has chunks of its own.
    planar: bool,
    /// Whether three components of JPEG data are YCbCr.
    ycbcr: bool,
    tiled: bool,
    /// Width and height of a chunk, in pixels.
    chunk: (u32, u32),
}

impl Header {
    pub(super) fn read(bytes: &[u8], limits: &DecodeLimits) -> Result<Header, DecodeError> {
        let directory = directory(bytes)?;
        let side = |tag, name: &str| {
            let side = u32::try_from(number(&directory, tag, 0)?).unwrap_or(u32::MAX);
            match side {
                0 => Err(broken(format!("its {name} is missing or 0"))),
                side => Ok(side),
            }
        };
        let (width, height) = (side(tag::WIDTH, "width")?, side(tag::HEIGHT, "height")?);
        limits.check(ImageFormat::Tiff, width, height)?;
        let tiled = directory.field(tag::STRIP_OFFSETS).is_none();
        let chunk = match tiled {
            false => {
                let rows = number(&directory, tag::ROWS_PER_STRIP, u64::from(height))?;
                (width, rows.clamp(1, u64::from(height)) as u32)
            }
            true => {
                let width = side(tag::TILE_WIDTH, "tile width")?;
                let height = side(tag::TILE_HEIGHT, "tile height")?;
                limits.check(ImageFormat::Tiff, width, height)?;
                (width, height)
            }
        };
        let kind = layout::Kind::read(&directory)?;
        let xmp = || in_xmp(directory.field(tag::XMP)?.bytes());
        let orientation = in_directory(&directory).or_else(xmp);
        let header = Header {
            width,
            height,
            orientation: orientation.unwrap_or(Orientation::NoTransforms),
            reversed: number(&directory, tag::FILL_ORDER, 1)? == 2,
            layout: kind.layout,
            compression: kind.compression,
            predicted: kind.predicted,
            planar: kind.planar,
            ycbcr: kind.ycbcr,
            tiled,
            chunk,
        };
        // A file that is cut off is found out here, whatever region is wanted.
        Chunks::of(&header, &directory)?.check(bytes)?;
        Ok(header)
    }

    /// Bytes that decoding a region takes beside its rows.
    pub(super) fn held_bytes(&self, region: CropBox) -> u64 {
        let readers = self.compression.held_bytes() * self.planes() as u64;
        let chunk = u64::from(self.chunk.0) * u64::from(self.chunk.1);
        let jpeg = match self.compression {
            Compression::Jpeg => chunk * self.layout.samples as u64,
            _ => 0,
        };
        let tiles = match self.tiled {
            true => {
                u64::from(self.tiles_of(region).1)
                    * self.chunk_row_bytes() as u64
                    * u64::from(self.chunk.1)
                    * self.planes() as u64
            }
            false => 0,
        };
        readers + jpeg + tiles
    }

    /// Hands over the rows of a region.
    pub(super) fn rows(
        &self,
        bytes: &[u8],
        region: CropBox,
        limits: &DecodeLimits,
        sink: RowSink<'_>,
    ) -> Result<(), DecodeError> {
        let directory = directory(bytes)?;
        let chunks = Chunks::of(self, &directory)?;
        let mut out = memory_for(ImageFormat::Tiff, region.width as usize * 3)?;
        let mut scratch = Vec::new();
        let (first_tile, tiles) = self.tiles_of(region);
        let first = (region.x - first_tile * self.chunk.0) as usize;
        let end = region.y + region.height;
        for band in region.y / self.chunk.1..end.div_ceil(self.chunk.1) {
            let top = band * self.chunk.1;
            let mut rows = Band::open(&chunks, (bytes, limits), band, (first_tile, tiles))?;
            for at in top..end.min(top + self.chunk.1) {
                let row = rows.next_row()?;
                if at >= region.y {
                    self.layout.to_rgb(row, first, &mut scratch, &mut out);
                    sink(&out);
                }
            }
        }
        Ok(())
    }

    /// The first column of chunks that a region touches, and how many columns it does.
    fn tiles_of(&self, region: CropBox) -> (u32, u32) {
        let first = region.x / self.chunk.0;
        (
            first,
            (region.x + region.width).div_ceil(self.chunk.0) - first,
        )
    }

    /// How many chunks lie upon each other.
    fn planes(&self) -> usize {
        if self.planar {
            self.layout.samples
        } else {
            1
        }
    }

    /// Samples of a pixel in a chunk.
    fn chunk_samples(&self) -> usize {
        self.layout.samples / self.planes()
    }

    /// Bytes of a row of a chunk.
    fn chunk_row_bytes(&self) -> usize {
        let bits =
            u64::from(self.chunk.0) * self.chunk_samples() as u64 * u64::from(self.layout.bits);
        bits.div_ceil(8) as usize
    }
}

fn directory(bytes: &[u8]) -> Result<Directory<'_>, DecodeError> {
    Directory::first(bytes).ok_or_else(|| broken("it has no directory of tags"))
}

/// The number of a tag, or the default where it is not there.
fn number(directory: &Directory<'_>, tag: u16, default: u64) -> Result<u64, DecodeError> {
    let Some(field) = directory.field(tag) else {
        return Ok(default);
    };
    field
        .number(0)
        .ok_or_else(|| broken(format!("its tag {tag} is not a number")))
}

fn broken(message: impl Into<String>) -> DecodeError {
    DecodeError::broken(ImageFormat::Tiff, message)
}

fn unsupported(kind: impl Into<String>) -> DecodeError {
    DecodeError::unsupported(ImageFormat::Tiff, kind)
}
