//! `qfdata synth` from the command line.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::bin;
use crate::shard_cli::shard;

fn synth(out: &Path, options: &[&str]) -> Output {
    Command::new(bin::qfdata())
        .args(["synth", "--size", "64", "--out"])
        .arg(out)
        .args(options)
        .output()
        .expect("qfdata starts")
}

/// Content of every file of a folder by name.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read(path).unwrap())
        })
        .collect()
}

fn captions(files: &BTreeMap<String, Vec<u8>>) -> HashSet<String> {
    files
        .iter()
        .filter(|(name, _)| name.ends_with(".txt"))
        .flat_map(|(_, text)| std::str::from_utf8(text).unwrap().lines())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_seed_alone_decides_and_nothing_held_out_is_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let out = |name: &str| folder.path().join(name);
    let options = [
        "--count",
        "60",
        "--held-out",
        "20",
        "--captions",
        "4",
        "--seed",
        "1",
    ];
    assert!(synth(&out("a"), &options).status.success());
    assert!(
        synth(&out("b"), &[&options[..], &["--threads", "3"]].concat())
            .status
            .success()
    );
    let train = contents(&out("a/train"));
    let held = contents(&out("a/held"));
    assert_eq!((train.len(), held.len()), (120, 40));
    assert_eq!(
        (&contents(&out("b/train")), &contents(&out("b/held"))),
        (&train, &held)
    );
    assert_eq!(captions(&train).len(), 240, "no caption twice");
    assert_eq!(captions(&held).len(), 80, "no caption twice");
    assert!(captions(&train).is_disjoint(&captions(&held)));

    assert!(synth(
        &out("c"),
        &["--count", "60", "--captions", "4", "--seed", "1"]
    )
    .status
    .success());
    assert_eq!(contents(&out("c")), train, "held-out images change nothing");
    assert!(synth(
        &out("d"),
        &["--count", "60", "--captions", "4", "--seed", "2"]
    )
    .status
    .success());
    assert_ne!(contents(&out("d")), train);
    let image = image::load_from_memory(&train["000000.jpg"]).unwrap();
    assert_eq!((image.width(), image.height()), (64, 64));

    let summary = shard(&out("a/train"), &out("shards/train"), &[]);
    assert_eq!(
        (&summary["samples"], &summary["captions"]),
        (&60.into(), &240.into())
    );
}

#[test]
fn a_folder_in_use_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("scenes");
    assert!(synth(&out, &["--count", "9"]).status.success());
    let before = contents(&out);
    let refused = synth(&out, &["--count", "3"]);
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("--overwrite"), "{message}");
    assert_eq!(contents(&out), before);
    assert!(synth(&out, &["--count", "3", "--overwrite"])
        .status
        .success());
    assert_eq!(contents(&out).len(), 6);
    fs::write(out.join("notes.md"), "mine").unwrap();
    let refused = synth(&out, &["--count", "3", "--overwrite"]);
    assert!(String::from_utf8(refused.stderr)
        .unwrap()
        .contains("notes.md"));
    assert_eq!(contents(&out).len(), 7);
}
