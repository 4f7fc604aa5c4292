//! `qftrain` from the command line: runs, resumption, evaluation, and what it refuses.

/// What a run does not start with.
mod bad_input;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::bin;
use crate::shard_cli;
use crate::test_data;

/// A network that steps in milliseconds, on batches of 4.
pub(crate) const SMALL: [&str; 16] = [
    "data.batch_size=4",
    "data.threads=1",
    "data.image_size=64",
    "model.vision.image_size=64",
    "model.vision.patch_size=16",
    "model.vision.width=32",
    "model.vision.depth=1",
    "model.vision.heads=2",
    "model.vision.mlp=64",
    "model.qformer.hidden=32",
    "model.qformer.layers=2",
    "model.qformer.heads=2",
    "model.qformer.embed_dim=16",
    "model.qformer.intermediate=64",
    "model.qformer.num_queries=4",
    "model.qformer.encoder_width=32",
];

/// Metrics that the data and the seeds decide; the others are times.
const EXACT_METRICS: [&str; 9] = [
    "step",
    "epoch",
    "loss",
    "loss_itc",
    "loss_itm",
    "loss_lm",
    "lr",
    "samples_read",
    "samples_skipped",
];

/// 24 captioned scenes, as `scenes/` and as two shards in each format.
pub(crate) fn data() -> &'static Path {
    static DATA: OnceLock<TempDir> = OnceLock::new();
    let data = DATA.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let scenes = folder.path().join("scenes");
        let output = Command::new(bin::qfdata())
            .args(["synth", "--count", "24", "--size", "64", "--seed", "1"])
            .arg("--out")
            .arg(&scenes)
            .output()
            .expect("qfdata starts");
        assert!(output.status.success(), "{output:?}");
        for format in shard_cli::FORMATS {
            let prefix = folder.path().join("scenes");
            let options = ["--format", format, "--max-count", "12"];
            shard_cli::shard(&scenes, &prefix, &options);
        }
        folder
    });
    data.path()
}

/// The shards of [`data`] in a format, as a glob.
pub(crate) fn glob(format: &str) -> String {
    format!("{}/scenes-*.{format}", data().display())
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(bin::qftrain());
    // One thread is fastest for networks this small, and leaves the cores to the other tests.
    command.args(arguments).env("OMP_NUM_THREADS", "1");
    command.stdin(Stdio::null());
    command
}

pub(crate) fn qftrain(arguments: &[&str]) -> Output {
    command(arguments).output().expect("qftrain starts")
}

/// Arguments of a small run of the tar shards.
pub(crate) fn small_run<'a>(run_dir: &'a str, shards: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["--shards", shards, "--run-dir", run_dir];
    arguments.extend(SMALL.iter().flat_map(|setting| ["--set", *setting]));
    arguments.extend(more);
    arguments
}

pub(crate) fn succeeds(arguments: &[&str]) -> String {
    let output = qftrain(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs what must fail with `code`, one `error:` line and no panic; returns that line and what
/// follows it.
pub(crate) fn fails(code: i32, arguments: &[&str]) -> String {
    let output = qftrain(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let lines = stderr.lines().filter(|line| line.starts_with("error:"));
    assert_eq!(lines.count(), 1, "{stderr}");
    stderr[stderr.find("error:").unwrap()..]
        .trim_end()
        .to_owned()
}

pub(crate) fn metrics(run_dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run_dir.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// What of the logged steps must be the same, bit for bit, in equal runs.
pub(crate) fn exact_metrics(run_dir: &Path) -> Vec<Vec<Value>> {
    let row = |record: Value| EXACT_METRICS.map(|name| record[name].clone()).to_vec();
    let records = metrics(run_dir).into_iter();
    let steps = records.filter(|record| record["kind"] == "train");
    steps.map(row).collect()
}

pub(crate) fn checkpoint(run_dir: &Path, step: u64) -> PathBuf {
    run_dir.join(format!("checkpoints/step-{step:08}"))
}

pub(crate) fn weights(run_dir: &Path, step: u64) -> Vec<u8> {
    fs::read(checkpoint(run_dir, step).join("model.safetensors")).unwrap()
}

/// Everything of a run but its profile (times) and what a killed process may leave: hidden files.
pub(crate) fn same_run(one: &Path, other: &Path, step: u64) {
    assert_eq!(exact_metrics(one), exact_metrics(other));
    assert!(
        weights(one, step) == weights(other, step),
        "weights of {} and {} differ",
        one.display(),
        other.display()
    );
    for file in ["optimizer.safetensors", "state.json"] {
        let read = |run: &Path| fs::read(checkpoint(run, step).join(file)).unwrap();
        assert!(read(one) == read(other), "{file} differs");
    }
}

pub(crate) fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

#[test]
fn a_run_writes_what_it_promises() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("deep/run");
    // A trailing slash names the same folder.
    let run_dir = format!("{}/", run.display());
    let shards = glob("tar");
    let stdout = succeeds(&small_run(&run_dir, &shards, &["--steps", "8"]));

    let records = metrics(&run);
    let steps: Vec<_> = records
        .iter()
        .map(|r| r["step"].as_u64().unwrap())
        .collect();
    assert_eq!(steps, (1..=8).collect::<Vec<_>>());
    for record in &records {
        for name in EXACT_METRICS {
            let value = record[name].as_f64().unwrap();
            assert!(value.is_finite(), "{name}: {record}");
        }
        let sum: f64 = ["loss_itc", "loss_itm", "loss_lm"]
            .iter()
            .map(|name| record[*name].as_f64().unwrap())
            .sum();
        assert!((record["loss"].as_f64().unwrap() - sum).abs() < 1e-5);
        // Of the preset's warm-up: the first step has its first rate.
        let done = record["step"].as_f64().unwrap() - 1.0;
        let lr = 1e-6 + (1e-3 - 1e-6) * done / 200.0;
        assert!(
            (record["lr"].as_f64().unwrap() - lr).abs() < 1e-9,
            "{record}"
        );
    }
    // 24 images, batches of 4: the seventh step begins the second epoch.
    assert_eq!(records[5]["epoch"], 0);
    assert_eq!(records[6]["epoch"], 1);

    let vocabulary = fs::read_to_string(run.join("vocab.txt")).unwrap();
    assert!(vocabulary.lines().count() > 100 && vocabulary.starts_with("[PAD]\n"));
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    // [DEC] comes on top of the file's entries.
    let vocab_size = format!("vocab_size = {}", vocabulary.lines().count() + 1);
    assert!(config.contains(&vocab_size), "{config}");
    assert!(config.contains("steps = 8") && config.contains(&shards));
    for file in ["optimizer.safetensors", "state.json", "manifest.json"] {
        assert!(checkpoint(&run, 8).join(file).is_file(), "{file}");
    }
    let kept = fs::read_to_string(checkpoint(&run, 8).join("config.toml")).unwrap();
    assert_eq!(kept, config);
    let profile = fs::read_to_string(run.join("profile.json")).unwrap();
    let profile: Value = serde_json::from_str(&profile).unwrap();
    assert!(profile["bottleneck"].as_str().unwrap().len() > 20);
    assert_eq!(profile["images"], 32);
    let names = |list: &Value| -> Vec<String> {
        let stages = list.as_array().unwrap().iter();
        stages.map(|s| s["name"].as_str().unwrap().into()).collect()
    };
    let stages = names(&profile["loader"]["stages"]);
    let expected = [
        "read",
        "decompress",
        "decode",
        "augment",
        "tokenise",
        "collate",
        "upload",
    ];
    assert_eq!(stages, expected);
    let expected = [
        "wait",
        "tower",
        "agree",
        "forward",
        "backward",
        "optimiser",
        "snapshot",
        "validate",
    ];
    assert_eq!(names(&profile["phases"]), expected);
    assert!(stdout.contains("\nbottleneck: "), "{stdout}");
    assert_eq!(counters(&stdout), [32, 32, 0, 0]);
    assert!(stdout.ends_with(&format!("done: step 8 of 8, run in {run_dir}\n")));

    // Settings of a file: the resolved configuration is one.
    let again = path(&folder, "again");
    let config = run.join("config.toml").display().to_string();
    succeeds(&["--config", &config, "--run-dir", &again]);
    same_run(&run, Path::new(&again), 8);
}

/// The numbers of `samples: R read = D delivered + S skipped + L left over`, which must add up.
fn counters(stdout: &str) -> [u64; 4] {
    let line = stdout
        .lines()
        .find(|line| line.starts_with("samples: "))
        .unwrap();
    let numbers: Vec<u64> = line
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let [read, delivered, skipped, left_over] = numbers[..] else {
        panic!("{line}");
    };
    assert_eq!(read, delivered + skipped + left_over, "{line}");
    [read, delivered, skipped, left_over]
}

/// Starts a run and waits until it has logged `steps` steps.
fn start(arguments: &[&str], run_dir: &str, steps: usize) -> Child {
    let metrics = Path::new(run_dir).join("metrics.jsonl");
    let child = command(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("qftrain starts");
    let started = Instant::now();
    while fs::read_to_string(&metrics)
        .unwrap_or_default()
        .lines()
        .count()
        < steps
    {
        assert!(
            started.elapsed() < Duration::from_secs(120),
            "no step is made"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
    child
}

fn signal(child: &Child, name: &str) {
    crate::bin::signal(name, child);
}

#[test]
fn an_interrupted_run_continues_as_if_nothing_had_happened() {
    const STEPS: u64 = 24;
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar.zst");
    let unbroken = path(&folder, "unbroken");
    succeeds(&small_run(&unbroken, &shards, &["--steps", "24"]));
    let unbroken = Path::new(&unbroken);

    // Ctrl-C, in the middle of the first epoch.
    let run_dir = path(&folder, "interrupted");
    let child = start(
        &small_run(&run_dir, &shards, &["--steps", "24"]),
        &run_dir,
        3,
    );
    // The folder belongs to the run as long as it lives, and be it at rest.
    signal(&child, "-STOP");
    let message = fails(1, &["--run-dir", &run_dir, "--resume"]);
    assert!(message.contains("another process"), "{message}");
    signal(&child, "-INT");
    signal(&child, "-CONT");
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}");
    let last = stdout.lines().last().unwrap();
    let hint = format!("of 24 and saved; continue with --run-dir {run_dir} --resume");
    assert!(
        last.starts_with("interrupted at step ") && last.ends_with(&hint),
        "{last}"
    );
    let done = metrics(Path::new(&run_dir)).len() as u64;
    assert!((3..STEPS).contains(&done));
    assert!(checkpoint(Path::new(&run_dir), done).is_dir());
    succeeds(&["--run-dir", &run_dir, "--resume"]);
    same_run(unbroken, Path::new(&run_dir), STEPS);

    // Killed: the last checkpoint counts, the steps after it are made again.
    let run_dir = path(&folder, "killed");
    let often = ["--steps", "24", "--set", "checkpoint_every_steps=2"];
    let mut child = start(&small_run(&run_dir, &shards, &often), &run_dir, 7);
    child.kill().unwrap();
    child.wait().unwrap();
    succeeds(&["--run-dir", &run_dir, "--resume"]);
    same_run(unbroken, Path::new(&run_dir), STEPS);
    let kept: Vec<_> = fs::read_dir(Path::new(&run_dir).join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with('.'))
        .collect();
    assert_eq!(kept.len(), 2, "keep_checkpoints = 2: {kept:?}");

    // A finished run says so, and stays as it is.
    let before = fs::read(Path::new(&run_dir).join("metrics.jsonl")).unwrap();
    let stdout = succeeds(&["--run-dir", &run_dir, "--resume"]);
    assert!(
        stdout.contains("all 24 steps are done; raise --steps"),
        "{stdout}"
    );
    assert_eq!(
        fs::read(Path::new(&run_dir).join("metrics.jsonl")).unwrap(),
        before
    );
}

#[test]
fn a_finished_run_can_be_extended() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("arrow");
    // The cosine looks at the whole length of a run; a constant rate does not.
    let constant = [
        "--set",
        "schedule.init_lr=1e-3",
        "--set",
        "schedule.min_lr=1e-3",
        "--set",
        "schedule.warmup_steps=0",
    ];
    let eight = path(&folder, "eight");
    let more = [&["--steps", "8"], &constant[..]].concat();
    succeeds(&small_run(&eight, &shards, &more));
    let run_dir = path(&folder, "five");
    let more = [&["--steps", "5"], &constant[..]].concat();
    succeeds(&small_run(&run_dir, &shards, &more));
    assert_eq!(
        exact_metrics(Path::new(&run_dir))[..],
        exact_metrics(Path::new(&eight))[..5]
    );
    succeeds(&["--run-dir", &run_dir, "--resume", "--steps", "8"]);
    same_run(Path::new(&eight), Path::new(&run_dir), 8);

    // Shards that were moved are the same shards; more threads change nothing.
    let moved = folder.path().join("moved");
    fs::create_dir(&moved).unwrap();
    for entry in fs::read_dir(data()).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "arrow")
        {
            fs::copy(&path, moved.join(path.file_name().unwrap())).unwrap();
        }
    }
    let moved = format!("{}/*.arrow", moved.display());
    let more = [
        "--resume",
        "--steps",
        "10",
        "--shards",
        &moved,
        "--threads",
        "2",
    ];
    succeeds(&[&["--run-dir", &run_dir], &more[..]].concat());
    succeeds(&["--run-dir", &eight, "--resume", "--steps", "10"]);
    same_run(Path::new(&eight), Path::new(&run_dir), 10);
}

#[test]
fn all_formats_train_alike() {
    let folder = tempfile::tempdir().unwrap();
    let runs = shard_cli::FORMATS.map(|format| {
        let run_dir = path(&folder, format);
        succeeds(&small_run(&run_dir, &glob(format), &["--steps", "10"]));
        run_dir
    });
    let expected = exact_metrics(Path::new(&runs[0]));
    assert_eq!(expected.len(), 10);
    for run in &runs[1..] {
        assert_eq!(exact_metrics(Path::new(run)), expected, "{run}");
        let (one, other) = (
            weights(Path::new(&runs[0]), 10),
            weights(Path::new(run), 10),
        );
        assert!(one == other, "{run}: other weights");
    }
}

#[test]
fn a_run_folder_is_kept_from_other_runs_and_mistaken_resumptions() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    let run_dir = path(&folder, "run");
    succeeds(&small_run(&run_dir, &shards, &["--steps", "2"]));
    let snapshot = || {
        let run = Path::new(&run_dir);
        ["config.toml", "vocab.txt", "metrics.jsonl"].map(|name| fs::read(run.join(name)).unwrap())
    };
    let before = snapshot();
    let refuses = |arguments: &[&str], words: &[&str]| {
        let message = fails(1, arguments);
        for word in words {
            assert!(message.contains(word), "{message}");
        }
        // Short, except where it lists every tensor that does not fit.
        let lists_tensors = message.contains("does not fit this model");
        assert!(message.len() < 1000 || lists_tensors, "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(snapshot() == before, "{arguments:?} changed the run");
    };
    refuses(
        &small_run(&run_dir, &shards, &["--steps", "2"]),
        &[&run_dir, "already holds a run", "--resume", "--run-dir"],
    );
    let resume = |more: &[&'static str]| -> Vec<&str> {
        [
            &["--run-dir", run_dir.as_str(), "--resume"][..],
            &["--steps", "4", "--allow-changes"][..],
            more,
        ]
        .concat()
    };
    refuses(
        &resume(&["--set", "model.qformer.hidden=64"]),
        &[
            "model.safetensors",
            "query_tokens",
            "[1, 4, 32]",
            "[1, 4, 64]",
            "itm_head.weight",
        ],
    );
    refuses(
        &resume(&["--set", "model.qformer.layers=3"]),
        &["model.safetensors", "layer.2", "missing"],
    );
    refuses(&resume(&["--seed", "7"]), &["seed", "42", "7"]);
    refuses(
        &resume(&["--set", "data.seed=7"]),
        &["another seed", "(42)", "(7)"],
    );
    refuses(
        &resume(&["--batch-size", "8"]),
        &["batch_size", "(4)", "(8)"],
    );
    let other_shards = glob("arrow");
    let arguments = [&resume(&[])[..], &["--shards", &other_shards]].concat();
    refuses(&arguments, &["shard names and sizes", "same data"]);
    let one_shard = format!("{}/scenes-000000.tar", data().display());
    let arguments = [&resume(&[])[..], &["--shards", &one_shard]].concat();
    refuses(&arguments, &["number of shards", "(2)", "(1)"]);
    let other_tokenizer = Path::new(&run_dir).join("vocab.txt").display().to_string();
    let arguments = [&resume(&[])[..], &["--tokenizer", &other_tokenizer]].concat();
    refuses(&arguments, &["--tokenizer", "keeps the tokenizer"]);
    // After all that the run can still be continued.
    succeeds(&resume(&[]));

    let none = path(&folder, "none");
    let message = fails(1, &["--run-dir", &none, "--resume"]);
    assert!(message.contains("no such folder"), "{message}");
    assert!(!Path::new(&none).exists());
}

/// A tar shard of `scenes` whose samples hold what `members` says.
pub(crate) fn tar_shard(path: &Path, members: &[(&str, &[u8])]) {
    let mut archive = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, data) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, *data).unwrap();
    }
    archive.into_inner().unwrap().flush().unwrap();
}

#[test]
fn a_bad_sample_is_counted_or_fatal() {
    let folder = tempfile::tempdir().unwrap();
    let scene = fs::read(data().join("scenes/000000.jpg")).unwrap();
    let shard = folder.path().join("mixed.tar");
    let names: Vec<_> = (0..6)
        .map(|n| (format!("{n}.jpg"), format!("{n}.txt")))
        .collect();
    let mut members: Vec<(&str, &[u8])> = Vec::new();
    for (n, (image, caption)) in names.iter().enumerate() {
        let image_bytes = match n {
            3 => &b"no picture at all"[..],
            4 => &scene[..scene.len() / 2],
            _ => &scene[..],
        };
        members.push((image, image_bytes));
        members.push((caption, if n == 5 { b" \n" } else { b"a small red disc" }));
    }
    tar_shard(&shard, &members);
    let shard = shard.to_str().unwrap();
    let run_dir = path(&folder, "run");
    let in_order = [
        "--steps",
        "2",
        "--set",
        "data.shuffle=none",
        "--set",
        "data.batch_size=3",
    ];
    let output = qftrain(&small_run(&run_dir, shard, &in_order));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    // The second batch lies in the second epoch, behind the three bad samples of the first.
    assert_eq!(counters(&stdout), [9, 6, 3, 0]);
    for reason in [
        "unknown_image_format: 1",
        "broken_image: 1",
        "empty_caption: 1",
    ] {
        assert!(
            stdout.contains(&format!("  skipped as {reason}\n")),
            "{stdout}"
        );
    }
    assert!(
        stderr.contains(&format!("skipped sample {shard}#3@")),
        "{stderr}"
    );
    let record = &metrics(Path::new(&run_dir))[1];
    assert_eq!(
        (&record["samples_read"], &record["samples_skipped"]),
        (&9.into(), &3.into())
    );

    let fatal = path(&folder, "fatal");
    let strict = [&in_order[..], &["--set", "data.on_bad_sample=error"]].concat();
    let message = fails(1, &small_run(&fatal, shard, &strict));
    for word in [&format!("{shard}#3@"), "image", "on_bad_sample", "skip"] {
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(message.matches("#3@").count(), 1, "{message}");
}

#[test]
fn evaluation_reports_recall_against_chance() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    let run_dir = path(&folder, "run");
    succeeds(&small_run(&run_dir, &shards, &["--steps", "2"]));
    let held = glob("arrow");
    let eval = ["eval", "--run-dir", &run_dir, "--shards", &held];
    let eval = |more: &[&'static str]| -> Vec<&str> { [&eval[..], more].concat() };
    let stdout = succeeds(&eval(&["--json", "--rerank", "4", "--batch-size", "7"]));
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["images"], 24);
    assert_eq!(report["captions"], 72);
    assert_eq!(
        (&report["step"], &report["skipped"]),
        (&2.into(), &0.into())
    );
    for score in ["itc", "itm", "chance"] {
        for side in ["text", "image"] {
            let recall = ["r1", "r5", "r10"].map(|at| report[score][side][at].as_f64().unwrap());
            assert!(recall.windows(2).all(|pair| pair[0] <= pair[1]), "{report}");
            assert!(
                (0.0..=100.0).contains(&recall[0]) && recall[2] <= 100.0,
                "{report}"
            );
        }
    }
    let chance = report["chance"]["image"]["r1"].as_f64().unwrap();
    assert!((chance - 100.0 / 24.0).abs() < 1e-9);
    // Batches of another size, and the other formats, hold the same data.
    let tar = [
        "eval",
        "--run-dir",
        &run_dir,
        "--shards",
        &shards,
        "--json",
        "--rerank",
        "4",
    ];
    assert_eq!(succeeds(&tar), stdout);
    let without = succeeds(&eval(&["--json", "--rerank", "0"]));
    let without: Value = serde_json::from_str(&without).unwrap();
    assert_eq!(without["itm"], Value::Null);
    assert_eq!(without["itc"], report["itc"]);
    let table = succeeds(&eval(&["--rerank", "18446744073709551615"]));
    for word in [
        "retrieval of step 2: 24 images, 72 captions",
        "ITC",
        "ITM",
        "chance",
        "TR@10",
    ] {
        assert!(table.contains(word), "{table}");
    }

    let check = |arguments: &[&str], words: &[&str]| {
        let message = fails(1, arguments);
        for word in words {
            assert!(message.contains(word), "{message}");
        }
    };
    check(&eval(&["--step", "1"]), &["checkpoint of step 1", "of 2"]);
    check(
        &eval(&["--text-len", "65"]),
        &["--text-len 65", "64 positions"],
    );
    check(&eval(&["--batch-size", "0"]), &["batch_size"]);
    fs::remove_dir_all(Path::new(&run_dir).join("checkpoints")).unwrap();
    check(&eval(&[]), &[&run_dir, "holds no checkpoint yet"]);
    fs::remove_file(Path::new(&run_dir).join("config.toml")).unwrap();
    check(&eval(&[]), &[&run_dir, "holds no run"]);
}

#[test]
fn a_given_vocabulary_sizes_the_model() {
    let test = "a_given_vocabulary_sizes_the_model";
    let Some(vocabulary) = test_data::find(test, "data/bert/vocab.txt") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let more = ["--steps", "1", "--tokenizer", vocabulary.to_str().unwrap()];
    succeeds(&small_run(&run_dir, &glob("tar"), &more));
    let config = fs::read_to_string(Path::new(&run_dir).join("config.toml")).unwrap();
    for line in ["vocab_size = 30523\n", "dec_token_id = 30522\n"] {
        assert!(config.contains(line), "{config}");
    }
    // The run keeps the vocabulary.
    let kept = fs::read(Path::new(&run_dir).join("vocab.txt")).unwrap();
    assert!(kept == fs::read(&vocabulary).unwrap());
}

#[test]
fn a_reader_that_goes_away_ends_no_run() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let shards = glob("tar");
    let mut child = command(&small_run(&run_dir, &shards, &["--steps", "2"]))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Both pipes break before the first line.
    drop((child.stdout.take(), child.stderr.take()));
    assert!(child.wait().unwrap().success());
    assert!(checkpoint(Path::new(&run_dir), 2).is_dir());
}
