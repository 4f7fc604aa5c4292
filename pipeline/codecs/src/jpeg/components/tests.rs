//! Components, resized, against the pixels of libjpeg, resized.

use crate::jpeg::tests::{decode, encodings, file, options, region};
use crate::jpeg::{Decompressor, Entropy, Part, Region, Scale};
use crate::resample::{Resampler, Shape};
use crate::testing::{Encoding, Numbers, Sampling};

/// A resized part, of which as much as that is taken.
fn shape(region: &Region, size: usize, inset: f64) -> Shape {
    let (width, height) = (region.width as usize, region.height as usize);
    let (across, down) = (width as f64, height as f64);
    Shape {
        width,
        height,
        before: (0, 0),
        area: (
            inset * across,
            inset * down,
            (1.0 - 2.0 * inset) * across,
            (1.0 - 2.0 * inset) * down,
        ),
        size,
        mirrored: false,
        upside_down: false,
    }
}

/// By components; None if they are not for our code.
fn by_components(
    decompressor: &mut Decompressor,
    part: &Part<'_>,
    shape: &Shape,
) -> Option<Vec<u8>> {
    let mut resampler = Resampler::default();
    let mut planes = vec![7; 3 * shape.size * shape.size];
    let mut rows = 0;
    let done = decompressor.decode_components(part, &mut |strip| {
        if strip.first_row == 0 {
            let before = (strip.before.0 as usize, strip.before.1 as usize);
            let (width, height) = (shape.width + before.0, shape.height + before.1);
            assert!(resampler.begin(&Shape {
                before,
                width,
                height,
                ..*shape
            }));
        }
        assert_eq!(strip.first_row, rows);
        rows += strip.rows as u32;
        assert!(resampler.push_components(strip, &mut planes));
        assert!(!resampler.push_components(strip, &mut planes), "again");
    });
    done.then_some(planes)
}

/// By the pixels of libjpeg.
fn by_pixels(decompressor: &mut Decompressor, part: &Part<'_>, shape: &Shape) -> Option<Vec<u8>> {
    let mut options = part.options;
    options.entropy = Entropy::Libjpeg;
    let what = (part.scale, part.region);
    let pixels = decode(decompressor, (part.bytes, part.size), what, options).ok()?;
    let mut planes = vec![9; 3 * shape.size * shape.size];
    let done = Resampler::default().resize(shape, &pixels, 3 * shape.width, &mut planes);
    assert!(done);
    Some(planes)
}

fn is_for_us(encoding: &Encoding) -> bool {
    let sampling = encoding.sampling;
    !encoding.cmyk && sampling != Sampling::Grey && sampling != Sampling::S411
}

#[test]
fn sound_pictures_are_those_of_libjpeg() {
    if !Resampler::is_available() {
        println!("skipped: this processor has no AVX2");
        return;
    }
    let mut decompressor = Decompressor::new().expect("memory");
    let mut numbers = Numbers(3);
    for encoding in encodings() {
        for size in [(203, 149), (64, 64), (33, 17), (6, 3), (5, 70)] {
            let bytes = file(encoding, size);
            for round in 0..8 {
                let mut region = region(&mut numbers, size);
                if round == 0 {
                    // A square stays as it is: every pixel is seen.
                    let side = region.width.min(region.height);
                    (region.width, region.height) = (side, side);
                }
                let part = Part {
                    bytes: &bytes,
                    size,
                    scale: Scale::Full,
                    region,
                    options: options(Entropy::Fast, false),
                };
                let (side, inset) = match round {
                    0 => (region.width as usize, 0.0),
                    _ => (1 + numbers.below(90) as usize, 0.03 * f64::from(round % 3)),
                };
                let shape = shape(&region, side, inset);
                let ours = by_components(&mut decompressor, &part, &shape);
                assert_eq!(
                    ours.is_some(),
                    is_for_us(&encoding),
                    "{encoding:?} {size:?}"
                );
                if ours.is_some() {
                    let theirs = by_pixels(&mut decompressor, &part, &shape);
                    assert!(
                        ours == theirs,
                        "{encoding:?} {region:?} of {size:?}, {shape:?}"
                    );
                }
            }
        }
    }
}
