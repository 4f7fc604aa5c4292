//! What `qfdata` writes for other programs, against GNU tar, `wids` and PIL.

#[path = "../../../tests/test_data.rs"]
mod test_data;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{json, Value};
use test_data::{python, skip};

fn qfdata(folder: &Path, code: i32, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qfdata"));
    let output = command
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap();
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {output:?}"
    );
    let text = if code == 0 {
        output.stdout
    } else {
        output.stderr
    };
    String::from_utf8(text).unwrap()
}

fn run_python(python: &Path, folder: &Path, script: &str) -> Value {
    let output = Command::new(python)
        .current_dir(folder)
        .args(["-c", script])
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Offset of the data, size and name of the files of an archive, as `wds2idx` asks GNU tar for them.
fn tar_lists(shard: &Path) -> Vec<(u64, String)> {
    let output = Command::new("tar")
        .args(["--list", "--block-num", "--file"])
        .arg(shard)
        .output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let line = |line: &str| {
        let (block, name) = line.strip_prefix("block ")?.split_once(": ")?;
        Some(((block.parse::<u64>().ok()? + 1) * 512, name.to_owned()))
    };
    text.lines()
        .filter_map(line)
        .filter(|(_, name)| name.contains('.'))
        .collect()
}

#[test]
fn the_index_of_dali_comes_with_each_shard() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    qfdata(folder, 0, &["synth", "--out", "scenes", "--count", "24"]);
    let shard = [
        "shard",
        "scenes",
        "--out",
        "s/a",
        "--max-count",
        "10",
        "--held-out",
        "0.3",
        "--dali-index",
    ];
    qfdata(folder, 0, &shard);
    let mut seen = 0;
    for name in ["a-train-000000", "a-train-000001", "a-val-000000"] {
        let index = fs::read_to_string(folder.join(format!("s/{name}.idx"))).unwrap();
        let listed = tar_lists(&folder.join(format!("s/{name}.tar")));
        let (first, lines) = index.split_once('\n').unwrap();
        let lines: Vec<_> = lines.lines().collect();
        assert_eq!(first, format!("v1.2 {}", lines.len()));
        let mut found = Vec::new();
        for line in &lines {
            for file in line.split(' ').collect::<Vec<_>>().chunks_exact(4) {
                assert!(file[3].ends_with(&format!(".{}", file[0])), "{line}");
                found.push((file[1].parse().unwrap(), file[3].to_owned()));
            }
        }
        assert_eq!(found, listed, "{name}");
        seen += lines.len();
    }
    assert!(seen > 12);
    let again = [
        "shard",
        "scenes",
        "--out",
        "s/a",
        "--max-count",
        "24",
        "--held-out",
        "0.3",
        "--overwrite",
    ];
    qfdata(folder, 0, &again);
    assert!(
        !folder.join("s/a-train-000001.idx").exists(),
        "of a shard that is gone"
    );
    for (out, format, says) in [
        ("s/b", "tar.gz", "plain tar"),
        ("s/b.c", "tar", "first dot"),
    ] {
        let message = qfdata(
            folder,
            1,
            &[
                "shard",
                "scenes",
                "--out",
                out,
                "--format",
                format,
                "--dali-index",
            ],
        );
        assert!(message.contains(says), "{message}");
    }
}

const WIDS: &str = r#"
import glob, json, sys, tarfile
try:
    import wids
except ImportError:
    print("null"); sys.exit()
data = wids.ShardListDataset("set/index.json", transformations=[], cache_dir=None, localname=lambda url: url)
found = [[data[n]["__key__"], {k: len(v.read()) for k, v in data[n].items() if k.startswith(".")}] for n in range(len(data))]
expected = []
for shard in sorted(glob.glob("set/s/*.tar")):
    for member in tarfile.open(shard):
        key, ending = member.name.split(".", 1)
        if not expected or expected[-1][0] != key: expected.append([key, {}])
        expected[-1][1]["." + ending] = member.size
print(json.dumps([found == expected, len(found)]))
"#;

#[test]
fn wids_reads_its_index() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    qfdata(folder, 0, &["synth", "--out", "scenes", "--count", "24"]);
    qfdata(
        folder,
        0,
        &["shard", "scenes", "--out", "set/s/a", "--max-count", "10"],
    );
    let said = qfdata(
        folder,
        0,
        &["index", "set/s/a-*.tar", "--wids", "set/index.json"],
    );
    assert!(said.contains("3 listed"), "{said}");
    let index: Value =
        serde_json::from_slice(&fs::read(folder.join("set/index.json")).unwrap()).unwrap();
    let bytes = fs::metadata(folder.join("set/s/a-000002.tar"))
        .unwrap()
        .len();
    assert_eq!(
        index["shardlist"][2],
        json!({"url": "s/a-000002.tar", "nsamples": 4, "filesize": bytes})
    );
    assert_eq!(
        (&index["__kind__"], &index["wids_version"]),
        (&json!("wids-shard-index-v1"), &json!(1))
    );
    qfdata(
        folder,
        0,
        &[
            "convert",
            "set/s/a-000000.tar",
            "--out",
            "gz",
            "--format",
            "tar.gz",
        ],
    );
    let message = qfdata(
        folder,
        1,
        &[
            "index",
            "gz/a-000000.tar.gz",
            "set/s/a-000001.tar",
            "--wids",
            "x.json",
        ],
    );
    assert!(
        message.contains("plain tar") && !folder.join("x.json").exists(),
        "{message}"
    );
    let test = "wids_reads_its_index";
    let Some(python) = python(test) else { return };
    match run_python(&python, folder, WIDS) {
        Value::Null => skip(test, "wids (of webdataset 0.2) is not installed"),
        found => assert_eq!(found, json!([true, 24])),
    }
}

const ALPHA: &str = r#"
import io, json, math, tarfile, glob
from PIL import Image, ImageChops, ImageStat
rows = {}
for shard, size in (("out/r-000000.tar", 48), ("out/p-000000.tar", None)):
    for member in tarfile.open(shard):
        if member.name.endswith((".txt", ".json")): continue
        found = Image.open(io.BytesIO(tarfile.open(shard).extractfile(member.name).read())).convert("RGB")
        original = Image.open(glob.glob(f"photos/{member.name.split('.')[0]}.*[!t]")[0]).convert("RGBA")
        white = Image.new("RGBA", original.size, "white")
        reference = Image.alpha_composite(white, original).convert("RGB")
        if size:
            scale = size / min(reference.size)
            reference = reference.resize([round(side * scale) for side in reference.size], Image.LANCZOS)
        assert found.size == reference.size
        noise = sum(ImageStat.Stat(ImageChops.difference(found, reference)).sum2) / (3 * found.size[0] * found.size[1])
        rows[shard[4] + member.name] = 99 if noise == 0 else 10 * math.log10(255 ** 2 / noise)
print(json.dumps(rows))
"#;

/// Soft-edged pictures with alpha, as PNG, WebP, GIF and a palette with a transparent colour.
const MAKE: &str = r#"
from PIL import Image, ImageDraw, ImageFilter
import os
os.makedirs("photos")
image = Image.linear_gradient("L").resize((150, 90))
image = Image.merge("RGB", (image, image.rotate(180), Image.radial_gradient("L").resize((150, 90))))
alpha = Image.new("L", image.size, 0)
ImageDraw.Draw(alpha).ellipse((20, 10, 130, 80), fill=255)
alpha = alpha.filter(ImageFilter.GaussianBlur(6))
soft = image.convert("RGBA"); soft.putalpha(alpha)
soft.save("photos/a.png")
soft.save("photos/b.webp", lossless=True, exact=True)
hard = image.convert("RGBA"); hard.putalpha(alpha.point(lambda value: 255 if value > 127 else 0))
hard.save("photos/c.gif")
hard.quantize(64).save("photos/d.png")
Image.merge("LA", (image.getchannel(0), alpha)).save("photos/e.png")
image.save("photos/f.png")
for name in "abcdef":
    open(f"photos/{name}.txt", "w").write(name)
print("null")
"#;

#[test]
fn alpha_is_put_on_white_where_images_are_written_anew() {
    let Some(python) = python("alpha_is_put_on_white") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    run_python(&python, folder, MAKE);
    let resize = ["--resize", "keep_ratio", "--image-size", "48"];
    qfdata(
        folder,
        0,
        &[&["shard", "photos", "--out", "out/r"], &resize[..]].concat(),
    );
    qfdata(
        folder,
        0,
        &[
            "shard",
            "photos",
            "--out",
            "out/p",
            "--image-format",
            "jpeg",
        ],
    );
    let rows = run_python(&python, folder, ALPHA);
    let rows = rows.as_object().unwrap();
    assert_eq!(rows.len(), 12);
    for (name, quality) in rows {
        assert!(quality.as_f64().unwrap() > 31.0, "{name}: {quality}");
    }
}
