//! WebP: a region through libwebp. Animations, whose first frame is wanted, go through `image`.

use std::io::Cursor;

use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::ImageDecoder;
use qf_codecs::webp::{decode_rgb, Region};

use super::{raster, DecodeError, DecodeLimits, ImageFormat};
use crate::augment::CropBox;

/// What the chunks of a file tell.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) orientation: Orientation,
    pub(super) animated: bool,
}

impl Header {
    pub(super) fn read(bytes: &[u8], limits: &DecodeLimits) -> Result<Header, DecodeError> {
        let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(broken)?;
        let (width, height) = decoder.dimensions();
        // libwebp holds a lossless picture as 32-bit pixels beside the RGB that comes out.
        let pixels = u64::from(width) * u64::from(height);
        limits.check(ImageFormat::WebP, width, height, pixels.saturating_mul(7))?;
        let animated = decoder.has_animation();
        // An orientation that cannot be read counts as none, as in every viewer.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        Ok(Header {
            width,
            height,
            orientation,
            animated,
        })
    }
}

/// Decodes a region to RGB; returns the offset of its first pixel and the stride, in bytes.
pub(super) fn decode(
    bytes: &[u8],
    header: &Header,
    crop: CropBox,
    pixels: &mut Vec<u8>,
) -> Result<(usize, usize), DecodeError> {
    let region = Region {
        x: crop.x,
        y: crop.y,
        width: crop.width,
        height: crop.height,
    };
    decode_rgb(bytes, (header.width, header.height), region, pixels).map_err(broken)
}

/// The first frame of an animation, upright.
pub(super) fn first_frame(
    bytes: &[u8],
    limits: &DecodeLimits,
) -> Result<super::RgbImage, DecodeError> {
    raster::webp(bytes, limits)
}

fn broken(error: impl std::fmt::Display) -> DecodeError {
    DecodeError::broken(ImageFormat::WebP, error.to_string())
}
