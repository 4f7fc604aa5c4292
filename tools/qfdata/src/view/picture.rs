//! Pixels as files for pages.

use anyhow::Context;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{resize, FilterType};
use image::RgbImage;
use qf_pipeline::pixels::PlanarRgb;

/// Side of the pixels that contact sheets show.
pub(super) const SHEET_SIDE: usize = 256;

/// A picture for a page: JPEG, and its size in pixels.
pub(super) struct Thumbnail {
    pub(super) jpeg: Vec<u8>,
    pub(super) width: u32,
    pub(super) height: u32,
}

/// The whole picture in its aspect, from pixels that were resized to a square without it.
pub(super) fn in_aspect(
    square: &PlanarRgb,
    (width, height): (u32, u32),
) -> anyhow::Result<Thumbnail> {
    let side = square.size() as f64;
    let longer = f64::from(width.max(height)).max(1.0);
    let scaled = |length: u32| ((f64::from(length) / longer * side).round() as u32).max(1);
    let image = rgb(square)?;
    let image = resize(&image, scaled(width), scaled(height), FilterType::Triangle);
    encoded(&image)
}

/// The square as it is.
pub(super) fn square(pixels: &PlanarRgb) -> anyhow::Result<Thumbnail> {
    encoded(&rgb(pixels)?)
}

fn rgb(pixels: &PlanarRgb) -> anyhow::Result<RgbImage> {
    let image = pixels.as_batch().to_rgb_image(0).context("an image")?;
    RgbImage::from_raw(image.width(), image.height(), image.data().to_vec()).context("an image")
}

fn encoded(image: &RgbImage) -> anyhow::Result<Thumbnail> {
    const QUALITY: u8 = 85;
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
        .encode_image(image)
        .context("cannot encode an image")?;
    Ok(Thumbnail {
        jpeg,
        width: image.width(),
        height: image.height(),
    })
}
