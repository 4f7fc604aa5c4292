//! `qftrain selfcheck` as a user runs it.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::golden::folder;
use crate::train_cli::{fails, qftrain, succeeds};

/// Every check, in order.
const CHECKS: [&str; 14] = [
    "libraries",
    "step in f32",
    "step in bf16",
    "AdamW",
    "training in f32",
    "training in bf16",
    "reference",
    "upload",
    "checkpoint",
    "process group",
    "run in f32",
    "run in bf16",
    "copy rate",
    "product rate",
];

fn lines(stdout: &str) -> Vec<Value> {
    let lines = stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_cpu_passes() {
    let stdout = succeeds(&["selfcheck", "--device", "cpu", "--json"]);
    let lines = lines(&stdout);
    let (summary, checks) = lines.split_last().unwrap();
    let names: Vec<&str> = checks.iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert_eq!(names, CHECKS);
    for check in checks {
        let expected = match check["name"].as_str() {
            Some("reference") => "skipped",
            _ => "ok",
        };
        assert_eq!(check["outcome"], expected, "{check}");
    }
    assert_eq!(summary["passed"], true);
    // Six on two cores of their own.
    let seconds = summary["seconds"].as_f64().unwrap();
    assert!(seconds < 60.0, "{summary}");
    assert_eq!(summary["skipped"], serde_json::json!(["reference"]));
    let table = succeeds(&["selfcheck", "--device", "cpu"]);
    for name in CHECKS {
        let line = table.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(
            line.contains(" ok ") || line.contains(" skipped "),
            "{line}"
        );
    }
    assert!(table.contains("all is well: 14 checks"), "{table}");
}

/// Copies the files of a folder that begin with `prefix`.
fn copy(from: &Path, to: &Path, prefix: &str) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with(prefix) {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

#[test]
fn the_reference_is_compared_and_a_changed_number_found() {
    let Some(golden) = folder("the_reference_is_compared_and_a_changed_number_found") else {
        return;
    };
    let check = |folder: &Path| {
        let folder = folder.to_str().unwrap();
        qftrain(&["selfcheck", "--device", "cpu", "--json", "--golden", folder])
    };
    let report = |stdout: &[u8]| {
        let lines = lines(std::str::from_utf8(stdout).unwrap());
        let report = lines.iter().find(|line| line["name"] == "reference");
        (report.unwrap().clone(), lines)
    };
    let output = check(&golden);
    let (reference, _) = report(&output.stdout);
    assert_eq!(reference["outcome"], "ok", "{reference}");
    assert!(reference["figures"]["quantities"].as_u64().unwrap() > 100);
    assert!(output.status.success());

    // One number of one gradient, the last of the file's tensors that are floats of 32 bits.
    let changed = tempfile::tempdir().unwrap();
    copy(&golden, changed.path(), "golden_a.");
    copy(&golden, changed.path(), "golden_traj.");
    let path = changed.path().join("golden_a.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let name = "grad.Qformer.bert.encoder.layer.0.attention.self.value.weight";
    let tensor = tensors.tensor(name).unwrap().data();
    let at = tensor.as_ptr() as usize - bytes.as_ptr() as usize;
    let value = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    bytes[at..at + 4].copy_from_slice(&(value + 0.1).to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let output = check(changed.path());
    let (reference, lines) = report(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(reference["outcome"], "failed");
    let what = reference["what"].as_str().unwrap();
    assert!(what.contains(&name["grad.".len()..]), "{what}");
    // The other checks were made all the same, and the first that failed is explained.
    assert_eq!(lines.len(), CHECKS.len() + 1);
    assert_eq!(
        lines.last().unwrap()["failed"],
        serde_json::json!(["reference"])
    );
    let stderr = String::from_utf8_lossy(&output.stderr);
    for words in ["selfcheck, reference", what, "expected at most 1e-4"] {
        assert!(stderr.contains(words), "{stderr}");
    }
}

#[test]
fn what_is_missing_is_said() {
    let empty = tempfile::tempdir().unwrap();
    let folder = empty.path().to_str().unwrap();
    let stderr = fails(1, &["selfcheck", "--device", "cpu", "--golden", folder]);
    assert!(stderr.contains("golden_a.json"), "{stderr}");
    // Where there are this many GPUs, this fails on another day.
    let stderr = fails(1, &["selfcheck", "--device", "cuda:99"]);
    assert!(stderr.contains("--device cuda:99"), "{stderr}");
}
