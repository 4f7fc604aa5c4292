//! Writing shards: see `tests/cases/mod.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use image::ImageFormat;

use crate::bin;
use crate::shard_cli::image;

const PAIRS: usize = 200;

/// Captioned images, enough of them that writing takes a while.
fn pairs(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for number in 0..PAIRS {
        let mut bytes = image(ImageFormat::Jpeg, (number % 256) as u8);
        // What a compressor takes its time for.
        let mut state = number as u32;
        bytes.resize_with(60_000, || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        fs::write(folder.join(format!("{number:04}.jpg")), bytes).unwrap();
        fs::write(
            folder.join(format!("{number:04}.txt")),
            format!("image {number}"),
        )
        .unwrap();
    }
}

fn shard(folder: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(bin::qfdata());
    command
        .current_dir(folder)
        .args(["shard", "pairs", "--out", "out/s", "--format", "tar.zst"])
        .args(["--level", "19", "--max-count", "20", "--threads", "2"])
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn succeeds(folder: &Path, options: &[&str]) -> String {
    let output = shard(folder, options).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{message}");
    message
}

fn fails(folder: &Path, options: &[&str]) -> String {
    let output = shard(folder, options).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{message}");
    message
}

/// Shards with their indices and metadata, and the statistics.
const FILES: usize = 3 * (PAIRS / 20) + 1;

/// Statistics without what names the input's folder and the times of its files.
fn comparable(statistics: &[u8]) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(statistics) else {
        return statistics.to_vec();
    };
    value["input_fingerprint"].take();
    value["settings"]["INPUT"].take();
    value.to_string().into_bytes()
}

/// Name and content of every file of the output, hidden ones included.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder.join("out"));
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let content = fs::read(entry.path()).unwrap_or_default();
        match name.ends_with("_stats.json") {
            true => (name, comparable(&content)),
            false => (name, content),
        }
    };
    entries.map_or_else(|_| BTreeMap::new(), |entries| entries.map(file).collect())
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_there() {
        assert!(begun.elapsed() < Duration::from_secs(60), "no {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a run has written down what it makes.
fn has_begun(folder: &Path) -> bool {
    let record = fs::read(folder.join("out/.s.tar.zst.run"));
    record.is_ok_and(|record| !record.is_empty())
}

/// Kills it once this many shards are complete.
fn kill_after(folder: &Path, mut child: Child, shards: usize) {
    let complete = || {
        files(folder)
            .keys()
            .filter(|name| name.ends_with(".zst"))
            .count()
    };
    wait_for("shard", || {
        complete() >= shards || child.try_wait().unwrap().is_some()
    });
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(!status.success(), "it was to be killed before its end");
}

/// `shard-tmp-leak`
#[test]
fn a_killed_run_goes_on_and_leaves_nothing() {
    let (whole, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = folder.path();
    for folder in [whole.path(), folder] {
        pairs(&folder.join("pairs"));
    }
    succeeds(whole.path(), &[]);
    let expected = files(whole.path());
    assert_eq!(expected.len(), FILES);
    let mut leftovers = 0;
    for shards in [0, 1, 3, 5] {
        kill_after(folder, shard(folder, &[]).spawn().unwrap(), shards);
        let hidden = files(folder)
            .into_keys()
            .filter(|name| name.ends_with(".tmp"));
        leftovers += hidden.count();
        // Looking changes nothing: other settings do not replace what is there.
        if shards > 0 {
            let message = fails(folder, &["--shuffle-seed", "1"]);
            assert!(message.contains("did not finish"), "{message}");
            assert!(message.contains("--shuffle-seed"), "{message}");
        }
    }
    assert!(leftovers > 0, "kills leave temporary files");
    let message = succeeds(folder, &[]);
    assert!(message.contains("did not finish"), "{message}");
    assert!(
        files(folder) == expected,
        "the files of an unbroken run, and no other"
    );
    // A complete one is not replaced.
    let message = fails(folder, &[]);
    assert!(message.contains("exists already"), "{message}");
    assert!(files(folder) == expected);
    // Killed while it replaces, it goes on replacing.
    let mut replacing = shard(folder, &["--overwrite", "--shuffle-seed", "1"])
        .spawn()
        .unwrap();
    wait_for("record", || has_begun(folder));
    replacing.kill().unwrap();
    replacing.wait().unwrap();
    succeeds(folder, &["--shuffle-seed", "1"]);
    succeeds(whole.path(), &["--overwrite", "--shuffle-seed", "1"]);
    assert!(files(folder) == files(whole.path()));
}

/// `shard-concurrent`
#[test]
fn the_second_of_two_at_once_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pairs(&folder.join("pairs"));
    let first = shard(folder, &[]).spawn().unwrap();
    wait_for("record", || has_begun(folder));
    for options in [
        &[][..],
        &["--overwrite"],
        &["--overwrite", "--shuffle-seed", "1"],
    ] {
        let message = fails(folder, options);
        let holder = format!("process {} on ", first.id());
        assert!(message.contains(&holder), "{message}");
        assert!(
            message.contains("is writing shards out/s-*.tar.zst"),
            "{message}"
        );
    }
    let first = first.wait_with_output().unwrap();
    assert!(first.status.success(), "{first:?}");
    let found = files(folder);
    assert_eq!(found.len(), FILES, "{:?}", found.keys());
    let check = Command::new(bin::qfdata())
        .current_dir(folder)
        .args(["index", "--check", "out/s-*.tar.zst"])
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
}

/// Links under the names that `qfdata shard` writes: what they point to stays as it is.
#[test]
fn planted_links_are_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pairs(&folder.join("pairs"));
    let victim = folder.join("victim");
    fs::write(&victim, "precious").unwrap();
    for name in [
        "s-000000.tar.zst",
        "s-000000.tar.zst.qfidx",
        "s-000000.tar.zst.parquet",
        "s.tar.zst_stats.json",
        ".s.tar.zst.run",
    ] {
        let _ = fs::remove_dir_all(folder.join("out"));
        fs::create_dir(folder.join("out")).unwrap();
        std::os::unix::fs::symlink(&victim, folder.join("out").join(name)).unwrap();
        let output = shard(folder, &["--overwrite"]).output().unwrap();
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(fs::read_to_string(&victim).unwrap(), "precious", "{name}");
        let is_refused = message.contains("it is a symbolic link") && !output.status.success();
        assert!(output.status.success() || is_refused, "{name}: {message}");
        assert_eq!(is_refused, name.ends_with(".run"), "{name}: {message}");
    }
}
