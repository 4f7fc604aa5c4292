use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use super::{Resampler, Shape, STRIP_ROWS};
use crate::testing::Numbers;

/// A part whose rows are all there.
#[derive(Clone, Copy, Debug)]
struct Crop<'a> {
    pixels: &'a [u8],
    stride: usize,
    shape: Shape,
}

/// A number from 0 to 1, without 1.
fn share(numbers: &mut Numbers) -> f64 {
    f64::from(numbers.below(1 << 20)) / f64::from(1 << 20)
}

/// Both passes by `fast_image_resize`, `[S, S, 3]`.
fn reference(crop: &Crop<'_>) -> Vec<u8> {
    let shape = &crop.shape;
    let (size, rows) = (shape.size as u32, shape.height as u32);
    let (left, top, width, height) = shape.area;
    let pick = |area: (f64, f64, f64, f64)| {
        ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
            .crop(area.0, area.1, area.2, area.3)
    };
    let columns = (crop.stride / 3) as u32;
    let source = TypedImageRef::<U8x3>::from_buffer(columns, rows, crop.pixels).expect("pixels");
    let source = TypedCroppedImage::new(source, 0, 0, shape.width as u32, rows).expect("within");
    let mut halfway = TypedImage::<U8x3>::new(size, rows);
    let mut resizer = Resizer::new();
    resizer
        .resize_typed(
            &source,
            &mut halfway,
            &pick((left, 0.0, width, f64::from(rows))),
        )
        .expect("resizes");
    let mut pixels = vec![0; shape.size * shape.size * 3];
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
    let shape = &crop.shape;
    let size = shape.size;
    let mut planes = vec![7; 3 * size * size];
    assert!(
        resampler.resize(shape, crop.pixels, crop.stride, &mut planes),
        "{shape:?}"
    );
    let expected = reference(crop);
    for (at, pixel) in expected.chunks_exact(3).enumerate() {
        let (x, y) = (at % size, at / size);
        let x = if shape.mirrored { size - 1 - x } else { x };
        let y = if shape.upside_down { size - 1 - y } else { y };
        for (channel, &value) in pixel.iter().enumerate() {
            assert_eq!(
                planes[(channel * size + y) * size + x],
                value,
                "channel {channel} at {x}, {y} of {shape:?}"
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
            _ => (
                1 + numbers.below(500) as usize,
                1 + numbers.below(400) as usize,
            ),
        };
        let stride = 3 * (width + numbers.below(9) as usize);
        // Noise between the ends, so that much is clipped.
        let mut pixels = vec![0u8; stride * height];
        for pixel in &mut pixels {
            *pixel = [0, 255, numbers.below(256) as u8][numbers.below(3) as usize];
        }
        let area = match round % 3 {
            0 => (0.0, 0.0, width as f64, height as f64),
            _ => {
                let (left, top) = (share(&mut numbers) * 0.9, share(&mut numbers) * 0.9);
                let right =
                    width as f64 - (0.05 + share(&mut numbers) * 0.04) * f64::from(width > 1);
                let left = if width > 1 { left } else { 0.0 };
                let top = if height > 1 { top } else { 0.0 };
                (left, top, right - left, height as f64 - top)
            }
        };
        let crop = Crop {
            pixels: &pixels,
            stride,
            shape: Shape {
                width,
                height,
                area,
                size,
                mirrored: numbers.below(2) == 1,
                upside_down: numbers.below(2) == 1,
            },
        };
        check(&mut resampler, &crop);
    }
}

const SHAPE: Shape = Shape {
    width: 4,
    height: 3,
    area: (0.0, 0.0, 4.0, 3.0),
    size: 2,
    mirrored: false,
    upside_down: false,
};

#[test]
fn refuses_what_does_not_fit() {
    let pixels = [9; 4 * 3 * 3];
    let mut resampler = Resampler::default();
    let mut planes = [1; 12];
    let changed = |area| Shape { area, ..SHAPE };
    for (shape, stride) in [
        (Shape { height: 4, ..SHAPE }, 12),
        (Shape { width: 5, ..SHAPE }, 12),
        (SHAPE, 11),
        (SHAPE, usize::MAX),
        (Shape { height: 0, ..SHAPE }, 12),
        (Shape { size: 0, ..SHAPE }, 12),
        (Shape { size: 3, ..SHAPE }, 12),
        (
            Shape {
                size: usize::MAX,
                ..SHAPE
            },
            12,
        ),
        (changed((0.5, 0.0, 4.0, 3.0)), 12),
        (changed((0.0, 0.0, 4.0, f64::NAN)), 12),
        (changed((-0.1, 0.0, 4.0, 3.0)), 12),
        (changed((0.0, 0.0, 0.0, 3.0)), 12),
    ] {
        let done = resampler.resize(&shape, &pixels, stride, &mut planes);
        assert!(!done, "{shape:?}, {stride}");
        assert_eq!(planes, [1; 12]);
    }
    let done = resampler.resize(&SHAPE, &pixels, 12, &mut planes);
    assert_eq!(done, Resampler::is_available());
}

#[test]
fn strips_come_in_order_and_whole() {
    if !Resampler::is_available() {
        println!("strips_come_in_order_and_whole: this processor has no AVX2");
        return;
    }
    let rows = STRIP_ROWS + 2;
    let shape = Shape {
        height: rows,
        area: (0.0, 0.0, 4.0, rows as f64),
        ..SHAPE
    };
    let pixels = vec![200; 12 * rows];
    let mut planes = [1; 12];
    let mut resampler = Resampler::default();
    assert!(
        !resampler.push(&pixels, 12, STRIP_ROWS, &mut planes),
        "not begun"
    );
    assert!(resampler.begin(&shape));
    for count in [0, 1, STRIP_ROWS - 1, STRIP_ROWS + 1, rows] {
        assert!(!resampler.push(&pixels, 12, count, &mut planes), "{count}");
    }
    assert!(!resampler.push(&pixels[..12 * STRIP_ROWS - 1], 12, STRIP_ROWS, &mut planes));
    assert!(!resampler.push(&pixels, 12, STRIP_ROWS, &mut planes[..11]));
    assert!(resampler.push(&pixels, 12, STRIP_ROWS, &mut planes));
    assert!(
        !resampler.push(&pixels, 12, STRIP_ROWS, &mut planes),
        "two are left"
    );
    assert!(resampler.push(&pixels, 12, 2, &mut planes));
    assert_eq!(planes, [200; 12]);
    assert!(!resampler.push(&pixels, 12, 2, &mut planes), "none is left");
}

/// Once warm, buffers neither grow nor go.
#[test]
fn keeps_its_buffers() {
    let pixels = vec![3; 300 * 3 * 200];
    let shape = Shape {
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
        let done = resampler.resize(&shape, &pixels, 900, &mut planes);
        assert_eq!(done, Resampler::is_available());
        resampler.kept_bytes()
    };
    let first = kept();
    assert_eq!(kept(), first);
}
