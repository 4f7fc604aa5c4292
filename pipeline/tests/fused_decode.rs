//! Decoding only the crop, reduced where the quality mode allows it, against decoding everything.

mod common;

use std::time::{Duration, Instant};

use common::{photographs, psnr, with_orientation, ImagePath};
use qf_codecs::testing::{encode, photograph, Encoding, Sampling};
use qf_pipeline::augment::{CropBox, ImageTransform, View};
use qf_pipeline::decode::{
    decode_rgb, DecodeLimits, DecodeQuality, Decoder, OnTruncated, RgbImage,
};
use qf_pipeline::SkipReason;

const MODES: [(DecodeQuality, f64); 3] = [
    (DecodeQuality::Exact, 60.0),
    (DecodeQuality::Balanced, 50.0),
    (DecodeQuality::Fast, 40.0),
];

fn generated(width: u32, height: u32, encoding: Encoding) -> Vec<u8> {
    let channels = if encoding.cmyk { 4 } else { 3 };
    encode(
        &photograph(width, height, channels, 7),
        width,
        height,
        encoding,
    )
    .expect("encodes")
}

/// Every kind of JPEG that is decoded.
fn kinds() -> Vec<(String, Encoding)> {
    let mut kinds = Vec::new();
    for sampling in [
        Sampling::S444,
        Sampling::S422,
        Sampling::S420,
        Sampling::S440,
        Sampling::S411,
        Sampling::Grey,
    ] {
        for (progressive, arithmetic, restart_blocks) in [
            (false, false, 0),
            (true, false, 0),
            (false, true, 0),
            (false, false, 3),
        ] {
            let encoding = Encoding {
                sampling,
                progressive,
                arithmetic,
                restart_blocks,
                ..Encoding::default()
            };
            kinds.push((format!("{encoding:?}"), encoding));
        }
    }
    for sampling in [Sampling::S444, Sampling::S420] {
        for (progressive, cmyk, twelve_bits) in [
            (false, true, false),
            (true, true, false),
            (false, false, true),
            (true, false, true),
            (false, true, true),
        ] {
            let encoding = Encoding {
                sampling,
                progressive,
                cmyk,
                twelve_bits,
                ..Encoding::default()
            };
            kinds.push((format!("{encoding:?}"), encoding));
        }
    }
    kinds
}

/// The worst signal-to-noise ratio of each mode over `draws` views of a file.
fn worst(bytes: &[u8], whole: &RgbImage, size: u32, draws: u32) -> [f64; 3] {
    MODES.map(|(quality, _)| {
        let mut path = ImagePath::new(ImageTransform::train(size), quality);
        let mut out = path.processor.blank();
        let ratios = (0..draws).map(|number| {
            let view = path.run(bytes, number, &mut out).expect("decodes");
            psnr(out.as_bytes(), path.reference(whole, &view).as_bytes())
        });
        ratios.fold(f64::INFINITY, f64::min)
    })
}

fn check_modes(name: &str, worst: [f64; 3]) {
    for ((quality, least), found) in MODES.iter().zip(worst) {
        assert!(found >= *least, "{name}: {quality:?} is {found:.1} dB");
    }
}

/// On every photograph, at the default size; several views of those that are large enough to be
/// reduced.
#[test]
fn modes_hold_their_quality_on_photographs() {
    let files = photographs("modes_hold_their_quality_on_photographs");
    let mut least = [f64::INFINITY; 3];
    let mut undecodable = Vec::new();
    for path in &files {
        let bytes = std::fs::read(path).expect("reads");
        let Ok(whole) = decode_rgb(&bytes, &DecodeLimits::default()) else {
            undecodable.push(path);
            continue;
        };
        let draws = if whole.width().max(whole.height()) > 700 {
            8
        } else {
            1
        };
        let worst = worst(&bytes, &whole, 224, draws);
        check_modes(&path.display().to_string(), worst);
        least = [0, 1, 2].map(|mode: usize| least[mode].min(worst[mode]));
    }
    println!(
        "{} photographs: exact, balanced, fast at least {least:.1?} dB",
        files.len()
    );
    // One lossless, four damaged ones.
    assert!(undecodable.len() <= 5, "{undecodable:?}");
}

#[test]
fn modes_hold_their_quality_on_every_kind() {
    let (small, large) = ((333, 251), (1301, 1101));
    for (name, encoding) in kinds() {
        let bytes = generated(small.0, small.1, encoding);
        let whole = decode_rgb(&bytes, &DecodeLimits::default()).expect("decodes");
        for size in [40, 64, 224] {
            let [exact, ..] = worst(&bytes, &whole, size, 6);
            assert!(exact >= 60.0, "{name} at {size}: {exact:.1} dB");
        }
    }
    let photographs = [3, 4].map(|channels| photograph(large.0, large.1, channels, 9));
    for (name, encoding) in kinds() {
        let pixels = &photographs[usize::from(encoding.cmyk)];
        let bytes = encode(pixels, large.0, large.1, encoding).expect("encodes");
        let whole = decode_rgb(&bytes, &DecodeLimits::default()).expect("decodes");
        let view = View {
            crop: common::whole(large.0, large.1),
            mirrored: false,
        };
        let found = MODES.map(|(quality, _)| {
            let mut path = ImagePath::new(ImageTransform::eval(224), quality);
            let mut out = path.processor.blank();
            path.run(&bytes, 0, &mut out).expect("decodes");
            psnr(out.as_bytes(), path.reference(&whole, &view).as_bytes())
        });
        check_modes(&name, found);
        assert!(
            found[1] < 90.0,
            "{name}: balanced did not reduce, {:.1} dB",
            found[1]
        );
    }
}

/// Whole decodes against the decoder of the `image` crate.
#[test]
fn the_pixels_are_right() {
    for (name, encoding) in kinds() {
        let bytes = generated(333, 251, encoding);
        let ours = decode_rgb(&bytes, &DecodeLimits::default()).expect("decodes");
        assert_eq!((ours.width(), ours.height()), (333, 251));
        if encoding.arithmetic || encoding.cmyk || encoding.twelve_bits {
            // `image` has no decoder of arithmetic codes or 12 bits, and another way from CMYK to RGB.
            let original = photograph(333, 251, if encoding.cmyk { 4 } else { 3 }, 7);
            let rgb: Vec<u8> = match encoding.cmyk {
                false => original,
                true => original
                    .chunks_exact(4)
                    .flat_map(|p| {
                        [0, 1, 2].map(|c| (u32::from(p[c]) * u32::from(p[3]) / 255) as u8)
                    })
                    .collect(),
            };
            let grey = encoding.sampling == Sampling::Grey;
            let found = psnr(ours.data(), &rgb);
            assert!(grey || found > 25.0, "{name}: {found:.1} dB");
            continue;
        }
        let theirs = image::load_from_memory(&bytes).expect("decodes").to_rgb8();
        let found = psnr(ours.data(), theirs.as_raw());
        // Another inverse transform, and another upsampling of chroma.
        assert!(found > 33.0, "{name}: {found:.1} dB");
    }
}

/// A crop of a picture stored in any orientation is that crop of the upright picture.
#[test]
fn crops_of_turned_pictures() {
    let plain = generated(333, 251, Encoding::default());
    for orientation in 1..=8 {
        let bytes = with_orientation(&plain, orientation);
        let whole = decode_rgb(&bytes, &DecodeLimits::default()).expect("decodes");
        let turned = orientation > 4;
        let size = if turned { (251, 333) } else { (333, 251) };
        assert_eq!((whole.width(), whole.height()), size, "EXIF {orientation}");
        for (transform, mode) in [
            (ImageTransform::train(80), DecodeQuality::Exact),
            (ImageTransform::eval(80), DecodeQuality::Exact),
        ] {
            let mut path = ImagePath::new(transform, mode);
            let mut out = path.processor.blank();
            for number in 0..8 {
                let view = path.run(&bytes, number, &mut out).expect("decodes");
                let found = psnr(out.as_bytes(), path.reference(&whole, &view).as_bytes());
                assert!(
                    found >= 60.0,
                    "EXIF {orientation}, {transform:?}: {found:.1} dB"
                );
            }
        }
    }
    // Reduced as well: the crop does not fall on whole pixels then.
    let plain = generated(1301, 1101, Encoding::default());
    for orientation in [1, 2, 3, 4, 5, 6, 7, 8] {
        let bytes = with_orientation(&plain, orientation);
        let whole = decode_rgb(&bytes, &DecodeLimits::default()).expect("decodes");
        let mut path = ImagePath::new(ImageTransform::train(200), DecodeQuality::Balanced);
        let mut out = path.processor.blank();
        let view = View {
            crop: CropBox {
                x: 101,
                y: 51,
                width: 979,
                height: 983,
            },
            mirrored: orientation % 2 == 0,
        };
        let opened = path.decoder.open(&bytes).expect("opens");
        let decoded = path.decoder.decode(&opened, view.crop, 200, path.quality);
        path.processor
            .render_decoded(&decoded.expect("decodes"), view.mirrored, out.as_mut());
        let found = psnr(out.as_bytes(), path.reference(&whole, &view).as_bytes());
        assert!(
            (50.0..90.0).contains(&found),
            "EXIF {orientation}: {found:.1} dB"
        );
    }
}

/// Any region, down to a pixel, at any place relative to the blocks.
#[test]
fn regions_at_every_place() {
    for sampling in [
        Sampling::S444,
        Sampling::S420,
        Sampling::S422,
        Sampling::S411,
    ] {
        for progressive in [false, true] {
            let encoding = Encoding {
                sampling,
                progressive,
                ..Encoding::default()
            };
            let bytes = generated(101, 77, encoding);
            let whole = decode_rgb(&bytes, &DecodeLimits::default()).expect("decodes");
            let mut path = ImagePath::new(ImageTransform::eval(16), DecodeQuality::Exact);
            let mut out = path.processor.blank();
            for at in 0..101 * 77 / 13 {
                let (x, y) = (at * 13 % 101, at * 13 / 101);
                let crop = CropBox {
                    x,
                    y,
                    width: (1 + at * 7 % 40).min(101 - x),
                    height: (1 + at * 5 % 40).min(77 - y),
                };
                let opened = path.decoder.open(&bytes).expect("opens");
                let decoded = path.decoder.decode(&opened, crop, 16, path.quality);
                path.processor
                    .render_decoded(&decoded.expect("decodes"), false, out.as_mut());
                let view = View {
                    crop,
                    mirrored: false,
                };
                let found = psnr(out.as_bytes(), path.reference(&whole, &view).as_bytes());
                assert!(found >= 60.0, "{encoding:?} {crop:?}: {found:.1} dB");
            }
        }
    }
}

fn run(bytes: &[u8], crop: CropBox, on_truncated: OnTruncated) -> Result<Vec<u8>, String> {
    let start = Instant::now();
    let mut path = ImagePath::new(ImageTransform::eval(32), DecodeQuality::Exact);
    path.decoder = Decoder::new(DecodeLimits::default(), on_truncated);
    let result = path.decoder.open(bytes).and_then(|opened| {
        let decoded = path.decoder.decode(&opened, crop, 32, path.quality)?;
        let mut out = path.processor.blank();
        path.processor.render_decoded(&decoded, false, out.as_mut());
        Ok(out.as_bytes().to_vec())
    });
    let took = start.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    result.map_err(|error| {
        let expected = [
            SkipReason::BrokenImage,
            SkipReason::ImageTooLarge,
            SkipReason::UnknownImageFormat,
            SkipReason::UnsupportedImage,
        ];
        assert!(expected.contains(&error.reason()), "{error}");
        error.to_string()
    })
}

/// The position of a marker's 0xff.
fn marker(bytes: &[u8], code: u8) -> usize {
    let found = bytes.windows(2).position(|pair| pair == [0xff, code]);
    found.expect("the marker")
}

fn set_size(bytes: &mut [u8], frame: u8, width: u16, height: u16) {
    let at = marker(bytes, frame);
    bytes[at + 5..at + 7].copy_from_slice(&height.to_be_bytes());
    bytes[at + 7..at + 9].copy_from_slice(&width.to_be_bytes());
}

#[test]
fn files_that_end_early() {
    for progressive in [false, true] {
        let encoding = Encoding {
            progressive,
            ..Encoding::default()
        };
        let bytes = generated(320, 240, encoding);
        let all = common::whole(320, 240);
        let top = CropBox { height: 60, ..all };
        let full = run(&bytes, all, OnTruncated::Error).expect("whole");
        for cut in [1, 2, 3, 700, bytes.len() / 2, bytes.len() * 3 / 4] {
            let cut = &bytes[..bytes.len() - cut];
            // Wherever the crop is: a file without its end is an error.
            for crop in [all, top] {
                let error = run(cut, crop, OnTruncated::Error).expect_err("cut");
                assert!(error.contains("truncated"), "{error}");
                run(cut, crop, OnTruncated::Grey).expect("grey");
            }
        }
        // With an end marker behind what is left, only the data tells.
        let mut sealed = bytes[..bytes.len() / 2].to_vec();
        sealed.extend([0xff, 0xd9]);
        let error = run(&sealed, all, OnTruncated::Error).expect_err("sealed");
        assert!(error.contains("ends before the picture does"), "{error}");
        let grey = run(&sealed, all, OnTruncated::Grey).expect("grey");
        if !progressive {
            let last = grey[32 * 31 + 16];
            assert!(last.abs_diff(128) < 4, "mid-grey, not {last}");
            assert!(
                psnr(&grey[..32 * 8], &full[..32 * 8]) > 50.0,
                "the upper part is there"
            );
            run(&sealed, top, OnTruncated::Error).expect("the crop is whole");
        }
        // Cut within the headers there is nothing to show.
        for len in [0, 2, 10, marker(&bytes, 0xda) + 4] {
            run(&bytes[..len], all, OnTruncated::Grey).expect_err("no header");
        }
    }
}

#[test]
fn headers_that_lie() {
    let plain = generated(320, 240, Encoding::default());
    // Taller than its data, within what its bytes could hold.
    let mut tall = plain.clone();
    set_size(&mut tall, 0xc0, 320, 1900);
    let lower = CropBox {
        y: 1000,
        ..common::whole(320, 800)
    };
    let error = run(&tall, lower, OnTruncated::Error).expect_err("no such rows");
    assert!(error.contains("ends before the picture does"), "{error}");
    run(&tall, lower, OnTruncated::Grey).expect("grey");
    // Wider: rows run into each other, and the data ends early.
    let mut wide = plain.clone();
    set_size(&mut wide, 0xc0, 1600, 240);
    run(&wide, common::whole(1600, 240), OnTruncated::Error).expect_err("no such columns");
    for side in [13_000, 65_500, 65_535] {
        let mut huge = plain.clone();
        set_size(&mut huge, 0xc0, side, side);
        let side = u32::from(side);
        let crop = CropBox {
            x: side / 2,
            y: side / 2,
            ..common::whole(side / 2, side / 2)
        };
        run(&huge, crop, OnTruncated::Error).expect_err("no such picture");
        if side > 20_000 {
            run(&huge, crop, OnTruncated::Grey).expect_err("beyond max_pixels");
        }
    }
    // Two frames of different size.
    let frame = marker(&plain, 0xc0);
    let mut double = plain.clone();
    let copy = plain[frame..frame + 19].to_vec();
    double.splice(frame..frame, copy);
    run(&double, common::whole(320, 240), OnTruncated::Error).expect_err("two frames");
}

#[test]
fn absurd_restart_intervals() {
    let encoding = Encoding {
        restart_blocks: 4,
        ..Encoding::default()
    };
    let plain = generated(320, 240, encoding);
    let at = marker(&plain, 0xdd);
    for interval in [0u16, 1, 3, 5, 1000, 65_535] {
        let mut bytes = plain.clone();
        bytes[at + 4..at + 6].copy_from_slice(&interval.to_be_bytes());
        run(&bytes, common::whole(320, 240), OnTruncated::Error).expect_err("other intervals");
        run(&bytes, common::whole(320, 240), OnTruncated::Grey).expect("some picture");
    }
    // Restart markers that come in another order.
    let mut bytes = plain.clone();
    let first = marker(&plain, 0xd0);
    bytes[first + 1] = 0xd5;
    let error = run(&bytes, common::whole(320, 240), OnTruncated::Error).expect_err("order");
    assert!(error.contains("damaged"), "{error}");
}

/// Scans without end are refused by their number, long before they are decoded.
#[test]
fn scan_bombs() {
    let encoding = Encoding {
        progressive: true,
        ..Encoding::default()
    };
    let plain = generated(1600, 1200, encoding);
    let end = plain.len() - 2;
    let last = plain
        .windows(2)
        .rposition(|pair| pair == [0xff, 0xda])
        .expect("a scan");
    let mut bomb = plain[..end].to_vec();
    for _ in 0..3000 {
        // An empty scan of the last band: a header, no data.
        bomb.extend(&plain[last..last + 10]);
    }
    bomb.extend([0xff, 0xd9]);
    let crop = common::whole(1600, 1200);
    run(&plain, crop, OnTruncated::Error).expect("ten scans are fine");
    run(&bomb, crop, OnTruncated::Error).expect_err("a bomb");
    let error = run(&bomb, crop, OnTruncated::Grey).expect_err("a bomb");
    assert!(error.contains("scans"), "{error}");
}

/// Samples of 12 bits, decoded by libjpeg alone, become what those of 8 bits become.
#[test]
fn twelve_bits_are_as_eight() {
    for (sampling, cmyk, progressive) in [
        (Sampling::S420, false, false),
        (Sampling::S444, false, true),
        (Sampling::Grey, false, false),
        (Sampling::S444, true, false),
    ] {
        let [eight, twelve] = [false, true].map(|twelve_bits| {
            let encoding = Encoding {
                quality: 98,
                sampling,
                cmyk,
                progressive,
                twelve_bits,
                ..Encoding::default()
            };
            decode_rgb(&generated(203, 149, encoding), &DecodeLimits::default()).expect("decodes")
        });
        assert_eq!(
            (eight.width(), eight.height()),
            (twelve.width(), twelve.height())
        );
        let ratio = psnr(eight.data(), twelve.data());
        println!("{sampling:?}: {ratio:.1} dB");
        assert!(ratio > 40.0, "{sampling:?}: {ratio:.1} dB");
    }
}

/// What PIL refuses too, by name.
#[test]
fn unsupported_kinds_say_so() {
    let plain = generated(64, 64, Encoding::default());
    for (at, value, expected) in [
        (1, 0xc3, "lossless"),
        (1, 0xc5, "hierarchical"),
        (4, 16, "16-bit"),
        (9, 2, "2 components"),
    ] {
        let mut bytes = plain.clone();
        let frame = marker(&plain, 0xc0);
        bytes[frame + at] = value;
        let error = run(&bytes, common::whole(64, 64), OnTruncated::Error).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
}

/// A file without tables is decoded with the standard ones, never with those of the file before.
#[test]
fn nothing_is_left_of_the_file_before() {
    let fine = generated(
        96,
        96,
        Encoding {
            quality: 98,
            ..Encoding::default()
        },
    );
    let mut bare = generated(
        96,
        96,
        Encoding {
            quality: 20,
            ..Encoding::default()
        },
    );
    while let Some(at) = bare.windows(2).position(|pair| pair == [0xff, 0xdb]) {
        let len = usize::from(u16::from_be_bytes([bare[at + 2], bare[at + 3]]));
        bare.drain(at..at + 2 + len);
    }
    let mut decoder = Decoder::new(DecodeLimits::default(), OnTruncated::Error);
    let alone = decoder
        .decode_whole(&bare)
        .map_err(|error| error.to_string());
    decoder.decode_whole(&fine).expect("decodes");
    let after = decoder
        .decode_whole(&bare)
        .map_err(|error| error.to_string());
    assert_eq!(alone, after);
    assert!(alone.is_err(), "it has no quantisation table");
}

#[test]
fn webp_crops() {
    let pixels = photograph(201, 133, 3, 5);
    let image = image::RgbImage::from_raw(201, 133, pixels).expect("201×133");
    let mut bytes = std::io::Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, image::ImageFormat::WebP)
        .expect("encodes");
    let bytes = bytes.into_inner();
    let whole = decode_rgb(&bytes, &DecodeLimits::default()).expect("decodes");
    assert_eq!(whole.data(), image.as_raw());
    let mut path = ImagePath::new(ImageTransform::train(64), DecodeQuality::Balanced);
    let mut out = path.processor.blank();
    for number in 0..40 {
        let view = path.run(&bytes, number, &mut out).expect("decodes");
        assert_eq!(out, path.reference(&whole, &view), "{view:?}");
    }
    for len in [bytes.len() - 40, bytes.len() / 2, 30] {
        assert!(decode_rgb(&bytes[..len], &DecodeLimits::default()).is_err());
    }
}
