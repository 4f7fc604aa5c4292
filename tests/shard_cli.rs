//! `qfdata shard` from the command line to what the reader sees.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{ImageFormat, Rgb, RgbImage};
use qf_pipeline::captions::{raw_captions, CaptionSource};
use qf_pipeline::shard::read::{read_shard, NoObserver, ReadOptions};
use qf_pipeline::source::{resolve_shards, ShardLocation};
use qf_pipeline::stop::Stop;
use qf_pipeline::{EncodedSample, SampleError};
use serde_json::{json, Value};

use crate::bin;

pub(crate) const FORMATS: [&str; 4] = ["tar", "tar.gz", "tar.zst", "arrow"];

/// Key → extension, image, captions; in shard order.
pub(crate) type Samples = Vec<(String, String, Vec<u8>, Vec<String>)>;

/// A small image of one colour.
pub(crate) fn image(format: ImageFormat, red: u8) -> Vec<u8> {
    let pixels = RgbImage::from_pixel(16, 12, Rgb([red, 90, 200]));
    let mut bytes = Cursor::new(Vec::new());
    pixels.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn run(arguments: &[&str]) -> Output {
    Command::new(bin::qfdata())
        .args(arguments)
        .output()
        .expect("qfdata starts")
}

/// Runs `qfdata shard INPUT --out PREFIX --json` and returns its summary. The exit code says whether
/// something was skipped.
pub(crate) fn shard(input: &Path, prefix: &Path, more: &[&str]) -> Value {
    let output = run_shard(input, prefix, &[more, &["--json"]].concat());
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 3)), "{output:?}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    let skipped = summary["skipped"].as_object().unwrap();
    let filters = [
        "too_small",
        "too_big",
        "bad_aspect",
        "other_split",
        "double",
        "near_double",
    ];
    let is_bad = skipped
        .keys()
        .any(|cause| !filters.contains(&cause.as_str()));
    assert_eq!(code, Some(if is_bad { 3 } else { 0 }), "{summary}");
    summary
}

/// Runs it where it must fail, and returns the exit code and what it says.
fn shard_fails(input: &Path, prefix: &Path, more: &[&str]) -> (i32, String) {
    let output = run_shard(input, prefix, more);
    assert!(!output.status.success(), "{output:?}");
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!message.contains("panicked"), "{message}");
    (output.status.code().unwrap(), message)
}

fn run_shard(input: &Path, prefix: &Path, more: &[&str]) -> Output {
    let fixed = [
        "shard",
        input.to_str().unwrap(),
        "--out",
        prefix.to_str().unwrap(),
    ];
    run(&[&fixed, more].concat())
}

pub(crate) fn files(summary: &Value) -> Vec<PathBuf> {
    let files = summary["files"].as_array().unwrap();
    files
        .iter()
        .map(|file| file.as_str().unwrap().into())
        .collect()
}

/// What the pipeline reads back from the shards of a summary.
pub(crate) fn read_back(summary: &Value) -> Samples {
    read_files(&files(summary))
}

/// What the pipeline reads from these shards.
pub(crate) fn read_files(shards: &[PathBuf]) -> Samples {
    let specs: Vec<String> = shards.iter().map(|f| f.display().to_string()).collect();
    let mut samples = Samples::new();
    for location in resolve_shards(&specs).unwrap() {
        read_shard(
            &location,
            0,
            &ReadOptions::default(),
            &NoObserver,
            &Stop::default(),
            &mut |sample| {
                let sample = sample.unwrap();
                let captions = raw_captions(&sample, CaptionSource::default()).unwrap();
                let captions = captions.into_iter().map(Cow::into_owned).collect();
                let image = sample.image(None).expect("an image");
                let bytes = image.bytes().expect("an image is bytes");
                let id = sample.id.clone();
                samples.push((id.key, image.name.clone(), bytes.to_vec(), captions));
                true
            },
        )
        .unwrap();
    }
    samples
}

/// The captions of each sample of a shard, whose image may be any of its members.
pub(crate) fn captions_of(shard: &Path) -> Vec<Vec<String>> {
    let location = ShardLocation::local(shard);
    let mut all = Vec::new();
    let mut visit = |sample: Result<EncodedSample, SampleError>| {
        let sample = sample.unwrap();
        assert!(sample.image(None).is_some());
        let captions = raw_captions(&sample, CaptionSource::default()).unwrap();
        all.push(captions.into_iter().map(Cow::into_owned).collect());
        true
    };
    let options = ReadOptions::default();
    read_shard(
        &location,
        0,
        &options,
        &NoObserver,
        &Stop::default(),
        &mut visit,
    )
    .unwrap();
    all
}

/// Names of the files of a folder; what stands beside shards is left out, after a look that none is
/// alone.
fn names(folder: &Path) -> Vec<String> {
    let mut names = all_names(folder);
    let of_shards: Vec<String> = names
        .iter()
        .filter_map(|name| {
            let shard = name
                .strip_suffix(".qfidx")
                .or(name.strip_suffix(".parquet"));
            shard.map(str::to_owned)
        })
        .collect();
    let endings = [".qfidx", ".parquet", "_stats.json"];
    names.retain(|name| name.starts_with('.') || !endings.iter().any(|end| name.ends_with(end)));
    assert!(of_shards
        .iter()
        .all(|shard| names.contains(shard) || shard.starts_with('.')));
    names
}

fn all_names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Content of every file of a folder by name.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    all_names(folder)
        .into_iter()
        .map(|name| (name.clone(), fs::read(folder.join(name)).unwrap()))
        .collect()
}

/// `count` JPEGs with two captions each.
pub(crate) fn pairs(folder: &Path, count: u8) {
    fs::create_dir_all(folder).unwrap();
    for number in 0..count {
        let stem = folder.join(format!("{number:03}"));
        fs::write(stem.with_extension("jpg"), image(ImageFormat::Jpeg, number)).unwrap();
        let captions = format!("caption {number}\n\n  one more of {number} \n");
        fs::write(stem.with_extension("txt"), captions).unwrap();
    }
}

#[test]
fn a_folder_in_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    fs::create_dir_all(photos.join("deep.er/x")).unwrap();
    let write = |name: &str, content: &[u8]| fs::write(photos.join(name), content).unwrap();
    let (jpeg, png) = (image(ImageFormat::Jpeg, 1), image(ImageFormat::Png, 2));
    write("a.jpg", &jpeg);
    write("a.txt", "première ligne\nsecond line".as_bytes());
    write("b.PNG", &png);
    write("b.json", br#"{"caption": "from json", "similarity": 0.3}"#);
    write("deep.er/x/c.v1.jpeg", &jpeg);
    write("deep.er/x/c.v1.txt", b"with dots");
    write("deep.er/x/c_v1.jpg", &jpeg);
    write("deep.er/x/c_v1.txt", b"without dots");
    write("misnamed.jpg", &png);
    write("misnamed.json", br#"["one", "two"]"#);
    write("no caption file.webp", &image(ImageFormat::WebP, 3));
    write("orphan.txt", b"no image");
    write("notes.md", b"not ours");
    write(".hidden.jpg", b"passed over");
    let caption = |texts: &[&str]| {
        texts
            .iter()
            .map(|text| text.to_string())
            .collect::<Vec<_>>()
    };
    let sample = |key: &str, extension: &str, image: &[u8], captions: &[&str]| {
        (
            key.to_owned(),
            extension.to_owned(),
            image.to_vec(),
            caption(captions),
        )
    };
    let expected = vec![
        sample("a", "jpg", &jpeg, &["première ligne", "second line"]),
        sample("b", "png", &png, &["from json"]),
        sample("deep.er/x/c_v1", "jpeg", &jpeg, &["with dots"]),
        sample("deep.er/x/c_v1_2", "jpg", &jpeg, &["without dots"]),
        sample("misnamed", "png", &png, &["one", "two"]),
    ];
    for format in FORMATS {
        let summary = shard(
            &photos,
            &folder.path().join("out/photos"),
            &["--format", format],
        );
        let found = read_back(&summary);
        assert_eq!(found, expected, "{format}");
        for (name, value) in [
            ("format", json!(format)),
            ("shards", json!(1)),
            ("found", json!(6)),
            ("samples", json!(5)),
            ("captions", json!(7)),
            ("skipped", json!({"no_caption": 1})),
            ("renamed_keys", json!(1)),
            ("captions_without_image", json!(1)),
            ("other_files", json!(1)),
        ] {
            assert_eq!(summary[name], value, "{format}: {name}");
        }
        let bytes = fs::metadata(&files(&summary)[0]).unwrap().len();
        assert_eq!(summary["bytes"], json!(bytes));
    }
    let expected_names = FORMATS.map(|format| format!("photos-000000.{format}"));
    assert_eq!(names(&folder.path().join("out")), {
        let mut names = expected_names.to_vec();
        names.sort();
        names
    });
}

#[test]
fn json_is_passed_through_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    pairs(&photos, 1);
    let metadata = b"{ \"similarity\": 0.31,\n\"caption\": \"not this one\" }";
    fs::write(photos.join("000.json"), metadata).unwrap();
    let summary = shard(&photos, &folder.path().join("s"), &[]);
    let mut archive = tar::Archive::new(fs::File::open(&files(&summary)[0]).unwrap());
    let mut members = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        members.push((name, content));
    }
    assert_eq!(members[0].0, "000.jpg");
    assert_eq!(
        members[1],
        ("000.txt".into(), b"caption 0\none more of 0".to_vec())
    );
    assert_eq!(members[2], ("000.json".into(), metadata.to_vec()));
    assert_eq!(read_back(&summary)[0].3, ["caption 0", "one more of 0"]);
}

#[test]
fn manifests() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("img")).unwrap();
    let jpeg = image(ImageFormat::Jpeg, 7);
    for name in ["img/a.jpg", "img/b"] {
        fs::write(at(name), &jpeg).unwrap();
    }
    let absolute = at("img/b").display().to_string();
    let csv = format!(
        "\u{feff}id,caption,path\r\n1,\"a \"\"dog\"\",\nruns\",img/a.jpg\r\n\
         2,a cat,{absolute}\r\n3,second,img/a.jpg\r\n4, ,{absolute}\r\n5\r\n6,lost,img/none.jpg\r\n"
    );
    let tsv = format!(
        "url\ttitle\nimg/a.jpg\t\"a \"dog\", runs\n{absolute}\ta cat\nimg/a.jpg\tsecond\n\
         {absolute}\t\n5\nimg/none.jpg\tlost\n"
    );
    let jsonl = format!(
        "{{\"path\": \"img/a.jpg\", \"caption\": [\"a dog\", \"second\"]}}\n\n\
         {{\"path\": \"{absolute}\", \"caption\": \"a cat\"}}\n{{\"path\": \"{absolute}\"}}\n\
         {{oops\n{{\"path\": \"img/none.jpg\", \"caption\": \"lost\"}}\n"
    );
    let columns: &[&str] = &["--path-column", "url", "--caption-column", "title"];
    for (name, content, options, first) in [
        ("m.csv", csv, &[][..], "a \"dog\", runs"),
        ("m.tsv", tsv, columns, "\"a \"dog\", runs"),
        ("m.jsonl", jsonl, &[][..], "a dog"),
    ] {
        fs::write(at(name), content).unwrap();
        let summary = shard(&at(name), &at(&format!("out/{name}")), options);
        let found = read_back(&summary);
        let expected = |key: &str, captions: &[&str]| {
            let captions = captions.iter().map(|text| text.to_string()).collect();
            (key.to_owned(), "jpg".to_owned(), jpeg.clone(), captions)
        };
        assert_eq!(
            found,
            [
                expected("000000000", &[first, "second"]),
                expected("000000001", &["a cat"]),
            ],
            "{name}"
        );
        assert_eq!(summary["found"], 4, "{name}");
        assert_eq!(summary["dropped_captions"], 1, "{name}");
        assert_eq!(
            summary["skipped"],
            json!({"bad_row": 1, "unreadable": 1}),
            "{name}"
        );
    }
    fs::write(at("other.tsv"), "where\twhat\nimg/a.jpg\ta dog\n").unwrap();
    let (code, message) = shard_fails(&at("other.tsv"), &at("x"), &[]);
    assert_eq!(code, 1);
    assert!(
        message.contains("no column `path`") && message.contains("where, what"),
        "{message}"
    );
}

#[test]
fn bad_inputs_are_counted_named_or_fatal() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    pairs(&photos, 2);
    let write = |name: &str, content: &[u8]| fs::write(photos.join(name), content).unwrap();
    let jpeg = image(ImageFormat::Jpeg, 1);
    for (stem, image, captions) in [
        ("blank", &jpeg[..], &b" \n\n"[..]),
        ("latin1", &jpeg, b"caf\xe9"),
        ("html", b"<html>not found</html>", b"a page"),
        ("empty", b"", b"nothing"),
    ] {
        write(&format!("{stem}.jpg"), image);
        write(&format!("{stem}.txt"), captions);
    }
    write("alone.png", &image(ImageFormat::Png, 1));
    write("broken.jpg", &jpeg);
    write("broken.json", b"{\"caption\": ");
    write("captionless.jpg", &jpeg);
    write("captionless.json", b"{\"width\": 3}");
    std::os::unix::fs::symlink("nowhere", photos.join("dangling.jpg")).unwrap();
    write("dangling.txt", b"a link");
    let mut expected = BTreeMap::from([
        ("bad_caption", 3),
        ("empty_caption", 1),
        ("no_caption", 1),
        ("unknown_image_format", 2),
        ("unreadable", 1),
    ]);
    {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::OsStr::from_bytes(b"caf\xe9.jpg");
        // Some file systems take no such name.
        if fs::write(photos.join(name), &jpeg).is_ok() {
            expected.insert("bad_name", 1);
        }
    }
    let skipped: u64 = expected.values().sum();
    let prefix = folder.path().join("out/s");

    let output = run_shard(&photos, &prefix, &["--json", "--overwrite"]);
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["skipped"], json!(expected));
    assert_eq!(summary["samples"], 2);
    assert_eq!(summary["found"], json!(2 + skipped));
    let warnings = String::from_utf8_lossy(&output.stderr);
    for name in [
        "blank.txt",
        "latin1.txt",
        "html.jpg",
        "empty.jpg",
        "alone.png",
        "broken.json",
    ] {
        assert!(warnings.contains(name), "{name}: {warnings}");
    }

    let output = run_shard(&photos, &prefix, &["--on-bad", "skip", "--overwrite"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let message = String::from_utf8(output.stderr).unwrap();
    let rows = format!("{skipped} rows of the input could not become a sample\n");
    assert_eq!(message, rows);
    let quiet = ["--on-bad", "skip", "--overwrite", "--quiet"];
    let output_of_quiet = run_shard(&photos, &prefix, &quiet);
    assert!(output_of_quiet.stdout.is_empty(), "{output_of_quiet:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let accounts = format!(
        "found {} = written 2 + skipped {skipped} (bad_caption 3",
        2 + skipped
    );
    assert!(text.contains(&accounts), "{text}");

    let before = contents(&folder.path().join("out"));
    let options = ["--on-bad", "error", "--overwrite", "--max-count", "1"];
    let (code, message) = shard_fails(&photos, &prefix, &options);
    assert_eq!(code, 1);
    assert!(message.contains("--on-bad"), "{message}");
    assert_eq!(
        contents(&folder.path().join("out")),
        before,
        "nothing was touched"
    );

    let unchecked = shard(&photos, &prefix, &["--check-images", "none", "--overwrite"]);
    assert_eq!(unchecked["samples"], 4);
}

#[test]
fn inputs_without_samples_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("nothing")).unwrap();
    fs::create_dir(at("captionless")).unwrap();
    fs::write(at("captionless/a.jpg"), image(ImageFormat::Jpeg, 1)).unwrap();
    fs::write(at("empty.csv"), "path,caption\n").unwrap();
    fs::write(at("binary.csv"), [0u8, 159, 146, 150, b'\n', 7]).unwrap();
    fs::write(at("list.doc"), "x").unwrap();
    for (input, expected) in [
        ("nothing", "no images in"),
        ("captionless", "no_caption 1"),
        ("empty.csv", "has no rows"),
        ("binary.csv", "no column `path`"),
        ("list.doc", "neither a folder nor"),
        ("missing", "missing"),
    ] {
        let (code, message) = shard_fails(&at(input), &at("out/s"), &["--on-bad", "skip"]);
        assert_eq!(code, 1, "{input}");
        assert!(message.contains(expected), "{input}: {message}");
        assert!(!at("out").exists(), "{input}");
    }
}

#[test]
fn equal_bytes_for_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    pairs(&photos, 40);
    for format in FORMATS {
        let mut runs = Vec::new();
        for threads in ["1", "2", "7"] {
            let out = folder.path().join(format!("{format}-{threads}"));
            let options = ["--format", format, "--max-count", "6", "--threads", threads];
            let summary = shard(&photos, &out.join("s"), &options);
            assert_eq!(summary["shards"], 7);
            runs.push(contents(&out));
        }
        assert!(runs.iter().all(|run| *run == runs[0]), "{format}");
    }
}

#[test]
fn shuffling_depends_on_the_seed_alone() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    pairs(&photos, 30);
    let keys = |name: &str, options: &[&str]| -> Vec<String> {
        let summary = shard(&photos, &folder.path().join(name), options);
        read_back(&summary)
            .into_iter()
            .map(|sample| sample.0)
            .collect()
    };
    let plain = keys("plain", &[]);
    let first = keys("first", &["--shuffle-seed", "1"]);
    assert_eq!(
        first,
        keys("again", &["--shuffle-seed", "1", "--threads", "1"])
    );
    assert_ne!(first, keys("other", &["--shuffle-seed", "2"]));
    assert_ne!(first, plain);
    let mut sorted = first;
    sorted.sort();
    assert_eq!(sorted, plain);
}

#[test]
fn max_bytes_and_max_count_bound_every_shard() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    pairs(&photos, 20);
    // One sample that is over the limit by itself.
    let mut large = image(ImageFormat::Jpeg, 10);
    large.resize(50_000, 0);
    fs::write(photos.join("010.jpg"), large).unwrap();
    for format in FORMATS {
        let prefix = folder.path().join(format!("{format}/s"));
        let summary = shard(
            &photos,
            &prefix,
            &["--format", format, "--max-bytes", "20kB"],
        );
        assert_eq!(summary["samples"], 20);
        let shards = files(&summary);
        assert!(shards.len() >= 3, "{format}: {summary}");
        let sizes: Vec<u64> = shards
            .iter()
            .map(|s| fs::metadata(s).unwrap().len())
            .collect();
        let over = sizes.iter().filter(|size| **size > 20_000).count();
        assert!(over <= 1, "{format}: {sizes:?}");
        let keys: Vec<String> = read_back(&summary).into_iter().map(|s| s.0).collect();
        let expected: Vec<String> = (0..20).map(|number| format!("{number:03}")).collect();
        assert_eq!(keys, expected, "{format}");
    }
    let summary = shard(
        &photos,
        &folder.path().join("count/s"),
        &["--max-count", "7"],
    );
    let expected = ["s-000000.tar", "s-000001.tar", "s-000002.tar"];
    assert_eq!(names(&folder.path().join("count")), expected);
    assert_eq!(summary["shards"], 3);
}

#[test]
fn existing_shards_are_replaced_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let (photos, out) = (folder.path().join("photos"), folder.path().join("out"));
    pairs(&photos, 10);
    let prefix = out.join("s");
    shard(&photos, &prefix, &["--max-count", "2"]);
    shard(&photos, &prefix, &["--format", "tar.gz"]);
    let neighbours = [
        "s-extra.tar",
        "s-00001.tar",
        "other-000009.tar",
        "s-000007.tar.gz.part",
    ];
    for name in neighbours {
        fs::write(out.join(name), b"neighbour").unwrap();
    }
    let before = contents(&out);
    let (code, message) = shard_fails(&photos, &prefix, &["--max-count", "4"]);
    assert_eq!(code, 1);
    assert!(
        message.contains("s-000000.tar") && message.contains("--overwrite"),
        "{message}"
    );
    assert_eq!(contents(&out), before);

    let summary = shard(&photos, &prefix, &["--max-count", "4", "--overwrite"]);
    assert_eq!(
        (&summary["shards"], &summary["removed_stale"]),
        (&json!(3), &json!(2))
    );
    assert_eq!(read_back(&summary).len(), 10);
    let mut expected: Vec<String> = neighbours.map(String::from).to_vec();
    let shards = [
        "s-000000.tar",
        "s-000000.tar.gz",
        "s-000001.tar",
        "s-000002.tar",
    ];
    expected.extend(shards.map(String::from));
    expected.sort();
    assert_eq!(names(&out), expected);
}

#[test]
fn wrong_usage_is_answered_with_a_suggestion() {
    let folder = tempfile::tempdir().unwrap();
    let photos = folder.path().join("photos");
    pairs(&photos, 1);
    let prefix = folder.path().join("out/s");
    for (options, expected) in [
        (&["--formt", "tar"][..], "--format"),
        (&["--format", "tar.zstd"], "tar.zst"),
        (&["--on-bad", "skp"], "skip"),
        (&["--max-bytes", "5 parsecs"], "500MB"),
        (&["--max-count", "0"], "--max-count"),
        (&["--threads", "0"], "--threads"),
    ] {
        let (code, message) = shard_fails(&photos, &prefix, options);
        assert_eq!(code, 2, "{message}");
        assert!(message.contains(expected), "{expected}: {message}");
    }
    for (options, expected) in [
        (&["--level", "3"][..], "--level"),
        (&["--format", "tar.gz", "--level", "12"], "levels 0 to 9"),
        (&["--caption-column", "x"], "is for manifests"),
    ] {
        let (code, message) = shard_fails(&photos, &prefix, options);
        assert_eq!(code, 1, "{message}");
        assert!(message.contains(expected), "{expected}: {message}");
    }
    let (_, message) = shard_fails(&photos, &folder.path().join("out/"), &[]);
    assert!(message.contains("names a folder"), "{message}");
    fs::write(folder.path().join("plain"), b"").unwrap();
    let (_, message) = shard_fails(&photos, &folder.path().join("plain/s"), &[]);
    assert!(message.contains("plain"), "{message}");
    assert!(!folder.path().join("out").exists());
}

#[test]
fn an_interrupted_run_leaves_nothing_unfinished() {
    let folder = tempfile::tempdir().unwrap();
    let (photos, out) = (folder.path().join("photos"), folder.path().join("out"));
    fs::create_dir(&photos).unwrap();
    // Two gigabytes to compress, of one file: the signal comes long before the end.
    let noise: Vec<u8> = (0..16_u32 << 20)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let original = folder.path().join("original");
    fs::write(&original, [b"BM", &noise[..]].concat()).unwrap();
    for number in 0..128 {
        let stem = photos.join(format!("{number:03}"));
        fs::hard_link(&original, stem.with_extension("bmp")).unwrap();
        fs::write(stem.with_extension("txt"), b"noise").unwrap();
    }
    let mut child = Command::new(bin::qfdata())
        .args(["shard", photos.to_str().unwrap(), "--out"])
        .arg(out.join("s"))
        .args(["--format", "tar.gz", "--level", "9", "--max-bytes", "1TB"])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let started = std::time::Instant::now();
    let is_written = || names(&out).iter().any(|name| name.ends_with(".tmp"));
    while !out.exists() || !is_written() {
        assert!(
            child.try_wait().unwrap().is_none(),
            "ended before it was interrupted"
        );
        assert!(
            started.elapsed().as_secs() < 60,
            "no temporary file appeared"
        );
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(names(&out).iter().all(|name| name.starts_with('.')));
    crate::bin::signal("-INT", &child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("before a shard was complete") && message.contains("interrupted"),
        "{message}"
    );
    assert!(!out.exists(), "nothing, not even the folder");
}
