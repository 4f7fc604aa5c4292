//! BMP through the `image` crate, which only decodes whole pictures.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::{ColorType, ImageDecoder, ImageError};

use super::buffers::{memory_for, RowSink};
use super::samples::{Colour, Layout};
use super::{CropBox, DecodeError, DecodeLimits, ImageFormat};

/// Most pixels that a byte of run-length coded data can stand for: runs of 255 in two bytes.
const MAX_PIXELS_PER_BYTE: u64 = 128;

/// What the header tells.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) width: u32,
    pub(super) height: u32,
    layout: Layout,
}

impl Header {
    pub(super) fn read(bytes: &[u8], limits: &DecodeLimits) -> Result<Header, DecodeError> {
        let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(broken)?;
        let (width, height) = decoder.dimensions();
        limits.check(ImageFormat::Bmp, width, height)?;
        let (samples, colour) = match decoder.color_type() {
            ColorType::L8 => (1, Colour::Grey { inverted: false }),
            ColorType::Rgb8 => (3, Colour::Rgb),
            ColorType::Rgba8 => (4, Colour::Rgb),
            other => {
                return Err(DecodeError::unsupported(
                    ImageFormat::Bmp,
                    format!("{other:?} samples"),
                ))
            }
        };
        let pixels = u64::from(width) * u64::from(height);
        if pixels / MAX_PIXELS_PER_BYTE > bytes.len() as u64 {
            let message = format!(
                "{} bytes of data cannot hold {width}×{height} pixels",
                bytes.len()
            );
            return Err(DecodeError::broken(ImageFormat::Bmp, message));
        }
        Ok(Header {
            width,
            height,
            layout: Layout {
                bits: 8,
                samples,
                big_endian: true,
                colour,
            },
        })
    }

    /// Bytes of the whole picture.
    pub(super) fn held_bytes(&self) -> u64 {
        self.layout.row_bytes(self.width) as u64 * u64::from(self.height)
    }

    /// Hands over the rows of a region.
    pub(super) fn rows(
        &self,
        bytes: &[u8],
        region: CropBox,
        sink: RowSink<'_>,
    ) -> Result<(), DecodeError> {
        let row_bytes = self.layout.row_bytes(self.width);
        let mut all = memory_for(ImageFormat::Bmp, row_bytes * self.height as usize)?;
        let mut out = memory_for(ImageFormat::Bmp, region.width as usize * 3)?;
        let decoder = BmpDecoder::new(Cursor::new(bytes)).map_err(broken)?;
        decoder.read_image(&mut all).map_err(broken)?;
        let rows = all.chunks_exact(row_bytes).skip(region.y as usize);
        for row in rows.take(region.height as usize) {
            self.layout
                .to_rgb(row, region.x as usize, &mut Vec::new(), &mut out);
            sink(&out);
        }
        Ok(())
    }
}

fn broken(error: ImageError) -> DecodeError {
    DecodeError::broken(ImageFormat::Bmp, error.to_string())
}
