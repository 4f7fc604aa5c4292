//! `qfdata shard --held-out`: which images go to which side, whatever becomes of the run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{json, Value};

fn qfdata(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qfdata"));
    command.current_dir(folder);
    command
}

/// What a command prints as JSON.
fn run(folder: &Path, arguments: &[&str]) -> Value {
    let output = qfdata(folder).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// Rendered scenes of different sizes with captions, under the names 000000.jpg and so on.
fn scenes(folder: &Path, name: &str, count: usize, seed: u64) -> PathBuf {
    let (count, seed) = (count.to_string(), seed.to_string());
    let arguments = ["synth", "--out", name, "--count", &count, "--seed", &seed];
    run(folder, &arguments);
    folder.join(name)
}

fn images(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|ending| ending != "txt"));
    paths.sort();
    paths
}

/// Keys of the samples of these shards, as the shards' files are named.
fn keys(folder: &Path, shards: &Value) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for shard in shards.as_array().unwrap() {
        let listed = qfdata(folder)
            .args(["ls", shard.as_str().unwrap()])
            .output();
        for line in String::from_utf8(listed.unwrap().stdout).unwrap().lines() {
            let name = line.trim().rsplit('/').next().unwrap();
            keys.insert(name.split('.').next().unwrap().to_owned());
        }
    }
    keys
}

/// Keys to train on and keys that are held out.
fn sides(folder: &Path, summary: &Value) -> (BTreeSet<String>, BTreeSet<String>) {
    let held_out = &summary["held_out"]["files"];
    let is_trained = |file: &&Value| !held_out.as_array().unwrap().contains(file);
    let trained = summary["files"]
        .as_array()
        .unwrap()
        .iter()
        .filter(is_trained);
    let trained = Value::from(trained.cloned().collect::<Vec<_>>());
    (keys(folder, &trained), keys(folder, held_out))
}

#[test]
fn an_image_keeps_its_side_with_its_doubles_when_the_input_grows() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let input = scenes(folder, "scenes", 60, 1);
    let first = images(&input);
    // Doubles under other names, with other captions.
    for (number, path) in first.iter().enumerate() {
        let copy = input.join(format!("double-{number:03}.jpg"));
        fs::copy(path, copy.with_extension(path.extension().unwrap())).unwrap();
        fs::write(copy.with_extension("txt"), format!("once more {number}")).unwrap();
    }
    let shard = |out: &str, more: &[&str]| {
        let plain = [
            "shard",
            "scenes",
            "--out",
            out,
            "--held-out",
            "25%",
            "--json",
            "--max-count",
            "20",
        ];
        run(folder, &[&plain, more].concat())
    };
    let summary = shard("a/s", &[]);
    let (trained, held_out) = sides(folder, &summary);
    assert_eq!(trained.len() + held_out.len(), 120);
    assert_eq!(summary["held_out"]["samples"], held_out.len());
    assert!((10..60).contains(&held_out.len()), "{}", held_out.len());
    for (number, path) in first.iter().enumerate() {
        let (original, double) = (
            path.file_stem().unwrap().to_str().unwrap(),
            format!("double-{number:03}"),
        );
        let sides = (held_out.contains(original), held_out.contains(&double));
        assert_eq!(sides.0, sides.1, "{original}");
    }
    // Names say which side they are.
    for file in summary["held_out"]["files"].as_array().unwrap() {
        assert!(file.as_str().unwrap().starts_with("a/s-val-0000"), "{file}");
    }
    assert!(folder.join("a/s-train-000000.tar.qfidx").exists());
    let statistics: Value =
        serde_json::from_slice(&fs::read(folder.join("a/s.tar_stats.json")).unwrap()).unwrap();
    assert_eq!(statistics["samples"], 120);
    assert_eq!(statistics["held_out"]["samples"], held_out.len());
    assert_eq!(statistics["held_out"]["share"], 0.25);

    // More images, in another order, to another format.
    for (number, path) in images(&scenes(folder, "more", 40, 2)).iter().enumerate() {
        let copy = input.join(format!("0-more-{number:03}.jpg"));
        fs::copy(path, copy.with_extension(path.extension().unwrap())).unwrap();
        fs::write(copy.with_extension("txt"), "another").unwrap();
    }
    for format in ["tar.gz", "tar.zst", "arrow"] {
        let out = format!("b/{format}");
        let summary = shard(&out, &["--format", format, "--shuffle-seed", "3"]);
        assert_eq!(summary["samples"], 160, "{format}");
        if format == "arrow" {
            continue;
        }
        let grown = sides(folder, &summary);
        assert!(
            trained.is_subset(&grown.0) && held_out.is_subset(&grown.1),
            "{format}"
        );
    }
    let other = sides(folder, &shard("c/s", &["--held-out-seed", "1"]));
    assert!(!held_out.is_subset(&other.1));
    // Doubles that are dropped are dropped on both sides.
    let summary = shard("d/s", &["--drop-doubles", "exact"]);
    assert_eq!(summary["skipped"], json!({"double": 60}));
}

#[test]
fn shards_of_the_other_kind_are_not_left_beside_or_lost() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    scenes(folder, "scenes", 30, 5);
    let plain = [
        "shard",
        "scenes",
        "--out",
        "s/a",
        "--max-count",
        "10",
        "--json",
    ];
    let names = || -> Vec<String> {
        let names = contents(&folder.join("s")).into_keys();
        names.filter(|name| name.ends_with(".tar")).collect()
    };
    for (first, second, says) in [
        (
            &["--held-out", "0.4"][..],
            &[][..],
            "a-train-000000.tar exists already, of a run with",
        ),
        (
            &[],
            &["--held-out", "0.4"],
            "a-000000.tar exists already, of a run without",
        ),
    ] {
        run(folder, &[&plain, first, &["--overwrite"]].concat());
        let before = names();
        let refused = qfdata(folder).args(plain).args(second).output().unwrap();
        let message = String::from_utf8(refused.stderr).unwrap();
        assert!(
            refused.status.code() == Some(1) && message.contains(says),
            "{message}"
        );
        assert_eq!(names(), before);
        run(folder, &[&plain, second, &["--overwrite"]].concat());
        assert!(
            names().iter().all(|name| !before.contains(name)),
            "{:?}",
            names()
        );
    }
    // A prefix of its own that only looks like a side is let alone.
    run(folder, &["shard", "scenes", "--out", "t/a-train", "--json"]);
    run(
        folder,
        &["shard", "scenes", "--out", "t/a", "--overwrite", "--json"],
    );
    assert!(folder.join("t/a-train-000000.tar").exists());
}

fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries
        .map(|path| (name(&path), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn a_run_that_is_killed_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    scenes(folder, "scenes", 300, 3);
    fs::write(folder.join("scenes/000007.jpg"), "no image").unwrap();
    let arguments = |out: &'static str| {
        [
            "shard",
            "scenes",
            "--out",
            out,
            "--held-out",
            "0.2",
            "--max-count",
            "16",
            "--resize",
            "keep_ratio",
            "--drop-doubles",
            "near",
        ]
    };
    qfdata(folder).args(arguments("whole/s")).output().unwrap();
    let whole = contents(&folder.join("whole"));
    assert!(
        whole.keys().any(|name| name.starts_with("s-val-00000")),
        "{:?}",
        whole.keys()
    );
    let (mut kills, mut wait) = (0, Duration::from_millis(15));
    for _ in 0..200 {
        let mut child = qfdata(folder)
            .args(arguments("killed/s"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(wait);
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        wait += Duration::from_millis(if kills % 3 == 0 { 25 } else { 7 });
    }
    assert!(kills > 1, "killed {kills} times");
    let killed = contents(&folder.join("killed"));
    assert_eq!(
        killed.keys().collect::<Vec<_>>(),
        whole.keys().collect::<Vec<_>>()
    );
    for (name, content) in &whole {
        // Statistics name the settings, the same for both.
        assert!(killed[name] == *content, "{name} differs");
    }
}

#[test]
fn parts_of_a_plan_hold_out_what_one_run_does() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    scenes(folder, "scenes", 80, 4);
    let options = ["scenes", "--held-out", "30%", "--max-count", "8"];
    let single = run(
        folder,
        &[&["shard", "--json", "--out", "one/s"], &options[..]].concat(),
    );
    let (trained, held_out) = sides(folder, &single);
    let plan = [
        "plan",
        "--out",
        "parts/s",
        "--parts",
        "3",
        "--plan",
        "plan.json",
    ];
    run(folder, &[&plan, &options[..]].concat());
    let mut joined = (BTreeSet::new(), BTreeSet::new());
    for part in ["0", "1", "2"] {
        let summary = run(
            folder,
            &["shard", "--plan", "plan.json", "--part", part, "--json"],
        );
        let (more, held) = sides(folder, &summary);
        joined.0.extend(more);
        joined.1.extend(held);
    }
    assert_eq!(joined, (trained, held_out.clone()));
    let total = run(folder, &["finish", "plan.json", "--json"]);
    assert_eq!(total["samples"], 80);
    assert_eq!(total["held_out"]["samples"], held_out.len());
    // A shard that is missing is missed, on this side too.
    let shard = total["shards"].as_array().unwrap().iter();
    let shard = shard
        .filter_map(|shard| shard["file"].as_str())
        .find(|file| file.contains("-val-"));
    fs::remove_file(folder.join("parts").join(shard.unwrap())).unwrap();
    let refused = qfdata(folder)
        .args(["finish", "plan.json"])
        .output()
        .unwrap();
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(
        !refused.status.success() && message.contains(shard.unwrap()),
        "{message}"
    );
}
