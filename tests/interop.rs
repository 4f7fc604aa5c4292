//! Python's `webdataset` and `datasets` read what `qfdata shard` writes, and the other way round.
//!
//! Runs with the Python that `target/test-python` names; `make test` installs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::ImageFormat;

use crate::shard_cli::{files, image, pairs, read_files, shard, Samples};
use crate::test_data::python;

/// Reads tar shards with webdataset; `.tar.zst` through a pipe, as the README says: from zstd, or from
/// zstandard where that program is not installed.
const READ_TAR: &str = r#"
import json, shlex, shutil, sys
import webdataset
with_zstandard = "import sys, zstandard as z; z.ZstdDecompressor().copy_stream(open(sys.argv[1], 'rb'), sys.stdout.buffer)"
unpack = "zstd -dcq" if shutil.which("zstd") else shlex.join([sys.executable, "-c", with_zstandard])
shards = []
for path in sys.argv[1:]:
    if path.endswith(".zst"):
        path = f"pipe:{unpack} {shlex.quote(path)}"
    shards.append(path)
samples = []
for sample in webdataset.WebDataset(shards, shardshuffle=False):
    [extension] = [name for name in sample if name in ("jpg", "jpeg", "png", "webp")]
    if "txt" in sample:
        captions = sample["txt"].decode().split("\n")
    else:
        captions = [json.loads(sample["json"])["caption"]]
    samples.append([sample["__key__"], extension, sample[extension].hex(), captions])
print(json.dumps(samples))
"#;

/// Reads Arrow shards with datasets, one by one and as a data set, and decodes every image.
const READ_ARROW: &str = r#"
import json, sys
import datasets
from datasets import Dataset, Image, List, Value, concatenate_datasets, load_dataset
datasets.disable_progress_bars()
cache, kind, shards = sys.argv[1], sys.argv[2], sys.argv[3:]
one_by_one = concatenate_datasets([Dataset.from_file(shard) for shard in shards])
together = load_dataset("arrow", data_files=shards, split="train", cache_dir=cache)
caption = Value("string") if kind == "string" else List(Value("string"))
outcomes = []
for rows in (one_by_one, together):
    assert rows.features == datasets.Features({"image": Image(), "caption": caption}), rows.features
    for row in rows:
        assert row["image"].convert("RGB").size == (16, 12)
    samples = []
    for row in rows.cast_column("image", Image(decode=False)):
        key, extension = row["image"]["path"].rsplit(".", 1)
        captions = row["caption"]
        captions = [captions] if isinstance(captions, str) else captions
        samples.append([key, extension, row["image"]["bytes"].hex(), captions])
    outcomes.append(samples)
assert outcomes[0] == outcomes[1]
print(json.dumps(outcomes[0]))
"#;

/// Writes shards with webdataset, images from the folder `argv[1]`, and says what is in them.
const WRITE_TAR: &str = r#"
import glob, json, os, sys
import webdataset
folder, pattern = sys.argv[1:]
samples = []
with webdataset.ShardWriter(pattern, maxcount=3, verbose=0) as sink:
    for path in sorted(glob.glob(folder + "/*.jpg")):
        key = "some.folder/" + os.path.basename(path)[: -len(".jpg")]
        image = open(path, "rb").read()
        sample = {"__key__": key, "jpg": image}
        if len(samples) % 2:
            sample["json"] = {"caption": "ein Hündchen", "similarity": 0.3}
            captions = ["ein Hündchen"]
        else:
            sample["txt"] = "a dog\nthe dog"
            captions = ["a dog", "the dog"]
        sink.write(sample)
        samples.append([key, "jpg", image.hex(), captions])
print(json.dumps(samples))
"#;

/// Runs a script that prints samples as JSON.
fn run(python: &Path, script: &str, arguments: &[String], scratch: &Path) -> Samples {
    let output = Command::new(python)
        .args(["-W", "ignore", "-c", script])
        .args(arguments)
        .env("HF_HOME", scratch.join("hf"))
        .env("HF_HUB_OFFLINE", "1")
        .env("PYTHONUTF8", "1")
        .output()
        .expect("Python starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let samples: Vec<(String, String, String, Vec<String>)> =
        serde_json::from_str(stdout.trim()).unwrap();
    samples
        .into_iter()
        .map(|(key, extension, hex, captions)| (key, extension, bytes_of(&hex), captions))
        .collect()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

/// A folder with what is hard: folders with dots, long and foreign names, several formats.
fn photos(folder: &Path) -> Samples {
    pairs(folder, 6);
    let mut expected: Samples = (0..6)
        .map(|number| {
            let captions = vec![format!("caption {number}"), format!("one more of {number}")];
            let bytes = image(ImageFormat::Jpeg, number);
            (format!("{number:03}"), "jpg".into(), bytes, captions)
        })
        .collect();
    let long = format!(
        "{}/{}",
        "a long folder ".repeat(9),
        "and a long name ".repeat(9)
    );
    for (key, format, extension, name) in [
        (
            "v1.2/été_日本",
            ImageFormat::Png,
            "png",
            "v1.2/été.日本.png",
        ),
        (
            long.as_str(),
            ImageFormat::WebP,
            "webp",
            &format!("{long}.webp"),
        ),
    ] {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, image(format, 9)).unwrap();
        fs::write(
            path.with_extension("json"),
            r#"{"caption": "ein Hündchen"}"#,
        )
        .unwrap();
        let captions = vec!["ein Hündchen".to_owned()];
        expected.push((key.into(), extension.into(), image(format, 9), captions));
    }
    expected.sort();
    expected
}

fn paths(shards: &[PathBuf]) -> Vec<String> {
    shards
        .iter()
        .map(|shard| shard.display().to_string())
        .collect()
}

#[test]
fn webdataset_reads_our_tar_shards() {
    let Some(python) = python("webdataset_reads_our_tar_shards") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let expected = photos(&folder.path().join("photos"));
    for format in ["tar", "tar.gz", "tar.zst"] {
        let options = ["--format", format, "--max-count", "3"];
        let summary = shard(
            &folder.path().join("photos"),
            &folder.path().join("out/s"),
            &options,
        );
        let shards = paths(&files(&summary));
        assert_eq!(shards.len(), 3);
        let mut found = run(&python, READ_TAR, &shards, folder.path());
        found.sort();
        assert_eq!(found, expected, "{format}");
    }
}

#[test]
fn datasets_reads_our_arrow_shards() {
    let Some(python) = python("datasets_reads_our_arrow_shards") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut expected = photos(&folder.path().join("list"));
    let single = folder.path().join("string");
    fs::create_dir(&single).unwrap();
    for kind in ["list", "string"] {
        if kind == "string" {
            expected.retain(|(.., captions)| captions.len() == 1);
            for (number, sample) in expected.iter_mut().enumerate() {
                let stem = single.join(number.to_string());
                fs::write(stem.with_extension(&sample.1), &sample.2).unwrap();
                fs::write(stem.with_extension("txt"), &sample.3[0]).unwrap();
                sample.0 = number.to_string();
            }
        }
        let options = ["--format", "arrow", "--max-count", "3"];
        let summary = shard(
            &folder.path().join(kind),
            &folder.path().join("out").join(kind),
            &options,
        );
        let cache = folder.path().join("cache").display().to_string();
        let arguments = [vec![cache, kind.to_owned()], paths(&files(&summary))].concat();
        let mut found = run(&python, READ_ARROW, &arguments, folder.path());
        found.sort();
        assert_eq!(found, expected, "{kind}");
    }
}

#[test]
fn we_read_shards_of_webdataset() {
    let Some(python) = python("we_read_shards_of_webdataset") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    pairs(&folder.path().join("photos"), 8);
    for extension in ["tar", "tar.gz"] {
        let source = folder.path().join("photos").display().to_string();
        let pattern = folder.path().join(format!("w-%06d.{extension}"));
        let arguments = [source, pattern.display().to_string()];
        let expected = run(&python, WRITE_TAR, &arguments, folder.path());
        assert_eq!(expected.len(), 8);
        let shards: Vec<PathBuf> = (0..3)
            .map(|number| folder.path().join(format!("w-{number:06}.{extension}")))
            .collect();
        assert_eq!(read_files(&shards), expected, "{extension}");
    }
}
