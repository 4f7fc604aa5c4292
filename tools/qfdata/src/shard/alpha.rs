//! Pictures with transparent parts that are written anew, as img2dataset does it: on white. (Batches drop
//! alpha, as PIL's `convert("RGB")` does.)

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageReader, Limits};
use qf_pipeline::decode::RgbImage;

/// Most memory that one picture takes, in bytes.
const MAX_BYTES: u64 = 512 << 20;

/// The picture upright on white; `None` if no part of it is transparent, or if it does not decode: the decoder
/// of all other pictures then says why.
pub(super) fn on_white(bytes: &[u8]) -> Option<RgbImage> {
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .ok()?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().ok()?;
    let (width, height) = decoder.dimensions();
    if !decoder.color_type().has_alpha() || u64::from(width) * u64::from(height) * 8 > MAX_BYTES {
        return None;
    }
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
        let first = |alpha| on_white(&png(alpha)).map(|picture| picture.data()[..3].to_vec());
        assert_eq!(first(0), Some(vec![255, 255, 255]));
        // 200 · 51/255 + 255 · 204/255 = 244
        assert_eq!(first(51), Some(vec![244, 206, 204]));
        assert_eq!(first(255), None);
        assert!(on_white(b"\x89PNG no picture").is_none());
    }
}
