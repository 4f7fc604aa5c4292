//! The commands that look at shards and copy them, against what others wrote and what others read.

#[path = "look/copies.rs"]
mod copies;
#[path = "look/files.rs"]
mod files;
#[path = "look/hostile.rs"]
mod hostile;
#[path = "look/http.rs"]
mod http;
#[path = "look/memory.rs"]
mod memory;
#[path = "look/stats.rs"]
mod stats;
#[path = "../../../tests/test_data.rs"]
mod test_data;
#[path = "look/verify.rs"]
mod verify;
#[path = "look/view.rs"]
mod view;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn qfdata(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qfdata"));
    let output = command.current_dir(folder).args(arguments).output();
    let output = output.expect("qfdata starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!message.contains("panicked"), "{arguments:?}: {message}");
    // No colours where nobody is looking.
    assert!(
        !output.stdout.contains(&0x1b) && !message.contains('\x1b'),
        "{arguments:?}"
    );
    output
}

/// Standard output of a command that ends with this code.
fn run(folder: &Path, code: i32, arguments: &[&str]) -> String {
    let output = qfdata(folder, arguments);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {output:?}"
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Standard error of a command that ends with this code.
fn complaint(folder: &Path, code: i32, arguments: &[&str]) -> String {
    let output = qfdata(folder, arguments);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}: {output:?}"
    );
    String::from_utf8(output.stderr).expect("UTF-8")
}

/// The lines of a command's output as JSON.
fn json_lines(text: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    text.lines().map(parse).collect()
}

/// Runs a script of Python in a folder; `None` where there is no Python.
fn python(test: &str, folder: &Path, script: &str, arguments: &[&str]) -> Option<String> {
    let python = test_data::python(test)?;
    let output = Command::new(python)
        .current_dir(folder)
        .args(["-c", script])
        .args(arguments)
        .output()
        .expect("python starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    Some(String::from_utf8(output.stdout).expect("UTF-8"))
}

/// Photographs with captions as shards `s-00000N.FORMAT`, ten samples each.
fn photographs(test: &str, folder: &Path, count: usize, format: &str) -> Option<()> {
    let pairs = test_data::find(test, "data/pairs")?;
    let input = folder.join("pairs");
    std::fs::create_dir_all(&input).expect("a folder");
    for number in 0..count {
        for extension in ["jpg", "txt"] {
            let name = format!("{number:06}.{extension}");
            std::fs::copy(pairs.join(&name), input.join(&name)).expect("a copy");
        }
    }
    let arguments = [
        "shard",
        "pairs",
        "--out",
        "s",
        "--format",
        format,
        "--max-count",
        "10",
    ];
    run(folder, 0, &arguments);
    Some(())
}
