//! `qfdata shard`, killed at any moment and started again: the shards of an unbroken run, to the byte,
//! and whole ones are not written twice.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use image::ImageFormat;
use serde_json::Value;

use crate::bin;
use crate::shard_cli::{image, FORMATS};
use crate::shard_downloads::Server;
use crate::test_data::python;

const PAIRS: usize = 120;

/// How many runs are killed before their end, for each format; `QF_KILLS` sets another number.
#[allow(clippy::disallowed_methods)] // A number for a longer test, by hand.
fn kills() -> usize {
    let kills = std::env::var("QF_KILLS").ok();
    kills.and_then(|kills| kills.parse().ok()).unwrap_or(8)
}

fn pairs(folder: &Path) {
    fs::create_dir(folder).unwrap();
    for number in 0..PAIRS {
        let name = folder.join(format!("{number:04}"));
        // Every tenth is the double of the one before, every eleventh no image.
        let double = if number % 10 == 9 { number - 1 } else { number };
        let bytes = match number % 11 {
            10 => b"<html>".to_vec(),
            _ => {
                let mut bytes = image(ImageFormat::Jpeg, (double % 256) as u8);
                bytes.resize(bytes.len() + 20_000 + double, double as u8);
                bytes
            }
        };
        fs::write(name.with_extension("jpg"), bytes).unwrap();
        fs::write(name.with_extension("txt"), format!("image {number}")).unwrap();
    }
}

/// A way to build shards of `pairs`, or of a list of URLs.
struct Case {
    name: String,
    input: &'static str,
    format: &'static str,
    options: &'static [&'static str],
}

impl Case {
    /// Of the folder, shuffled, without doubles.
    fn pairs(format: &'static str) -> Case {
        Case {
            name: format.to_owned(),
            input: "pairs",
            format,
            options: &["--drop-doubles", "exact", "--shuffle-seed", "3"],
        }
    }

    fn command(&self, folder: &Path, out: &str) -> Command {
        let mut command = Command::new(bin::qfdata());
        command
            .current_dir(folder)
            .args(["shard", self.input, "--out", &format!("{out}/s")])
            .args(["--format", self.format, "--max-count", "7"])
            .args(["--threads", "2", "--on-bad", "skip", "--json"])
            .args(self.options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }
}

/// Name, content and time of every file of a folder, hidden ones included.
fn files(folder: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let Ok(entries) = fs::read_dir(folder) else {
        return BTreeMap::new();
    };
    let file = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let time = entry.metadata().and_then(|metadata| metadata.modified());
        let time = time.unwrap_or(SystemTime::UNIX_EPOCH);
        (name, (fs::read(entry.path()).unwrap_or_default(), time))
    };
    entries.map(file).collect()
}

fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = files(folder).into_iter();
    files.map(|(name, (content, _))| (name, content)).collect()
}

#[test]
fn a_run_killed_at_any_moment_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pairs(&folder.join("pairs"));
    for case in FORMATS.map(Case::pairs) {
        assert_resumes(folder, &case);
    }
    assert_resumes(
        folder,
        &Case {
            name: "held out".to_owned(),
            options: &["--held-out", "30%", "--drop-doubles", "exact"],
            ..Case::pairs("tar")
        },
    );
}

/// Downloads that are under way when the run is killed are made again, and end in the same shards.
#[test]
fn downloads_killed_at_any_moment_end_with_the_same_bytes() {
    let Some(python) = python("downloads_killed_at_any_moment_end_with_the_same_bytes") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let server = Server::start(&python, folder);
    let mut list = String::from("url,caption\n");
    for number in 0..PAIRS {
        // Each image differs; every eleventh is not there.
        let kind = if number % 11 == 10 { "missing" } else { "own" };
        let url = server.url(&format!("{kind}/{number}"));
        list += &format!("{url},image {number}\n");
    }
    fs::write(folder.join("list.csv"), list).unwrap();
    assert_resumes(
        folder,
        &Case {
            name: "downloads".to_owned(),
            input: "list.csv",
            format: "tar",
            options: &["--allow-private-addresses", "--parallel-downloads", "5"],
        },
    );
}

/// Kills runs at moments of a seeded generator, goes on, and compares every file with those of an unbroken run.
fn assert_resumes(folder: &Path, case: &Case) {
    let whole = format!("whole-{}", case.name);
    bin::qfdata(); // Built first: that takes its time, too.
    let begun = Instant::now();
    let output = case.command(folder, &whole).output().unwrap();
    let mut unbroken = begun.elapsed();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let expected = contents(&folder.join(&whole));
    assert!(expected.len() > 3 * 10, "{:?}", expected.keys());
    let (mut kept_in_all, mut killed, mut rounds) = (0, 0, 0);
    let mut state = 99u64;
    while killed < kills() {
        rounds += 1;
        assert!(
            rounds <= 10 + kills(),
            "{}: {killed} were killed",
            case.name
        );
        let name = format!("{} {rounds}", case.name);
        let out = format!("killed-{name}");
        // Killed up to three times, each at a moment of its own.
        for _ in 0..3 {
            let mut child = case.command(folder, &out).spawn().unwrap();
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let share = (state >> 40) as f64 / (1u64 << 24) as f64;
            std::thread::sleep(unbroken.mul_f64(share));
            child.kill().unwrap();
            match child.wait().unwrap().signal() {
                Some(9) => killed += 1,
                // It was faster than the first one, on a machine that others use.
                _ => unbroken = unbroken.mul_f64(0.9),
            }
        }
        let before = files(&folder.join(&out));
        let output = case.command(folder, &out).output().unwrap();
        match output.status.code() {
            Some(3) => {
                let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
                let kept = summary["kept"].as_u64().unwrap();
                kept_in_all += kept;
                let after = files(&folder.join(&out));
                let ending = format!(".{}", case.format);
                let is_same = |(name, (_, time)): &(&String, &(Vec<u8>, SystemTime))| {
                    name.ends_with(&ending) && after[*name].1 == *time
                };
                let same = before.iter().filter(is_same).count() as u64;
                assert!(
                    same >= kept,
                    "{name}: {same} of {kept} were not written again"
                );
            }
            // One of the three was faster than its kill.
            Some(1) => {
                let message = String::from_utf8_lossy(&output.stderr);
                assert!(message.contains("exists already"), "{name}: {message}");
            }
            _ => panic!("{name}: {output:?}"),
        }
        let found = contents(&folder.join(&out));
        let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{name}");
        assert!(found == expected, "{name}");
        fs::remove_dir_all(folder.join(&out)).unwrap();
    }
    println!(
        "{}: {killed} of {} runs were killed before their end, {kept_in_all} shards kept",
        case.name,
        3 * rounds
    );
}

/// What was whole stays, unless the input has changed since.
#[test]
fn a_changed_input_is_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pairs(&folder.join("pairs"));
    let stopped = |folder: &Path| {
        let mut child = Case::pairs("tar.zst")
            .command(folder, "out")
            .spawn()
            .unwrap();
        let begun = Instant::now();
        let is_begun = || {
            let names = files(&folder.join("out")).into_keys();
            names.filter(|name| name.ends_with(".zst")).count() >= 3
        };
        while !is_begun() && child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
    };
    stopped(folder);
    fs::write(folder.join("pairs/0000.txt"), "another caption").unwrap();
    let case = Case::pairs("tar.zst");
    let output = case.command(folder, "out").output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(1) {
        // It was done before it was killed.
        assert!(message.contains("exists already"), "{message}");
        return;
    }
    assert!(message.contains("the input has changed"), "{message}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["kept"], 0);
    case.command(folder, "fresh").output().unwrap();
    assert!(contents(&folder.join("out")) == contents(&folder.join("fresh")));
}

/// Parts that are made alone hold all rows once, in order.
#[test]
fn parts_are_the_whole() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pairs(&folder.join("pairs"));
    let run = |format: &str, input: &str, out: &str, more: &[&str]| {
        let mut command = Command::new(bin::qfdata());
        command
            .current_dir(folder)
            .args(["shard", input, "--out", out, "--format", format])
            .args(["--max-count", "7", "--on-bad", "skip", "--json"])
            .args(more);
        let output = command.output().unwrap();
        assert!(matches!(output.status.code(), Some(0 | 3)), "{output:?}");
        let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
        let shards = crate::shard_cli::files(&summary);
        let shards: Vec<_> = shards.iter().map(|shard| folder.join(shard)).collect();
        crate::shard_cli::read_files(&shards)
    };
    for more in [&[][..], &["--shuffle-seed", "5"]] {
        let out = format!("whole{}/s", more.len());
        let whole = run("tar", "pairs", &out, more);
        assert_eq!(whole.len(), PAIRS - PAIRS / 11);
        let mut parts = Vec::new();
        for part in ["0/4", "1/4", "2/4", "3/4"] {
            let out = format!("parts{}/s", more.len());
            parts.extend(run(
                "tar.zst",
                "pairs",
                &out,
                &[more, &["--part", part]].concat(),
            ));
        }
        assert_eq!(parts, whole);
    }
    assert!(folder.join("parts0/s-00003-000000.tar.zst").is_file());
    // Of shards, too, which are counted first.
    let pattern = "whole0/s-*.tar";
    let mut parts = run("arrow", pattern, "again/s", &["--part", "0/2"]);
    parts.extend(run("arrow", pattern, "again/s", &["--part", "1/2"]));
    let whole = crate::shard_cli::Samples::from_iter(parts);
    assert_eq!(whole.len(), PAIRS - PAIRS / 11);
}
