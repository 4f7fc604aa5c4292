//! `qfdata index`, and the indexes that `qfdata shard` writes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn qfdata(folder: &Path, arguments: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_qfdata");
    let mut command = Command::new(program);
    command.current_dir(folder).args(arguments);
    command.output().unwrap()
}

fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let output = qfdata(folder, arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a command that ends with code 1.
fn fail(folder: &Path, arguments: &[&str]) -> String {
    let output = qfdata(folder, arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn shards(folder: &Path, options: &[&str]) {
    succeed(
        folder,
        &[
            "synth",
            "--size",
            "64",
            "--count",
            "6",
            "--out",
            "in",
            "--overwrite",
        ],
    );
    let base = ["shard", "in", "--out", "out/s", "--max-count", "2"];
    succeed(folder, &[&base, options].concat());
}

#[test]
fn indexes_are_written_kept_checked_and_mended() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let sidecar = folder.join("out/s-000001.tar.qfidx");
    shards(folder, &[]);
    let written = fs::read(&sidecar).unwrap();
    let checked = succeed(folder, &["index", "--check", "out/*"]);
    assert!(
        checked.contains("3 shards: 3 indexes fit, 0 do not; 6 samples"),
        "{checked}"
    );

    // Missing: written, the same bytes. The others are kept.
    fs::remove_file(&sidecar).unwrap();
    let message = fail(folder, &["index", "--check", "out/s-*.tar"]);
    assert!(
        message.contains("s-000001.tar has no index; run `qfdata index"),
        "{message}"
    );
    let summary = succeed(folder, &["index", "out/s-*.tar"]);
    assert!(
        summary.contains("1 index written, 2 kept, 0 failed; 6 samples"),
        "{summary}"
    );
    assert!(
        summary.contains("access to single samples: tar 3"),
        "{summary}"
    );
    assert_eq!(fs::read(&sidecar).unwrap(), written);

    // Of another length: written again. Damaged: found.
    fs::write(&sidecar, b"short").unwrap();
    succeed(folder, &["index", "out/s-*.tar"]);
    let mut damaged = written.clone();
    damaged[170] ^= 1;
    fs::write(&sidecar, damaged).unwrap();
    let message = fail(folder, &["index", "--check", "out/s-*.tar"]);
    assert!(
        message.contains("s-000001.tar.qfidx has a damaged header"),
        "{message}"
    );
    assert!(
        message.contains("error: 1 of 3 shards have no index that fits"),
        "{message}"
    );
    let summary = succeed(
        folder,
        &["index", "--overwrite", "--json", "--threads", "1", "out/*"],
    );
    assert!(summary.contains(r#""written":3"#) && summary.contains(r#""access":{"tar":3}"#));
    assert_eq!(fs::read(&sidecar).unwrap(), written);

    // A shard that is none gets no index, and does not keep the others from theirs.
    fs::write(folder.join("out/bad.tar"), b"no shard").unwrap();
    let message = fail(folder, &["index", "out/*"]);
    assert!(message.contains("no index: shard out/bad.tar") && message.contains("not a shard"));
    assert!(message.contains("1 of 4 shards got no index"), "{message}");
    assert!(!folder.join("out/bad.tar.qfidx").exists());
}

#[test]
fn shards_and_their_indexes_come_and_go_together() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let names = || {
        let entries = fs::read_dir(folder.join("out")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    shards(folder, &["--format", "tar.zst"]);
    // Metadata beside each, too, and the statistics of all.
    assert_eq!(names().len(), 10);
    let summary = succeed(folder, &["index", "--check", "out/*.zst"]);
    assert!(summary.contains("zstd frames 3"), "{summary}");
    let options = [
        "shard",
        "in",
        "--out",
        "out/s",
        "--format",
        "tar.zst",
        "--overwrite",
    ];
    succeed(folder, &options);
    let metadata = "s-000000.tar.zst.parquet";
    let statistics = "s.tar.zst_stats.json";
    let shard = "s-000000.tar.zst";
    let index = "s-000000.tar.zst.qfidx";
    assert_eq!(names(), [shard, metadata, index, statistics]);
    succeed(folder, &[&options[..], &["--no-index"]].concat());
    assert_eq!(names(), [shard, metadata, statistics]);
}
