//! What `qfdata shard` does to images: sizes, formats, orientation, doubles; and what its metadata says,
//! as pyarrow and PIL read it.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{json, Value};

use crate::shard_cli::{files, image, pairs, read_back, shard, FORMATS};
use crate::test_data::{find, python};

/// Compares resized images with what PIL makes of the originals: sizes by the arithmetic of img2dataset's
/// `Resizer` (albumentations' `SmallestMaxSize`, `LongestMaxSize`, `CenterCrop`, `PadIfNeeded`), pixels by
/// the signal-to-noise ratio.
const COMPARE: &str = r#"
import io, json, math, sys, tarfile
from PIL import Image, ImageChops, ImageOps, ImageStat
originals, shard, mode, size, bigger = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "True"
def expected(image):
    w, h = image.size
    side = {"keep_ratio": min, "center_crop": min, "border": max, "keep_ratio_largest": max}[mode](w, h)
    if bigger and side <= size: return image
    scale = size / side
    image = image.resize((round(w * scale), round(h * scale)), Image.LANCZOS)
    w, h = image.size
    if mode == "center_crop":
        x, y = (w - size) // 2, (h - size) // 2
        image = image.crop((x, y, x + size, y + size))
    if mode == "border":
        framed = Image.new("RGB", (size, size), "white")
        framed.paste(image, ((size - w) // 2, (size - h) // 2))
        image = framed
    return image
def quality(image, reference):
    error = ImageStat.Stat(ImageChops.difference(image, reference)).sum2
    noise = sum(error) / (3 * image.size[0] * image.size[1])
    return 99 if noise == 0 else 10 * math.log10(255 ** 2 / noise)
rows = []
for member in tarfile.open(shard):
    if not member.name.endswith((".jpg", ".jpeg", ".png", ".webp")): continue
    data = tarfile.open(shard).extractfile(member.name).read()
    found = Image.open(io.BytesIO(data))
    original = Image.open(f"{originals}/{member.name.rsplit('.', 1)[0]}.jpg")
    reference = expected(ImageOps.exif_transpose(original).convert("RGB"))
    assert found.getexif().get(0x112, 1) == 1 or found.size == original.size, member.name
    upright = ImageOps.exif_transpose(found).convert("RGB")
    assert upright.size == reference.size, (member.name, upright.size, reference.size)
    # PIL's own JPEG of its own pixels.
    coded = io.BytesIO()
    reference.save(coded, "JPEG", quality=95)
    coded = Image.open(coded)
    rows.append([member.name, found.format, list(upright.size), quality(upright, reference), quality(coded, reference)])
print(json.dumps(rows))
"#;

/// Photographs of COCO's usual sizes, keep_ratio and center_crop, beside PIL's.
#[test]
fn photographs_of_usual_sizes_are_as_close_to_pil_as_what_it_writes_itself() {
    let test = "photographs_of_usual_sizes";
    let (Some(python), Some(pairs)) = (python(test), find(test, "data/pairs")) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    fs::create_dir_all(&photos).unwrap();
    for number in 0..40 {
        for ending in ["jpg", "txt"] {
            let name = format!("{number:06}.{ending}");
            fs::copy(pairs.join(&name), photos.join(&name)).unwrap();
        }
    }
    for (mode, size) in [("keep_ratio", "256"), ("center_crop", "224")] {
        let out = folder.path().join(format!("{mode}/s"));
        let summary = shard(&photos, &out, &["--resize", mode, "--image-size", size]);
        let shard = files(&summary)[0].display().to_string();
        let all = photos.to_str().unwrap();
        let rows = run_python(&python, COMPARE, &[all, &shard, mode, size, "False"]);
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.len(), 40);
        let quality = |row: &Value, column: usize| row[column].as_f64().unwrap();
        for row in rows {
            assert!(quality(row, 3) > quality(row, 4) - 0.7, "{mode}: {row}");
        }
        let mean = |column| rows.iter().map(|row| quality(row, column)).sum::<f64>() / 40.0;
        assert!(mean(3) > mean(4) - 0.1, "{mode}: {} {}", mean(3), mean(4));
    }
}

/// Photographs in all orientations of EXIF, landscape and portrait, with captions.
fn photographs(test: &str, folder: &Path) -> Option<usize> {
    let found = find(test, "data/photos/recurser_exif-orientation-examples")?;
    fs::create_dir_all(folder).unwrap();
    let mut count = 0;
    for entry in fs::read_dir(found).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "jpg") {
            let name = path.file_name().unwrap();
            fs::copy(&path, folder.join(name)).unwrap();
            let text = folder.join(name).with_extension("txt");
            fs::write(text, format!("photograph {count}")).unwrap();
            count += 1;
        }
    }
    assert!(count >= 8, "{count} photographs");
    Some(count)
}

fn run_python(python: &Path, script: &str, arguments: &[&str]) -> Value {
    let output = Command::new(python)
        .args(["-c", script])
        .args(arguments)
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {message}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn modes_of_resizing_give_the_sizes_of_img2dataset_and_the_pixels_of_pil() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    let test = "modes_of_resizing";
    let (Some(python), Some(count)) = (python(test), photographs(test, &photos)) else {
        return;
    };
    let all = photos.to_str().unwrap();
    for (mode, size, only_if_bigger, format) in [
        ("keep_ratio", "256", false, None),
        ("center_crop", "223", false, None),
        ("border", "256", false, Some("webp")),
        ("keep_ratio_largest", "100", false, Some("png")),
        // Larger than all of them: they grow, or stay as they are.
        ("keep_ratio", "5000", true, None),
        ("border", "2000", false, None),
    ] {
        let out = folder.path().join(format!("{mode}-{size}/s"));
        let mut options = vec!["--resize", mode, "--image-size", size];
        options.extend(only_if_bigger.then_some("--only-if-bigger"));
        options.extend(format.map(|_| "--image-format"));
        options.extend(format);
        let summary = shard(&photos, &out, &options);
        assert_eq!(summary["samples"], count, "{summary}");
        let shard = files(&summary)[0].display().to_string();
        let bigger = if only_if_bigger { "True" } else { "False" };
        let rows = run_python(&python, COMPARE, &[all, &shard, mode, size, bigger]);
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.len(), count);
        let expected = format.unwrap_or("jpeg").to_uppercase();
        for row in rows {
            assert_eq!(row[1].as_str().unwrap(), expected, "{mode}: {row}");
            // Coded anew at quality 95 with chroma halved; WebP is the coarser of the two.
            let least = match expected.as_str() {
                "PNG" => 38.0,
                _ if only_if_bigger => 98.0,
                _ => 30.0,
            };
            let quality = |column: usize| row[column].as_f64().unwrap();
            assert!(quality(3) > least, "{mode} {size}: {row}");
            // Those that shrink are about as close as what PIL writes itself, though they are decoded at half
            // size.
            if expected == "JPEG" && size.len() == 3 {
                assert!(quality(3) > quality(4) - 1.5, "{mode} {size}: {row}");
            }
        }
    }
}

/// What the metadata of shards say, by pyarrow.
const METADATA: &str = r#"
import json, sys
import pyarrow.parquet as pq
rows = []
for path in sys.argv[1:]:
    rows += pq.read_table(path).to_pylist()
print(json.dumps(rows))
"#;

#[test]
fn metadata_has_a_row_for_each_row_of_the_input() {
    let Some(python) = python("metadata") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    pairs(&photos, 5);
    // Far enough apart to be five images after JPEG's coding.
    for number in 0..5u8 {
        let jpeg = image(image::ImageFormat::Jpeg, 50 * number);
        fs::write(photos.join(format!("{number:03}.jpg")), jpeg).unwrap();
    }
    let copy = |from: &str, to: &str| {
        fs::copy(photos.join(from), photos.join(to)).unwrap();
    };
    copy("001.jpg", "twin.jpg");
    copy("001.txt", "twin.txt");
    fs::write(photos.join("page.jpg"), "<html>").unwrap();
    fs::write(photos.join("page.txt"), "a page").unwrap();
    for format in FORMATS {
        let prefix = folder.path().join(format!("{format}/s"));
        let options = [
            "--format",
            format,
            "--max-count",
            "3",
            "--drop-doubles",
            "exact",
            "--phash",
        ];
        let summary = shard(&photos, &prefix, &options);
        assert_eq!(
            summary["skipped"],
            json!({"double": 1, "unknown_image_format": 1})
        );
        let shards = files(&summary);
        let metadata: Vec<String> = shards
            .iter()
            .map(|shard| format!("{}.parquet", shard.display()))
            .collect();
        let metadata: Vec<&str> = metadata.iter().map(String::as_str).collect();
        let rows = run_python(&python, METADATA, &metadata);
        let rows = rows.as_array().unwrap();
        assert_eq!(rows.len(), 7);
        let samples = read_back(&summary);
        let good: Vec<_> = rows
            .iter()
            .filter(|row| row["status"] == "success")
            .collect();
        assert_eq!(good.len(), samples.len());
        for (row, sample) in good.iter().zip(&samples) {
            assert_eq!(row["key"], sample.0.as_str());
            assert_eq!((&row["width"], &row["height"]), (&json!(16), &json!(12)));
            assert_eq!(row["bytes"], sample.2.len());
            assert_eq!(row["sha256"], sha256_of(&python, &sample.2).as_str());
            assert_eq!(row["phash"].as_str().unwrap().len(), 16);
            assert!(row["source"].as_str().unwrap().ends_with(".jpg"));
        }
        let twin = rows.iter().find(|row| row["key"] == "twin").unwrap();
        assert_eq!(
            (&twin["status"], &twin["cause"], &twin["twin"]),
            (&json!("skipped"), &json!("double"), &json!("001"))
        );
        let page = rows.iter().find(|row| row["key"] == "page").unwrap();
        assert!(page["error"].as_str().unwrap().contains("HTML"), "{page}");
        let statistics = folder
            .path()
            .join(format!("{format}/s.{format}_stats.json"));
        let statistics: Value = serde_json::from_slice(&fs::read(statistics).unwrap()).unwrap();
        assert_eq!(statistics["samples"], 5);
        assert_eq!(statistics["skipped"], summary["skipped"]);
        assert_eq!(statistics["shards"].as_array().unwrap().len(), shards.len());
    }
}

fn sha256_of(python: &Path, bytes: &[u8]) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let script = "import hashlib, json, sys; print(json.dumps(hashlib.sha256(bytes.fromhex(sys.argv[1])).hexdigest()))";
    let digest = run_python(python, script, &[&hex]);
    digest.as_str().unwrap().to_owned()
}

/// Copies of photographs that look alike: coded again, smaller; and such as do not: mirrored, another.
const ALIKE: &str = r#"
import glob, os, sys
from PIL import Image, ImageOps
source, target = sys.argv[1:]
os.makedirs(target)
for n, path in enumerate(sorted(glob.glob(source + "/*_1.jpg"))):
    image = Image.open(path).convert("RGB")
    base = f"{target}/{n}"
    image.save(base + "-0.jpg", quality=95)
    image.save(base + "-again.jpg", quality=60)
    image.resize((image.size[0] // 2, image.size[1] // 2)).save(base + "-half.png")
    ImageOps.mirror(image).save(base + "-mirrored.jpg")
    for name in ("0", "again", "half", "mirrored"):
        open(f"{base}-{name}.txt", "w").write("a photograph")
print("0")
"#;

#[test]
fn near_doubles_are_dropped_and_name_their_twin() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    let test = "near_doubles";
    let (Some(python), Some(_)) = (python(test), photographs(test, &photos)) else {
        return;
    };
    let alike = folder.path().join("alike");
    run_python(
        &python,
        ALIKE,
        &[photos.to_str().unwrap(), alike.to_str().unwrap()],
    );
    let groups = fs::read_dir(&alike).unwrap().count() / 8;
    assert!(groups >= 2);
    let near = ["--drop-doubles", "near", "--near-distance", "6"];
    let summary = shard(&alike, &folder.path().join("near/s"), &near);
    assert_eq!(summary["samples"], 2 * groups, "{summary}");
    assert_eq!(summary["skipped"], json!({"near_double": 2 * groups}));
    let metadata = format!("{}.parquet", files(&summary)[0].display());
    let rows = run_python(&python, METADATA, &[&metadata]);
    for row in rows.as_array().unwrap() {
        let key = row["key"].as_str().unwrap();
        let (group, name) = key.split_once('-').unwrap();
        let twin = match name {
            "again" | "half" => json!(format!("{group}-0")),
            _ => Value::Null,
        };
        assert_eq!(row["twin"], twin, "{key}");
    }
    let exact = shard(
        &alike,
        &folder.path().join("exact/s"),
        &["--drop-doubles", "exact"],
    );
    assert_eq!(exact["samples"], 4 * groups);
}

#[test]
fn sides_and_shapes_are_bounded_and_damage_is_found_where_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    fs::create_dir(&photos).unwrap();
    for (name, width, height) in [
        ("square", 100, 100),
        ("wide", 400, 100),
        ("small", 30, 40),
        ("large", 900, 800),
    ] {
        let picture = image::RgbImage::from_fn(width, height, |x, y| {
            image::Rgb([x as u8, y as u8, (x ^ y) as u8])
        });
        picture.save(photos.join(format!("{name}.png"))).unwrap();
        fs::write(photos.join(format!("{name}.txt")), name).unwrap();
    }
    let keys = |options: &[&str], out: &str| -> (Vec<String>, Value) {
        let summary = shard(&photos, &folder.path().join(out), options);
        let samples = read_back(&summary);
        (
            samples.into_iter().map(|sample| sample.0).collect(),
            summary["skipped"].clone(),
        )
    };
    let (found, skipped) = keys(&["--min-size", "50", "--max-aspect", "3"], "a/s");
    assert_eq!(found, ["large", "square"]);
    assert_eq!(skipped, json!({"bad_aspect": 1, "too_small": 1}));
    let (found, skipped) = keys(&["--max-size", "400"], "b/s");
    assert_eq!(found, ["small", "square", "wide"]);
    assert_eq!(skipped, json!({"too_big": 1}));

    let whole = fs::read(photos.join("large.png")).unwrap();
    fs::write(photos.join("large.png"), &whole[..whole.len() / 2]).unwrap();
    let (found, _) = keys(&[], "header/s");
    assert_eq!(found.len(), 4);
    let (found, skipped) = keys(&["--check-images", "decode"], "decode/s");
    assert_eq!(found.len(), 3);
    assert_eq!(skipped, json!({"broken_image": 1}));
    let (found, skipped) = keys(&["--resize", "border"], "resized/s");
    assert_eq!(found.len(), 3);
    assert_eq!(skipped, json!({"broken_image": 1}));
}
