//! `bench/gpu.sh`, rehearsed on the CPU.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::bin;
use crate::train_cli::{glob, SMALL};
use crate::weights::python;

/// Sizes of the PyTorch reference that run in a moment.
const REFERENCE_ARGS: &str =
    "--image-size 28 --width 32 --depth 1 --tower-heads 2 --mlp 64 --layers 2 \
                              --hidden 32 --heads 2 --intermediate 64 --queries 4 --vocab 2000 \
                              --steps 2 --warmup 1 --matmul 64";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn bench(python: &Path, out: &Path, settings: &[(&str, &str)]) -> Output {
    Command::new(root().join("bench/gpu.sh"))
        .args([bin::qfdata(), bin::qftrain()])
        .arg(glob("tar"))
        .env("OUT", out)
        .envs([
            ("DEVICE", "cpu"),
            ("PRESET", "tiny"),
            ("RESUME_PRESET", "tiny"),
        ])
        .envs([
            ("STEPS", "8"),
            ("RESUME_STEPS", "4"),
            ("OMP_NUM_THREADS", "1"),
        ])
        // Without the size of batches.
        .env("SET", SMALL[1..].join(" "))
        .env("REFERENCE", python)
        .env("REFERENCE_ARGS", REFERENCE_ARGS)
        .envs(settings.iter().copied())
        .output()
        .unwrap()
}

fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn every_part_leaves_its_results() {
    let Some(python) = python("every_part_leaves_its_results") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("results");
    let parts = [
        ("PARTS", "train bench resume reference"),
        ("BATCHES", "4 6"),
    ];
    let output = bench(&python, &out, &parts);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{output:?}");

    let reference = json(&out.join("reference.json"));
    for batch in ["4", "6"] {
        let profile = json(&out.join(format!("train-{batch}/profile.json")));
        let last = &profile["last_steps"];
        assert_eq!(last["steps"], 8);
        let number = |value: &Value| value.as_f64().unwrap();
        let rate = number(batch_size(batch)) * 8.0 / number(&last["secs"]);
        assert!((number(&last["images_per_s"]) / rate - 1.0).abs() < 1e-9);
        // As many entries as BERT's vocabulary, and [DEC].
        let config = fs::read_to_string(out.join(format!("train-{batch}/config.toml"))).unwrap();
        assert!(config.contains("vocab_size = 30523"), "{config}");
        assert!(!out.join(format!("train-{batch}/checkpoints")).exists());
        // The row has the profile's numbers and the reference's.
        let theirs = number(&reference["steps"][batch]["step_ms"]);
        let ours = 1e3 * number(&last["secs"]) / 8.0;
        let row = row(&text, batch);
        assert_eq!(row[1], format!("{:.1}", number(&last["images_per_s"])));
        assert_eq!(row[2], format!("{ours:.1}"));
        assert_eq!(
            row[12..14],
            [format!("{theirs:.1}"), format!("{:.2}", ours / theirs)]
        );
        // No GPU, no idle time of one.
        assert_eq!(row[7], "-");
        let log = fs::read_to_string(out.join(format!("logs/bench-{batch}.log"))).unwrap();
        assert!(log.contains("forward"), "{log}");
    }
    assert_eq!(
        fs::read_to_string(out.join("table.md"))
            .unwrap()
            .lines()
            .count(),
        8
    );
    let resumed = fs::read_to_string(out.join("logs/resume.log")).unwrap();
    assert!(resumed.contains("model.safetensors: 0 of "), "{resumed}");
    assert!(fs::read_to_string(out.join("machine.txt"))
        .unwrap()
        .contains("qftrain "));
}

fn batch_size(batch: &str) -> &'static Value {
    static SIZES: std::sync::OnceLock<Value> = std::sync::OnceLock::new();
    &SIZES.get_or_init(|| serde_json::json!({"4": 4, "6": 6}))[batch]
}

/// The cells of a batch's row.
fn row(text: &str, batch: &str) -> Vec<String> {
    let row = text
        .lines()
        .find(|line| line.starts_with(&format!("| {batch} |")));
    let row = row.unwrap_or_else(|| panic!("no row of {batch}: {text}"));
    row.trim_matches('|')
        .split('|')
        .map(|cell| cell.trim().to_string())
        .collect()
}

#[test]
fn a_part_that_fails_fails_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("results");
    let python = Path::new("python3");
    // A batch of one has no negatives.
    let output = bench(python, &out, &[("PARTS", "train"), ("BATCHES", "1 4")]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("train-1: failed with code 1: error: "),
        "{text}"
    );
    assert!(
        row(&text, "1")[1..].iter().all(|cell| cell == "-"),
        "{text}"
    );
    assert!(row(&text, "4")[1].parse::<f64>().unwrap() > 0.0);
    let log = fs::read_to_string(out.join("logs/train-1.log")).unwrap();
    assert!(log.contains("data.batch_size"), "{log}");

    let output = bench(
        python,
        &folder.path().join("late"),
        &[("TOTAL", "0"), ("BATCHES", "4")],
    );
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("train-4: left out, 0 s are over"), "{text}");
}

#[test]
fn checkpoints_that_differ_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, last: f32| {
        let folder = folder.path().join(name);
        fs::create_dir(&folder).unwrap();
        let tensors = |values: &[f32]| {
            let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[],"data_offsets":[8,12]}}"#;
            let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
            bytes.extend(header.as_bytes());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            bytes
        };
        fs::write(folder.join("model.safetensors"), tensors(&[1.0, 2.0, last])).unwrap();
        fs::write(
            folder.join("optimizer.safetensors"),
            tensors(&[0.0, 0.0, 0.0]),
        )
        .unwrap();
        folder
    };
    let (one, same, other) = (
        write("one", 3.0),
        write("same", 3.0),
        write("other", 3.0000002),
    );
    let compare = |other: &Path| {
        let script = root().join("bench/gpu/compare.py");
        let output = Command::new("python3")
            .arg(script)
            .arg(&one)
            .arg(other)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };
    assert_eq!(compare(&same).0, Some(0));
    let (code, text) = compare(&other);
    assert_eq!(code, Some(1));
    assert!(
        text.contains("model.safetensors: 1 of 2 tensors differ, such as b"),
        "{text}"
    );
}
