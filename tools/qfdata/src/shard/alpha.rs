//! Pictures with transparent parts that are written anew, as img2dataset does it: on white. (Batches drop
//! alpha, as PIL's `convert("RGB")` does.)

use std::io::Cursor;

use image::{ColorType, DynamicImage, ImageDecoder, ImageReader, Limits};
use qf_pipeline::decode::{DecodeError, Decoder, OpenedImage, RgbImage};

/// The picture upright on white; `None` if no part of it is transparent, or if it does not decode: the decoder
/// of all other pictures then says why. Its memory is of what `decoder` may use.
///
/// # Errors
/// [`DecodeError::TooLarge`] for a picture that takes more than that.
pub(super) fn on_white(
    decoder: &Decoder,
    opened: &OpenedImage<'_>,
    bytes: &[u8],
) -> Result<Option<RgbImage>, DecodeError> {
    let header = decoder.bounded(opened, 0, || header(bytes))?;
    let Some(needed) = header else {
        return Ok(None);
    };
    decoder.bounded(opened, needed, || decode(bytes, needed))
}

/// Bytes that the picture takes at most at a time; `None` if it has no alpha.
fn header(bytes: &[u8]) -> Option<u64> {
    let decoder = reader(bytes)?.into_decoder().ok()?;
    let color = decoder.color_type();
    let (width, height) = decoder.dimensions();
    let stored = u64::from(color.bytes_per_pixel());
    // Eight bits a channel stay where they are; others are converted. Then it becomes RGB.
    let converted = match color {
        ColorType::Rgba8 => 0,
        _ => 4,
    };
    let each = (stored + converted).max(4 + 3);
    let pixels = u64::from(width).saturating_mul(height.into());
    color.has_alpha().then(|| pixels.saturating_mul(each))
}

fn reader(bytes: &[u8]) -> Option<ImageReader<Cursor<&[u8]>>> {
    let reader = ImageReader::new(Cursor::new(bytes));
    reader.with_guessed_format().ok()
}

fn decode(bytes: &[u8], needed: u64) -> Option<RgbImage> {
    let mut reader = reader(bytes)?;
    let mut limits = Limits::default();
    // What its decoder keeps beside the picture is little.
    limits.max_alloc = Some(needed.saturating_add(16 << 20));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().ok()?;
    let orientation = decoder.orientation().ok()?;
    let mut picture = DynamicImage::from_decoder(decoder).ok()?;
    picture.apply_orientation(orientation);
    let picture = picture.into_rgba8();
    if picture.pixels().all(|pixel| pixel.0[3] == 255) {
        return None;
    }
    let (width, height) = picture.dimensions();
    let pixels = picture.pixels().flat_map(|pixel| {
        let [red, green, blue, alpha] = pixel.0.map(u32::from);
        [red, green, blue].map(|sample| {
            // Rounded to the nearest.
            let sum = sample * alpha + 255 * (255 - alpha);
            ((sum + 127) / 255) as u8
        })
    });
    RgbImage::new(width, height, pixels.collect())
}

#[cfg(test)]
mod tests {
    use qf_pipeline::decode::{DecodeLimits, DecodeMemory, OnTruncated};

    use super::*;

    fn png(alpha: u8) -> Vec<u8> {
        let picture = image::RgbaImage::from_pixel(3, 2, image::Rgba([200, 10, 0, alpha]));
        let mut file = Cursor::new(Vec::new());
        picture
            .write_to(&mut file, image::ImageFormat::Png)
            .unwrap();
        file.into_inner()
    }

    #[test]
    fn transparent_parts_are_white() {
        let decoder = Decoder::new(DecodeLimits::default(), OnTruncated::Error);
        let first = |alpha| {
            let bytes = png(alpha);
            let picture = on_white(&decoder, &decoder.open(&bytes).unwrap(), &bytes).unwrap();
            picture.map(|picture| picture.data()[..3].to_vec())
        };
        assert_eq!(first(0), Some(vec![255, 255, 255]));
        // 200 · 51/255 + 255 · 204/255 = 244
        assert_eq!(first(51), Some(vec![244, 206, 204]));
        assert_eq!(first(255), None);
        // Damaged behind its header.
        let mut bytes = png(51);
        let length = bytes.len();
        bytes.truncate(length - 20);
        let opened = decoder.open(&bytes).unwrap();
        assert_eq!(on_white(&decoder, &opened, &bytes), Ok(None));
    }

    #[test]
    fn its_memory_is_of_the_budget() {
        let bytes = png(51);
        let limits = DecodeLimits {
            memory: DecodeMemory::new(3 * 2 * 7 - 1),
            ..DecodeLimits::default()
        };
        let decoder = Decoder::new(limits, OnTruncated::Error);
        let opened = decoder.open(&bytes).unwrap();
        let refused = on_white(&decoder, &opened, &bytes);
        assert!(
            matches!(refused, Err(DecodeError::TooLarge { .. })),
            "{refused:?}"
        );
    }
}
