//! What the system does to a program: reads that fail or fall short, full and read-only disks, few descriptors,
//! signals, kills, clocks that jump, links that somebody planted. Each ends in completion or in an error that says what
//! failed, and nothing under a final name is partial.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use image::ImageFormat;
use tempfile::TempDir;

use crate::shard_cli::image;
use crate::train_cli::{command, glob, metrics, path, same_run, small_run, succeeds};
use crate::{bin, test_data};

/// `faults/shim.c`, compiled.
fn shim() -> &'static Path {
    static SHIM: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, library) = SHIM.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("faults/shim.c");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .status();
        assert!(status.expect("cc starts").success());
        (folder, library)
    });
    library
}

fn faulty(command: &mut Command, fault: &str) -> Output {
    let command = command.env("LD_PRELOAD", shim()).env("QF_FAULT", fault);
    command.output().unwrap()
}

fn stderr(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// The error of a command that failed in order.
fn failure(output: &Output) -> String {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    text
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", stderr(output));
}

fn qfdata(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(bin::qfdata());
    command.current_dir(folder).args(arguments);
    command
}

/// A folder with `count` captioned images as `pairs`, of about 20 KB each.
fn pairs(count: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let pairs = folder.path().join("pairs");
    fs::create_dir(&pairs).unwrap();
    for number in 0..count {
        let mut bytes = image(ImageFormat::Jpeg, number as u8);
        let mut state = number as u32;
        bytes.resize_with(20_000, || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        // The end marker, so that it is a whole picture.
        bytes.extend([0xff, 0xd9]);
        fs::write(pairs.join(format!("{number:04}.jpg")), bytes).unwrap();
        fs::write(pairs.join(format!("{number:04}.txt")), "a dog").unwrap();
    }
    folder
}

const SHARD: [&str; 7] = [
    "shard",
    "pairs",
    "--out",
    "out/s",
    "--max-count",
    "10",
    "--threads=2",
];

/// Files of `out` under their final names: shards, indices and metadata. Statistics hold times.
fn shards(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder.join("out")).into_iter().flatten();
    let files = entries.map(|entry| {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        (name, fs::read(entry.path()).unwrap_or_default())
    });
    let is_final = |name: &str| !name.starts_with('.') && !name.ends_with("_stats.json");
    files.filter(|(name, _)| is_final(name)).collect()
}

#[test]
fn a_read_that_fails_names_its_shard() {
    let folder = pairs(30);
    let folder = folder.path();
    succeeded(&qfdata(folder, &SHARD).output().unwrap());
    let profile = [
        "profile",
        "--seconds",
        "0.1",
        "--batch-size",
        "4",
        "--shuffle",
        "none",
        "--shards",
        "out/s-{000000..000002}.tar",
    ];
    for keep_index in [true, false] {
        if !keep_index {
            for number in 0..3 {
                fs::remove_file(folder.join(format!("out/s-00000{number}.tar.qfidx"))).unwrap();
            }
        }
        for after in ["0", "30000", "150000"] {
            let fault = format!("eio:s-000001.tar:{after}");
            let message = failure(&faulty(&mut qfdata(folder, &profile), &fault));
            assert!(message.contains("s-000001.tar"), "{message}");
            assert!(message.contains("Input/output error"), "{message}");
        }
    }
    // An image that cannot be read costs its row, which is named and counted.
    let elsewhere = ["shard", "pairs", "--out", "other/s", "--json"];
    for fault in ["eio:0007.jpg:0", "eio:0007.jpg:9000"] {
        let output = faulty(&mut qfdata(folder, &elsewhere), fault);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(3), "{message}");
        assert!(
            message.contains("0007.jpg: Input/output error"),
            "{message}"
        );
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["samples"], 29, "{report}");
        fs::remove_dir_all(folder.join("other")).unwrap();
    }
}

#[test]
fn short_reads_change_nothing() {
    let folder = pairs(12);
    let folder = folder.path();
    succeeded(&qfdata(folder, &SHARD).output().unwrap());
    let expected = shards(folder);
    assert_eq!(expected.len(), 2 * 3);
    succeeded(&faulty(
        &mut qfdata(folder, &["index", "--overwrite", "out/s-000000.tar"]),
        "short:s-0000",
    ));
    assert_eq!(shards(folder), expected, "indices");
    fs::remove_dir_all(folder.join("out")).unwrap();
    succeeded(&faulty(&mut qfdata(folder, &SHARD), "short:pairs"));
    assert_eq!(shards(folder), expected, "shards");
}

/// A script with a small disk at `disk`, where the system lets us mount one.
fn on_a_small_disk(test: &str, folder: &Path, size: &str, script: &str) -> Option<Output> {
    fs::create_dir_all(folder.join("disk")).unwrap();
    let mount = format!("mount -t tmpfs -o size={size} tmpfs disk");
    let run = |script: &str| {
        Command::new("unshare")
            .args(["-rm", "bash", "-c", script])
            .current_dir(folder)
            .env("QFDATA", bin::qfdata())
            .env("QFTRAIN", bin::qftrain())
            .env("OMP_NUM_THREADS", "1")
            .output()
    };
    if !run(&mount).is_ok_and(|output| output.status.success()) {
        test_data::skip(
            test,
            "this system does not let a user mount a disk of their own",
        );
        return None;
    }
    Some(run(&format!("set -e; {mount}; {script}")).unwrap())
}

#[test]
fn a_full_disk_while_shards_are_written() {
    let folder = pairs(60);
    let whole = pairs(60);
    succeeded(&qfdata(whole.path(), &SHARD).output().unwrap());
    let expected = shards(whole.path());
    let script = r#"
        ln -s disk out
        shard() { "$QFDATA" shard pairs --out out/s --max-count 10 --threads=2; }
        shard && exit 3
        ls out >&2
        for shard in out/*.tar; do if [ -e "$shard" ]; then tar -tf "$shard" >/dev/null; fi; done
        mount -o remount,size=64m disk
        shard
        mkdir copy && cp out/s-* copy
    "#;
    let test = "a_full_disk_while_shards_are_written";
    let Some(output) = on_a_small_disk(test, folder.path(), "700k", script) else {
        return;
    };
    let message = stderr(&output);
    assert!(output.status.success(), "{:?}: {message}", output.status);
    assert!(message.contains("No space left on device"), "{message}");
    fs::remove_file(folder.path().join("out")).unwrap();
    fs::rename(folder.path().join("copy"), folder.path().join("out")).unwrap();
    assert!(shards(folder.path()) == expected, "after there was room");
}

#[test]
fn a_full_disk_while_checkpoints_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    let run = small_run(
        "disk/run",
        &shards,
        &["--steps", "6", "--set", "checkpoint_every_steps=2"],
    );
    let run: Vec<String> = run.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        r#"
        "$QFTRAIN" {} && exit 3
        ls -a disk/run disk/run/checkpoints >&2 || true
        for step in disk/run/checkpoints/step-*; do [ ! -d "$step" ] || [ -e "$step/manifest.json" ]; done
        mount -o remount,size=200m disk
        "$QFTRAIN" {} --resume=auto
        ls disk/run/checkpoints/ >&2
        "#,
        run.join(" "),
        run.join(" ")
    );
    let test = "a_full_disk_while_checkpoints_are_written";
    let Some(output) = on_a_small_disk(test, folder.path(), "600k", &script) else {
        return;
    };
    let message = stderr(&output);
    assert!(output.status.success(), "{:?}: {message}", output.status);
    assert!(message.contains("No space left on device"), "{message}");
    assert!(
        message.contains("000006") || message.contains("step-6"),
        "{message}"
    );
    // It was said before training, and names no file that is gone.
    assert!(
        message.contains("too little for 3 checkpoints of"),
        "{message}"
    );
    assert!(!message.contains(".tmp"), "{message}");
}

#[test]
fn a_read_only_folder_is_named() {
    let folder = pairs(3);
    let script = r#"
        mkdir disk/out && mount -o remount,ro disk
        "$QFDATA" shard pairs --out disk/out/s
    "#;
    let test = "a_read_only_folder_is_named";
    let Some(output) = on_a_small_disk(test, folder.path(), "1m", script) else {
        return;
    };
    let message = failure(&output);
    assert!(
        message.contains("disk/out") && message.contains("Read-only file system"),
        "{message}"
    );
}

#[test]
fn sixty_four_descriptors_are_enough() {
    let folder = pairs(150);
    let folder = folder.path();
    let many = ["shard", "pairs", "--out", "out/s", "--max-count", "1"];
    let limited = |arguments: &[&str]| {
        let script = "ulimit -n 64; exec \"$0\" \"$@\"";
        let output = Command::new("bash")
            .args(["-c", script])
            .arg(bin::qfdata())
            .args(arguments)
            .current_dir(folder)
            .output()
            .unwrap();
        succeeded(&output);
        String::from_utf8(output.stdout).unwrap()
    };
    limited(&many);
    assert_eq!(shards(folder).len(), 150 * 3);
    let listed = limited(&["order", "--batch", "10", "--shards", "out/s-*.tar"]);
    assert_eq!(listed.matches('#').count(), 150, "{listed}");
    for without_index in [false, true] {
        if without_index {
            for (name, _) in shards(folder)
                .iter()
                .filter(|(name, _)| name.ends_with(".qfidx"))
            {
                fs::remove_file(folder.join("out").join(name)).unwrap();
            }
        }
        limited(&[
            "profile",
            "--seconds",
            "0.5",
            "--batch-size",
            "8",
            "--io-threads",
            "8",
            "--shards",
            "out/s-*.tar",
        ]);
    }
}

/// A system that gives few threads: what cannot be done with them says so, and leaves nothing behind.
#[test]
fn few_threads_are_enough_or_an_error() {
    let folder = pairs(12);
    let folder = folder.path();
    succeeded(&qfdata(folder, &SHARD).output().unwrap());
    let shards = format!("{}/out/s-*.tar", folder.display());
    let data: [&[&str]; 5] = [
        &["shard", "pairs", "--out", "again/s", "--threads", "4"],
        &["index", "--overwrite", "--threads", "4", &shards],
        &["verify", "--threads", "4", &shards],
        &["stats", &shards],
        &[
            "profile",
            "--seconds",
            "0.1",
            "--batch-size",
            "4",
            "--threads",
            "4",
            "--shards",
            &shards,
        ],
    ];
    let (mut failed, mut done) = (0, 0);
    let mut judge = |output: &Output, what: &str| {
        let message = stderr(output);
        match output.status.code() {
            // 3: `verify` has something to say of these images.
            Some(0 | 3) => done += 1,
            _ => {
                assert_eq!(output.status.code(), Some(1), "{what}: {message}");
                let is_told = message.contains("thread") || message.contains("cannot start");
                assert!(is_told, "{what}: {message}");
                failed += 1;
            }
        }
    };
    for count in [0, 1, 2, 3, 5, 8, 100] {
        let fault = format!("threads:{count}");
        for arguments in data {
            let output = faulty(&mut qfdata(folder, arguments), &fault);
            judge(&output, &format!("{fault} {arguments:?}"));
            let _ = fs::remove_dir_all(folder.join("again"));
        }
        let run_dir = folder.join(format!("run-{count}")).display().to_string();
        let run = small_run(&run_dir, &shards, &["--steps", "1"]);
        let mut run = command(&run);
        // libtorch's own threads end the process where they cannot be started.
        run.env("OMP_NUM_THREADS", "1");
        judge(&faulty(&mut run, &fault), &format!("{fault} qftrain"));
    }
    assert!(failed >= 10 && done >= 10, "{failed} failed, {done} done");
}

fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_there() {
        assert!(begun.elapsed() < Duration::from_secs(120), "no {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn steps(run: &str) -> usize {
    let text = fs::read_to_string(Path::new(run).join("metrics.jsonl")).unwrap_or_default();
    text.lines().count()
}

#[test]
fn a_stopped_run_goes_on_when_it_is_continued() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    let (plain, stopped) = (path(&folder, "plain"), path(&folder, "stopped"));
    succeeds(&small_run(&plain, &shards, &["--steps", "40"]));
    let mut child = command(&small_run(&stopped, &shards, &["--steps", "40"]))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..3 {
        let before = steps(&stopped);
        wait_for("step", || {
            steps(&stopped) > before || child.try_wait().unwrap().is_some()
        });
        bin::signal("-STOP", &child);
        std::thread::sleep(Duration::from_millis(700));
        bin::signal("-CONT", &child);
    }
    assert!(child.wait().unwrap().success());
    same_run(Path::new(&plain), Path::new(&stopped), 40);
}

#[test]
fn a_second_interrupt_ends_at_once_and_leaves_what_can_be_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    let run_dir = path(&folder, "run");
    let more = ["--steps", "100000", "--set", "checkpoint_every_steps=5"];
    let mut child = command(&small_run(&run_dir, &shards, &more))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("step", || steps(&run_dir) > 12);
    bin::signal("-INT", &child);
    // The process may be gone by now.
    let _ = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    let begun = Instant::now();
    let status = child.wait().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(
        matches!(status.code(), Some(0 | 130)),
        "{status:?}, {:?}",
        status.signal()
    );
    let done = succeeds(&["--run-dir", &run_dir, "--resume", "--steps", "30"]);
    assert!(!done.is_empty());
    assert_eq!(metrics(Path::new(&run_dir)).last().unwrap()["step"], 30);
}

/// A reader that takes its time, then goes on: nothing is lost, nothing ends.
#[test]
fn a_full_pipe_waits_for_its_reader() {
    let folder = pairs(60);
    let folder = folder.path();
    succeeded(&qfdata(folder, &SHARD).output().unwrap());
    let mut child = qfdata(
        folder,
        &[
            "order",
            "--batch",
            "10",
            "--epochs",
            "200",
            "--shards",
            "out/s-*.tar",
        ],
    )
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(
        child.try_wait().unwrap().is_none(),
        "it must not fit the pipe"
    );
    let mut listed = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut listed)
        .unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(listed.matches('#').count(), 200 * 60);
}

#[test]
fn a_clock_that_jumps_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let shards = glob("tar");
    let (plain, jumping) = (path(&folder, "plain"), path(&folder, "jumping"));
    succeeds(&small_run(&plain, &shards, &["--steps", "8"]));
    let mut run = command(&small_run(&jumping, &shards, &["--steps", "8"]));
    succeeded(&faulty(&mut run, "clock:100000000"));
    same_run(Path::new(&plain), Path::new(&jumping), 8);
}

/// Links under the names that a program writes: what they point to stays as it is.
#[test]
fn planted_links_are_not_followed() {
    let folder = pairs(12);
    let folder = folder.path();
    let victim = folder.join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::create_dir(folder.join("out")).unwrap();
    for name in [
        "s-000000.tar",
        "s-000000.tar.qfidx",
        "s-000001.tar",
        ".s.tar.run",
    ] {
        symlink(&victim, folder.join("out").join(name)).unwrap();
        let sharded = qfdata(folder, &[&SHARD[..], &["--overwrite"]].concat())
            .output()
            .unwrap();
        assert_eq!(
            fs::read_to_string(&victim).unwrap(),
            "precious",
            "{name}: {sharded:?}"
        );
        stderr(&sharded);
        fs::remove_dir_all(folder.join("out")).unwrap();
        fs::create_dir(folder.join("out")).unwrap();
    }
    // Files of a run that are written where they stand.
    let shards = glob("tar");
    for name in ["metrics.jsonl", ".lock", "skipped.jsonl"] {
        let run_dir = folder.join(format!("run-{name}"));
        fs::create_dir(&run_dir).unwrap();
        symlink(&victim, run_dir.join(name)).unwrap();
        let run = run_dir.display().to_string();
        let output = command(&small_run(&run, &shards, &["--steps", "1"]))
            .output()
            .unwrap();
        let message = stderr(&output);
        assert_eq!(
            fs::read_to_string(&victim).unwrap(),
            "precious",
            "{name}: {message}"
        );
        let is_refused = ["it is a symbolic link", "already holds a run"]
            .iter()
            .any(|refusal| message.contains(refusal));
        assert!(is_refused || name == "skipped.jsonl", "{message}");
    }
    // A sidecar that is written later.
    succeeded(
        &qfdata(
            folder,
            &[&SHARD[..], &["--no-index", "--overwrite"]].concat(),
        )
        .output()
        .unwrap(),
    );
    symlink(&victim, folder.join("out/s-000000.tar.qfidx")).unwrap();
    let indexed = qfdata(folder, &["index", "--overwrite", "out/s-000000.tar"])
        .output()
        .unwrap();
    stderr(&indexed);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

/// Fifty runs killed at a random moment each; the next begins where the last one ended.
#[test]
fn fifty_kills_leave_no_partial_shard() {
    let folder = pairs(80);
    let whole = pairs(80);
    let zst = [&SHARD[..], &["--format", "tar.zst", "--level", "9"]].concat();
    let begun = Instant::now();
    succeeded(&qfdata(whole.path(), &zst).output().unwrap());
    let took = begun.elapsed();
    let expected = shards(whole.path());
    let folder = folder.path();
    let mut state = 1u32;
    let mut killed = 0;
    for _ in 0..50 {
        let mut child = qfdata(folder, &zst)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(took.mul_f64(f64::from(state >> 16) / 65_536.0));
        child.kill().unwrap();
        killed += usize::from(child.wait().unwrap().signal() == Some(9));
        for (name, bytes) in shards(folder) {
            assert!(expected.get(&name) == Some(&bytes), "{name} is partial");
        }
        // One that came to its end is begun anew.
        if shards(folder).len() == expected.len() {
            fs::remove_dir_all(folder.join("out")).unwrap();
        }
    }
    assert!(killed > 20, "{killed} of 50 were killed");
    let mut end = zst.clone();
    end.push("--overwrite");
    succeeded(&qfdata(folder, &end).output().unwrap());
    assert!(shards(folder) == expected);
}
