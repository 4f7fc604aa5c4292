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

/// The header of a file in a tar, as POSIX lays it out.
fn header_of(name: &str, size: u64) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar");
    put(263, "00");
    let sum: u32 = header.iter().copied().map(u32::from).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

/// Without checksums only headers are read: 7 GiB of a file that has none of them on disk take no time.
#[test]
fn indexes_without_checksums_read_headers_alone() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let synth = ["synth", "--size", "1024", "--count", "6", "--out", "in"];
    succeed(folder, &synth);
    let base = ["shard", "in", "--out", "out/s", "--max-count", "2"];
    succeed(folder, &base);
    let shard = folder.join("out/s-000000.tar");
    let sidecar = folder.join("out/s-000000.tar.qfidx");
    let full = fs::read(&sidecar).unwrap();

    // An index with checksums is kept, one without is written again where they are wanted.
    let summary = succeed(folder, &["index", "--no-checksum", "out/s-000000.tar"]);
    assert!(summary.contains("0 indexes written, 1 kept"), "{summary}");
    fs::remove_file(&sidecar).unwrap();
    succeed(folder, &["index", "--no-checksum", "out/s-000000.tar"]);
    let bare = fs::read(&sidecar).unwrap();
    assert!(bare.len() == full.len() && bare != full);
    let summary = succeed(folder, &["index", "--no-checksum", "out/s-000000.tar"]);
    assert!(summary.contains("1 kept"), "{summary}");
    let summary = succeed(folder, &["index", "--check", "out/s-*.tar"]);
    assert!(
        summary.contains("3 indexes fit (1 without checksums"),
        "{summary}"
    );

    // A changed byte in the middle of an image: nobody notices, and everybody says so.
    let whole = fs::read(&shard).unwrap();
    let mut changed = whole.clone();
    // Where no fingerprint looks.
    assert!(changed.len() > 60_000);
    changed[10_000] ^= 1;
    fs::write(&shard, &changed).unwrap();
    succeed(folder, &["index", "--check", "out/s-*.tar"]);
    let output = qfdata(folder, &["verify", "out/s-*.tar"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("QF-X06"), "{output:?}");
    let output = qfdata(
        folder,
        &[
            "profile",
            "--shards",
            "out/s-*.tar",
            "--shuffle",
            "full",
            "--seconds",
            "0.1",
            "--batch-size",
            "2",
        ],
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("1 of 3 indices hold no checksums"),
        "{output:?}"
    );
    fs::write(&shard, &whole).unwrap();
    let summary = succeed(folder, &["index", "out/s-*.tar"]);
    assert!(summary.contains("1 index written, 2 kept"), "{summary}");
    assert_eq!(fs::read(&sidecar).unwrap(), full);

    // A member of 7 GiB that is a hole: its sums would take a minute.
    let sparse = folder.join("sparse.tar");
    fs::write(&sparse, header_of("big.jpg", 7 << 30)).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&sparse).unwrap();
    file.set_len((7 << 30) + 512 + 1024).unwrap();
    let begun = std::time::Instant::now();
    let summary = succeed(folder, &["index", "--no-checksum", "sparse.tar"]);
    assert!(summary.contains("1 sample"), "{summary}");
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
    // Cut short, it has no index.
    let file = fs::OpenOptions::new().write(true).open(&sparse).unwrap();
    file.set_len(6 << 30).unwrap();
    let message = fail(
        folder,
        &["index", "--no-checksum", "--overwrite", "sparse.tar"],
    );
    assert!(message.contains("sparse.tar"), "{message}");
}
