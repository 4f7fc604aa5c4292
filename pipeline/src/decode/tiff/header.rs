//! What the directory of a TIFF file tells.

use image::metadata::Orientation;

use super::super::metadata::{in_directory, in_xmp};
use super::super::samples::Layout;
use super::super::tags::Directory;
use super::super::{CropBox, DecodeError, DecodeLimits, ImageFormat};
use super::chunks::Compression;
use super::fields::{broken, number, tag};
use super::layout::Kind;

/// What the directory tells.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(in crate::decode) width: u32,
    pub(in crate::decode) height: u32,
    pub(in crate::decode) orientation: Orientation,
    /// Of a pixel, all planes together; of JPEG data, once it is decoded.
    pub(super) layout: Layout,
    pub(super) compression: Compression,
    /// Whether the bits of each byte come in reverse.
    pub(super) reversed: bool,
    /// Whether samples are differences from those to the left.
    pub(super) predicted: bool,
    /// Whether each sample has chunks of its own.
    pub(super) planar: bool,
    /// Whether three components of JPEG data are YCbCr.
    pub(super) ycbcr: bool,
    pub(super) tiled: bool,
    /// Width and height of a chunk, in pixels.
    pub(super) chunk: (u32, u32),
}

impl Header {
    /// What `directory` tells; where the chunks are is not looked at.
    pub(super) fn of(
        directory: &Directory<'_>,
        limits: &DecodeLimits,
    ) -> Result<Header, DecodeError> {
        let side = |tag, name: &str| {
            let side = u32::try_from(number(directory, tag, 0)?).unwrap_or(u32::MAX);
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
                let rows = number(directory, tag::ROWS_PER_STRIP, u64::from(height))?;
                (width, rows.clamp(1, u64::from(height)) as u32)
            }
            true => {
                let width = side(tag::TILE_WIDTH, "tile width")?;
                let height = side(tag::TILE_HEIGHT, "tile height")?;
                limits.check(ImageFormat::Tiff, width, height)?;
                (width, height)
            }
        };
        let kind = Kind::read(directory)?;
        let xmp = || in_xmp(directory.field(tag::XMP)?.bytes());
        let orientation = in_directory(directory).or_else(xmp);
        Ok(Header {
            width,
            height,
            orientation: orientation.unwrap_or(Orientation::NoTransforms),
            reversed: number(directory, tag::FILL_ORDER, 1)? == 2,
            layout: kind.layout,
            compression: kind.compression,
            predicted: kind.predicted,
            planar: kind.planar,
            ycbcr: kind.ycbcr,
            tiled,
            chunk,
        })
    }

    /// Bytes that decoding a region takes beside its rows.
    pub(in crate::decode) fn held_bytes(&self, region: CropBox) -> u64 {
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

    /// The first column of chunks that a region touches, and how many columns it does.
    pub(super) fn tiles_of(&self, region: CropBox) -> (u32, u32) {
        let first = region.x / self.chunk.0;
        (
            first,
            (region.x + region.width).div_ceil(self.chunk.0) - first,
        )
    }

    /// How many chunks lie upon each other.
    pub(super) fn planes(&self) -> usize {
        if self.planar {
            self.layout.samples
        } else {
            1
        }
    }

    /// Samples of a pixel in a chunk.
    pub(super) fn chunk_samples(&self) -> usize {
        self.layout.samples / self.planes()
    }

    /// Bytes of a row of a chunk.
    pub(super) fn chunk_row_bytes(&self) -> usize {
        let bits =
            u64::from(self.chunk.0) * self.chunk_samples() as u64 * u64::from(self.layout.bits);
        bits.div_ceil(8) as usize
    }
}
