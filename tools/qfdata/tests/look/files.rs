//! `ls`, `cat`, `head`, `extract`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::{complaint, json_lines, photographs, python, run};

const LIST: &str = r#"
import hashlib, json, sys, tarfile
out = []
for path in sys.argv[1:]:
    with tarfile.open(path, "r:*") as archive:
        for m in archive:
            if m.isreg():
                data = archive.extractfile(m).read()
                out.append([m.name, m.size, hashlib.sha256(data).hexdigest()])
print(json.dumps(out))
"#;

fn files_below(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let name = path
                        .strip_prefix(folder)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_string();
                    found.insert(name, fs::read(path).unwrap());
                }
            }
        }
    }
    found
}

/// Listing, printing and extracting give what Python's tarfile finds, in every format of archives.
#[test]
fn files_are_those_that_tarfile_finds() {
    let test = "files_are_those_that_tarfile_finds";
    for format in ["tar", "tar.gz", "tar.zst"] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        if photographs(test, folder, 12, format).is_none() {
            return;
        }
        let shards = [format!("s-000000.{format}"), format!("s-000001.{format}")];
        // tarfile of Python before 3.14 knows no zstd.
        let plain: Vec<String> = match format {
            "tar.zst" => {
                let sink = "import sys, zstandard\nfor p in sys.argv[1:]:\n  zstandard.ZstdDecompressor().copy_stream(open(p,'rb'), open(p[:-4],'wb'), )";
                let names: Vec<&str> = shards.iter().map(String::as_str).collect();
                // Frames follow each other: read across them.
                let sink = sink.replace(
                    "zstandard.ZstdDecompressor().copy_stream(open(p,'rb'), open(p[:-4],'wb'), )",
                    "open(p[:-4],'wb').write(zstandard.ZstdDecompressor().stream_reader(open(p,'rb'), read_across_frames=True).read())",
                );
                if python(test, folder, &sink, &names).is_none() {
                    return;
                }
                shards.iter().map(|name| name.replace(".zst", "")).collect()
            }
            _ => shards.to_vec(),
        };
        let names: Vec<&str> = plain.iter().map(String::as_str).collect();
        let Some(listed) = python(test, folder, LIST, &names) else {
            return;
        };
        let expected: Vec<(String, u64, String)> = serde_json::from_str(&listed).unwrap();
        assert_eq!(expected.len(), 24);
        let all: Vec<&str> = shards.iter().map(String::as_str).collect();
        let lines = json_lines(&run(folder, 0, &[&["ls", "--json"], &all[..]].concat()));
        let found: Vec<(String, u64)> = lines
            .iter()
            .map(|line| {
                let path = line["path"].as_str().unwrap().to_string();
                (path, line["size_bytes"].as_u64().unwrap())
            })
            .collect();
        let named: Vec<(String, u64)> = expected.iter().map(|(n, s, _)| (n.clone(), *s)).collect();
        assert_eq!(found, named, "{format}");
        assert_eq!(lines[0]["key"], "000000");
        let text = run(folder, 0, &["ls", all[0]]);
        assert_eq!(text.lines().next(), Some("000000.jpg"));
        let several = run(folder, 0, &["ls", "--long", all[0], all[1]]);
        assert!(
            several.contains(&format!("{}#000011.txt", all[1])),
            "{several}"
        );

        run(
            folder,
            0,
            &[&["extract", "--out", "out", "--quiet"], &all[..]].concat(),
        );
        let files = files_below(&folder.join("out"));
        assert_eq!(files.len(), expected.len());
        for (name, bytes) in &files {
            // `shard` writes captions without the line end of the last.
            let original = fs::read(folder.join("pairs").join(name)).unwrap();
            let original = match name.ends_with(".txt") {
                true => original.trim_ascii_end(),
                false => &original[..],
            };
            assert!(bytes == original, "{name}");
        }
        let text = run(folder, 0, &["cat", all[1], "--member", "000010.txt"]);
        assert_eq!(text.as_bytes(), files["000010.txt"]);
        let both = run(folder, 0, &["cat", all[1], "--member", "*.txt"]);
        let joined = [&files["000010.txt"][..], &files["000011.txt"]].concat();
        assert_eq!(both.as_bytes(), joined);
        let message = complaint(folder, 1, &["cat", all[1], "--member", "nothing"]);
        assert!(message.contains("no file matches nothing"), "{message}");
    }
}

/// Rows of an Arrow shard come out as the files that made them.
#[test]
fn rows_are_files() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs("rows_are_files", folder, 4, "arrow").is_none() {
        return;
    }
    let listed = run(folder, 0, &["ls", "s-000000.arrow"]);
    assert_eq!(listed.lines().count(), 8, "{listed}");
    run(folder, 0, &["extract", "s-000000.arrow", "--out", "out"]);
    for (name, bytes) in files_below(&folder.join("out")) {
        let original = fs::read(folder.join("pairs").join(&name)).unwrap();
        let trimmed = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
        match name.ends_with("txt") {
            true => assert_eq!(trimmed(&bytes), trimmed(&original), "{name}"),
            false => assert_eq!(bytes, original, "{name}"),
        }
    }
}

#[test]
fn head_shows_samples() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs("head_shows_samples", folder, 12, "tar").is_none() {
        return;
    }
    let text = run(folder, 0, &["head", "s-000000.tar", "-n", "2"]);
    let keys = text
        .lines()
        .filter(|line| line.starts_with("s-000000.tar#"));
    assert_eq!(keys.count(), 2, "{text}");
    let lines = json_lines(&run(
        folder,
        0,
        &["head", "s-00000{0,1}.tar", "-n", "11", "--json"],
    ));
    assert_eq!(lines.len(), 11);
    assert_eq!(lines[10]["key"], "000010");
    assert_eq!(lines[0]["captions"].as_array().unwrap().len(), 5);
    assert_eq!(lines[0]["image"]["format"], "JPEG");
    let Some(sizes) = python(
        "head_shows_samples",
        folder,
        "import json\nfrom PIL import Image\nprint(json.dumps([Image.open(f'pairs/{n:06}.jpg').size for n in range(11)]))",
        &[],
    ) else {
        return;
    };
    let sizes: Vec<(u64, u64)> = serde_json::from_str(&sizes).unwrap();
    let found: Vec<(u64, u64)> = lines
        .iter()
        .map(|line| {
            let image = &line["image"];
            (
                image["width"].as_u64().unwrap(),
                image["height"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(found, sizes);
}

const HOSTILE: &str = r#"
import io, tarfile
with tarfile.open("evil.tar", "w") as archive:
    def add(name, data=b"x", **more):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for field, value in more.items():
            setattr(info, field, value)
        archive.addfile(info, io.BytesIO(data))
    add("good.txt", b"good")
    add("../outside.txt")
    add("/tmp/qf-look-absolute.txt")
    add("a/../../outside.txt")
    add("link/through.txt")
    add("a/./b.txt", b"b")
    add("good.txt", b"again")
    add("dir", b"", type=tarfile.DIRTYPE)
    add("link2", b"", type=tarfile.SYMTYPE, linkname="/etc")
    add("link2/passwd", b"p")
    add("x" * 300 + ".txt", b"long")
"#;

/// Nothing is written outside the folder, whatever names an archive has and links the folder.
#[test]
fn extract_stays_in_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if python("extract_stays_in_its_folder", folder, HOSTILE, &[]).is_none() {
        return;
    }
    fs::create_dir_all(folder.join("elsewhere")).unwrap();
    fs::create_dir_all(folder.join("out")).unwrap();
    std::os::unix::fs::symlink("../elsewhere", folder.join("out/link")).unwrap();
    std::os::unix::fs::symlink("../elsewhere/target", folder.join("out/good.txt")).unwrap();
    let message = complaint(
        folder,
        3,
        &["extract", "evil.tar", "--out", "out", "--overwrite"],
    );
    for what in [
        "../outside.txt is left out",
        "absolute",
        "is a link",
        "another file of the shards",
    ] {
        assert!(message.contains(what), "{what}: {message}");
    }
    assert!(!folder.join("outside.txt").exists());
    assert!(!Path::new("/tmp/qf-look-absolute.txt").exists());
    assert_eq!(fs::read_dir(folder.join("elsewhere")).unwrap().count(), 0);
    // The link was replaced, not followed; folders that the archive itself would make are folders.
    assert_eq!(fs::read(folder.join("out/good.txt")).unwrap(), b"good");
    assert!(!fs::symlink_metadata(folder.join("out/good.txt"))
        .unwrap()
        .is_symlink());
    assert_eq!(fs::read(folder.join("out/a/b.txt")).unwrap(), b"b");
    assert_eq!(fs::read(folder.join("out/link2/passwd")).unwrap(), b"p");
    // A second time nothing is replaced.
    let message = complaint(
        folder,
        3,
        &[
            "extract", "evil.tar", "--out", "out", "--member", "good.txt",
        ],
    );
    assert!(message.contains("--overwrite replaces"), "{message}");
}

#[test]
fn equal_names_of_two_shards_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    if photographs("equal_names", folder, 2, "tar").is_none() {
        return;
    }
    fs::copy(folder.join("s-000000.tar"), folder.join("t.tar")).unwrap();
    let both = ["extract", "s-000000.tar", "t.tar", "--out"];
    let message = complaint(folder, 3, &[&both[..], &["out"]].concat());
    assert!(message.contains("--by-shard"), "{message}");
    let summary = run(
        folder,
        0,
        &[&both[..], &["by", "--by-shard", "--json"]].concat(),
    );
    assert_eq!(json_lines(&summary)[0]["files"], 8);
    assert!(
        folder.join("by/t/000001.txt").exists() && folder.join("by/s-000000/000001.jpg").exists()
    );
}
