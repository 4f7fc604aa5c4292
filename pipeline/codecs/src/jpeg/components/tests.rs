//! Components, resized, against the pixels of libjpeg, resized.

use crate::jpeg::tests::{damage, decode, encodings, file, options, region};
use crate::jpeg::{Decompressor, Entropy, Outcome, Part, Region, Scale};
use crate::resample::{Area, Resampler, Shape};
use crate::testing::{Encoding, Numbers, Sampling};

/// A resized part, of which as much as that is taken.
fn shape(region: &Region, size: usize, inset: f64) -> Shape {
    let (width, height) = (region.width as usize, region.height as usize);
    let (across, down) = (width as f64, height as f64);
    Shape {
        width,
        height,
        before: (0, 0),
        area: Area {
            left: inset * across,
            top: inset * down,
            width: (1.0 - 2.0 * inset) * across,
            height: (1.0 - 2.0 * inset) * down,
        },
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
        assert_eq!(strip.first_row, rows);
        rows += strip.rows as u32;
        assert!(resampler.push_components(strip, &mut planes));
        assert!(!resampler.push_components(strip, &mut planes), "again");
    });
    (outcome == Outcome::Complete).then_some(planes)
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

/// A region of a picture at a scale, and what to make of it: as it is, or something else.
fn draw(numbers: &mut Numbers, size: (u32, u32), scale: Scale, as_it_is: bool) -> (Region, Shape) {
    let reduction = scale.reduction();
    let scaled = (size.0.div_ceil(reduction), size.1.div_ceil(reduction));
    let mut region = region(numbers, scaled);
    if as_it_is {
        // A square: every pixel is seen.
        let side = region.width.min(region.height);
        (region.width, region.height) = (side, side);
        return (region, shape(&region, side as usize, 0.0));
    }
    let inset = 0.03 * f64::from(numbers.below(3));
    let side = 1 + numbers.below(90) as usize;
    (region, shape(&region, side, inset))
}

#[test]
fn sound_pictures_are_those_of_libjpeg() {
    if !Resampler::is_available() {
        crate::test_data::skip(
            "sound_pictures_are_those_of_libjpeg",
            "this processor has no AVX2",
        );
        return;
    }
    let mut decompressor = Decompressor::new().expect("memory");
    let mut numbers = Numbers(3);
    for encoding in encodings() {
        for size in [(203, 149), (64, 64), (33, 17), (12, 5), (10, 140)] {
            let bytes = file(encoding, size);
            for (scale, round) in [Scale::Full, Scale::Half]
                .into_iter()
                .flat_map(|scale| (0..8).map(move |round| (scale, round)))
            {
                let (region, shape) = draw(&mut numbers, size, scale, round == 0);
                let part = Part {
                    bytes: &bytes,
                    size,
                    scale,
                    region,
                    options: options(Entropy::Fast, false),
                };
                let ours = by_components(&mut decompressor, &part, &shape);
                let which = format!("{encoding:?} {scale:?} {region:?} of {size:?}, {shape:?}");
                assert_eq!(ours.is_some(), is_for_us(&encoding), "{which}");
                if ours.is_some() {
                    let theirs = by_pixels(&mut decompressor, &part, &shape);
                    assert!(ours == theirs, "{which}");
                }
            }
        }
    }
}

/// Bytes are changed, left out, put in and cut off: what comes is what libjpeg makes of it.
#[test]
fn damaged_pictures_are_those_of_libjpeg() {
    if !Resampler::is_available() {
        crate::test_data::skip(
            "damaged_pictures_are_those_of_libjpeg",
            "this processor has no AVX2",
        );
        return;
    }
    let size = (97, 81);
    let mut decompressor = Decompressor::new().expect("memory");
    let mut numbers = Numbers(4);
    let (mut came, mut given_up) = (0, 0);
    for encoding in encodings().into_iter().filter(is_for_us) {
        let whole = file(encoding, size);
        for _ in 0..100 {
            let mut bytes = whole.clone();
            damage(&mut bytes, &mut numbers);
            let scale = [Scale::Full, Scale::Half][numbers.below(2) as usize];
            let (region, shape) = draw(&mut numbers, size, scale, false);
            for lenient in [false, true] {
                let part = Part {
                    bytes: &bytes,
                    size,
                    scale,
                    region,
                    options: options(Entropy::Fast, lenient),
                };
                match by_components(&mut decompressor, &part, &shape) {
                    Some(ours) => {
                        // An error is neither.
                        let theirs = by_pixels(&mut decompressor, &part, &shape);
                        assert!(
                            theirs.as_ref() == Some(&ours),
                            "{encoding:?} {scale:?} {region:?} {shape:?} {lenient}"
                        );
                        came += 1;
                    }
                    None => given_up += 1,
                }
            }
        }
    }
    assert!(came > 1000 && given_up > 1000, "{came}, {given_up}");
}

/// Three components that are red, green and blue, not luma and chroma.
#[test]
fn rgb_is_left_to_libjpeg() {
    let size = (64, 48);
    let sampling = Sampling::S444;
    let encoding = Encoding {
        sampling,
        ..Encoding::default()
    };
    let mut bytes = file(encoding, size);
    // No JFIF, and components named R, G and B: libjpeg takes them for that.
    let find = |bytes: &[u8], marker: u8| {
        let at = bytes.windows(2).position(|pair| pair == [0xff, marker]);
        at.expect("a marker")
    };
    let jfif = find(&bytes, 0xe0);
    bytes.drain(jfif..jfif + 18);
    let (frame, scan) = (find(&bytes, 0xc0), find(&bytes, 0xda));
    for (number, name) in b"RGB".iter().enumerate() {
        bytes[frame + 10 + 3 * number] = *name;
        bytes[scan + 5 + 2 * number] = *name;
    }
    let region = Region {
        x: 3,
        y: 5,
        width: 40,
        height: 40,
    };
    let mut decompressor = Decompressor::new().expect("memory");
    let part = Part {
        bytes: &bytes,
        size,
        scale: Scale::Full,
        region,
        options: options(Entropy::Fast, false),
    };
    let outcome = decompressor.decode_components(&part, &mut |_| panic!("a strip"));
    assert_eq!(outcome, Outcome::OtherKind);
    let pixels = decode(
        &mut decompressor,
        (&bytes, size),
        (part.scale, region),
        part.options,
    );
    assert_eq!(pixels.expect("decodes").len(), 3 * 40 * 40);
}
