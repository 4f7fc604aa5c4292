//! See `tests/cases/mod.rs`.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::case;
use crate::bin;
use crate::ddp::{kill, ranks_of};
use crate::train_cli::{
    checkpoint, command, data, fails, glob, metrics, path, qftrain, same_run, small_run, succeeds,
    tar_shard,
};

/// A learning rate that does not depend on the length of the run.
const CONSTANT: [&str; 6] = [
    "--set",
    "schedule.init_lr=1e-3",
    "--set",
    "schedule.min_lr=1e-3",
    "--set",
    "schedule.warmup_steps=0",
];

/// More steps than any test waits for, and no save before the end.
const ENDLESS: [&str; 4] = [
    "--steps",
    "1000000",
    "--set",
    "checkpoint_every_steps=1000000",
];

/// Starts a run and waits until it has logged some steps.
fn start(arguments: &[&str], run: &Path) -> Child {
    let child = command(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("qftrain starts");
    wait_for_steps(child, run)
}

fn wait_for_steps(mut child: Child, run: &Path) -> Child {
    let started = Instant::now();
    while lines(&run.join("metrics.jsonl")).len() < 3 {
        if let Some(status) = child.try_wait().unwrap() {
            let mut text = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                stderr.read_to_string(&mut text).unwrap();
            }
            panic!("the run ended with {status}: {text}");
        }
        assert!(started.elapsed() < Duration::from_secs(120), "no step");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

/// The end of a run that fails: its error, from `error:` on.
fn failure(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    stderr[stderr.find("error:").expect(&stderr)..].to_string()
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_string).collect()
}

/// The last logged step, which must be in a checkpoint, and the words of how to go on with it.
fn is_saved(run: &Path, message: &str) -> u64 {
    let last = metrics(run).last().unwrap()["step"].as_u64().unwrap();
    assert!(checkpoint(run, last).join("manifest.json").exists());
    let hint = format!(
        "saved at step {last}: go on with `qftrain --run-dir {} --resume`",
        run.display()
    );
    assert!(message.contains(&hint), "{message}");
    last
}

/// A server of the shards of a folder, `http://127.0.0.1:PORT/plain/NAME`.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(root: &Path) -> Server {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let script = case("outage-loses-run").with_file_name("http_srv.py");
        let child = Command::new("python3")
            .arg(script)
            .arg(port.to_string())
            .arg(root)
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 starts");
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(30), "no server");
            std::thread::sleep(Duration::from_millis(20));
        }
        Server { child, port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The shards of [`data`] in a folder of their own, as a pattern.
fn own_shards(folder: &TempDir) -> (PathBuf, String) {
    let own = folder.path().join("data");
    fs::create_dir(&own).unwrap();
    for number in 0..2 {
        let name = format!("scenes-{number:06}.tar");
        fs::copy(data().join(&name), own.join(&name)).unwrap();
    }
    let pattern = format!("{}/scenes-*.tar", own.display());
    (own, pattern)
}

/// `outage-loses-run`: a server that is gone, and a shard that is, end a run; neither loses a step.
#[test]
fn an_outage_and_a_vanished_shard_save_first() {
    let folder = tempfile::tempdir().unwrap();
    let (own, pattern) = own_shards(&folder);

    // The server's end, and its shards again from the disk: the same names and sizes.
    let run_dir = path(&folder, "outage");
    let run = Path::new(&run_dir);
    let server = Server::start(&own);
    let urls = format!(
        "http://127.0.0.1:{}/plain/scenes-{{000000..000001}}.tar",
        server.port
    );
    let soon = ["--set", "remote.outage_secs=1"];
    let more = [&ENDLESS[..], &CONSTANT, &soon].concat();
    let child = start(&small_run(&run_dir, &urls, &more), run);
    drop(server);
    let step = is_saved(run, &failure(child));
    let unbroken = path(&folder, "unbroken");
    let until = (step + 4).to_string();
    let more = [&["--steps", until.as_str()][..], &CONSTANT].concat();
    succeeds(&small_run(&unbroken, &pattern, &more));
    let resume = ["--run-dir", &run_dir, "--resume", "--steps", &until];
    succeeds(&[&resume[..], &["--shards", &pattern]].concat());
    same_run(Path::new(&unbroken), run, step + 4);

    // A shard's end, and its return.
    let run_dir = path(&folder, "vanished");
    let run = Path::new(&run_dir);
    let more = [&ENDLESS[..], &CONSTANT].concat();
    let child = start(&small_run(&run_dir, &pattern, &more), run);
    let shard = own.join("scenes-000001.tar");
    let away = folder.path().join("away.tar");
    fs::rename(&shard, &away).unwrap();
    let message = failure(child);
    assert!(message.contains("scenes-000001.tar"), "{message}");
    let step = is_saved(run, &message);
    fs::rename(&away, &shard).unwrap();
    let until = (step + 5).to_string();
    succeeds(&["--run-dir", &run_dir, "--resume", "--steps", &until]);
    let unbroken = path(&folder, "unbroken-too");
    let more = [&["--steps", until.as_str()][..], &CONSTANT].concat();
    succeeds(&small_run(&unbroken, &pattern, &more));
    same_run(Path::new(&unbroken), run, step + 5);
}

/// Data that fail on one of two ranks: both agree, and rank 0 saves.
#[test]
fn ranks_save_before_the_failure_of_one_ends_them() {
    let folder = tempfile::tempdir().unwrap();
    let (own, pattern) = own_shards(&folder);
    let run_dir = path(&folder, "run");
    let run = Path::new(&run_dir);
    let more = [&ENDLESS[..], &CONSTANT, &["--nproc", "2"]].concat();
    let child = start(&small_run(&run_dir, &pattern, &more), run);
    fs::rename(own.join("scenes-000001.tar"), own.join("away")).unwrap();
    let message = failure(child);
    assert!(message.contains("scenes-000001.tar"), "{message}");
    let step = is_saved(run, &message);
    fs::rename(own.join("away"), own.join("scenes-000001.tar")).unwrap();
    let until = (step + 3).to_string();
    let resume = [
        "--run-dir",
        &run_dir,
        "--resume",
        "--nproc",
        "2",
        "--steps",
        &until,
    ];
    succeeds(&resume);
    let unbroken = path(&folder, "unbroken");
    let more = [&["--steps", until.as_str(), "--nproc", "2"][..], &CONSTANT].concat();
    succeeds(&small_run(&unbroken, &pattern, &more));
    same_run(Path::new(&unbroken), run, step + 3);
}

/// A rank that is killed takes no step of the others with it, as long as it is not the first.
#[test]
fn a_killed_rank_costs_no_step() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let run = Path::new(&run_dir);
    let shard = folder.path().join("some.tar");
    // Bad samples, so that ranks stand at different places of their data.
    captions_missing(&shard, 96, |n| n % 12 == 7);
    let shards = shard.display().to_string();
    let more = [&ENDLESS[..], &CONSTANT, &["--nproc", "3"]].concat();
    let child = start(&small_run(&run_dir, &shards, &more), run);
    let ranks = ranks_of(&child);
    kill("-KILL", ranks[2].1);
    let message = failure(child);
    assert!(
        message.contains("rank 2 was killed by signal 9"),
        "{message}"
    );
    let step = metrics(run).last().unwrap()["step"].as_u64().unwrap();
    assert!(
        checkpoint(run, step).join("manifest.json").exists(),
        "{message}"
    );
    let until = (step + 4).to_string();
    succeeds(&[
        "--run-dir",
        &run_dir,
        "--resume",
        "--nproc",
        "3",
        "--steps",
        &until,
    ]);
    let unbroken = path(&folder, "unbroken");
    let more = [&["--steps", until.as_str(), "--nproc", "3"][..], &CONSTANT].concat();
    succeeds(&small_run(&unbroken, &shards, &more));
    same_run(Path::new(&unbroken), run, step + 4);
}

/// A file that may grow no further stands for a full disk.
#[test]
fn a_disk_that_takes_no_metrics_costs_no_step() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let run = Path::new(&run_dir);
    let shards = glob("tar");
    let more = [&["--steps", "3"][..], &CONSTANT].concat();
    succeeds(&small_run(&run_dir, &shards, &more));
    // In blocks of 1024 bytes, as bash counts; lines of earlier steps are kept.
    let blocks = 4096;
    let used = fs::metadata(run.join("metrics.jsonl")).unwrap().len() as usize;
    let line = "{\"step\":0,\"kind\":\"note\",\"text\":\"\"}\n";
    let room = 1500;
    let padding = "x".repeat(blocks * 1024 - used - line.len() - room);
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let padded = line.replace("\"\"}", &format!("\"{padding}\"}}")) + &text;
    fs::write(run.join("metrics.jsonl"), padded).unwrap();
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let output = Command::new("bash")
        .args(["-c", &script])
        .arg(bin::qftrain())
        .args(["--run-dir", &run_dir, "--resume", "--steps", "40"])
        .env("OMP_NUM_THREADS", "1")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("metrics.jsonl: File too large"), "{stderr}");
    let (_, hint) = stderr.split_once("saved at step ").expect(&stderr);
    let step: u64 = hint.split(':').next().unwrap().parse().unwrap();
    assert!((4..12).contains(&step), "{stderr}");
    assert!(checkpoint(run, step).join("manifest.json").exists());
    succeeds(&["--run-dir", &run_dir, "--resume", "--steps", "12"]);
    assert!(checkpoint(run, 12).exists());
}

#[test]
fn a_hang_up_saves_unless_it_is_turned_off() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    let run_dir = path(&folder, "run");
    let run = Path::new(&run_dir);
    let child = start(&small_run(&run_dir, &shards, &ENDLESS), run);
    bin::signal("-HUP", &child);
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}");
    assert!(stdout.contains("and saved; continue with"), "{stdout}");

    let run_dir = path(&folder, "nohup");
    let run = Path::new(&run_dir);
    let child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$0\" \"$@\""])
        .arg(bin::qftrain())
        .args(small_run(&run_dir, &shards, &ENDLESS))
        .env("OMP_NUM_THREADS", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut child = wait_for_steps(child, run);
    bin::signal("-HUP", &child);
    let before = lines(&run.join("metrics.jsonl")).len();
    let started = Instant::now();
    while lines(&run.join("metrics.jsonl")).len() < before + 5 {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        assert!(started.elapsed() < Duration::from_secs(60), "no step");
    }
    bin::signal("-INT", &child);
    assert!(child.wait().unwrap().success());
}

/// A shard of `count` samples, those of them that `bad` says without a caption.
fn captions_missing(path: &Path, count: usize, bad: impl Fn(usize) -> bool) {
    let scene = fs::read(data().join("scenes/000000.jpg")).unwrap();
    let names: Vec<_> = (0..count)
        .map(|n| (format!("{n:05}.jpg"), format!("{n:05}.txt")))
        .collect();
    let mut members: Vec<(&str, &[u8])> = Vec::new();
    for (n, (image, caption)) in names.iter().enumerate() {
        members.push((image, &scene));
        if !bad(n) {
            members.push((caption, b"a small red disc"));
        }
    }
    tar_shard(path, &members);
}

/// Key and step of each line of skipped.jsonl.
fn skipped(run: &Path) -> Vec<(String, u64)> {
    let lines = lines(&run.join("skipped.jsonl")).into_iter();
    let lines = lines.map(|line| serde_json::from_str::<Value>(&line).unwrap());
    lines
        .map(|line| {
            assert!(line["shard"].as_str().unwrap().ends_with(".tar"), "{line}");
            assert!(line["offset_bytes"].is_u64() && line["reason"].is_string());
            let key = line["key"].as_str().unwrap().to_string();
            (key, line["step"].as_u64().unwrap())
        })
        .collect()
}

fn warnings(output: &Output) -> usize {
    let stderr = String::from_utf8_lossy(&output.stderr);
    stderr.matches("skipped sample ").count()
}

#[test]
fn data_of_which_most_is_bad_trains_to_no_end() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("poor.tar");
    captions_missing(&shard, 400, |n| n % 5 != 0);
    let shards = shard.display().to_string();
    let run_dir = path(&folder, "run");
    let run = Path::new(&run_dir);
    let more = [&ENDLESS[..], &CONSTANT].concat();
    let output = qftrain(&small_run(&run_dir, &shards, &more));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let message = &stderr[stderr.find("error:").unwrap()..];
    for word in [
        "samples are bad, 80",
        "no_caption",
        "max_bad_share = 0.1",
        "skipped.jsonl",
    ] {
        assert!(message.contains(word), "`{word}`: {message}");
    }
    let step = is_saved(run, message);
    // 1,000 samples, a fifth of them in batches of 4.
    assert!((48..=52).contains(&step), "{step}");
    let named = skipped(run);
    let mut keys: Vec<&String> = named.iter().map(|(key, _)| key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!((named.len(), keys.len()), (320, 320));
    // Each once, or fewer where warnings are bounded.
    assert!((1..=320).contains(&warnings(&output)), "{stderr}");

    // On purpose it goes on, says what changed, and names none again.
    let until = (step + 60).to_string();
    let resume = ["--run-dir", &run_dir, "--resume", "--steps", &until];
    let output = qftrain(&[&resume[..], &["--set", "data.max_bad_share=0.9"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("data.max_bad_share 0.1 → 0.9"), "{stderr}");
    assert_eq!(skipped(run).len(), 320);
    assert_eq!(warnings(&output), 0, "{stderr}");
}

/// The list of bad samples is that of an unbroken run, however often a run was killed and by however many
/// ranks it was made.
#[test]
fn every_bad_sample_is_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("some.tar");
    captions_missing(&shard, 96, |n| n % 12 == 7);
    let shards = shard.display().to_string();
    let all: Vec<String> = (0..96)
        .filter(|n| n % 12 == 7)
        .map(|n| format!("{n:05}"))
        .collect();
    let often = ["--steps", "60", "--set", "checkpoint_every_steps=7"];
    let unbroken = path(&folder, "unbroken");
    let output = qftrain(&small_run(&unbroken, &shards, &often));
    assert!(output.status.success());
    assert_eq!(warnings(&output), all.len());
    let expected = skipped(Path::new(&unbroken));
    let mut keys: Vec<String> = expected.iter().map(|(key, _)| key.clone()).collect();
    keys.sort();
    assert_eq!(keys, all);

    let run_dir = path(&folder, "killed");
    let run = Path::new(&run_dir);
    let mut child = start(&small_run(&run_dir, &shards, &often), run);
    child.kill().unwrap();
    child.wait().unwrap();
    succeeds(&["--run-dir", &run_dir, "--resume"]);
    assert_eq!(skipped(run), expected);
    same_run(Path::new(&unbroken), run, 60);

    let run_dir = path(&folder, "ranks");
    let more = [&often[..], &["--nproc", "2", "--set", "data.batch_size=2"]].concat();
    succeeds(&small_run(&run_dir, &shards, &more));
    let mut keys: Vec<String> = skipped(Path::new(&run_dir))
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    keys.sort();
    assert_eq!(keys, all);
}

/// What a resumed run asks about: an option, what is said to have changed, and what that changes.
const CHANGES: [([&str; 2], &str, &str); 8] = [
    (
        ["--lr", "2e-4"],
        "schedule.init_lr 0.001 → 0.0002",
        "learning rates",
    ),
    (["--steps", "9"], "steps 8 → 9", "learning rates"),
    (
        ["--set", "data.decode_quality=exact"],
        "data.decode_quality \"balanced\" → \"exact\"",
        "pixels",
    ),
    (
        ["--set", "data.flip_probability=0.25"],
        "0.5 → 0.25",
        "pixels",
    ),
    (
        ["--set", "data.max_words=9"],
        "data.max_words 50 → 9",
        "texts",
    ),
    (
        ["--set", "data.filters.min_side=8"],
        "data.filters.min_side 0 → 8",
        "which samples",
    ),
    (
        ["--set", "optimizer.weight_decay=0.5"],
        "optimizer.weight_decay",
        "losses or updates",
    ),
    (
        ["--set", "accumulate_steps=2"],
        "accumulate_steps 1 → 2",
        "losses or updates",
    ),
];

#[test]
fn a_resumed_run_says_what_changed_and_asks_before_it_becomes_another() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let shards = glob("tar");
    succeeds(&small_run(
        &run_dir,
        &shards,
        &[
            "--steps",
            "8",
            "--set",
            "checkpoint_every_steps=4",
            "--set",
            "schedule.warmup_steps=0",
        ],
    ));
    fs::remove_dir_all(checkpoint(Path::new(&run_dir), 8)).unwrap();
    let resume = |more: &[&'static str]| -> Vec<&str> {
        [&["--run-dir", run_dir.as_str(), "--resume"][..], more].concat()
    };
    for (option, change, what) in CHANGES {
        let output = qftrain(&resume(&option));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{option:?}: {stderr}");
        assert!(stderr.contains("changed since step 4: "), "{stderr}");
        let said = stderr.contains(change) && stderr.contains(&format!("(changes {what}"));
        assert!(said, "{option:?}: {stderr}");
        assert!(stderr.contains("--allow-changes"), "{stderr}");
    }
    let config = fs::read(Path::new(&run_dir).join("config.toml")).unwrap();
    // By hand is no other way.
    let edited = String::from_utf8(config.clone()).unwrap();
    let edited = edited.replace("flip_probability = 0.5", "flip_probability = 0.0");
    fs::write(Path::new(&run_dir).join("config.toml"), edited).unwrap();
    let message = fails(1, &resume(&[]));
    assert!(message.contains("data.flip_probability"), "{message}");
    fs::write(Path::new(&run_dir).join("config.toml"), config).unwrap();

    // What changes no number is said, and what does is done where that is wanted.
    let harmless = [
        "--threads",
        "2",
        "--set",
        "log_every_steps=2",
        "--set",
        "keep_checkpoints=5",
    ];
    let output = qftrain(&resume(&harmless));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let line =
        "changed since step 4: data.threads 1 → 2; keep_checkpoints 2 → 5; log_every_steps 1 → 2\n";
    assert!(stderr.contains(line), "{stderr}");
    let output = qftrain(&resume(&[
        "--steps",
        "12",
        "--lr",
        "2e-4",
        "--allow-changes",
    ]));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(
        stderr.contains("steps 8 → 12 (changes learning rates)"),
        "{stderr}"
    );
}

/// A run of relative paths, started in a folder, goes on from another.
#[test]
fn a_run_goes_on_from_any_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (_, _) = own_shards(&folder);
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let run = folder.path().join("run");
    let steps = |steps: &'static str| [&["--steps", steps][..], &CONSTANT].concat();
    let in_folder = |here: &Path, arguments: &[&str]| {
        let mut command = command(arguments);
        command.current_dir(here).output().unwrap()
    };
    let five = steps("5");
    let output = in_folder(folder.path(), &small_run("run", "data/scenes-*.tar", &five));
    assert!(output.status.success(), "{output:?}");
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    let here = folder.path().display().to_string();
    assert!(
        config.contains(&format!("\"{here}/data/scenes-*.tar\"")),
        "{config}"
    );
    let run_dir = run.display().to_string();
    let resume = ["--run-dir", &run_dir, "--resume", "--steps", "9"];
    let output = in_folder(&elsewhere, &resume);
    assert!(output.status.success(), "{output:?}");
    let straight = path(&folder, "straight");
    let pattern = format!("{here}/data/scenes-*.tar");
    let nine = steps("9");
    succeeds(&small_run(&straight, &pattern, &nine));
    same_run(Path::new(&straight), &run, 9);

    // Of an earlier program.
    for config in [
        run.join("config.toml"),
        checkpoint(&run, 9).join("config.toml"),
    ] {
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replace(&format!("{here}/data/"), "data/")).unwrap();
    }
    fs::remove_file(checkpoint(&run, 9).join("manifest.json")).unwrap();
    let resume = ["--run-dir", &run_dir, "--resume", "--steps", "11"];
    let output = in_folder(&elsewhere, &resume);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for word in [
        "started in another folder",
        "`data/scenes-*.tar`",
        "--shards",
    ] {
        assert!(stderr.contains(word), "{stderr}");
    }
    let output = in_folder(
        folder.path(),
        &["--run-dir", "run", "--resume", "--steps", "11"],
    );
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn resume_auto_starts_a_run_and_goes_on_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    let run_dir = path(&folder, "run");
    let run = Path::new(&run_dir);
    let config = path(&folder, "config.toml");
    fs::write(&config, include_str!("../../configs/tiny.toml")).unwrap();
    let with = |config: &'static str, steps: &'static str| -> Vec<&str> {
        let more = [&["--steps", steps, "--resume", "auto"][..], &CONSTANT].concat();
        let mut arguments = small_run(&run_dir, &shards, &more);
        if !config.is_empty() {
            arguments.extend(["--preset", config]);
        }
        arguments
    };
    succeeds(&with("tiny", "4"));
    assert!(checkpoint(run, 4).exists());
    let stdout = succeeds(&with("tiny", "4"));
    assert!(stdout.contains("all 4 steps are done"), "{stdout}");
    succeeds(&with("tiny", "7"));
    assert_eq!(metrics(run).len(), 7);
    let unbroken = path(&folder, "unbroken");
    let more = [&["--steps", "7"][..], &CONSTANT].concat();
    succeeds(&small_run(&unbroken, &shards, &more));
    same_run(Path::new(&unbroken), run, 7);
    // Another configuration than the run's is noticed, also one from a file.
    let text = fs::read_to_string(&config).unwrap();
    fs::write(
        &config,
        text.replace("weight_decay = 0.05", "weight_decay = 0.5"),
    )
    .unwrap();
    let mut arguments = with("", "9");
    arguments.extend(["--config", &config]);
    let message = fails(1, &arguments);
    assert!(message.contains("optimizer.weight_decay"), "{message}");

    // A plain --resume takes no option of a start.
    let message = fails(2, &["--run-dir", &run_dir, "--resume", "--preset", "tiny"]);
    assert!(
        message.contains("'--preset <NAME>' cannot be used with '--resume'"),
        "{message}"
    );
    let message = fails(1, &["--run-dir", &path(&folder, "none"), "--resume"]);
    assert!(message.contains("no such folder"), "{message}");
}

/// Files below a folder with the permissions of each, hidden ones too.
fn modes(folder: &Path, found: &mut Vec<(PathBuf, u32)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        found.push((entry.path(), mode));
        if entry.file_type().unwrap().is_dir() {
            modes(&entry.path(), found);
        }
    }
}

/// Has both programs write all kinds of files into the folder that `run` starts them in.
fn write_everything(run: impl Fn(PathBuf, &[&str])) {
    let qfdata = |line: &str| run(bin::qfdata(), &line.split(' ').collect::<Vec<_>>());
    qfdata("synth --count 12 --size 64 --held-out 4 --out scenes");
    for format in ["tar", "tar.gz", "tar.zst", "arrow"] {
        qfdata(&format!(
            "shard scenes/train --out shards/{format} --format {format}"
        ));
    }
    qfdata("index shards/tar-*.tar --overwrite");
    qfdata("vocab --shards shards/tar-*.tar --out more/vocab.txt");
    qfdata(
        "profile --shards shards/tar-*.tar --seconds 0.2 --trace more/trace.json --threads 1 \
         --batch-size 2 --image-size 32",
    );
    qfdata("order --shards shards/tar-*.tar --batch 2 --stop-at 1 --save-state more/state.json");
    let more =
        "--steps 2 --val-shards shards/arrow-*.arrow --val-every 1 --profile --profile-steps 1";
    let more: Vec<_> = more.split(' ').collect();
    run(
        bin::qftrain(),
        &small_run("runs/a", "shards/tar-*.tar", &more),
    );
    for (format, out) in [("hf", "exported"), ("lavis", "lavis.safetensors")] {
        let export = [
            "export",
            "--run-dir",
            "runs/a",
            "--format",
            format,
            "--out",
            out,
        ];
        run(bin::qftrain(), &export);
    }
}

#[test]
fn files_have_the_permissions_that_the_umask_leaves() {
    for (umask, file_mode, folder_mode) in [
        ("022", 0o644, 0o755),
        ("027", 0o640, 0o750),
        ("077", 0o600, 0o700),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let run = |program: PathBuf, arguments: &[&str]| {
            let output = Command::new("sh")
                .args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")])
                .arg(program)
                .args(arguments)
                .current_dir(folder.path())
                .env("OMP_NUM_THREADS", "1")
                .output()
                .unwrap();
            assert!(output.status.success(), "{arguments:?}: {output:?}");
        };
        write_everything(run);
        let mut found = Vec::new();
        modes(folder.path(), &mut found);
        assert!(found.len() > 40, "{found:?}");
        for (path, mode) in &found {
            let expected = match path.is_dir() {
                true => folder_mode,
                false => file_mode,
            };
            assert_eq!(
                mode,
                &expected,
                "umask {umask}: {mode:o} {}",
                path.display()
            );
        }
        for name in [
            "model.safetensors",
            "skipped.jsonl",
            "best.json",
            "lavis.safetensors",
        ] {
            let is_there = found.iter().any(|(path, _)| path.ends_with(name));
            assert_eq!(is_there, name != "skipped.jsonl", "{name}");
        }
    }
}

#[test]
fn a_start_that_fails_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    let run_dir = path(&folder, "new/run");
    let check = |arguments: &[&str]| {
        fails(1, arguments);
        assert!(!folder.path().join("new").exists(), "{arguments:?}");
    };
    check(&small_run(&run_dir, "/none/*.tar", &["--steps", "2"]));
    check(&small_run(
        &run_dir,
        &shards,
        &["--steps", "2", "--tokenizer", "/none/vocab.txt"],
    ));
    check(&small_run(
        &run_dir,
        &shards,
        &["--steps", "2", "--weights", "/none/model.pth"],
    ));
    check(&small_run(
        &run_dir,
        &shards,
        &["--steps", "2", "--set", "data.batch_size=512"],
    ));
    check(&small_run(
        &run_dir,
        &shards,
        &["--steps", "2", "--set", "freeze=[\"nothing*\"]"],
    ));
    // A folder that was there stays.
    fs::create_dir(folder.path().join("old")).unwrap();
    fails(
        1,
        &small_run(&path(&folder, "old"), "/none/*.tar", &["--steps", "2"]),
    );
    assert!(folder.path().join("old").is_dir());
    let output = Command::new(bin::qfdata())
        .args(["vocab", "--shards", "/none/*.tar", "--out"])
        .arg(folder.path().join("new/vocab.txt"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!folder.path().join("new").exists());
}

/// Words that only a Rust programmer knows.
const RUST_WORDS: [&str; 12] = [
    "usize",
    "u64",
    "u32",
    "i64",
    "f64",
    "non-zero type",
    "target type",
    "digit found",
    "..=",
    "Some(",
    "None",
    "unknown field",
];

#[test]
fn mistakes_are_told_in_plain_words() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    let run_dir = path(&folder, "run");
    let check = |message: &str, words: &[&str]| {
        for word in words {
            assert!(message.contains(word), "`{word}`: {message}");
        }
        for word in RUST_WORDS {
            assert!(!message.contains(word), "`{word}`: {message}");
        }
    };
    for (setting, words) in [
        (
            "data.batchsize=8",
            &["did you mean `batch_size`?", "`data`"][..],
        ),
        ("data.batch-size=8", &["did you mean `batch_size`?"]),
        ("stepz=8", &["did you mean `steps`?"]),
        (
            "optimizer.betta2=0.9",
            &["did you mean `beta2`?", "`optimizer`"],
        ),
        ("model.qformer.layrs=2", &["did you mean `layers`?"]),
        (
            "data.batch_size=many",
            &["a whole number", "many", "data.batch_size"],
        ),
        ("data.batch_size=-4", &["0 or more", "-4"]),
        ("data.batch_size=1.5", &["a whole number", "1.5"]),
        ("data.drop_last=2", &["true or false"]),
        ("data.crop_scale=3", &["a list of 2 numbers"]),
        ("data.shuffle=bufer", &["did you mean `buffer`?"]),
        ("precision=bf17", &["did you mean `bf16`?"]),
        ("schedule.type=cosin", &["did you mean `cosine`?"]),
        ("data.max_bad_share=2", &["max_bad_share", "0 to 1"]),
    ] {
        check(
            &fails(1, &small_run(&run_dir, &shards, &["--set", setting])),
            words,
        );
    }
    let file = path(&folder, "config.toml");
    fs::write(&file, "steps = 3\n[data]\nbatchsize = 4\n").unwrap();
    let message = fails(1, &["--shards", &shards, "--config", &file]);
    check(&message, &["line 3", "did you mean `batch_size`?"]);
    for (arguments, words) in [
        (
            &["--steps", "0"][..],
            &["'--steps <STEPS>'", "must be at least 1"][..],
        ),
        (&["--steps", "many"], &["a whole number"]),
        (&["--batch-size", "-1"], &[]),
        (&["--batch-size", "99999999999"], &["4294967295"]),
        (&["--lr", "fast"], &["expected a number"]),
        (&["--nproc", "5000"], &["must be 1 to 1024"]),
    ] {
        check(&fails(2, arguments), words);
    }
    let output = Command::new(bin::qfdata())
        .args(["shard", "x", "--out", "y", "--max-count", "0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    check(
        &String::from_utf8_lossy(&output.stderr),
        &["must be at least 1"],
    );
    assert!(!Path::new(&run_dir).exists());
}

#[test]
fn evaluation_in_a_pipe_shows_progress() {
    let folder = tempfile::tempdir().unwrap();
    let run_dir = path(&folder, "run");
    let shards = glob("tar");
    succeeds(&small_run(&run_dir, &shards, &["--steps", "2"]));
    let output = qftrain(&[
        "eval",
        "--run-dir",
        &run_dir,
        "--shards",
        &shards,
        "--rerank",
        "4",
    ]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("encoding images: 24 in "), "{stderr}");
    assert!(
        stderr.contains("re-ranking images and captions: "),
        "{stderr}"
    );
}
