//! PNG, animated WebP, GIF, BMP and TIFF through the `image` crate.

use std::io::Cursor;

use image::codecs::bmp::BmpDecoder;
use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::tiff::TiffDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{ColorType, ImageDecoder, ImageError, ImageResult, Limits};

use super::{orientation, DecodeError, DecodeLimits, ImageFormat, RgbImage};

/// Decodes a PNG file to upright RGB.
pub(super) fn png(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    // The decoder's own limit covers what its ancillary chunks inflate to.
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), alloc_limit(limits));
    decode(ImageFormat::Png, decoder, limits)
}

/// Decodes the first frame of a WebP file to upright RGB.
pub(super) fn webp(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    decode(
        ImageFormat::WebP,
        WebPDecoder::new(Cursor::new(bytes)),
        limits,
    )
}

/// Decodes the first frame of a GIF file to RGB.
pub(super) fn gif(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    decode(
        ImageFormat::Gif,
        GifDecoder::new(Cursor::new(bytes)),
        limits,
    )
}

/// Decodes a BMP file to RGB.
pub(super) fn bmp(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    decode(
        ImageFormat::Bmp,
        BmpDecoder::new(Cursor::new(bytes)),
        limits,
    )
}

/// Decodes the first page of a TIFF file to upright RGB.
pub(super) fn tiff(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    decode(
        ImageFormat::Tiff,
        TiffDecoder::new(Cursor::new(bytes)),
        limits,
    )
}

/// Decodes what an opened decoder stands on. Opening reads the header only: none of the decoders
/// allocates by the picture's size before [`ImageDecoder::read_image`].
fn decode(
    format: ImageFormat,
    opened: ImageResult<impl ImageDecoder>,
    limits: &DecodeLimits,
) -> Result<RgbImage, DecodeError> {
    let broken = |error: ImageError| DecodeError::broken(format, error.to_string());
    let mut decoder = opened.map_err(broken)?;
    let (width, height) = decoder.dimensions();
    // The samples as stored, the RGB made of them, and as much again inside the decoder.
    let stored_bytes = decoder.total_bytes();
    limits.check(format, width, height, stored_bytes.saturating_mul(2))?;
    let color = decoder.color_type();
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    decoder.set_limits(alloc_limit(limits)).map_err(broken)?;

    let len = usize::try_from(stored_bytes)
        .map_err(|_| DecodeError::broken(format, "it does not fit into memory"))?;
    let mut samples = vec![0; len];
    decoder.read_image(&mut samples).map_err(broken)?;
    let data = to_rgb8(color, samples).ok_or_else(|| {
        let message = format!("{color:?} samples are not supported; convert it to 8 bits");
        DecodeError::broken(format, message)
    })?;
    let image = RgbImage::new(width, height, data)
        .ok_or_else(|| DecodeError::broken(format, format!("its size is {width}×{height}")))?;
    Ok(orientation::apply(image, orientation.into()))
}

/// Memory limit for the decoders; sides and pixels are checked by [`DecodeLimits`] itself.
fn alloc_limit(limits: &DecodeLimits) -> Limits {
    let mut alloc_limit = Limits::no_limits();
    alloc_limit.max_alloc = Some(limits.max_alloc_bytes);
    alloc_limit
}

/// Stored samples to `[H, W, 3]` u8: grey replicated, alpha dropped, the high byte of 16 bits.
/// `None` for floating-point samples, whose range no file declares.
fn to_rgb8(color: ColorType, samples: Vec<u8>) -> Option<Vec<u8>> {
    fn gather<const STRIDE: usize>(samples: &[u8], at: [usize; 3]) -> Vec<u8> {
        let pixels = samples.chunks_exact(STRIDE);
        let mut rgb = Vec::with_capacity(pixels.len() * 3);
        for pixel in pixels {
            rgb.extend_from_slice(&[pixel[at[0]], pixel[at[1]], pixel[at[2]]]);
        }
        rgb
    }
    // The decoders give 16-bit samples in the machine's byte order.
    let high = usize::from(cfg!(target_endian = "little"));
    Some(match color {
        ColorType::Rgb8 => samples,
        ColorType::L8 => gather::<1>(&samples, [0, 0, 0]),
        ColorType::La8 => gather::<2>(&samples, [0, 0, 0]),
        ColorType::Rgba8 => gather::<4>(&samples, [0, 1, 2]),
        ColorType::L16 => gather::<2>(&samples, [high, high, high]),
        ColorType::La16 => gather::<4>(&samples, [high, high, high]),
        ColorType::Rgb16 => gather::<6>(&samples, [high, high + 2, high + 4]),
        ColorType::Rgba16 => gather::<8>(&samples, [high, high + 2, high + 4]),
        _ => return None,
    })
}
