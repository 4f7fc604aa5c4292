//! The crop of torchvision's `RandomResizedCrop`.

use super::SampleRng;

/// A rectangle of whole pixels inside an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    /// First column.
    pub x: u32,
    /// First row.
    pub y: u32,
    /// Columns, at least 1.
    pub width: u32,
    /// Rows, at least 1.
    pub height: u32,
}

/// How often a crop is drawn before the central one is taken.
const TRIES: usize = 10;

/// Draws the crop of `RandomResizedCrop.get_params` (torchvision 0.26, `transforms.py`): a share
/// of the image's area uniform in `scale`, an aspect ratio (width / height) log-uniform in
/// `ratio`, a uniform position; after ten draws that do not fit, the central crop of full width
/// or height, its aspect ratio clamped to `ratio`. The result lies within the image.
///
/// `width` and `height` count as at least 1.
pub fn random_resized_crop(
    width: u32,
    height: u32,
    scale: (f64, f64),
    ratio: (f64, f64),
    rng: &mut SampleRng,
) -> CropBox {
    let (width, height) = (width.max(1), height.max(1));
    let area = f64::from(width) * f64::from(height);
    let log_ratio = (ratio.0.ln(), ratio.1.ln());
    for _ in 0..TRIES {
        let crop_area = area * rng.uniform_range(scale.0, scale.1);
        let aspect = rng.uniform_range(log_ratio.0, log_ratio.1).exp();
        // Python's round: ties to even. The casts saturate, and NaN becomes 0.
        let crop_width = (crop_area * aspect).sqrt().round_ties_even() as u32;
        let crop_height = (crop_area / aspect).sqrt().round_ties_even() as u32;
        if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
            let y = rng.below(u64::from(height - crop_height) + 1) as u32;
            let x = rng.below(u64::from(width - crop_width) + 1) as u32;
            return CropBox {
                x,
                y,
                width: crop_width,
                height: crop_height,
            };
        }
    }
    let aspect = f64::from(width) / f64::from(height);
    let (mut crop_width, mut crop_height) = (width, height);
    if aspect < ratio.0 {
        crop_height = (f64::from(width) / ratio.0).round_ties_even() as u32;
    } else if aspect > ratio.1 {
        crop_width = (f64::from(height) * ratio.1).round_ties_even() as u32;
    }
    let (crop_width, crop_height) = (crop_width.clamp(1, width), crop_height.clamp(1, height));
    CropBox {
        x: (width - crop_width) / 2,
        y: (height - crop_height) / 2,
        width: crop_width,
        height: crop_height,
    }
}
