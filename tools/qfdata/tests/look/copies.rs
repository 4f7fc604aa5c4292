//! `merge`, `split`, `convert`: what tarfile, zstandard, webdataset and datasets find in the copies.

use std::fs;

use crate::{complaint, json_lines, photographs, python, run};

/// Names and contents of archives, by Python.
const CONTENTS: &str = r#"
import hashlib, io, json, sys, tarfile, zstandard
out = []
for path in sys.argv[1:]:
    data = open(path, "rb").read()
    if path.endswith(".zst"):
        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
        for m in archive:
            out.append([m.name, hashlib.sha256(archive.extractfile(m).read()).hexdigest()])
print(json.dumps(out))
"#;

/// Upper-case extensions, three members a sample, a file without a key: all of it comes through.
const SOURCE: &str = r#"
import io, tarfile
for shard in range(2):
    with tarfile.open(f"a-{shard}.tar", "w") as archive:
        def add(name, data):
            info = tarfile.TarInfo(name); info.size = len(data); info.mtime = 12345
            archive.addfile(info, io.BytesIO(data))
        if shard == 0:
            add("README", b"read me")
        for n in range(5):
            photo = open(f"pairs/{n + 5 * shard:06}.jpg", "rb").read()
            key = f"dir/{n + 5 * shard}"
            add(f"{key}.JPG", photo)
            add(f"{key}.json", b'{"caption": "c", "score": 1}')
            add(f"{key}.seg.npy", bytes(range(n + 1)))
"#;

#[test]
fn copies_hold_the_same_files() {
    let test = "copies_hold_the_same_files";
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs(test, folder, 10, "tar").is_none() || python(test, folder, SOURCE, &[]).is_none()
    {
        return;
    }
    let contents = |files: &[&str]| python(test, folder, CONTENTS, files).unwrap();
    let source = contents(&["a-0.tar", "a-1.tar"]);
    assert!(source.contains("dir/0.JPG"));
    for format in ["tar", "tar.gz", "tar.zst"] {
        let out = format!("merged.{format}");
        run(folder, 0, &["merge", "a-0.tar", "a-1.tar", "--out", &out]);
        assert_eq!(contents(&[&out]), source, "merge {format}");
        // Its index fits to the last byte.
        run(folder, 0, &["index", "--check", &out]);
        let prefix = format!("{format}/cut");
        run(
            folder,
            0,
            &[
                "split",
                &out,
                "--out",
                &prefix,
                "--max-count",
                "3",
                "--quiet",
            ],
        );
        let names: Vec<String> = (0..4)
            .map(|n| format!("{prefix}-{n:06}.{format}"))
            .collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(contents(&names), source, "split {format}");
        for other in ["tar", "tar.gz", "tar.zst"] {
            let out_folder = format!("{format}-{other}");
            run(
                folder,
                0,
                &[
                    "convert",
                    &out,
                    "--out",
                    &out_folder,
                    "--format",
                    other,
                    "--quiet",
                ],
            );
            assert_eq!(contents(&[&format!("{out_folder}/merged.{other}")]), source);
        }
    }
    let message = complaint(folder, 1, &["merge", "a-0.tar", "--out", "merged.tar"]);
    assert!(message.contains("--overwrite"), "{message}");
    let message = complaint(
        folder,
        1,
        &["merge", "a-0.tar", "--out", "a-0.tar", "--overwrite"],
    );
    assert!(
        message.contains("one of the shards that are read"),
        "{message}"
    );
    let message = complaint(folder, 1, &["merge", "a-0.tar", "--out", "merged.zip"]);
    assert!(message.contains("says no format"), "{message}");
    let message = complaint(folder, 1, &["split", "a-0.tar", "--out", "x"]);
    assert!(message.contains("--max-count"), "{message}");
}

#[test]
fn equal_keys_are_named_or_kept_apart() {
    let test = "equal_keys";
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs(test, folder, 2, "tar").is_none() {
        return;
    }
    fs::copy(folder.join("s-000000.tar"), folder.join("t.tar")).unwrap();
    let both = ["merge", "s-000000.tar", "t.tar", "--out"];
    let message = complaint(folder, 3, &[&both[..], &["m.tar"]].concat());
    assert!(
        message.contains("--by-shard") && message.contains("2 samples were left out"),
        "{message}"
    );
    run(folder, 0, &[&both[..], &["n.tar", "--by-shard"]].concat());
    let lines = json_lines(&run(folder, 0, &["head", "n.tar", "--json"]));
    let keys: Vec<&str> = lines
        .iter()
        .map(|line| line["key"].as_str().unwrap())
        .collect();
    assert_eq!(
        keys,
        ["s-000000/000000", "s-000000/000001", "t/000000", "t/000001"]
    );
}

/// Through Arrow and back the images and captions stay, as `datasets` and `webdataset` read them.
#[test]
fn arrow_and_back() {
    let test = "arrow_and_back";
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs(test, folder, 12, "tar").is_none() {
        return;
    }
    run(
        folder,
        0,
        &[
            "convert",
            "s-000000.tar",
            "s-000001.tar",
            "--out",
            "arrow",
            "--format",
            "arrow",
        ],
    );
    run(
        folder,
        0,
        &[
            "convert",
            "arrow/*.arrow",
            "--out",
            "back",
            "--format",
            "tar",
        ],
    );
    let script = r#"
import datasets, glob, webdataset
rows = [row for path in sorted(glob.glob("arrow/*.arrow")) for row in datasets.Dataset.from_file(path).cast_column("image", datasets.Image(decode=False))]
assert len(rows) == 12, len(rows)
back = list(webdataset.WebDataset(sorted(glob.glob("back/*.tar")), shardshuffle=False))
for n, (row, sample) in enumerate(zip(rows, back, strict=True)):
    photo = open(f"pairs/{n:06}.jpg", "rb").read()
    captions = [l.strip() for l in open(f"pairs/{n:06}.txt", encoding="utf-8") if l.strip()]
    assert row["image"]["bytes"] == photo == sample["jpg"], n
    assert row["caption"] == captions, (row["caption"], captions)
    assert sample["txt"].decode().split("\n") == captions, n
    assert sample["__key__"] == f"{n:06}"
print("same")
"#;
    if let Some(said) = python(test, folder, script, &[]) {
        assert_eq!(said.trim(), "same");
    }
    // What Arrow has no place for is said.
    if python(test, folder, SOURCE, &[]).is_some() {
        let message = complaint(
            folder,
            3,
            &["convert", "a-1.tar", "--out", "arrow2", "--format", "arrow"],
        );
        assert!(
            message.contains("5 members beside image and captions were dropped"),
            "{message}"
        );
    }
}

/// A file without content, one that ends early: what is before the damage is copied, and it is said.
#[test]
fn damaged_shards_are_copied_as_far_as_they_go() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs("damaged_shards", folder, 10, "tar").is_none() {
        return;
    }
    let tar = fs::read(folder.join("s-000000.tar")).unwrap();
    fs::write(folder.join("cut.tar"), &tar[..tar.len() / 2]).unwrap();
    let message = complaint(
        folder,
        3,
        &["convert", "cut.tar", "--out", "c", "--format", "tar.zst"],
    );
    assert!(
        message.contains("truncated") && message.contains("1 shard could not be read"),
        "{message}"
    );
    let lines = json_lines(&run(folder, 0, &["head", "c/cut.tar.zst", "--json"]));
    assert!((3..8).contains(&lines.len()), "{}", lines.len());
    assert!(lines
        .iter()
        .all(|line| line["captions"].as_array().unwrap().len() == 5));
}

/// DALI's index, by the rule of its `wds2idx`: offsets of data as tarfile tells them, names split at the first
/// dot, neighbours of one base name on one line.
#[test]
fn the_index_of_dali() {
    let test = "the_index_of_dali";
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs(test, folder, 10, "tar").is_none() || python(test, folder, SOURCE, &[]).is_none()
    {
        return;
    }
    let script = r#"
import sys, tarfile
for path in sys.argv[1:]:
    samples, last = [], None
    for member in tarfile.open(path):
        if member.type != tarfile.REGTYPE:
            continue
        dot = member.name.find(".", member.name.rfind("/") + 1)
        base, extension = member.name[:dot], member.name[dot + 1:]
        if dot < 0 or not base or base.endswith("/"):
            continue
        if base != last:
            samples.append([])
            last = base
        samples[-1] += [extension, member.offset_data, member.size, member.name]
    print("v1.2", len(samples))
    for sample in samples:
        print(*sample)
"#;
    let shards = ["s-000000.tar", "a-0.tar", "a-1.tar"];
    let expected = python(test, folder, script, &shards).unwrap();
    run(
        folder,
        0,
        &[&["index", "--dali-index"], &shards[..]].concat(),
    );
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    assert_eq!(
        [read("s-000000.idx"), read("a-0.idx"), read("a-1.idx")].concat(),
        expected
    );
    run(
        folder,
        0,
        &["convert", "a-0.tar", "--out", "z", "--format", "tar.gz"],
    );
    let message = complaint(folder, 1, &["index", "--dali-index", "z/a-0.tar.gz"]);
    assert!(message.contains("DALI reads plain tar"), "{message}");
}

/// Two folders with a shard of the same name.
const SAME_NAMES: &str = r#"
import os, shutil
for name, number in (("train", 0), ("val", 1)):
    os.makedirs(name)
    shutil.copy(f"s-{number:06}.tar", f"{name}/000.tar")
"#;

/// What is named after shards would overwrite itself where two have one name.
#[test]
fn shards_of_one_name_are_not_put_together() {
    let test = "shards_of_one_name_are_not_put_together";
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs(test, folder, 20, "tar").is_none()
        || python(test, folder, SAME_NAMES, &[]).is_none()
    {
        return;
    }
    let both = ["train/000.tar", "val/000.tar"];
    for words in [
        &["convert", "--format", "tar", "--out", "out", "--overwrite"][..],
        &["merge", "--out", "out/m.tar", "--by-shard"],
        &["extract", "--out", "out", "--by-shard"],
    ] {
        let words = [&words[..1], &both, &words[1..]].concat();
        let message = complaint(folder, 1, &words);
        assert!(message.contains("would both be named 000"), "{message}");
        assert!(!folder.join("out").exists(), "{words:?}");
    }
}

/// A pattern finds the shards of one run, not what an earlier one left.
#[test]
fn a_split_removes_what_comes_after_its_last_shard() {
    let test = "a_split_removes_what_comes_after";
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs(test, folder, 10, "tar").is_none() {
        return;
    }
    let split = |count: &str, more: &[&str]| {
        let words = [
            "split",
            "s-000000.tar",
            "--out",
            "cut",
            "--max-count",
            count,
        ];
        run(folder, 0, &[&words, more].concat());
        run(folder, 0, &["ls", "cut-*.tar"]).lines().count()
    };
    assert_eq!(split("2", &[]), 20);
    assert_eq!(split("5", &["--overwrite"]), 20);
    assert!(!folder.join("cut-000002.tar").exists());
    assert!(!folder.join("cut-000002.tar.qfidx").exists());
}

/// A mask beside its photograph, GNU tar's names of a folder, a data set with line breaks in captions.
const AWKWARD: &str = r#"
import io, tarfile
import datasets
datasets.disable_progress_bars()
photos = [open(f"pairs/{n:06}.jpg", "rb").read() for n in range(2)]
def write(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name); info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
write("mask.tar", [("0.jpg", photos[0]), ("0.png", b"a mask"), ("0.txt", b"a"), ("1.jpg", photos[1]), ("1.txt", b"b")])
write("dot.tar", [(f"./{n}.{end}", data) for n in range(2) for end, data in (("jpg", photos[n]), ("txt", b"a b"))])
rows = {"image": [{"bytes": p, "path": None} for p in photos], "caption": ["line one\nline two", "p\r\nq"]}
datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk("set")
"#;

#[test]
fn awkward_shards_become_shards_that_can_be_read() {
    let test = "awkward_shards_become_shards";
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs(test, folder, 2, "tar").is_none() || python(test, folder, AWKWARD, &[]).is_none()
    {
        return;
    }
    let shard = |code: i32, input: &str, more: &[&str]| {
        let words = [&["shard", input, "--out", "new/s", "--overwrite"][..], more].concat();
        let message = complaint(folder, code, &words);
        (message, run(folder, 0, &["verify", "new/s-*", "--quiet"]))
    };
    // No two members of one name.
    let (message, _) = shard(3, "mask.tar", &["--image-format", "png"]);
    assert!(
        message.contains("mask.tar#0@0: its image would be stored as `.png`"),
        "{message}"
    );
    assert_eq!(
        run(folder, 0, &["ls", "new/s-000000.tar"]),
        "1.png\n1.txt\n"
    );
    shard(0, "mask.tar", &[]);
    assert_eq!(
        run(folder, 0, &["ls", "new/s-000000.tar"]).lines().count(),
        5
    );

    shard(0, "dot.tar", &[]);
    assert_eq!(
        run(folder, 0, &["ls", "new/s-000000.tar"]),
        "0.jpg\n0.txt\n1.jpg\n1.txt\n"
    );
    run(
        folder,
        0,
        &["convert", "dot.tar", "--format", "arrow", "--out", "new"],
    );
    assert_eq!(run(folder, 0, &["ls", "new/dot.arrow"]).lines().count(), 4);

    // A caption stays one.
    shard(0, "set", &[]);
    let texts = run(folder, 0, &["cat", "new/s-000000.tar", "--member", "*.txt"]);
    assert_eq!(texts.trim_end(), "line one line twop q", "{texts:?}");
    for (input, option) in [
        ("set", "--split"),
        ("dot.tar", "--split"),
        ("dot.tar", "--keep-columns"),
        ("pairs", "--keep-columns"),
    ] {
        let message = complaint(
            folder,
            1,
            &["shard", input, "--out", "x/s", option, "train"],
        );
        assert!(message.contains(&format!("{option} is for")), "{message}");
    }
}
