//! Our own JPEG paths against libjpeg-turbo: the same pixels, or the same refusal, for regions at every scale.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use qf_codecs::jpeg::{Decompressor, Entropy, Error, Options, Outcome, Part, Region, Scale};
use qf_codecs::resample::{Area, Resampler, Shape};
use qf_fuzz::Draw;

thread_local! {
    static DECOMPRESSOR: RefCell<Decompressor> = RefCell::new(Decompressor::new().expect("memory"));
}

/// The size that the first frame header declares, as a caller would have read it.
fn size(bytes: &[u8]) -> Option<(u32, u32)> {
    let mut at = 2;
    while let Some(&[0xff, marker]) = bytes.get(at..at + 2) {
        if matches!(marker, 0xff) {
            at += 1;
            continue;
        }
        let len = usize::from(u16::from_be_bytes(
            bytes.get(at + 2..at + 4)?.try_into().ok()?,
        ));
        if matches!(marker, 0xc0..=0xcf) && !matches!(marker, 0xc4 | 0xc8 | 0xcc) {
            let side = |at: usize| {
                Some(u32::from(u16::from_be_bytes(
                    bytes.get(at..at + 2)?.try_into().ok()?,
                )))
            };
            return Some((side(at + 7)?, side(at + 5)?));
        }
        at += 2 + len;
    }
    None
}

fn rows(decompressor: &mut Decompressor, part: &Part<'_>) -> Result<Vec<u8>, Error> {
    let mut memory = Vec::new();
    let placed = decompressor.decode(part, &mut memory)?;
    let width = part.region.width as usize * placed.channels;
    let rows = (0..part.region.height as usize).map(|row| row * placed.stride + placed.offset);
    Ok(rows
        .flat_map(|at| memory[at..at + width].to_vec())
        .collect())
}

/// The region resized from components, if they come.
fn components(decompressor: &mut Decompressor, part: &Part<'_>, shape: &Shape) -> Option<Vec<u8>> {
    let mut resampler = Resampler::default();
    let mut planes = vec![7; 3 * shape.size * shape.size];
    let outcome = decompressor.decode_components(part, &mut |strip| {
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
        assert!(resampler.push_components(strip, &mut planes));
    });
    (outcome == Outcome::Complete).then_some(planes)
}

fuzz_target!(|data: &[u8]| {
    let Some((width, height)) = size(data) else {
        return;
    };
    if width == 0 || height == 0 || width * height > 1 << 18 {
        return;
    }
    let mut draw = Draw::of(data);
    let scale = Scale::ALL[draw.below(4) as usize];
    let scaled = (
        width.div_ceil(scale.reduction()),
        height.div_ceil(scale.reduction()),
    );
    let (x, y) = (draw.below(scaled.0), draw.below(scaled.1));
    let mut region = Region {
        x,
        y,
        width: 1 + draw.below(scaled.0 - x),
        height: 1 + draw.below(scaled.1 - y),
    };
    if draw.below(2) == 0 {
        region = Region {
            x: 0,
            y: 0,
            width: scaled.0,
            height: scaled.1,
        };
    }
    let lenient = draw.below(2) == 0;
    let options = |entropy| Options {
        lenient,
        max_scans: 20,
        entropy,
    };
    let part = |entropy| Part {
        bytes: data,
        size: (width, height),
        scale,
        region,
        options: options(entropy),
    };
    DECOMPRESSOR.with_borrow_mut(|decompressor| {
        let expected = rows(decompressor, &part(Entropy::Libjpeg));
        let ours = rows(decompressor, &part(Entropy::Fast));
        assert!(
            ours == expected,
            "rows of {region:?} at {scale:?}: {:?}, {:?}",
            ours.err(),
            expected.err()
        );
        if !Resampler::is_available() {
            return;
        }
        let (columns, lines) = (region.width as usize, region.height as usize);
        let shape = Shape {
            width: columns,
            height: lines,
            area: Area::whole(columns as f64, lines as f64),
            size: 1 + draw.below(64) as usize,
            ..Shape::default()
        };
        if let Some(planes) = components(decompressor, &part(Entropy::Fast), &shape) {
            let pixels = expected.expect("libjpeg decodes what came as components");
            let mut resized = vec![9; planes.len()];
            assert!(Resampler::default().resize(&shape, &pixels, 3 * columns, &mut resized));
            assert!(planes == resized, "components of {region:?} at {scale:?}");
        }
    });
});
