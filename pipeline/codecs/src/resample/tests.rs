use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use super::{Area, Resampler, Shape, STRIP_ROWS};
use crate::strip::{ComponentStrip, Halved};
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
    let Area {
        left,
        top,
        width,
        height,
    } = shape.area;
    let pick = |area: Area| {
        ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
            .crop(area.left, area.top, area.width, area.height)
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
            &pick(Area {
                left,
                top: 0.0,
                width,
                height: f64::from(rows),
            }),
        )
        .expect("resizes");
    let mut pixels = vec![0; shape.size * shape.size * 3];
    let mut out = TypedImage::<U8x3>::from_buffer(size, size, &mut pixels).expect("fits");
    resizer
        .resize_typed(
            &halfway,
            &mut out,
            &pick(Area {
                left: 0.0,
                top,
                width: f64::from(size),
                height,
            }),
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
            0 => Area::whole(width as f64, height as f64),
            _ => {
                let (left, top) = (share(&mut numbers) * 0.9, share(&mut numbers) * 0.9);
                let right =
                    width as f64 - (0.05 + share(&mut numbers) * 0.04) * f64::from(width > 1);
                let left = if width > 1 { left } else { 0.0 };
                let top = if height > 1 { top } else { 0.0 };
                Area {
                    left,
                    top,
                    width: right - left,
                    height: height as f64 - top,
                }
            }
        };
        let crop = Crop {
            pixels: &pixels,
            stride,
            shape: Shape {
                width,
                height,
                before: (0, 0),
                area,
                size,
                mirrored: numbers.below(2) == 1,
                upside_down: numbers.below(2) == 1,
            },
        };
        check(&mut resampler, &crop);
    }
}

const AREA: Area = Area {
    left: 0.0,
    top: 0.0,
    width: 4.0,
    height: 3.0,
};

const SHAPE: Shape = Shape {
    width: 4,
    height: 3,
    before: (0, 0),
    area: AREA,
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
        (
            Shape {
                before: (1, 0),
                ..SHAPE
            },
            12,
        ),
        (
            Shape {
                before: (0, 9),
                ..SHAPE
            },
            12,
        ),
        (Shape { size: 3, ..SHAPE }, 12),
        (
            Shape {
                size: usize::MAX,
                ..SHAPE
            },
            12,
        ),
        (changed(Area { left: 0.5, ..AREA }), 12),
        (
            changed(Area {
                height: f64::NAN,
                ..AREA
            }),
            12,
        ),
        (changed(Area { left: -0.1, ..AREA }), 12),
        (changed(Area { width: 0.0, ..AREA }), 12),
    ] {
        let done = resampler.resize(&shape, &pixels, stride, &mut planes);
        assert!(!done, "{shape:?}, {stride}");
        assert_eq!(planes, [1; 12]);
    }
    let done = resampler.resize(&SHAPE, &pixels, 12, &mut planes);
    assert_eq!(done, Resampler::is_available());
    let none = Shape { size: 0, ..SHAPE };
    assert!(!resampler.begin(&none) && !resampler.resize(&none, &pixels, 12, &mut []));
}

/// The first strips are there, and would make some of the result.
#[test]
fn a_part_that_ends_early_leaves_the_output_as_it_was() {
    let rows = 3 * STRIP_ROWS;
    let shape = Shape {
        height: rows,
        area: Area::whole(4.0, rows as f64),
        size: 16,
        ..SHAPE
    };
    let pixels = vec![200; 12 * rows];
    let mut planes = [1; 3 * 16 * 16];
    let mut resampler = Resampler::default();
    assert!(!resampler.resize(&shape, &pixels[..12 * rows - 1], 12, &mut planes));
    assert_eq!(planes, [1; 3 * 16 * 16]);
    let done = resampler.resize(&shape, &pixels, 12, &mut planes);
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
        area: Area::whole(4.0, rows as f64),
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
        before: (0, 0),
        area: Area::whole(300.0, 200.0),
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

/// What comes before a part has no influence, and shifts nothing.
#[test]
fn parts_begin_behind_what_comes_before() {
    if !Resampler::is_available() {
        crate::test_data::skip(
            "parts_begin_behind_what_comes_before",
            "this processor has no AVX2",
        );
        return;
    }
    let mut numbers = Numbers(8);
    let mut resampler = Resampler::default();
    for round in 0..60 {
        let (width, height) = (
            2 + numbers.below(200) as usize,
            2 + numbers.below(90) as usize,
        );
        let pixels: Vec<u8> = (0..3 * width * height)
            .map(|_| numbers.below(256) as u8)
            .collect();
        let before = (round % 2, round / 2 % 2);
        let (columns, rows) = (width - before.0, height - before.1);
        let shape = Shape {
            width: columns,
            height: rows,
            before: (0, 0),
            area: Area::whole(columns as f64, rows as f64),
            size: 1 + numbers.below(70) as usize,
            mirrored: round % 3 == 0,
            upside_down: false,
        };
        let mut planes = [0, 1].map(|_| vec![0; 3 * shape.size * shape.size]);
        let part = &pixels[3 * (before.1 * width + before.0)..];
        assert!(resampler.resize(&shape, part, 3 * width, &mut planes[0]));
        let whole = Shape {
            width,
            height,
            before,
            ..shape
        };
        assert!(resampler.resize(&whole, &pixels, 3 * width, &mut planes[1]));
        assert!(planes[0] == planes[1], "{whole:?}");
    }
}

/// All values of chroma, dark to bright, by the formula of libjpeg's `jdcolor.c`.
#[test]
fn colours_are_those_of_the_formula() {
    if !Resampler::is_available() {
        crate::test_data::skip(
            "colours_are_those_of_the_formula",
            "this processor has no AVX2",
        );
        return;
    }
    let mut resampler = Resampler::default();
    let mut planes = [0; 3 * STRIP_ROWS * STRIP_ROWS];
    let side = STRIP_ROWS as f64;
    for (luma, from) in [0, 1, 77, 128, 200, 255].into_iter().flat_map(|luma| {
        (0..=255u8)
            .step_by(STRIP_ROWS)
            .map(move |from| (luma, from))
    }) {
        let luma_row = [luma; 256];
        let blue_rows: [_; STRIP_ROWS] = std::array::from_fn(|row| [from + row as u8; 256]);
        let red_row: [u8; 256] = std::array::from_fn(|at| at as u8);
        let strip = ComponentStrip {
            first_row: 0,
            before: (0, 0),
            rows: STRIP_ROWS,
            halved: Halved::default(),
            luma: [&luma_row; STRIP_ROWS],
            chroma: [
                blue_rows.each_ref().map(|row| &row[..]),
                [&red_row; STRIP_ROWS],
            ],
        };
        for left in (0..256).step_by(STRIP_ROWS) {
            // A square that stays as it is.
            let shape = Shape {
                width: 256,
                height: STRIP_ROWS,
                before: (0, 0),
                area: Area {
                    left: left as f64,
                    top: 0.0,
                    width: side,
                    height: side,
                },
                size: STRIP_ROWS,
                mirrored: false,
                upside_down: false,
            };
            assert!(resampler.begin(&shape));
            assert!(resampler.push_components(&strip, &mut planes));
            for at in 0..STRIP_ROWS * STRIP_ROWS {
                let (row, column) = (at / STRIP_ROWS, at % STRIP_ROWS);
                let (blue, red) = (
                    i32::from(from) + row as i32 - 128,
                    (left + column) as i32 - 128,
                );
                let half = 1 << 15;
                let expected = [
                    (91_881 * red + half) >> 16,
                    (-22_554 * blue - 46_802 * red + half) >> 16,
                    (116_130 * blue + half) >> 16,
                ]
                .map(|part| (i32::from(luma) + part).clamp(0, 255) as u8);
                let got = [0, 1, 2].map(|channel| planes[channel * STRIP_ROWS * STRIP_ROWS + at]);
                assert_eq!(got, expected, "{luma}, {blue}, {red}");
            }
        }
    }
}

/// Components whose rows are too short are refused, as are strips out of turn.
#[test]
fn refuses_components_that_do_not_fit() {
    let row = [0; 64];
    let strip = |first_row, len: usize| ComponentStrip {
        first_row,
        before: (0, 0),
        rows: 3,
        halved: Halved::default(),
        luma: [&row[..len]; STRIP_ROWS],
        chroma: [[&row[..len]; STRIP_ROWS]; 2],
    };
    let mut resampler = Resampler::default();
    let mut planes = [1; 12];
    assert!(
        !resampler.push_components(&strip(0, 64), &mut planes),
        "not begun"
    );
    let can = resampler.begin(&SHAPE);
    assert!(!resampler.push_components(&strip(0, 15), &mut planes));
    assert!(!resampler.push_components(&strip(1, 64), &mut planes));
    assert!(!resampler.push_components(&strip(0, 64), &mut planes[..11]));
    assert_eq!(planes, [1; 12]);
    assert_eq!(resampler.push_components(&strip(0, 64), &mut planes), can);
    assert!(
        !resampler.push_components(&strip(3, 64), &mut planes),
        "none is left"
    );
}

/// Results that begin far below the part's first row.
#[test]
fn areas_may_begin_below_many_strips() {
    let shape = Shape {
        width: 40,
        height: 2000,
        before: (0, 0),
        area: Area {
            left: 0.0,
            top: 1500.0,
            width: 40.0,
            height: 100.0,
        },
        size: 8,
        mirrored: false,
        upside_down: false,
    };
    let pixels: Vec<u8> = (0..40 * 2000 * 3)
        .map(|at| (at / 120 % 251) as u8)
        .collect();
    let crop = Crop {
        pixels: &pixels,
        stride: 120,
        shape,
    };
    if Resampler::is_available() {
        check(&mut Resampler::default(), &crop);
    }
}
