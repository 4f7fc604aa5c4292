//! Decoding of whole pictures, their limits, and hostile ones.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use image::{DynamicImage, ImageBuffer, ImageFormat as Encoding, Luma, LumaA, Rgb, Rgba};
use proptest::prelude::*;

use super::*;
use crate::error::SkipReason;
use crate::test_data;

fn encode(image: impl Into<DynamicImage>, encoding: Encoding) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image
        .into()
        .write_to(&mut bytes, encoding)
        .expect("encodes");
    bytes.into_inner()
}

fn decode(bytes: &[u8]) -> Result<RgbImage, DecodeError> {
    decode_rgb(bytes, &DecodeLimits::default())
}

/// A smooth picture, so that JPEG keeps it nearly as it is.
fn gradient(width: u32, height: u32) -> ImageBuffer<Rgb<u8>, Vec<u8>> {
    ImageBuffer::from_fn(width, height, |x, y| {
        Rgb([(x * 255 / width) as u8, (y * 255 / height) as u8, 99])
    })
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn lossless_formats_are_exact() {
    let picture = gradient(37, 23);
    for encoding in [Encoding::Png, Encoding::WebP, Encoding::Bmp, Encoding::Tiff] {
        let image = decode(&encode(picture.clone(), encoding)).expect("decodes");
        assert_eq!((image.width(), image.height()), (37, 23));
        assert_eq!(image.data(), picture.as_raw(), "{encoding:?}");
    }
    let image = decode(&encode(picture.clone(), Encoding::Jpeg)).expect("decodes");
    let difference = image.data().iter().zip(picture.as_raw());
    let worst = difference.map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst < Some(24), "{worst:?}");
}

#[test]
fn every_kind_of_sample_becomes_rgb() {
    let check = |image: DynamicImage, encoding, expected: [u8; 3]| {
        let color = image.color();
        let got = decode(&encode(image, encoding)).expect("decodes");
        assert_eq!(got.data(), expected.repeat(2), "{encoding:?} {color:?}");
    };
    for encoding in [Encoding::Png, Encoding::Tiff] {
        check(
            ImageBuffer::from_pixel(2, 1, Luma([7u8])).into(),
            encoding,
            [7, 7, 7],
        );
        check(
            ImageBuffer::from_pixel(2, 1, Luma([0x1280u16])).into(),
            encoding,
            [0x12; 3],
        );
        check(
            ImageBuffer::from_pixel(2, 1, Rgb([0x12ffu16, 0x3400, 0xffff])).into(),
            encoding,
            [0x12, 0x34, 0xff],
        );
        // Alpha is dropped, not composited: a transparent pixel keeps its colour.
        check(
            ImageBuffer::from_pixel(2, 1, Rgba([10u8, 20, 30, 0])).into(),
            encoding,
            [10, 20, 30],
        );
        check(
            ImageBuffer::from_pixel(2, 1, Rgba([0x0a00u16, 0x1400, 0x1e00, 0])).into(),
            encoding,
            [10, 20, 30],
        );
    }
    check(
        ImageBuffer::from_pixel(2, 1, LumaA([9u8, 0])).into(),
        Encoding::Png,
        [9; 3],
    );
    check(
        ImageBuffer::from_pixel(2, 1, LumaA([0x0900u16, 77])).into(),
        Encoding::Png,
        [9; 3],
    );
    check(
        ImageBuffer::from_pixel(2, 1, Rgba([200u8, 10, 30, 255])).into(),
        Encoding::Gif,
        [200, 10, 30],
    );
    let float = ImageBuffer::from_pixel(2, 1, Rgb([0.5f32, 0.5, 0.5]));
    let error = decode(&encode(float, Encoding::Tiff)).expect_err("no range is declared");
    assert!(error.to_string().contains("floating-point"), "{error}");
    assert_eq!(error.reason(), SkipReason::UnsupportedImage);
}

#[test]
fn content_tells_the_format() {
    for (bytes, expected) in [
        (&b""[..], "an empty file"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\x89PNG\r\r\n\n", "begin with 89 50 4e 47"),
        (b"RIFF\x10\0\0\0WAVE", "begin with"),
    ] {
        let error = decode(bytes).expect_err("no image");
        assert_eq!(error.reason(), SkipReason::UnknownImageFormat);
        assert!(error.to_string().contains(expected), "{error}");
    }
    for name in [
        "jpg",
        "JPEG",
        "image.jpg",
        "a.b.WebP",
        "tif",
        "jfif",
        "png",
        "gif",
    ] {
        assert!(is_image_extension(name), "{name}");
    }
    for name in ["", "txt", "jpg.txt", "jpg.gz", "jpgx", "json", ".", "avif"] {
        assert!(!is_image_extension(name), "{name}");
    }
}

#[test]
fn limits_hold_on_the_header() {
    let mut limits = DecodeLimits::default();
    let picture = gradient(64, 32);
    let encodings = [
        Encoding::Jpeg,
        Encoding::Png,
        Encoding::WebP,
        Encoding::Bmp,
        Encoding::Tiff,
        Encoding::Gif,
    ];
    for encoding in encodings {
        let bytes = encode(picture.clone(), encoding);
        limits.max_pixels = 64 * 32;
        limits.max_side = 64;
        assert!(decode_rgb(&bytes, &limits).is_ok(), "{encoding:?}");
        for (changed, name) in [
            (
                DecodeLimits {
                    max_pixels: 64 * 32 - 1,
                    ..limits.clone()
                },
                "max_image_pixels",
            ),
            (
                DecodeLimits {
                    max_side: 63,
                    ..limits.clone()
                },
                "max_image_side",
            ),
            (
                DecodeLimits {
                    memory: DecodeMemory::new(6143),
                    ..limits
                },
                "decode_memory_bytes",
            ),
        ] {
            let error = decode_rgb(&bytes, &changed).expect_err("too large");
            assert_eq!(error.reason(), SkipReason::ImageTooLarge, "{encoding:?}");
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}

/// Headers that promise far more than the file holds: an error in no time, nothing allocated.
#[test]
fn lying_headers() {
    let mut jpeg = encode(gradient(64, 64), Encoding::Jpeg);
    let frame = jpeg
        .windows(2)
        .position(|marker| marker == [0xff, 0xc0])
        .expect("a frame header");
    for (side, reason) in [
        (65_500u16, SkipReason::ImageTooLarge),
        (13_000, SkipReason::BrokenImage),
    ] {
        jpeg[frame + 5..frame + 7].copy_from_slice(&side.to_be_bytes());
        jpeg[frame + 7..frame + 9].copy_from_slice(&side.to_be_bytes());
        let start = Instant::now();
        let error = decode(&jpeg).expect_err("nothing like it");
        assert_eq!(error.reason(), reason, "{error}");
        assert!(start.elapsed() < Duration::from_secs(1), "{side}");
    }
    let mut png = encode(gradient(64, 64), Encoding::Png);
    png[16..20].copy_from_slice(&2_000_000_000u32.to_be_bytes());
    assert!(decode(&png).is_err());
}

#[test]
fn truncated_files_are_errors() {
    for encoding in [Encoding::Jpeg, Encoding::Bmp, Encoding::Gif, Encoding::Png] {
        let bytes = encode(gradient(40, 30), encoding);
        // Behind its rows PNG has the end of its data, two checksums and IEND, and GIF its last block
        // and trailer; `pipeline/tests/pil_formats.rs` cuts at every byte.
        let needed = match encoding {
            Encoding::Png => bytes.len() - 30,
            Encoding::Gif => bytes.len() - 8,
            _ => bytes.len() - 1,
        };
        for len in (0..=needed).step_by(7).chain([needed]) {
            let got = decode(&bytes[..len]);
            assert!(got.is_err(), "{encoding:?} cut to {len} of {}", bytes.len());
        }
        assert!(decode(&bytes).is_ok());
    }
    let jpeg = encode(gradient(40, 30), Encoding::Jpeg);
    let error = decode(&jpeg[..jpeg.len() / 2]).expect_err("truncated");
    assert!(error.to_string().contains("truncated"), "{error}");
}

/// Noise in few enough colours for a GIF's palette: two places never agree by chance for a whole row.
fn noise(width: u32, height: u32) -> ImageBuffer<Rgb<u8>, Vec<u8>> {
    let mut state = 1u32;
    ImageBuffer::from_fn(width, height, |_, _| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let level = |shift: u32| (state >> shift & 3) as u8 * 85;
        Rgb([level(30), level(27), level(24)])
    })
}

const CROPS: [(u32, u32, u32, u32); 6] = [
    (0, 0, 37, 53),
    (5, 3, 20, 31),
    (36, 52, 1, 1),
    (0, 10, 37, 1),
    (7, 0, 3, 53),
    (1, 17, 33, 33),
];

/// A decoded region of a lossless format is that region of what was encoded, whole and in strips.
#[test]
fn crops_of_lossless_formats_are_exact() {
    let picture = noise(37, 53);
    let mut decoder = Decoder::new(DecodeLimits::default(), OnTruncated::Error);
    let encodings = [
        Encoding::Png,
        Encoding::WebP,
        Encoding::Bmp,
        Encoding::Tiff,
        Encoding::Gif,
    ];
    for encoding in encodings {
        let bytes = match encoding {
            Encoding::Gif => encode(DynamicImage::from(picture.clone()).to_rgba8(), encoding),
            _ => encode(picture.clone(), encoding),
        };
        for (x, y, width, height) in CROPS {
            let name = format!("{encoding:?}, {width}×{height} from ({x}, {y})");
            let row_of = |row: u32| -> Vec<u8> {
                let columns = (x..x + width).map(|column| picture.get_pixel(column, y + row).0);
                columns.flatten().collect()
            };
            let expected: Vec<Vec<u8>> = (0..height).map(row_of).collect();
            let crop = CropBox {
                x,
                y,
                width,
                height,
            };
            let opened = decoder.open(&bytes).expect("a header");
            let mut strips = Vec::new();
            let came = decoder
                .decode_strips(&opened, crop, (8, DecodeQuality::Exact), &mut |strip| {
                    let StripRows::Pixels { pixels, stride } = strip.rows else {
                        panic!("{name}: pixels");
                    };
                    assert_eq!((strip.width, strip.height), (width, height), "{name}");
                    assert_eq!(strip.first_row as usize, strips.len(), "{name}");
                    let rows = pixels.chunks(stride);
                    strips.extend(rows.map(|row| row[..width as usize * 3].to_vec()));
                })
                .expect("decodes");
            assert_eq!(came, encoding != Encoding::WebP, "{name}");
            assert!(!came || strips == expected, "{name}, in strips");

            let decoded = decoder
                .decode(&opened, crop, 8, DecodeQuality::Exact)
                .expect("decodes");
            let hull = decoded.hull;
            assert_eq!((hull.width, hull.height), (width, height), "{name}");
            assert!(hull.x + width <= decoded.columns && hull.y + height <= decoded.rows);
            let rows = decoded.pixels.chunks(decoded.columns as usize * 3);
            let rows = rows.skip(hull.y as usize).take(height as usize);
            let from = hull.x as usize * 3;
            let rows: Vec<Vec<u8>> = rows
                .map(|row| row[from..from + width as usize * 3].to_vec())
                .collect();
            assert!(rows == expected, "{name}");
        }
    }
}

/// A region has to lie within the picture: by its last column, by its last row, and with numbers that overflow.
#[test]
fn crops_beyond_the_picture_are_refused() {
    let bytes = encode(noise(37, 53), Encoding::Png);
    let mut decoder = Decoder::new(DecodeLimits::default(), OnTruncated::Error);
    let opened = decoder.open(&bytes).expect("a header");
    for (x, y, width, height) in [
        (0, 0, 38, 53),
        (0, 0, 37, 54),
        (37, 0, 1, 1),
        (0, 53, 1, 1),
        (1, 1, 0, 5),
        (1, 1, 5, 0),
        (u32::MAX, 0, 2, 1),
        (0, u32::MAX, 1, 2),
    ] {
        let crop = CropBox {
            x,
            y,
            width,
            height,
        };
        let error = decoder
            .decode(&opened, crop, 8, DecodeQuality::Exact)
            .map(drop)
            .expect_err("refused");
        assert!(error.to_string().contains("beyond the picture"), "{error}");
    }
}

/// Runs of 255 pixels take two bytes, so a file can hold 127.5 pixels for each of its bytes at most.
#[test]
fn a_bmp_has_bytes_for_its_pixels() {
    let header = |width: u32| {
        let mut bytes = encode(gradient(1, 1), Encoding::Bmp);
        bytes[18..22].copy_from_slice(&width.to_le_bytes());
        bytes
    };
    let whole = bmp::Header::read(
        &encode(gradient(37, 23), Encoding::Bmp),
        &DecodeLimits::default(),
    );
    assert_eq!(whole.expect("a header").held_bytes(), 3 * 37 * 23);
    let len = header(1).len() as u32;
    let decoder = Decoder::new(DecodeLimits::default(), OnTruncated::Error);
    decoder.open(&header(128 * len)).expect("within the bound");
    let error = decoder.open(&header(128 * (len + 1))).map(drop);
    let error = error.expect_err("beyond it").to_string();
    assert!(
        error.contains(&format!("{len} bytes of data cannot hold")),
        "{error}"
    );
}

#[test]
fn exif_orientations_agree() {
    let folder = "data/photos/recurser_exif-orientation-examples";
    let Some(folder) = test_data::find("exif_orientations_agree", folder) else {
        return;
    };
    for shape in ["Landscape", "Portrait"] {
        let load = |n| {
            let bytes = std::fs::read(folder.join(format!("{shape}_{n}.jpg"))).expect("reads");
            decode(&bytes).expect("decodes")
        };
        let upright = load(1);
        assert_eq!(upright.width() > upright.height(), shape == "Landscape");
        for n in 2..=8 {
            let image = load(n);
            assert_eq!(
                (image.width(), image.height()),
                (upright.width(), upright.height())
            );
            // The same photograph, turned and compressed once more each.
            let pairs = image.data().iter().zip(upright.data());
            let sum: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
            let mean = sum as f64 / image.data().len() as f64;
            assert!(mean < 4.0, "{shape}_{n}: mean difference {mean:.2}");
        }
    }
}

/// Channel means of CMYK and YCCK photographs, computed with Python: Pillow 13.0.0,
/// `Image.open(f).convert("RGB")`.
#[test]
fn cmyk_as_pil_converts_it() {
    let Some(folder) = test_data::find("cmyk_as_pil_converts_it", "data/photos/special_cmyk")
    else {
        return;
    };
    for (name, size, means) in [
        ("ycck-1111", (592, 800), [50.10, 32.70, 19.78]),
        ("ycck-2111", (592, 800), [50.11, 32.67, 19.68]),
        (
            "limited_progressive_four",
            (383, 740),
            [236.33, 211.50, 199.10],
        ),
        ("__cymk", (600, 397), [46.81, 131.54, 217.40]),
        ("jpeg__four_components", (1318, 611), [209.41, 55.56, 18.00]),
        ("CMYK_color.jpg", (500, 333), [109.04, 132.09, 109.59]),
    ] {
        let path = files(&folder)
            .into_iter()
            .find(|path| path.to_string_lossy().contains(name))
            .expect(name);
        let image = decode(&std::fs::read(path).expect("reads")).expect("decodes");
        assert_eq!((image.width(), image.height()), size, "{name}");
        for (channel, expected) in means.into_iter().enumerate() {
            let values = image.data().iter().skip(channel).step_by(3);
            let sum: u64 = values.map(|&value| u64::from(value)).sum();
            let mean = sum as f64 / (image.data().len() / 3) as f64;
            assert!(
                (mean - expected).abs() < 0.1,
                "{name}: {mean:.2}, {expected}"
            );
        }
    }
}

/// Odd, damaged and hostile files, whole and cut: an error or a picture, within two seconds.
#[test]
fn hostile_images() {
    let Some(folder) = test_data::find("hostile_images", "data/hostile/images") else {
        return;
    };
    let (mut good, mut bad) = (0, 0);
    for path in files(&folder) {
        let bytes = std::fs::read(&path).expect("reads");
        for len in [bytes.len(), bytes.len() / 2, bytes.len() / 9] {
            let start = Instant::now();
            match decode(&bytes[..len]) {
                Ok(image) => {
                    good += 1;
                    let pixels = image.width() as usize * image.height() as usize;
                    assert_eq!(image.data().len(), pixels * 3);
                }
                Err(error) => {
                    bad += 1;
                    assert!(!error.to_string().is_empty());
                }
            }
            let took = start.elapsed();
            assert!(
                took < Duration::from_secs(2),
                "{}: {took:?}",
                path.display()
            );
        }
    }
    // Most whole files are valid edge cases, most halves are not.
    assert!(good > 500 && bad > 500, "{good} decoded, {bad} did not");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Damage anywhere in a valid file: an error or a picture, never a panic.
    #[test]
    fn damaged_files(
        which in 0usize..6,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        end in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let encodings = [
            Encoding::Jpeg,
            Encoding::Png,
            Encoding::WebP,
            Encoding::Bmp,
            Encoding::Tiff,
            Encoding::Gif,
        ];
        let mut bytes = encode(gradient(24, 17), encodings[which]);
        if cut {
            bytes.truncate(1 + end.index(bytes.len()));
        }
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let limits = DecodeLimits { max_pixels: 1 << 22, ..DecodeLimits::default() };
        if let Ok(image) = decode_rgb(&bytes, &limits) {
            prop_assert!(u64::from(image.width()) * u64::from(image.height()) <= 1 << 22);
        }
    }

    #[test]
    fn arbitrary_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..300), which in 0..7) {
        let magic: [&[u8]; 7] =
            [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0",
             b"RIFF\xff\0\0\0WEBPVP8L"];
        bytes.splice(0..0, magic[which as usize].iter().copied());
        let _ = decode_rgb(&bytes, &DecodeLimits { max_pixels: 1 << 22, ..Default::default() });
    }
}
