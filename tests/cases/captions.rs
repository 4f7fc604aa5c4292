//! Captions, keys, JSON members, columns and what is printed of them. See `tests/cases/mod.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::ImageFormat;
use serde_json::Value;

use super::case;
use crate::bin;
use crate::shard_cli::{files, image, read_files, shard};
use crate::test_data::python;
use crate::train_cli::{fails, glob, path, small_run, tar_shard};

/// A finished program's two outputs, which must hold nothing that a terminal would obey.
struct Said {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(program: PathBuf, arguments: &[&str]) -> Said {
    let mut command = Command::new(program);
    command.args(arguments).env("OMP_NUM_THREADS", "1");
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the program starts");
    let (stdout, stderr) = (
        String::from_utf8(stdout).expect("stdout is UTF-8"),
        String::from_utf8(stderr).expect("stderr is UTF-8"),
    );
    for text in [&stdout, &stderr] {
        let obeyed = text.chars().find(|c| {
            (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{202a}'..='\u{202e}')
        });
        assert_eq!(obeyed, None, "{arguments:?}: {text:?}");
        assert!(!text.contains("panicked"), "{text}");
    }
    Said {
        code: status.code(),
        stdout,
        stderr,
    }
}

fn qfdata(arguments: &[&str]) -> Said {
    run(bin::qfdata(), arguments)
}

fn qftrain(arguments: &[&str]) -> Said {
    run(bin::qftrain(), arguments)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

/// A small photograph-like file for samples whose pixels do not matter.
fn jpeg() -> Vec<u8> {
    image(ImageFormat::Jpeg, 120)
}

#[test]
fn json_with_nan_is_filtered_by_its_other_fields() {
    let folder = tempfile::tempdir().unwrap();
    let shard = case("json-nan").join("in.tar");
    let run_dir = path(&folder, "run");
    let said = qftrain(&[
        "--shards",
        text(&shard),
        "--steps",
        "2",
        "--preset",
        "tiny",
        "--batch-size",
        "4",
        "--run-dir",
        &run_dir,
        "--set",
        "data.filters.metadata=[{field=\"similarity\",min=0.28}]",
    ]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(!said.stdout.contains("skipped as"), "{}", said.stdout);
    assert_says(&said.stdout, &["+ 0 skipped"]);
    assert!(!said.stderr.contains("WARN"), "{}", said.stderr);
}

#[test]
fn a_member_that_is_no_json_has_a_counter_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let (shard, run_dir) = (folder.path().join("x.tar"), path(&folder, "run"));
    let picture = jpeg();
    let mut members: Vec<(String, Vec<u8>)> = Vec::new();
    for number in 0..12 {
        let json = match number {
            3 => r#"{"similarity": 0.9"#,
            4 => r#"{"similarity": 0.1, "w": Infinity}"#,
            5 => r#"{"similarity": NaN}"#,
            6 => r#"{"similarity": Infinity}"#,
            _ => r#"{"similarity": 0.9, "h": -Infinity}"#,
        };
        members.push((format!("{number:03}.jpg"), picture.clone()));
        members.push((format!("{number:03}.json"), json.into()));
        members.push((format!("{number:03}.txt"), b"a red square".to_vec()));
    }
    let members: Vec<_> = members
        .iter()
        .map(|(n, d)| (n.as_str(), d.as_slice()))
        .collect();
    tar_shard(&shard, &members);
    let more = [
        "--steps",
        "2",
        "--set",
        "data.epochs=1",
        "--set",
        "data.shuffle=none",
        "--set",
        "data.filters.metadata=[{field=\"similarity\",min=0.28}]",
    ];
    let said = qftrain(&small_run(&run_dir, text(&shard), &more));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_says(
        &said.stdout,
        &[
            "skipped as bad_metadata: 1",
            "skipped as filtered_metadata: 2",
        ],
    );
    assert_says(&said.stderr, &["WARN", "#003@", "`json` is not JSON"]);
}

#[test]
fn usual_columns_are_found_by_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("in.arrow");
    fs::copy(case("arrow-columns").join("in.arrow"), &shard).unwrap();
    let shard = text(&shard);
    let profile = [
        "profile",
        "--shards",
        shard,
        "--seconds",
        "0.2",
        "--batch-size",
        "2",
    ];
    let said = qfdata(&profile);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_says(
        &said.stderr,
        &["captions from `text`", "images from `image`"],
    );
    let vocab = path(&folder, "vocab.txt");
    for arguments in [
        &["order", "--shards", shard, "--batch", "2"][..],
        &["vocab", "--shards", shard, "--out", &vocab],
        &["index", shard],
        &[
            "order",
            "--shards",
            shard,
            "--batch",
            "2",
            "--image-column",
            "image",
        ],
    ] {
        let said = qfdata(arguments);
        assert_eq!(said.code, Some(0), "{arguments:?}: {}", said.stderr);
    }
    fs::remove_file(format!("{shard}.qfidx")).unwrap();
    let wrong = [&profile[..], &["--caption-column", "caption"]].concat();
    let said = qfdata(&wrong);
    assert_eq!(said.code, Some(1));
    assert_says(
        &said.stderr,
        &[
            "no column `caption`",
            "`image` (",
            "`text` (string)",
            "--caption-column",
        ],
    );
    // Training, evaluation and captions of the same file.
    let run_dir = path(&folder, "run");
    let said = qftrain(&small_run(&run_dir, shard, &["--steps", "2"]));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert_says(&said.stderr, &["captions from `text`"]);
    for command in ["eval", "caption"] {
        let named = |column| {
            qftrain(&[
                command,
                "--run-dir",
                &run_dir,
                "--shards",
                shard,
                "--caption-column",
                column,
            ])
        };
        let said = named("text");
        assert_eq!(said.code, Some(0), "{command}: {}", said.stderr);
    }
    let said = qftrain(&[
        "eval",
        "--run-dir",
        &run_dir,
        "--shards",
        shard,
        "--caption-column",
        "legend",
    ]);
    assert_says(&said.stderr, &["no column `legend`", "`text` (string)"]);
}

#[test]
fn view_columns_are_read_and_passed_over() {
    let seen = |name: &str| read_files(&[case("arrow-view").join(name)]);
    let (needed, other) = (seen("caption_view.arrow"), seen("other_column_view.arrow"));
    assert_eq!(needed.len(), 8);
    assert!(needed
        .iter()
        .all(|sample| sample.3.len() == 1 && sample.3[0].len() > 12));
    let parts = |samples: &crate::shard_cli::Samples| {
        let parts = samples
            .iter()
            .map(|(_, _, image, captions)| (image.clone(), captions.clone()));
        parts.collect::<Vec<_>>()
    };
    assert_eq!(parts(&needed), parts(&other));
    for name in ["caption_view.arrow", "other_column_view.arrow"] {
        let shard = case("arrow-view").join(name);
        let said = qfdata(&[
            "profile",
            "--shards",
            text(&shard),
            "--seconds",
            "0.2",
            "--batch-size",
            "2",
        ]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
    }
}

/// Writes Arrow files as hub sets have them, with pyarrow, and prints the captions of each.
const WRITE_ARROW: &str = r#"
import json, sys
import pyarrow as pa
folder, picture = sys.argv[1], open(sys.argv[2], "rb").read()
n = 6
words = [f"a caption that is longer than twelve bytes, number {i}" for i in range(n)]
image = pa.array([{"bytes": picture, "path": f"{i}.jpg"} for i in range(n)])
view = pa.array(words, pa.string_view())
sets = {
    "upper": ({"URL": pa.array(words), "TEXT": view, "jpg": pa.array([picture] * n, pa.binary_view())},
              [[w] for w in words]),
    "list": ({"image": image, "sentences": pa.array([[w, "b"] for w in words], pa.list_(pa.string_view()))},
             [[w, "b"] for w in words]),
    "five": ({"image": image, "captions": pa.array([[w, "c"] for w in words], pa.list_(pa.string(), 2))},
             [[w, "c"] for w in words]),
    "raw": ({"image": image, "sentences": pa.array([{"raw": w, "tokens": ["x"], "imgid": 1} for w in words])},
            [[w] for w in words]),
    "karpathy": ({"image": image, "sentences": pa.array([[{"raw": w}, {"raw": "d"}] for w in words])},
                 [[w, "d"] for w in words]),
    "numbered": ({"image": image, "caption_1": view, "caption_0": pa.array(["z"] * n)},
                 [["z", w] for w in words]),
    "runs": ({"split": pa.array(["train"] * n).dictionary_encode(),
              "image": image,
              "text": pa.RunEndEncodedArray.from_arrays(pa.array([2, n], pa.int32()), pa.array(words[:2]))},
             [[words[0]]] * 2 + [[words[1]]] * (n - 2)),
    "between": ({"url": view, "n": pa.RunEndEncodedArray.from_arrays([n], pa.array([7])), "image": image,
                 "tags": pa.array([words] * n, pa.list_(pa.string_view())), "alt": pa.array(words)},
                [[w] for w in words]),
}
out = {}
for name, (columns, captions) in sets.items():
    table = pa.table(columns)
    path = f"{folder}/{name}.arrow"
    options = pa.ipc.IpcWriteOptions(compression="zstd" if name in ("raw", "upper") else None)
    new = pa.ipc.new_file if name in ("list", "between") else pa.ipc.new_stream
    with new(path, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=4)
    out[name] = captions
print(json.dumps(out))
"#;

#[test]
fn columns_of_hub_sets_as_pyarrow_writes_them() {
    let Some(python) = python("columns_of_hub_sets_as_pyarrow_writes_them") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let picture = folder.path().join("picture.jpg");
    fs::write(&picture, jpeg()).unwrap();
    let arguments = [folder.path(), picture.as_path()];
    let printed = script(&python, WRITE_ARROW, &arguments);
    let sets: serde_json::Map<String, Value> = serde_json::from_str(&printed).unwrap();
    assert_eq!(sets.len(), 8);
    for (name, captions) in sets {
        let expected: Vec<Vec<String>> = serde_json::from_value(captions).unwrap();
        let shard = folder.path().join(format!("{name}.arrow"));
        let found = crate::shard_cli::captions_of(&shard);
        assert_eq!(found, expected, "{name}");
    }
}

fn script(python: &Path, script: &str, arguments: &[&Path]) -> String {
    let output = Command::new(python)
        .args(["-W", "ignore", "-c", script])
        .args(arguments)
        .env("PYTHONUTF8", "1")
        .output()
        .expect("Python starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn missing_captions_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let vocab = path(&folder, "vocab.txt");
    let good = glob("tar");
    let said = qfdata(&["vocab", "--shards", &good, "--out", &vocab]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    for (name, words) in [
        (
            "dots.tar",
            &["first dot", "`IMG_0.v2.", "v2.txt", "qfdata shard"][..],
        ),
        ("unsorted.tar", &["not adjacent", "--sort=name"]),
    ] {
        let shard = case("misleading-no-caption").join(name);
        let run_dir = path(&folder, name);
        let message = fails(
            1,
            &[
                "--shards",
                text(&shard),
                "--steps",
                "2",
                "--preset",
                "tiny",
                "--batch-size",
                "4",
                "--run-dir",
                &run_dir,
            ],
        );
        assert_says(&message, words);
        let run_dir = path(&folder, &format!("{name}-given"));
        let message = fails(
            1,
            &[
                "--shards",
                text(&shard),
                "--steps",
                "2",
                "--preset",
                "tiny",
                "--batch-size",
                "4",
                "--run-dir",
                &run_dir,
                "--tokenizer",
                &vocab,
            ],
        );
        assert_says(&message, words);
    }
}

#[test]
fn nothing_in_a_name_reaches_the_terminal() {
    let folder = case("terminal-escape");
    for (name, steps) in [
        ("name_esc.tar", r"\x1b[31mRED\x1b]0;title\x07"),
        ("name_nl.tar", r"a\nb"),
        ("name_cr.tar", r"a\rWARN fake"),
    ] {
        let shard = folder.join(name);
        let said = qfdata(&["order", "--shards", text(&shard), "--batch", "2"]);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        assert_says(&said.stdout, &[steps]);
        assert!(
            said.stdout.lines().all(|line| line.starts_with("step ")),
            "{}",
            said.stdout
        );
        // JSON has the key as it is.
        let said = qfdata(&["order", "--shards", text(&shard), "--batch", "2", "--json"]);
        let keys: Vec<String> = said
            .stdout
            .lines()
            .flat_map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                let keys = line["samples"].as_array().unwrap().clone();
                keys.into_iter().map(|key| key.as_str().unwrap().to_owned())
            })
            .collect();
        assert!(
            keys.iter().any(|key| key.contains(['\x1b', '\n', '\r'])),
            "{keys:?}"
        );
        // Its broken images are warned about.
        let said = qfdata(&[
            "profile",
            "--shards",
            text(&shard),
            "--seconds",
            "0.2",
            "--batch-size",
            "2",
        ]);
        assert_says(&said.stderr, &["WARN", steps]);
        let warnings = said
            .stderr
            .lines()
            .filter(|line| line.contains("cannot decode"));
        assert!(
            warnings.clone().count() > 0 && warnings.clone().all(|line| line.starts_with("[WARN")),
            "{}",
            said.stderr
        );
    }
    let said = qfdata(&[
        "order",
        "--shards",
        text(&folder.join("esc.tar")),
        "--batch",
        "2",
    ]);
    assert_eq!(said.code, Some(1));
    // Damaged headers are not quoted; `run` looks for what a terminal would obey.
    assert_says(
        &said.stderr,
        &["error: ", "the checksum of a header does not match"],
    );
}

#[test]
fn rows_of_another_length_are_named_and_not_cut_short() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.jpg"), jpeg()).unwrap();
    fs::write(folder.path().join("b.jpg"), jpeg()).unwrap();
    let check = |name: &str, content: &str, line: &str, words: &[&str]| {
        let manifest = folder.path().join(name);
        fs::write(&manifest, content).unwrap();
        let out = folder.path().join(format!("{name}-out/x"));
        let said = qfdata(&["shard", text(&manifest), "--out", text(&out)]);
        assert_eq!(said.code, Some(3), "{}", said.stderr);
        assert_says(&said.stderr, &[&format!("{name}:{line}:")]);
        assert_says(&said.stderr, words);
        assert_says(&said.stdout, &["bad_row 1", "1 shard, 1 sample, 1 caption"]);
        let said = qfdata(&[
            "shard",
            text(&manifest),
            "--out",
            text(&out),
            "--overwrite",
            "--on-bad",
            "error",
        ]);
        assert_eq!(said.code, Some(1), "{}", said.stderr);
        assert_says(&said.stderr, words);
    };
    check(
        "more.csv",
        "path,caption\r\n\r\nb.jpg,a cat\r\na.jpg,A man, a dog\r\n",
        "4",
        &["3 fields", "has 2", "\"A man, a dog\""],
    );
    check(
        "fewer.csv",
        "path,caption,id\nb.jpg,a cat,1\na.jpg,a dog\n",
        "3",
        &["2 fields", "has 3"],
    );
    check(
        "more.tsv",
        "path\tcaption\na.jpg\ta\tdog\nb.jpg\ta cat\n",
        "2",
        &["3 fields", "tab"],
    );
    check(
        "two.jsonl",
        "{\"path\": \"b.jpg\", \"caption\": \"a cat\", \"w\": NaN}\n\n{\"path\": \"a.jpg\", \"caption\": \"a\"}, {}\n",
        "3",
        &["not JSON"],
    );
    // What cannot be told apart any more is not written in part.
    let manifest = folder.path().join("open.csv");
    fs::write(&manifest, "path,caption\na.jpg,\"a dog\nb.jpg,a cat\n").unwrap();
    let out = folder.path().join("open-out/x");
    let said = qfdata(&["shard", text(&manifest), "--out", text(&out)]);
    assert_eq!(said.code, Some(1));
    assert_says(&said.stderr, &["line 2", "not closed"]);
}

/// Writes the table `argv[1]` of random captions of one image in every way that Python's csv module
/// knows, and prints what it reads back.
const WRITE_CSV: &str = r#"
import csv, json, random, sys
path, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
pieces = ["a dog", ",", '"', "\n", "\r\n", "\r", "  ", "Grüße", "犬", ";", "'", "x"]
rows = [["a.jpg", "".join(rng.choice(pieces) for _ in range(rng.randrange(6))) + " end"] for _ in range(200)]
with open(path, "w", newline="", encoding=rng.choice(["utf-8", "utf-8-sig"])) as file:
    # Python quotes a field for the characters of its own line ends alone.
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
    ends = ["\r\n"] if quoting == csv.QUOTE_MINIMAL else ["\n", "\r\n", "\r"]
    writer = csv.writer(file, lineterminator=rng.choice(ends), quoting=quoting)
    writer.writerow(["path", "caption"])
    for row in rows:
        writer.writerow(row)
        if rng.randrange(10) == 0:
            file.write(writer.dialect.lineterminator)
with open(path, newline="", encoding="utf-8-sig") as file:
    read = [row["caption"] for row in csv.DictReader(file)]
assert read == [row[1] for row in rows]
print(json.dumps([" ".join(line.strip() for line in caption.replace("\r", "\n").split("\n") if line.strip()) for caption in read]))
"#;

#[test]
fn csv_is_read_as_by_python() {
    let Some(python) = python("csv_is_read_as_by_python") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.jpg"), jpeg()).unwrap();
    for seed in 0..6 {
        let manifest = folder.path().join(format!("{seed}.csv"));
        let printed = script(
            &python,
            WRITE_CSV,
            &[&manifest, Path::new(&seed.to_string())],
        );
        let expected: Vec<String> = serde_json::from_str(&printed).unwrap();
        let summary = shard(&manifest, &folder.path().join(format!("out{seed}/x")), &[]);
        assert_eq!(summary["skipped"], serde_json::json!({}), "{summary}");
        let samples = read_files(&files(&summary));
        assert_eq!(samples[0].3, expected, "{seed}");
    }
}

#[test]
fn usual_columns_of_manifests_are_found() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.jpg"), jpeg()).unwrap();
    for (name, content) in [
        ("hub.csv", "file_name,text\na.jpg,a dog\n"),
        ("clip.tsv", "filepath\ttitle\na.jpg\ta dog\n"),
        (
            "hub.jsonl",
            "{\"file_name\": \"a.jpg\", \"text\": \"a dog\"}\n",
        ),
        (
            "coco.jsonl",
            "{\"filename\": \"a.jpg\", \"sentences\": [{\"raw\": \"a dog\"}], \"imgid\": 1}\n",
        ),
        ("five.csv", "caption_1,image,caption_0\n,a.jpg,a dog\n"),
    ] {
        let manifest = folder.path().join(name);
        fs::write(&manifest, content).unwrap();
        let summary = shard(&manifest, &folder.path().join(format!("{name}-out/x")), &[]);
        let samples = read_files(&files(&summary));
        assert_eq!(samples[0].3, ["a dog"], "{name}");
    }
    let manifest = folder.path().join("none.csv");
    fs::write(&manifest, "path,words\na.jpg,a dog\n").unwrap();
    let said = qfdata(&["shard", text(&manifest), "--out", &path(&folder, "x")]);
    assert_says(
        &said.stderr,
        &[
            "no column `caption`, or of",
            "path, words",
            "--caption-column",
        ],
    );
}

#[test]
fn urls_are_refused_where_paths_belong() {
    let folder = tempfile::tempdir().unwrap();
    let scenes = crate::train_cli::data().join("scenes");
    let good = glob("tar");
    let refused = |program: PathBuf, arguments: &[&str], option: &str, url: &str| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .expect("the program starts");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert_says(&stderr, &[option, url]);
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
        assert!(left.is_empty(), "{arguments:?} left {left:?}");
    };
    for url in [
        "s3://bucket/x",
        "gs://bucket/x",
        "az://c/x",
        "https://host/x",
        "file:///tmp/x",
    ] {
        let (qfdata, qftrain) = (bin::qfdata, bin::qftrain);
        // Object stores take shards.
        if !["s3", "gs", "az"]
            .iter()
            .any(|scheme| url.starts_with(scheme))
        {
            refused(
                qfdata(),
                &["shard", text(&scenes), "--out", url],
                "--out",
                url,
            );
        }
        refused(
            qfdata(),
            &["synth", "--out", url, "--count", "1"],
            "--out",
            url,
        );
        refused(
            qfdata(),
            &["vocab", "--shards", &good, "--out", url],
            "--out",
            url,
        );
        refused(
            qfdata(),
            &["profile", "--shards", &good, "--trace", url],
            "--trace",
            url,
        );
        refused(
            qftrain(),
            &["--shards", &good, "--run-dir", url],
            "--run-dir",
            url,
        );
        refused(
            qftrain(),
            &["--shards", &good, "--tokenizer", url],
            "--tokenizer",
            url,
        );
        refused(
            qftrain(),
            &["--shards", &good, "--config", url],
            "--config",
            url,
        );
    }
    let said = qftrain(&[
        "--shards",
        &good,
        "--run-dir",
        &path(&folder, "run"),
        "--set",
        "tokenizer=s3://b/vocab.txt",
    ]);
    assert_eq!(said.code, Some(1));
    assert_says(&said.stderr, &["tokenizer", "s3://"]);
    let said = qftrain(&[
        "--shards",
        &good,
        "--run-dir",
        &path(&folder, "run"),
        "--bert",
        "s3://b/bert",
    ]);
    assert_eq!(said.code, Some(1));
    assert_says(&said.stderr, &["s3://b/bert"]);
}

/// Twenty pairs with these texts, and with JSON beside them where there is some.
fn texts_shard(
    path: &Path,
    text_of: impl Fn(usize) -> String,
    json: impl Fn(&str) -> Option<String>,
) {
    let picture = jpeg();
    let mut members = Vec::new();
    for number in 0..20 {
        let text = text_of(number);
        members.push((format!("{number:03}.jpg"), picture.clone()));
        if let Some(json) = json(&text) {
            members.push((format!("{number:03}.json"), json.into_bytes()));
        }
        members.push((format!("{number:03}.txt"), text.into_bytes()));
    }
    let members: Vec<_> = members
        .iter()
        .map(|(n, d)| (n.as_str(), d.as_slice()))
        .collect();
    tar_shard(path, &members);
}

#[test]
fn texts_are_one_caption_or_one_a_line_by_what_the_set_shows() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("x.tar");
    let run = |name: &str, more: &[&str]| {
        let run_dir = path(&folder, name);
        let more = [&["--steps", "2"], more].concat();
        let said = qftrain(&small_run(&run_dir, text(&shard), &more));
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let state = crate::train_cli::checkpoint(Path::new(&run_dir), 2).join("state.json");
        let state: Value = serde_json::from_slice(&fs::read(state).unwrap()).unwrap();
        let lines = &state["loader"]["order"]["sets"][0]["caption_lines"];
        // Not written where it is a caption a line.
        (said.stderr, lines.as_str().unwrap_or("each").to_owned())
    };
    // A line break now and then is within a caption.
    let web = |number: usize| match number % 5 {
        1 => "a red bus\nin the rain".to_string(),
        _ => "a red bus".to_string(),
    };
    texts_shard(&shard, web, |_| None);
    let (said, lines) = run("web", &[]);
    assert_eq!(lines, "one");
    assert_says(
        &said,
        &[
            "captions from `txt`",
            "each text one caption",
            "4 of 20",
            "caption_lines = each",
        ],
    );
    let (said, lines) = run("told", &["--caption-lines", "each"]);
    assert_eq!(lines, "each");
    assert_says(&said, &["each line a caption"]);
    // Several lines in most are several captions.
    texts_shard(
        &shard,
        |_| "a red bus\na bus in the rain".to_string(),
        |_| None,
    );
    let (said, lines) = run("five", &[]);
    assert_eq!(lines, "each");
    assert_says(&said, &["each line a caption", "20 of 20"]);
    // img2dataset's JSON has the text as its caption.
    let beside = |text: &str| Some(serde_json::json!({ "caption": text, "key": "k" }).to_string());
    texts_shard(&shard, |_| "a red bus\nin the rain".to_string(), beside);
    let (said, lines) = run("json", &[]);
    assert_eq!(lines, "one");
    assert_says(&said, &["`json` beside them says so"]);
    // What was decided stays, and another choice is refused.
    let run_dir = path(&folder, "json");
    let resume = [
        "--run-dir",
        &run_dir,
        "--resume",
        "--allow-changes",
        "--steps",
        "3",
    ];
    let said = qftrain(&resume);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let said = qftrain(&[&resume[..5], &["4", "--caption-lines", "each"]].concat());
    assert_eq!(said.code, Some(1), "{}", said.stderr);
    assert_says(&said.stderr, &["caption_lines", "one", "each"]);
}

#[test]
fn folders_of_img2dataset_become_one_caption_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    fs::create_dir(&input).unwrap();
    for number in 0..4 {
        fs::write(input.join(format!("{number}.jpg")), jpeg()).unwrap();
        fs::write(
            input.join(format!("{number}.txt")),
            "a red bus\nin the rain",
        )
        .unwrap();
    }
    let captions = |name: &str, more: &[&str]| {
        let summary = shard(&input, &folder.path().join(name).join("x"), more);
        read_files(&files(&summary)).swap_remove(0).3
    };
    let lines = ["a red bus", "in the rain"];
    assert_eq!(captions("each", &[]), lines);
    assert_eq!(
        captions("told", &["--caption-lines", "one"]),
        ["a red bus in the rain"]
    );
    for number in 0..4 {
        let json = r#"{"caption": "a red bus\nin the rain", "punsafe": NaN}"#;
        fs::write(input.join(format!("{number}.json")), json).unwrap();
    }
    assert_eq!(captions("json", &[]), ["a red bus in the rain"]);
    assert_eq!(captions("other", &["--caption-lines", "each"]), lines);
}

#[test]
fn warnings_of_a_kind_are_summed_up() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("x.tar");
    let picture = jpeg();
    let mut members: Vec<(String, &[u8])> = Vec::new();
    for number in 0..300 {
        let good = number % 10 == 0;
        members.push((
            format!("{number:04}.jpg"),
            if good { &picture } else { b"no image" },
        ));
        members.push((format!("{number:04}.txt"), b"a red square"));
    }
    let members: Vec<_> = members.iter().map(|(n, d)| (n.as_str(), *d)).collect();
    tar_shard(&shard, &members);
    let said = qfdata(&[
        "profile",
        "--shards",
        text(&shard),
        "--seconds",
        "0.5",
        "--batch-size",
        "4",
        "--json",
    ]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let warnings: Vec<_> = said
        .stderr
        .lines()
        .filter(|line| line.starts_with("[WARN"))
        .collect();
    assert!((11..=13).contains(&warnings.len()), "{}", said.stderr);
    let last = warnings.last().unwrap();
    assert_says(
        last,
        &[
            "unknown_image_format: ",
            " in all; the last: skipped sample ",
        ],
    );
    // The counters know all of them, and those that were skipped while the loader was dropped.
    let report: Value = serde_json::from_str(&said.stdout).unwrap();
    let counted = report["counters"]["skipped"]["unknown_image_format"]
        .as_u64()
        .unwrap();
    let told: u64 = last
        .split(", ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    // Training, which keeps its own list of them, does the same.
    let run_dir = path(&folder, "run");
    let more = ["--steps", "8", "--set", "data.max_bad_share=1.0"];
    let trained = qftrain(&small_run(&run_dir, text(&shard), &more));
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    let lines = trained.stderr.lines();
    let count = lines.filter(|line| line.starts_with("[WARN")).count();
    assert!((10..=13).contains(&count), "{}", trained.stderr);
    let skipped = fs::read_to_string(Path::new(&run_dir).join("skipped.jsonl")).unwrap();
    assert!(skipped.lines().count() > 100, "{skipped}");
    // A sample is named once, whatever the epochs.
    assert!(told >= counted.min(270) && told <= 270, "{last}: {counted}");
}
