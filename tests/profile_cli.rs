//! Profiles as a user makes them: `qfdata profile` and `qftrain --profile`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use qf_pipeline::trace::{SpanEvent, TraceFile};
use serde_json::Value;

use crate::bin;
use crate::train_cli::{exact_metrics, fails, glob, path, small_run, succeeds};

/// Runs `qfdata profile` on the shards of [`scenes`], with words separated by spaces.
fn profile(folder: &Path, line: &str) -> Output {
    command(folder, line).output().expect("qfdata starts")
}

fn command(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(bin::qfdata());
    let shards = ["profile", "--shards", "shards-*.tar", "--image-size", "32"];
    let words = line.split_whitespace();
    command.current_dir(folder).args(shards).args(words);
    command
}

fn done(folder: &Path, line: &str) -> String {
    let output = profile(folder, line);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Shards of rendered scenes.
fn scenes() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for line in [
        "synth --count 60 --size 64 --out scenes",
        "shard scenes --out shards --max-count 20",
    ] {
        let mut qfdata = Command::new(bin::qfdata());
        qfdata.current_dir(&dir).args(line.split_whitespace());
        assert!(qfdata.stdout(Stdio::null()).status().unwrap().success());
    }
    dir
}

/// Files whose names speak of a trace, temporary ones included.
fn trace_files(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("trace")).collect()
}

#[test]
fn a_trace_shows_what_the_threads_did() {
    let dir = scenes();
    let folder = dir.path();
    let text = done(folder, "--threads 2 --seconds 0.3 --trace out/trace.json");
    let line = text
        .lines()
        .find(|line| line.starts_with("trace: "))
        .unwrap();
    assert!(line.contains("out/trace.json"), "{line}");
    assert!(text.contains("\nread from shards: "), "{text}");
    let file = TraceFile::read(folder.join("out/trace.json")).unwrap();
    let names: BTreeSet<&str> = file
        .tracks
        .iter()
        .map(|track| track.name.as_str())
        .collect();
    for name in ["qf-work-0", "qf-work-1", "qf-sequence", "qf-collate"] {
        assert!(names.contains(name), "{names:?}");
    }
    assert!(
        names.iter().any(|name| name.starts_with("qf-read-")),
        "{names:?}"
    );
    for stage in [
        "read",
        "decode",
        "augment",
        "tokenise",
        "collate",
        "hand over batch",
    ] {
        assert!(file.spans(stage).next().is_some(), "{stage}");
    }
    for counter in ["samples read ahead", "samples in decoding", "batches ready"] {
        assert!(file.counters.iter().any(|c| c.name == counter), "{counter}");
    }
    // The measured time, not the second of warm-up before it.
    let ends = || {
        file.tracks
            .iter()
            .flat_map(|track| &track.spans)
            .map(|span| span.end_ns())
    };
    let (first, last) = (ends().min().unwrap(), ends().max().unwrap());
    assert!(first >= 1_000_000_000, "{first}");
    assert!(last - first >= 200_000_000, "{first} to {last}");
    let events = file.other_data["events"].as_u64().unwrap();
    assert!(line.contains(&format!("({events} events")), "{line}");
}

#[test]
fn scaling_measures_up_to_the_threads() {
    let dir = scenes();
    let folder = dir.path();
    let line = "--threads 3 --seconds 0.2 --scaling --trace trace.json --json";
    let json: Value = serde_json::from_str(&done(folder, line)).unwrap();
    let rows = json["scaling"].as_array().unwrap();
    let threads: Vec<_> = rows
        .iter()
        .map(|row| row["threads"].as_u64().unwrap())
        .collect();
    assert_eq!(threads, [1, 2, 3]);
    let number = |row: &Value, name: &str| row[name].as_f64().unwrap();
    let one = number(&rows[0], "images_per_s");
    for row in rows {
        let speed_up = number(row, "speed_up");
        assert!((speed_up - number(row, "images_per_s") / one).abs() < 1e-6);
        let threads = number(row, "threads");
        assert!((number(row, "efficiency") - speed_up / threads).abs() < 1e-9);
        assert!(number(row, "images_per_cpu_s") > 0.0);
    }
    // What else is said is of the last.
    assert_eq!(json["threads"], 3);
    assert_eq!(json["images_per_s"], rows[2]["images_per_s"]);
    assert!(number(&json, "read_mb_per_s") > 0.0);
    // Without the second of warm-up.
    assert!(number(&json, "wall_secs") < number(&json, "seconds") + 0.5);
    assert!(json["bottleneck"].as_str().unwrap().len() > 20);
    let file = TraceFile::read(folder.join("trace.json")).unwrap();
    assert_eq!(json["trace"]["events"], file.other_data["events"]);
    assert_eq!(json["trace"]["dropped"], 0);

    let text = done(folder, "--threads 2 --seconds 0.1 --scaling");
    let heading = text
        .lines()
        .position(|line| line.contains("speed-up"))
        .unwrap();
    let rows: Vec<&str> = text.lines().skip(heading + 1).take(2).collect();
    assert!(rows[0].trim_start().starts_with("1 "), "{text}");
    assert!(rows[1].trim_start().starts_with("2 "), "{text}");
    let json: Value = serde_json::from_str(&done(folder, "--seconds 0.1 --json")).unwrap();
    assert!(json.get("scaling").is_none() && json.get("trace").is_none());
}

#[test]
fn mistakes_name_the_option() {
    let dir = scenes();
    let folder = dir.path();
    fs::write(folder.join("plain"), b"").unwrap();
    for (line, words) in [
        (
            "--trace plain/trace.json",
            &["--trace", "plain/trace.json"][..],
        ),
        ("--trace scenes", &["--trace", "scenes", "folder"]),
        ("--seconds 0", &["--seconds 0"]),
        ("--seconds -1", &["--seconds -1"]),
        ("--seconds NaN --trace trace.json", &["--seconds NaN"]),
        (
            "--threads 5000 --scaling --trace trace.json",
            &["threads", "1024"],
        ),
        (
            "--batch-size 500 --trace trace.json",
            &["batch_size", "500"],
        ),
    ] {
        // Joined, so that a minus is no option.
        let line = line.replace("--seconds ", "--seconds=");
        let output = profile(folder, &line);
        assert_eq!(output.status.code(), Some(1), "{line}");
        let error = String::from_utf8(output.stderr).unwrap();
        // A run that began has said what it takes.
        let lines = error
            .lines()
            .filter(|line| !line.starts_with("the shards: "));
        assert_eq!(lines.count(), 1, "{error}");
        for word in words {
            assert!(error.contains(word), "{line}: {error}");
        }
        assert_eq!(trace_files(folder), [""; 0], "{line}");
    }
}

#[test]
fn an_interrupted_profile_leaves_no_part_of_a_trace() {
    let dir = scenes();
    let folder = dir.path();
    let mut qfdata = command(folder, "--seconds 600 --trace trace.json");
    let mut child = qfdata.stderr(Stdio::piped()).spawn().unwrap();
    let start = Instant::now();
    // The file is there before signals are caught; the second of warm-up is after that.
    while trace_files(folder).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(1500));
    bin::signal("-INT", &child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(trace_files(folder), [""; 0]);
}

#[test]
fn a_traced_run_shows_every_step_and_trains_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (traced, plain) = (path(&folder, "traced"), path(&folder, "plain"));
    let shards = glob("tar");
    let steps = ["--steps", "8"];
    let profile = ["--steps", "8", "--profile", "--profile-steps", "7"];
    let text = succeeds(&small_run(&traced, &shards, &profile));
    succeeds(&small_run(&plain, &shards, &steps));
    assert_eq!(
        exact_metrics(Path::new(&traced)),
        exact_metrics(Path::new(&plain))
    );
    assert!(!Path::new(&plain).join("trace.json").exists());

    let file = TraceFile::read(Path::new(&traced).join("trace.json")).unwrap();
    let track = |name: &'static str| {
        let mut tracks = file.named(name);
        let only = tracks.next().unwrap_or_else(|| panic!("no track {name}"));
        assert!(tracks.next().is_none(), "{name} twice");
        only
    };
    let spans = &track("train").spans;
    let steps: Vec<_> = spans
        .iter()
        .filter(|span| span.name.starts_with("step "))
        .collect();
    let names: Vec<&str> = steps.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(
        names,
        ["step 1", "step 2", "step 3", "step 4", "step 5", "step 6", "step 7"]
    );
    // Each step has each of its phases once, within its own time.
    for step in &steps {
        for phase in ["wait", "agree", "forward", "backward", "optimiser"] {
            let within = |span: &&SpanEvent| {
                span.name == phase
                    && (step.start_ns..=step.end_ns()).contains(&span.start_ns)
                    && span.end_ns() <= step.end_ns()
            };
            assert_eq!(spans.iter().filter(within).count(), 1, "{phase}");
        }
    }
    assert!(track("qf-upload").spans.iter().any(|s| s.name == "upload"));
    assert!(file.spans("decode").count() >= 7 * 4);
    // Operators of steps 4 to 6, within their time.
    let operators = &track("operators").spans;
    assert!(operators.iter().any(|op| op.name.contains("Backward")));
    let (first, last) = (steps[3].start_ns, steps[5].end_ns());
    let slack = 5_000_000;
    for op in operators {
        assert!(op.start_ns + slack >= first, "{} {first}", op.start_ns);
        assert!(op.end_ns() <= last + slack, "{} {last}", op.end_ns());
    }

    let json = fs::read_to_string(Path::new(&traced).join("profile.json")).unwrap();
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["trace"]["steps"], 7);
    assert_eq!(json["trace"]["events"], file.other_data["events"]);
    let number = |value: &Value| value.as_f64().unwrap();
    let roofline = &json["roofline"];
    let share = number(&json["flop_per_s"]) / number(&roofline["matmul_flop_per_s"]);
    assert!((number(&roofline["share"]) - share).abs() < 1e-9);
    assert!(number(&json["flop_per_step"]) > 0.0 && number(&roofline["upload_bytes_per_s"]) > 0.0);
    for line in ["roofline: ", "trace: 7 steps, ", "bottleneck: "] {
        assert_eq!(text.matches(&format!("\n{line}")).count(), 1, "{text}");
    }
}

#[test]
fn every_rank_has_its_trace() {
    let folder = tempfile::tempdir().unwrap();
    let (run, shards) = (path(&folder, "run"), glob("tar"));
    // More steps than there are: the trace ends with the run.
    let more = ["--steps", "3", "--nproc", "2", "--profile"];
    let text = succeeds(&small_run(&run, &shards, &more));
    assert_eq!(text.matches("\ntrace: 3 steps").count(), 1, "{text}");
    for name in ["trace.json", "trace-rank-1.json"] {
        let file = TraceFile::read(Path::new(&run).join(name)).unwrap();
        assert_eq!(file.spans("step 3").count(), 1, "{name}");
        assert!(file.named("operators").next().is_some(), "{name}");
    }
}

#[test]
fn mistakes_with_a_traced_run() {
    let folder = tempfile::tempdir().unwrap();
    let (run, shards) = (path(&folder, "run"), glob("tar"));
    let error = fails(
        2,
        &[
            "--shards",
            &shards,
            "--run-dir",
            &run,
            "--profile-steps",
            "3",
        ],
    );
    assert!(error.contains("--profile"), "{error}");
    let error = fails(
        2,
        &["--shards", &shards, "--profile", "--profile-steps", "0"],
    );
    assert!(error.contains("--profile-steps"), "{error}");
    fs::create_dir_all(Path::new(&run).join("trace.json")).unwrap();
    let error = fails(1, &small_run(&run, &shards, &["--steps", "2", "--profile"]));
    assert!(
        error.contains("--profile") && error.contains("trace.json"),
        "{error}"
    );
}
