//! `qfdata plan`, `shard --plan`, `status` and `finish`: one job on many machines.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::bin;
use crate::shard_cli::{image, pairs, read_files};
use crate::shard_store::Moto;
use crate::test_data::python;

const PARTS: u32 = 3;

fn qfdata(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(bin::qfdata());
    command
        .current_dir(folder)
        .args(words)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for name in ["SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX", "RANK"] {
        command.env_remove(name);
    }
    command
}

fn run(folder: &Path, words: &[&str]) -> Output {
    qfdata(folder, words).output().unwrap()
}

fn succeeds(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn fails(output: Output, says: &str) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains(says), "{message}");
    assert!(!message.contains("panicked"), "{message}");
}

fn part(folder: &Path, part: u32) -> Output {
    run(
        folder,
        &["shard", "--plan", "plan.json", "--part", &part.to_string()],
    )
}

fn status(folder: &Path) -> Value {
    serde_json::from_str(&succeeds(run(folder, &["status", "plan.json", "--json"]))).unwrap()
}

/// Files of a folder by name.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read(entry.path()).unwrap())
    });
    entries.collect()
}

fn shards(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "tar"))
        .collect();
    paths.sort();
    paths
}

/// 31 images, one of which is none.
fn input(folder: &Path) {
    pairs(&folder.join("pairs"), 30);
    fs::write(folder.join("pairs/zz.jpg"), "<html>").unwrap();
    fs::write(folder.join("pairs/zz.txt"), "a page").unwrap();
}

const PLAN: [&str; 10] = [
    "plan",
    "pairs",
    "--out",
    "out/s",
    "--parts",
    "3",
    "--plan",
    "plan.json",
    "--max-count",
    "4",
];

#[test]
fn parts_hold_what_one_run_does() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    input(folder);
    let one = [
        "shard",
        "pairs",
        "--out",
        "one/s",
        "--max-count",
        "4",
        "--on-bad",
        "skip",
    ];
    assert_eq!(run(folder, &one).status.code(), Some(3));
    succeeds(run(folder, &PLAN));
    assert_eq!(status(folder)["complete"], 0);
    fails(
        run(folder, &["finish", "plan.json"]),
        "3 of 3 parts not complete (0, 1, 2)",
    );
    // In any order; one that was killed goes on; one that is complete is not made again.
    succeeds(part(folder, 2));
    let mut child = qfdata(folder, &["shard", "--plan", "plan.json", "--part", "0/3"])
        .spawn()
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    succeeds(part(folder, 0));
    let before = contents(&folder.join("out"));
    let said = succeeds(part(folder, 2));
    assert!(said.contains("complete already"), "{said}");
    assert_eq!(contents(&folder.join("out")), before);
    let found = status(folder);
    assert_eq!(
        (&found["complete"], &found["parts"][1]["complete"]),
        (&Value::from(2), &Value::from(false))
    );
    fails(
        run(folder, &["finish", "plan.json"]),
        "1 of 3 parts not complete (1)",
    );
    // The number of the part by the scheduler's variable.
    let mut command = qfdata(folder, &["shard", "--plan", "plan.json", "--quiet"]);
    succeeds(command.env("SLURM_ARRAY_TASK_ID", "1").output().unwrap());
    let output = run(folder, &["finish", "plan.json", "--json"]);
    assert_eq!(
        output.status.code(),
        Some(3),
        "the page is no image: {output:?}"
    );
    let total: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&total["found"], &total["samples"]),
        (&Value::from(31), &Value::from(30))
    );
    assert!(folder.join("out/s.tar_stats.json").exists());
    let parts = read_files(&shards(&folder.join("out")));
    assert_eq!(parts, read_files(&shards(&folder.join("one"))));
    assert_eq!(parts.len(), 30);
    assert_eq!(
        shards(&folder.join("out")).len(),
        8,
        "full shards: {:?}",
        shards(&folder.join("out"))
    );
    // What finish counts has to be there.
    fs::remove_file(shards(&folder.join("out")).pop().unwrap()).unwrap();
    fails(run(folder, &["finish", "plan.json"]), "part 2: its shard");
    // What looks complete to a scheduler, too, and how it is mended.
    let found = status(folder);
    assert_eq!(found["complete"], 2, "{found}");
    assert!(
        found["parts"][2]["problem"]
            .as_str()
            .unwrap()
            .contains("is missing"),
        "{found}"
    );
    fails(part(folder, 2), "remove out/");
    for file in fs::read_dir(folder.join("out")).unwrap() {
        let file = file.unwrap();
        if file.file_name().to_str().unwrap().contains("-00002") {
            fs::remove_file(file.path()).unwrap();
        }
    }
    part(folder, 2);
    let output = run(folder, &["finish", "plan.json"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

#[test]
fn a_straggler_started_twice_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    input(folder);
    succeeds(run(folder, &PLAN));
    let words = ["shard", "--plan", "plan.json", "--part", "1"];
    let twice: Vec<_> = (0..4)
        .map(|_| qfdata(folder, &words).spawn().unwrap())
        .collect();
    let mut succeeded = 0;
    for child in twice {
        let output = child.wait_with_output().unwrap();
        match output.status.code() {
            Some(0) => succeeded += 1,
            // A part that another process writes on this file system.
            _ => fails(output, "is writing shards"),
        }
    }
    assert!(succeeded >= 1);
    let twice = contents(&folder.join("out"));
    fs::remove_dir_all(folder.join("out")).unwrap();
    succeeds(run(folder, &words));
    assert_eq!(contents(&folder.join("out")), twice);
}

#[test]
fn what_does_not_fit_the_plan_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    input(folder);
    fails(
        run(folder, &[&PLAN[..], &["--drop-doubles", "exact"]].concat()),
        "--drop-doubles",
    );
    succeeds(run(folder, &PLAN));
    fails(
        run(folder, &["shard", "--plan", "plan.json"]),
        "which part?",
    );
    fails(part(folder, PARTS), "0 to 2");
    let more = [
        "shard",
        "--plan",
        "plan.json",
        "--part",
        "0",
        "--max-count",
        "9",
    ];
    fails(run(folder, &more), "are the plan's");
    fails(
        run(folder, &["shard", "--plan", "none.json", "--part", "0"]),
        "none.json",
    );
    fs::write(folder.join("pairs/zz.txt"), "another page, longer").unwrap();
    fails(part(folder, 0), "not the one that the plan was made of");
    assert_eq!(status(folder)["complete"], 0);
}

#[test]
fn plan_and_parts_stand_in_a_bucket() {
    let Some(python) = python("plan_and_parts_stand_in_a_bucket") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    pairs(&folder.join("pairs"), 10);
    fs::write(
        folder.join("pairs/zz.jpg"),
        image(image::ImageFormat::Jpeg, 3),
    )
    .unwrap();
    fs::write(folder.join("pairs/zz.txt"), "the last").unwrap();
    let mut moto = Moto::start(&python);
    let run = |words: &[&str]| {
        let mut command = qfdata(folder, words);
        moto.connect(&mut command);
        succeeds(command.output().unwrap())
    };
    let plan = "s3://bkt/set/plan.json";
    let out = ["--out", "s3://bkt/set/s", "--max-count", "3"];
    run(&[&["plan", "pairs", "--parts", "2", "--plan", plan][..], &out].concat());
    for part in ["1", "0"] {
        run(&["shard", "--plan", plan, "--part", part]);
    }
    let found: Value = serde_json::from_str(&run(&["status", plan, "--json"])).unwrap();
    assert_eq!(found["complete"], 2);
    let total: Value = serde_json::from_str(&run(&["finish", plan, "--json"])).unwrap();
    assert_eq!(total["samples"], 11);
    let (objects, uploads) = moto.objects();
    assert_eq!(uploads, 0);
    let names: Vec<_> = objects
        .keys()
        .filter(|name| name.ends_with(".tar"))
        .collect();
    let expected = [
        "set/s-00000-000000.tar",
        "set/s-00000-000001.tar",
        "set/s-00001-000000.tar",
        "set/s-00001-000001.tar",
    ];
    assert_eq!(names, expected);
}
