//! See `tests/cases/mod.rs`.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::case;
use crate::test_data;
use crate::train_cli::{command, fails, glob, path, small_run, succeeds};

/// Weights without their vocabulary, and other data whose trained vocabulary has as many entries.
#[test]
fn vocab_silent() {
    let case = case("vocab-silent");
    let folder = tempfile::tempdir().unwrap();
    let (first, exported) = (path(&folder, "first"), path(&folder, "out/l.safetensors"));
    let weights_vocabulary = case.join("vocab-of-the-weights.txt").display().to_string();
    let more = ["--steps", "1", "--tokenizer", &weights_vocabulary];
    succeeds(&small_run(&first, &glob("tar"), &more));
    let export = ["export", "--run-dir", &first, "--format", "lavis"];
    succeeds(&[&export[..], &["--out", &exported]].concat());
    let weights = path(&folder, "l.safetensors");
    fs::copy(&exported, &weights).unwrap();

    let (run_dir, shards) = (
        path(&folder, "x"),
        case.join("other.tar").display().to_string(),
    );
    let more = [
        "--steps",
        "1",
        "--set",
        "trained_vocab_size=90",
        "--weights",
        &weights,
    ];
    let message = fails(1, &small_run(&run_dir, &shards, &more));
    assert!(message.contains("--tokenizer"), "{message}");
    assert!(!Path::new(&run_dir).join("vocab.txt").exists());
    // Neither is the vocabulary taken that used to be trained, now that it is given.
    let other = case.join("vocab-trained-instead.txt").display().to_string();
    let with = |tokenizer: &'_ str| -> Vec<String> {
        let all = small_run(&run_dir, &shards, &more).into_iter();
        let all = all.chain(["--tokenizer", tokenizer]);
        all.map(String::from).collect()
    };
    let arguments = with(&other);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let message = fails(1, &arguments);
    assert!(message.contains("another vocabulary"), "{message}");
    let arguments = with(&weights_vocabulary);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    succeeds(&arguments);
    let used = fs::read_to_string(Path::new(&run_dir).join("vocab.txt")).unwrap();
    assert_eq!(used, fs::read_to_string(&weights_vocabulary).unwrap());
}

/// The pictures of the tar `argv[1]` as an Arrow stream `argv[2]`, with a caption column of nulls if
/// `argv[3]` is `null`.
const WRITE_ARROW: &str = r#"
import sys, tarfile
import pyarrow as pa
with tarfile.open(sys.argv[1]) as tar:
    images = [{"bytes": tar.extractfile(member).read(), "path": member.name}
              for member in tar if member.name.endswith(("jpg", "jpeg", "png", "webp"))]
columns = {"image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))}
if sys.argv[3] == "null":
    columns["caption"] = pa.array([None] * len(images), pa.string())
table = pa.table(columns)
with pa.OSFile(sys.argv[2], "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
    writer.write_table(table)
"#;

fn trained(folder: &tempfile::TempDir) -> String {
    let run_dir = path(folder, "run");
    succeeds(&small_run(&run_dir, &glob("tar"), &["--steps", "1"]));
    run_dir
}

/// Runs `qftrain caption`; exit code, lines of stdout, stderr.
fn caption(run_dir: &str, more: &[&str]) -> (Option<i32>, Vec<String>, String) {
    let all = [&["caption", "--run-dir", run_dir], more].concat();
    let output = command(&all).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!stderr.contains("panicked"), "{stderr}");
    let lines = stdout.lines().map(String::from).collect();
    (output.status.code(), lines, stderr)
}

/// A picture that cannot be decoded between two that can.
#[test]
fn caption_one_bad() {
    let case = case("caption-one-bad");
    let folder = tempfile::tempdir().unwrap();
    let run_dir = trained(&folder);
    let file = |name: &str| case.join(name).display().to_string();
    let names = ["j00_plain.jpg", "x_avif.avif", "w00_lossy.webp"].map(file);
    let names = names.each_ref().map(String::as_str);
    let good = [names[0], names[2]];
    let (code, alone, stderr) = caption(&run_dir, &good);
    assert_eq!((code, alone.len()), (Some(0), 2), "{stderr}");
    // In one batch and in batches of their own.
    for size in ["16", "1"] {
        let more = [&names[..], &["--batch-size", size]].concat();
        let (code, lines, stderr) = caption(&run_dir, &more);
        assert_eq!(code, Some(3), "{stderr}");
        assert_eq!(lines, alone);
        assert!(
            stderr.contains("skipped") && stderr.contains("x_avif.avif"),
            "{stderr}"
        );
        assert!(stderr.contains("error: 1 of 3 images"), "{stderr}");
    }
    // The folder, with its README.
    let whole = case.display().to_string();
    let (code, lines, stderr) = caption(&run_dir, &[&whole]);
    assert_eq!(code, Some(3), "{stderr}");
    assert_eq!(lines, alone);
    assert!(stderr.contains("x_avif.avif"), "{stderr}");
    assert!(
        stderr.contains("1 files with other endings") || stderr.contains("1 file with"),
        "{stderr}"
    );
    // Nothing but bad ones is a failure.
    let (code, lines, stderr) = caption(&run_dir, &[names[1], &file("none.jpg")]);
    assert_eq!((code, lines.len()), (Some(1), 0));
    for words in ["x_avif.avif", "none.jpg", "none of 2 images"] {
        assert!(stderr.contains(words), "{stderr}");
    }
    let (code, _, stderr) = caption(&run_dir, &[names[1]]);
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("error: ") && stderr.contains("x_avif.avif"),
        "{stderr}"
    );
}

/// Pictures without captions: what captioning is for.
#[test]
fn caption_uncaptioned() {
    let shard = case("caption-uncaptioned")
        .join("in.tar")
        .display()
        .to_string();
    let folder = tempfile::tempdir().unwrap();
    let run_dir = trained(&folder);
    let (code, lines, stderr) = caption(&run_dir, &["--shards", &shard, "--json"]);
    assert_eq!(code, Some(0), "{stderr}");
    assert_eq!(lines.len(), 20);
    for line in &lines {
        let image: Value = serde_json::from_str(line).unwrap();
        assert!(
            image["image"].as_str().unwrap().contains("in.tar#"),
            "{line}"
        );
        assert!(image["captions"][0]["text"].is_string(), "{line}");
    }
    let (code, lines, _) = caption(&run_dir, &["--shards", &shard, "--limit", "3"]);
    assert_eq!((code, lines.len()), (Some(0), 3));
    // The same pictures as Arrow, without a caption column and with one of nulls.
    let Some(python) = test_data::python("caption_uncaptioned") else {
        return;
    };
    for kind in ["none", "null"] {
        let arrow = path(&folder, &format!("{kind}.arrow"));
        let output = Command::new(&python)
            .args(["-W", "ignore", "-c", WRITE_ARROW, &shard, &arrow, kind])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let (code, lines, stderr) = caption(&run_dir, &["--shards", &arrow]);
        assert_eq!((code, lines.len()), (Some(0), 20), "{kind}: {stderr}");
    }
}
