//! The crop of torchvision's `RandomResizedCrop`.

use super::SampleRng;
use crate::decode::CropBox;

/// How often a crop is drawn before the central one is taken.
const TRIES: usize = 10;

/// Draws the crop of torchvision's `RandomResizedCrop.get_params`: a share of the image's area uniform in `scale`, an aspect ratio (width / height) log-uniform in
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SCALE: (f64, f64) = (0.5, 1.0);
    const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

    /// Octiles of 400,000 draws of torchvision's algorithm in Python (`random.Random`): share of
    /// the area, aspect ratio, centre of the crop as share of width and height.
    #[test]
    fn distributed_as_torchvision() {
        type Octiles = [f64; 7];
        let cases: [((u32, u32), [Octiles; 4]); 2] = [
            (
                (640, 480),
                [
                    [0.5328, 0.5657, 0.6003, 0.6396, 0.6852, 0.7400, 0.8137],
                    [0.8855, 0.9741, 1.0468, 1.1119, 1.1722, 1.2286, 1.2824],
                    [0.4008, 0.4422, 0.4734, 0.5, 0.5266, 0.5578, 0.5992],
                    [0.4615, 0.4823, 0.4938, 0.5, 0.5062, 0.5177, 0.5385],
                ],
            ),
            (
                (500, 500),
                [
                    [0.5463, 0.5929, 0.6390, 0.6854, 0.7316, 0.7799, 0.8427],
                    [0.8226, 0.8868, 0.9452, 1.0, 1.0577, 1.1272, 1.2147],
                    [0.435, 0.467, 0.487, 0.5, 0.512, 0.533, 0.564],
                    [0.435, 0.467, 0.487, 0.5, 0.512, 0.533, 0.564],
                ],
            ),
        ];
        for ((width, height), octiles) in cases {
            const DRAWS: usize = 20_000;
            let (w, h) = (f64::from(width), f64::from(height));
            let crops: Vec<[f64; 4]> = (0..DRAWS as u32)
                .map(|sample| {
                    let mut rng = SampleRng::new(11, 0, 0, sample);
                    let crop = random_resized_crop(width, height, SCALE, RATIO, &mut rng);
                    let (cw, ch) = (f64::from(crop.width), f64::from(crop.height));
                    [
                        cw * ch / (w * h),
                        cw / ch,
                        (f64::from(crop.x) + cw / 2.0) / w,
                        (f64::from(crop.y) + ch / 2.0) / h,
                    ]
                })
                .collect();
            for (quantity, octiles) in octiles.iter().enumerate() {
                for (k, &octile) in octiles.iter().enumerate() {
                    // Whole pixels make ties: a draw at the octile counts half.
                    let at_or_below: f64 = crops
                        .iter()
                        .map(|crop| match crop[quantity] - octile {
                            d if d.abs() < 6e-5 => 0.5,
                            d => f64::from(d < 0.0),
                        })
                        .sum();
                    let share = at_or_below / DRAWS as f64;
                    let expected = (k + 1) as f64 / 8.0;
                    // Four standard errors of a share of 20,000 draws, and one of the octiles.
                    assert!(
                        (share - expected).abs() < 0.018,
                        "{width}×{height}, quantity {quantity}, octile {k}: {share:.4}"
                    );
                }
            }
        }
    }

    /// torchvision draws the corner among 0 to (side − crop's side), both included.
    #[test]
    fn every_position_is_as_likely() {
        // A fifth of 5 × 4 with sides of equal length: 2 × 2.
        let mut counts = [[0; 4]; 3];
        for sample in 0..24_000 {
            let mut rng = SampleRng::new(12, 0, 0, sample);
            let crop = random_resized_crop(5, 4, (0.2, 0.2), (1.0, 1.0), &mut rng);
            assert_eq!((crop.width, crop.height), (2, 2));
            counts[crop.y as usize][crop.x as usize] += 1;
        }
        for count in counts.into_iter().flatten() {
            // Five standard deviations of 24,000 draws of one in twelve.
            assert!((1_786..2_214).contains(&count), "{counts:?}");
        }
    }

    #[test]
    fn central_crop_of_what_nothing_fits() {
        for ((width, height), expected) in [
            ((1, 1), (0, 0, 1, 1)),
            ((2000, 100), (933, 0, 133, 100)),
            ((100, 2000), (0, 933, 100, 133)),
            ((65_535, 1), (32_767, 0, 1, 1)),
            ((1, 65_535), (0, 32_767, 1, 1)),
        ] {
            let mut rng = SampleRng::new(3, 0, 0, 0);
            let crop = random_resized_crop(width, height, SCALE, RATIO, &mut rng);
            let got = (crop.x, crop.y, crop.width, crop.height);
            assert_eq!(got, expected, "{width}×{height}");
        }
    }

    proptest! {
        #[test]
        fn within_the_image(
            width in 0u32..70_000,
            height in 0u32..70_000,
            scale in (1e-6f64..2.0, 1e-6f64..2.0),
            ratio in (1e-3f64..1e3, 1e-3f64..1e3),
            seed: u64,
        ) {
            let mut rng = SampleRng::new(seed, 0, 0, 0);
            let crop = random_resized_crop(width, height, scale, ratio, &mut rng);
            prop_assert!(crop.width >= 1 && crop.height >= 1);
            prop_assert!(crop.x + crop.width <= width.max(1));
            prop_assert!(crop.y + crop.height <= height.max(1));
        }
    }
}
