//! Our decoder of Huffman codes against libjpeg's.

use super::*;
use crate::testing::{encode, photograph, Encoding, Numbers, Sampling};

pub(super) fn options(entropy: Entropy, lenient: bool) -> Options {
    Options {
        lenient,
        max_scans: 100,
        entropy,
    }
}

/// A region's pixels, row by row without what stands beside it.
pub(super) fn cut(pixels: &[u8], placed: Placed, region: Region) -> Vec<u8> {
    let rows = pixels.chunks(placed.stride).take(region.height as usize);
    rows.flat_map(|row| &row[placed.offset..][..region.width as usize * placed.channels])
        .copied()
        .collect()
}

pub(super) fn decode(
    decompressor: &mut Decompressor,
    (bytes, size): (&[u8], (u32, u32)),
    (scale, region): (Scale, Region),
    options: Options,
) -> Result<Vec<u8>, Error> {
    let mut pixels = Vec::new();
    let part = Part {
        bytes,
        size,
        scale,
        region,
        options,
    };
    let placed = decompressor.decode(&part, &mut pixels)?;
    Ok(cut(&pixels, placed, region))
}

pub(super) fn region(numbers: &mut Numbers, (width, height): (u32, u32)) -> Region {
    let (x, y) = (numbers.below(width), numbers.below(height));
    Region {
        x,
        y,
        width: 1 + numbers.below(width - x),
        height: 1 + numbers.below(height - y),
    }
}

pub(super) fn encodings() -> Vec<Encoding> {
    let mut encodings = Vec::new();
    for sampling in [
        Sampling::S444,
        Sampling::S422,
        Sampling::S420,
        Sampling::S440,
        Sampling::S411,
        Sampling::Grey,
    ] {
        for (quality, restart_blocks) in [(5, 0), (50, 7), (90, 0), (98, 1), (100, 0)] {
            for optimized in [false, true] {
                encodings.push(Encoding {
                    quality,
                    sampling,
                    optimized,
                    restart_blocks,
                    ..Encoding::default()
                });
            }
        }
    }
    for sampling in [Sampling::S444, Sampling::S420] {
        encodings.push(Encoding {
            sampling,
            cmyk: true,
            ..Encoding::default()
        });
    }
    encodings
}

pub(super) fn file(encoding: Encoding, (width, height): (u32, u32)) -> Vec<u8> {
    let channels = if encoding.cmyk { 4 } else { 3 };
    let pixels = photograph(width, height, channels, 11);
    encode(&pixels, width, height, encoding).expect("encodes")
}

#[test]
fn sound_pictures_are_those_of_libjpeg() {
    let size = (203, 149);
    let mut decompressor = Decompressor::new().expect("memory");
    let mut numbers = Numbers(1);
    for encoding in encodings() {
        let bytes = file(encoding, size);
        for scale in Scale::ALL {
            let scaled = (
                size.0.div_ceil(scale.reduction()),
                size.1.div_ceil(scale.reduction()),
            );
            for _ in 0..8 {
                let what = (scale, region(&mut numbers, scaled));
                let part = Part {
                    bytes: &bytes,
                    size,
                    scale,
                    region: what.1,
                    options: options(Entropy::Fast, false),
                };
                let at_once = [1, 16, 17, what.1.height][numbers.below(4) as usize];
                let mut pixels = Vec::new();
                let mut sink = |strip: Strip<'_>| {
                    let rows = strip.pixels.len() / strip.placed.stride;
                    let row = strip.first_row as usize;
                    let last = row + rows == what.1.height as usize;
                    assert!(last || rows == at_once as usize, "{rows} of {at_once} rows");
                    let strip_region = Region {
                        height: rows as u32,
                        ..what.1
                    };
                    pixels.extend(cut(strip.pixels, strip.placed, strip_region));
                };
                // Not `decode_strips`, which would hide that our code gave up.
                let went_well = decompressor.attempt(&part, at_once, &mut Vec::new(), &mut sink);
                assert_eq!(went_well, Ok(true), "{encoding:?} {what:?}: gave up");
                let libjpeg = options(Entropy::Libjpeg, false);
                let expected = decode(&mut decompressor, (&bytes, size), what, libjpeg);
                let same = pixels == expected.expect("decodes");
                assert!(same, "{encoding:?} {what:?}");
            }
        }
    }
}

/// Bytes are changed, left out, put in and cut off; half of the damage is behind the headers.
pub(super) fn damage(bytes: &mut Vec<u8>, numbers: &mut Numbers) {
    let scan = bytes.windows(2).position(|pair| pair == [0xff, 0xda]);
    let scan = scan.expect("a scan") as u32;
    let first = [0, scan][numbers.below(2) as usize];
    for _ in 0..1 + numbers.below(3) {
        let at = (first + numbers.below(bytes.len() as u32 - first)) as usize;
        match numbers.below(5) {
            0 => bytes[at] ^= 1 << numbers.below(8),
            1 => bytes[at] = [0xff, 0, 0xd0, 0xd9, 0x7f][numbers.below(5) as usize],
            2 => drop(bytes.remove(at)),
            3 => bytes.insert(at, [0xff, 0, 0xd1][numbers.below(3) as usize]),
            _ => bytes.truncate(at.max(scan as usize + 1)),
        }
    }
}

/// Bytes are changed, left out, put in and cut off: pixels and errors stay those of libjpeg.
#[test]
fn damaged_pictures_are_those_of_libjpeg() {
    let size = (97, 81);
    let mut decompressor = Decompressor::new().expect("memory");
    let mut numbers = Numbers(2);
    let (mut sound, mut broken) = (0, 0);
    for (number, encoding) in encodings().into_iter().enumerate() {
        let whole = file(encoding, size);
        for _ in 0..60 {
            let mut bytes = whole.clone();
            damage(&mut bytes, &mut numbers);
            let scale = Scale::ALL[numbers.below(4) as usize];
            let scaled = (
                size.0.div_ceil(scale.reduction()),
                size.1.div_ceil(scale.reduction()),
            );
            let what = (scale, region(&mut numbers, scaled));
            for lenient in [false, true] {
                let [ours, theirs] = [Entropy::Fast, Entropy::Libjpeg].map(|entropy| {
                    let picture = (bytes.as_slice(), size);
                    decode(&mut decompressor, picture, what, options(entropy, lenient))
                });
                assert!(
                    ours == theirs,
                    "{number} {encoding:?} {what:?} {lenient}: {:?}, {:?}",
                    ours.err(),
                    theirs.err()
                );
                match ours {
                    Ok(_) => sound += 1,
                    Err(_) => broken += 1,
                }
            }
        }
    }
    assert!(
        sound > 1000 && broken > 1000,
        "{sound} sound, {broken} broken"
    );
}

/// One scan of a component, then one of all, then zeros that would decode as a scan.
#[test]
fn several_scans_are_those_of_libjpeg() {
    let size = (40, 24);
    let pixels = photograph(size.0, size.1, 3, 5);
    let encoding = Encoding {
        quality: 80,
        sampling: Sampling::S444,
        ..Encoding::default()
    };
    let file = encode(&pixels, size.0, size.1, encoding).expect("encodes");
    let scan = file
        .windows(2)
        .position(|marker| marker == [0xff, 0xda])
        .expect("a scan");
    let header = &file[..scan];
    // 15 blocks of the standard table's codes for no difference and no more coefficients: 001010.
    let mut first = vec![0xff, 0xda, 0, 8, 1, 1, 0, 0, 63, 0];
    first.extend([0b0010_1000, 0b1010_0010, 0b1000_1010].repeat(3));
    first.extend([0b0010_1000, 0b1010_0010, 0b1011_1111]);
    let whole = Region {
        x: 0,
        y: 0,
        width: size.0,
        height: size.1,
    };
    let mut decompressor = Decompressor::new().expect("memory");
    for tail in [0, 8000] {
        let several = [header, &first, &file[scan..], &vec![0; tail]].concat();
        for lenient in [false, true] {
            let mut with = |entropy| {
                let part = (Scale::Full, whole);
                decode(
                    &mut decompressor,
                    (&several, size),
                    part,
                    options(entropy, lenient),
                )
            };
            let (ours, theirs) = (with(Entropy::Fast), with(Entropy::Libjpeg));
            assert!(lenient <= theirs.is_ok());
            assert_eq!(ours, theirs, "{tail} zeros, lenient: {lenient}");
        }
    }
}
