//! See `tests/cases/mod.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use qf_pipeline::config::OnBad;
use qf_pipeline::decode::{decode_rgb, DecodeError, DecodeLimits, Decoder, OnTruncated, RgbImage};
use qf_pipeline::source::resolve_shards;
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::{Loader, LoaderConfig, PipelineError, SkipReason};
use serde_json::Value;

use super::case;
use crate::{bin, test_data};

/// Prints width, height and upright RGB pixels of each file; `grey` as the first argument stands for
/// LOAD_TRUNCATED_IMAGES.
const PIL: &str = r#"
import json, sys, zlib
from PIL import Image, ImageFile, ImageOps
ImageFile.LOAD_TRUNCATED_IMAGES = sys.argv[1] == "grey"
found = []
for path in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    found.append([*image.size, image.tobytes().hex()])
print(json.dumps(found))
"#;

/// Upright pictures as PIL reads them: width, height, RGB in hexadecimal digits.
fn by_pil(python: &Path, mode: &str, files: &[PathBuf]) -> Vec<(u32, u32, String)> {
    let output = Command::new(python)
        .args(["-W", "ignore", "-c", PIL, mode])
        .args(files)
        .output()
        .expect("Python starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    serde_json::from_slice(&output.stdout).expect("a list")
}

fn check(image: &RgbImage, expected: &(u32, u32, String), file: &Path) {
    let (width, height, rgb) = expected;
    let size = (image.width(), image.height());
    assert_eq!(size, (*width, *height), "{}", file.display());
    let ours: String = image
        .data()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert!(ours == *rgb, "{}: other pixels than PIL's", file.display());
}

fn images_of(name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(case(name)).expect("reads");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut images: Vec<PathBuf> = paths
        .filter(|path| path.file_name().is_some_and(|name| name != "README"))
        .collect();
    images.sort();
    assert!(!images.is_empty(), "{name}");
    images
}

fn decode(path: &Path, on_truncated: OnTruncated) -> Result<RgbImage, DecodeError> {
    let bytes = std::fs::read(path).expect("reads");
    Decoder::new(DecodeLimits::default(), on_truncated).decode_whole(&bytes)
}

/// Every image of these cases is PIL's, to the last bit.
fn all_as_pil(test: &str, name: &str) -> Vec<PathBuf> {
    let images = images_of(name);
    let Some(python) = test_data::python(test) else {
        return images;
    };
    for (mode, on_truncated) in [("error", OnTruncated::Error), ("grey", OnTruncated::Grey)] {
        let expected = by_pil(&python, mode, &images);
        for (image, expected) in images.iter().zip(&expected) {
            let ours = decode(image, on_truncated);
            let ours = ours.unwrap_or_else(|error| panic!("{}: {error}", image.display()));
            check(&ours, expected, image);
        }
    }
    images
}

#[test]
fn orientation_in_exif_and_xmp() {
    for path in all_as_pil("orientation_in_exif_and_xmp", "exif-xmp") {
        let image = decode(&path, OnTruncated::Error).expect("decodes");
        assert_eq!(
            (image.width(), image.height()),
            (61, 97),
            "{}",
            path.display()
        );
    }
}

#[test]
fn gif_frames_beside_their_screen() {
    all_as_pil("gif_frames_beside_their_screen", "gif-offset");
}

#[test]
fn png_without_end() {
    all_as_pil("png_without_end", "png-no-iend");
}

/// A palette and zstd are read; L*a*b* needs a colour profile, and is refused by name.
#[test]
fn kinds_of_tiff() {
    let python = test_data::python("kinds_of_tiff");
    for path in images_of("tiff-kinds") {
        let result = decode(&path, OnTruncated::Error);
        if path.ends_with("t02_lab.tif") {
            let error = result.expect_err("refused");
            assert_eq!(error.reason(), SkipReason::UnsupportedImage);
            let expected = "TIFF image of a kind that is not decoded (CIE L*a*b* colour); convert it to 8-bit RGB";
            assert_eq!(error.to_string(), expected);
            continue;
        }
        let image = result.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if let Some(python) = &python {
            check(
                &image,
                &by_pil(python, "error", std::slice::from_ref(&path))[0],
                &path,
            );
        }
    }
}

/// An 8×8 PNG whose colour profile inflates to 3 GiB.
fn profile_bomb(path: &Path, python: &Path) {
    const WRITE: &str = r#"
import struct, sys, zlib
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
bomb = zlib.compressobj(9)
profile = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(3072)) + bomb.flush()
rows = b"".join(b"\0" + bytes([x * 10 + y for x in range(24)]) for y in range(8))
text = zlib.compress(bytes(1 << 26))
open(sys.argv[1], "wb").write(
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    + chunk(b"iCCP", b"p\0\0" + profile) + chunk(b"zTXt", b"Raw profile type exif\0\0" + text)
    + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
)
"#;
    let made = Command::new(python).args(["-c", WRITE]).arg(path).status();
    assert!(made.expect("Python starts").success());
}

/// Peak memory in MB and skipped samples of a run over a shard.
fn profile(shard: &Path, threads: usize) -> (f64, BTreeMap<String, u64>) {
    let output = Command::new(bin::qfdata())
        .args(["profile", "--json", "--seconds", "0.5", "--batch-size", "4"])
        .args(["--threads", &threads.to_string(), "--shards"])
        .arg(shard)
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let skipped = serde_json::from_value(report["counters"]["skipped"].clone()).unwrap_or_default();
    (report["peak_rss_mb"].as_f64().expect("a number"), skipped)
}

/// Screens that are all fill, and metadata that inflates, cost no memory.
#[test]
fn bombs_cost_no_memory() {
    for threads in [1, 4] {
        for shard in ["gif_9k.tar", "gifx_9400.tar"] {
            let (rss, _) = profile(&case("gif-screen-bomb").join(shard), threads);
            println!("{shard}, {threads} threads: {rss:.0} MB");
            assert!(rss < 200.0, "{shard}, {threads} threads: {rss:.0} MB");
        }
    }
    let Some(python) = test_data::python("bombs_cost_no_memory") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let png = folder.path().join("a.png");
    profile_bomb(&png, &python);
    let mut members = Vec::new();
    for key in ["a", "b", "c", "d"] {
        let (image, text) = (format!("{key}.png"), format!("{key}.txt"));
        if key != "a" {
            std::fs::copy(&png, folder.path().join(&image)).expect("copies");
        }
        std::fs::write(folder.path().join(&text), "a dog").expect("writes");
        members.extend([image, text]);
    }
    let shard = folder.path().join("bomb.tar");
    let packed = Command::new("tar")
        .arg("-C")
        .arg(folder.path())
        .arg("-cf")
        .arg(&shard)
        .args(members)
        .status();
    assert!(packed.expect("tar starts").success());
    let (rss, skipped) = profile(&shard, 1);
    println!("profile bomb: {rss:.0} MB");
    assert!(
        rss < 200.0 && skipped.is_empty(),
        "{rss:.0} MB, {skipped:?}"
    );
}

/// Under a limit of address space a picture that does not fit is a bad sample: nothing aborts.
#[test]
fn too_little_memory_costs_a_sample() {
    let folder = tempfile::tempdir().expect("a folder");
    // 10,000 × 10,000 pixels, stored on its side: it is decoded as a whole, 300 MB.
    let mut tiff = b"II*\0\x08\0\0\0".to_vec();
    let tags: [(u16, u16, u32); 11] = [
        (256, 4, 10_000),
        (257, 4, 10_000),
        (258, 3, 8),
        (259, 3, 32_773),
        (262, 3, 1),
        (273, 4, 160),
        (274, 3, 6),
        (277, 3, 1),
        (278, 4, 10_000),
        (279, 4, 0),
        (284, 3, 1),
    ];
    // Runs of 128.
    let data = [0x81, 90].repeat(100_000_000 / 128);
    tiff.extend((tags.len() as u16).to_le_bytes());
    for (tag, kind, value) in tags {
        let value = if tag == 279 { data.len() as u32 } else { value };
        tiff.extend(tag.to_le_bytes());
        tiff.extend(kind.to_le_bytes());
        tiff.extend(1u32.to_le_bytes());
        tiff.extend(value.to_le_bytes());
    }
    tiff.resize(160, 0);
    tiff.extend(data);
    std::fs::write(folder.path().join("a.tif"), tiff).expect("writes");
    std::fs::write(folder.path().join("a.txt"), "a dog").expect("writes");
    let gifs = case("gif-screen-bomb").join("gif_9k.tar");
    let shard = folder.path().join("large.tar");
    std::fs::copy(gifs, &shard).expect("copies");
    let packed = Command::new("tar")
        .arg("-C")
        .arg(folder.path())
        .arg("-rf")
        .arg(&shard)
        .args(["a.tif", "a.txt"])
        .status();
    assert!(packed.expect("tar starts").success());
    let command = format!(
        "ulimit -v 400000; exec {} profile --json --seconds 0.1 --threads 1 --batch-size 4 --shards {}",
        bin::qfdata().display(),
        shard.display()
    );
    let output = Command::new("bash")
        .args(["-c", &command])
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {said}", output.status);
    // The random crop alone is decoded: which it is, seed, key and epoch say.
    let expected = "TIFF image: no memory for 224237871 bytes";
    assert!(said.contains(expected), "{said}");
}

/// A loader's counters, and the message of its first bad sample.
fn load(folder: &Path, members: &[(&str, &[u8])]) -> (qf_pipeline::loader::Counters, String) {
    let shard = folder.join("a.tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&shard).expect("creates"));
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder
            .append_data(&mut header, name, *bytes)
            .expect("appends");
    }
    builder.finish().expect("ends");
    let shards = || resolve_shards(&[shard.to_str().expect("UTF-8")]).expect("resolves");
    let entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a"];
    let entries: Vec<String> = entries.iter().map(|entry| entry.to_string()).collect();
    let tokenizer = Arc::new(CaptionTokenizer::from_vocab(entries).expect("a vocabulary"));
    let config = |on_bad_sample| {
        let config = LoaderConfig {
            batch_size: 1,
            image_size: 8,
            threads: 1,
            on_bad_sample,
            ..LoaderConfig::default()
        };
        config.for_evaluation()
    };
    let mut message = String::new();
    let mut strict = Loader::builder(config(OnBad::Error))
        .shards(shards())
        .batches(tokenizer.clone())
        .expect("opens");
    loop {
        match strict.next_batch() {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(PipelineError::BadSample(error)) => {
                message = error.to_string();
                break;
            }
            Err(error) => panic!("{error}"),
        }
    }
    let mut loader = Loader::builder(config(OnBad::Skip))
        .shards(shards())
        .batches(tokenizer)
        .expect("opens");
    while loader.next_batch().expect("goes on").is_some() {}
    (loader.state().counters.clone(), message)
}

/// Formats that are not decoded are counted and named, also where the extension says so alone.
#[test]
fn foreign_formats_have_names_and_counters() {
    let jpeg = std::fs::read(case("exif-xmp").join("j01_exif_long.jpg")).expect("reads");
    for (name, bytes, reason, words) in [
        (
            "b.jpg",
            &b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"[..],
            SkipReason::AvifImage,
            "AVIF images are not decoded",
        ),
        (
            "b.avif",
            b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
            SkipReason::AvifImage,
            "AVIF images are not decoded",
        ),
        (
            "b.jpg",
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            SkipReason::HeicImage,
            "HEIC images are not decoded",
        ),
        (
            "b.heic",
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            SkipReason::HeicImage,
            "HEIC images are not decoded",
        ),
        (
            "b.png",
            b"\xff\x0a\xfa\x1f",
            SkipReason::UnsupportedImage,
            "JPEG XL images are not decoded",
        ),
        (
            "b.jpg",
            b"%PDF-1.7\n",
            SkipReason::UnsupportedImage,
            "PDF images are not decoded",
        ),
        (
            "b.jpg",
            b"<svg xmlns=''/>",
            SkipReason::UnsupportedImage,
            "SVG images are not decoded",
        ),
        (
            "b.jpg",
            b"<!DOCTYPE html>",
            SkipReason::UnknownImageFormat,
            "HTML",
        ),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let members = [
            ("a.jpg", &jpeg[..]),
            ("a.txt", b"a"),
            (name, bytes),
            ("b.txt", b"a"),
        ];
        let (counters, message) = load(folder.path(), &members);
        assert_eq!(
            counters.skipped.get(&reason),
            Some(&1),
            "{name}: {:?}",
            counters.skipped
        );
        assert!(
            message.contains(words) && message.contains("a.tar"),
            "{message}"
        );
    }
}

/// Planes of tiles, at which the `tiff` crate panics, are read as PIL reads them.
#[test]
fn tiles_in_planes() {
    let Some(python) = test_data::python("tiles_in_planes") else {
        return;
    };
    const WRITE: &str = r#"
import struct, sys
tile = bytes((x * 7 + y * 13) % 251 for y in range(16) for x in range(16))
chunks = [bytes((b + 40 * n) % 256 for b in tile) for n in range(12)]
tags = [(256, 20), (257, 20), (258, 8), (259, 1), (262, 2), (277, 3), (284, 2), (322, 16), (323, 16), (324, 200), (325, 260)]
body = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
for tag, value in tags:
    count = 12 if tag in (324, 325) else 1
    body += struct.pack("<HHII", tag, 4 if tag in (324, 325) else 3, count, value)
body = body.ljust(200, b"\0") + struct.pack("<12I", *(400 + 256 * n for n in range(12)))
body = body.ljust(260, b"\0") + struct.pack("<12I", *[256] * 12)
open(sys.argv[1], "wb").write(body.ljust(400, b"\0") + b"".join(chunks))
"#;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("planes.tif");
    let made = Command::new(&python)
        .args(["-c", WRITE])
        .arg(&path)
        .status();
    assert!(made.expect("Python starts").success());
    let bytes = std::fs::read(&path).expect("reads");
    let image = decode_rgb(&bytes, &DecodeLimits::default()).expect("decodes");
    check(
        &image,
        &by_pil(&python, "error", std::slice::from_ref(&path))[0],
        &path,
    );
}
