use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use super::{Crop, Resampler};

/// Numbers that repeat with the seed (Knuth's MMIX generator).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % end
    }

    fn share(&mut self) -> f64 {
        self.below(1 << 20) as f64 / f64::from(1 << 20)
    }
}

/// Both passes by `fast_image_resize`, `[S, S, 3]`.
fn reference(crop: &Crop<'_>) -> Vec<u8> {
    let (size, rows) = (crop.size as u32, crop.height as u32);
    let (left, top, width, height) = crop.area;
    let pick = |area: (f64, f64, f64, f64)| {
        ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
            .crop(area.0, area.1, area.2, area.3)
    };
    let columns = (crop.stride / 3) as u32;
    let source = TypedImageRef::<U8x3>::from_buffer(columns, rows, crop.pixels).expect("pixels");
    let source = TypedCroppedImage::new(source, 0, 0, crop.width as u32, rows).expect("within");
    let mut halfway = TypedImage::<U8x3>::new(size, rows);
    let mut resizer = Resizer::new();
    resizer
        .resize_typed(
            &source,
            &mut halfway,
            &pick((left, 0.0, width, f64::from(rows))),
        )
        .expect("resizes");
    let mut pixels = vec![0; crop.size * crop.size * 3];
    let mut out = TypedImage::<U8x3>::from_buffer(size, size, &mut pixels).expect("fits");
    resizer
        .resize_typed(
            &halfway,
            &mut out,
            &pick((0.0, top, f64::from(size), height)),
        )
        .expect("resizes");
    pixels
}

fn check(resampler: &mut Resampler, crop: &Crop<'_>) {
    let size = crop.size;
    let mut planes = vec![7; 3 * size * size];
    assert!(resampler.resize(crop, &mut planes), "{size}");
    let expected = reference(crop);
    for (at, pixel) in expected.chunks_exact(3).enumerate() {
        let (x, y) = (at % size, at / size);
        let x = if crop.mirrored { size - 1 - x } else { x };
        let y = if crop.upside_down { size - 1 - y } else { y };
        for (channel, &value) in pixel.iter().enumerate() {
            assert_eq!(
                planes[(channel * size + y) * size + x],
                value,
                "channel {channel} at {x}, {y} of {}×{} to {size}, area {:?}",
                crop.width,
                crop.height,
                crop.area
            );
        }
    }
}

/// To the bit what `fast_image_resize` gives: up and down, whole and broken areas, mirrored.
#[test]
fn equals_fast_image_resize() {
    if !Resampler::is_available() {
        println!("equals_fast_image_resize: this processor has no AVX2");
        return;
    }
    let mut numbers = Numbers(5);
    let mut resampler = Resampler::default();
    for round in 0..160 {
        let size = [1, 5, 8, 16, 31, 100, 224, 230][round % 8];
        let (width, height) = match round {
            // Tall and wide enough for long windows; a single pixel; nothing to do.
            0 => (1, 1),
            1 => (2, 1900),
            2 => (3000, 3),
            3 => (size, size),
            _ => (1 + numbers.below(500), 1 + numbers.below(400)),
        };
        let stride = 3 * (width + numbers.below(9));
        // Noise between the ends, so that much is clipped.
        let mut pixels = vec![0u8; stride * height];
        for pixel in &mut pixels {
            *pixel = [0, 255, numbers.below(256) as u8][numbers.below(3)];
        }
        let area = match round % 3 {
            0 => (0.0, 0.0, width as f64, height as f64),
            _ => {
                let (left, top) = (numbers.share() * 0.9, numbers.share() * 0.9);
                let right = width as f64 - (0.05 + numbers.share() * 0.04) * f64::from(width > 1);
                let left = if width > 1 { left } else { 0.0 };
                let top = if height > 1 { top } else { 0.0 };
                (left, top, right - left, height as f64 - top)
            }
        };
        let crop = Crop {
            pixels: &pixels[..stride * height],
            stride,
            width,
            height,
            area,
            size,
            mirrored: numbers.below(2) == 1,
            upside_down: numbers.below(2) == 1,
        };
        check(&mut resampler, &crop);
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let pixels = [9; 4 * 3 * 3];
    let good = Crop {
        pixels: &pixels,
        stride: 12,
        width: 4,
        height: 3,
        area: (0.0, 0.0, 4.0, 3.0),
        size: 2,
        mirrored: false,
        upside_down: false,
    };
    let mut resampler = Resampler::default();
    let mut planes = [1; 12];
    for bad in [
        Crop { height: 4, ..good },
        Crop { width: 5, ..good },
        Crop { stride: 11, ..good },
        Crop { height: 0, ..good },
        Crop { size: 0, ..good },
        Crop { size: 3, ..good },
        Crop {
            size: usize::MAX,
            ..good
        },
        Crop {
            area: (0.5, 0.0, 4.0, 3.0),
            ..good
        },
        Crop {
            area: (0.0, 0.0, 4.0, f64::NAN),
            ..good
        },
        Crop {
            area: (-0.1, 0.0, 4.0, 3.0),
            ..good
        },
        Crop {
            area: (0.0, 0.0, 0.0, 3.0),
            ..good
        },
        Crop {
            stride: usize::MAX,
            ..good
        },
    ] {
        assert!(!resampler.resize(&bad, &mut planes), "{bad:?}");
        assert_eq!(planes, [1; 12]);
    }
    assert_eq!(
        resampler.resize(&good, &mut planes),
        Resampler::is_available()
    );
}

/// Once warm, buffers neither grow nor go.
#[test]
fn keeps_its_buffers() {
    let pixels = vec![3; 300 * 3 * 200];
    let crop = Crop {
        pixels: &pixels,
        stride: 900,
        width: 300,
        height: 200,
        area: (0.0, 0.0, 300.0, 200.0),
        size: 64,
        mirrored: false,
        upside_down: false,
    };
    let mut resampler = Resampler::default();
    let mut planes = vec![0; 3 * 64 * 64];
    let mut kept = || {
        let done = resampler.resize(&crop, &mut planes);
        assert_eq!(done, Resampler::is_available());
        resampler.kept_bytes()
    };
    let first = kept();
    assert_eq!(kept(), first);
}
