//! Corruption that parses: bytes of shards with indices that change. Checksums by Python, from the tables of
//! docs/reference/files.md alone; then whole commands over damaged shards.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::train_cli::{command, path, small_run};
use crate::{bin, shard_cli, test_data};

/// Prints the CRC-32C of each sample of a tar shard as its index has it, and as tarfile's offsets give it.
const SUMS: &str = r#"
import json, struct, sys, tarfile

table = []
for byte in range(256):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    table.append(byte)

def crc32c(data):
    sum = 0xFFFFFFFF
    for byte in data:
        sum = sum >> 8 ^ table[(sum ^ byte) & 255]
    return sum ^ 0xFFFFFFFF

assert crc32c(b"123456789") == 0xE3069283
shard = open(sys.argv[1], "rb").read()
index = open(sys.argv[1] + ".qfidx", "rb").read()
assert index[:8] == b"QFINDEX\0" and index[8:12] == struct.pack("<I", 3)
count = struct.unpack("<I", index[16:20])[0]
indexed = []
for number in range(count):
    record = index[176 + 76 * number :][:76]
    indexed.append([*struct.unpack("<QQ", record[16:32]), struct.unpack("<I", record[68:72])[0]])
found = []
with tarfile.open(sys.argv[1]) as archive:
    for member in archive:
        key, end = member.name.split(".")[0], member.offset_data + -(-member.size // 512) * 512
        if found and found[-1][0] == key:
            found[-1][2] = end
        else:
            found.append([key, member.offset, end])
found = [[start, end - start, crc32c(shard[start:end])] for _, start, end in found]
print(json.dumps([indexed, found]))
"#;

#[test]
fn checksums_are_those_of_an_independent_reader() {
    let Some(python) = test_data::python("checksums_are_those_of_an_independent_reader") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let shard = folder.path().join("a.tar");
    // Long names have extension headers, of GNU's kind and of pax's.
    for format in ["gnu", "pax", "ustar"] {
        let long = "x".repeat(if format == "ustar" { 90 } else { 180 });
        let mut members = Vec::new();
        for (key, len) in [("a", 5), (&*long, 700), ("b", 0), ("c", 512), ("d", 1300)] {
            for extension in ["jpg", "txt"] {
                let name = format!("{key}.{extension}");
                fs::write(folder.path().join(&name), vec![b'x'; len]).unwrap();
                members.push(name);
            }
        }
        let packed = Command::new("tar")
            .current_dir(folder.path())
            .args([&format!("--format={format}"), "-cf", "a.tar"])
            .args(&members)
            .status();
        assert!(packed.unwrap().success());
        let indexed = Command::new(bin::qfdata())
            .args(["index", "--overwrite"])
            .arg(&shard)
            .output()
            .unwrap();
        assert!(indexed.status.success(), "{indexed:?}");
        let output = Command::new(&python)
            .args(["-c", SUMS])
            .arg(&shard)
            .output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{format}: {said}");
        let [indexed, found]: [Vec<[u64; 3]>; 2] = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(indexed, found, "{format}");
        assert_eq!(indexed.len(), 5);
    }
}

/// A shard of twelve scenes with its index, in a folder of its own. It is so large that most of it is not in
/// its fingerprint.
fn indexed_shard(format: &str) -> (TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let scenes = folder.path().join("scenes");
    let drawn = Command::new(bin::qfdata())
        .args(["synth", "--count", "12", "--size", "384", "--seed", "1"])
        .arg("--out")
        .arg(&scenes)
        .status();
    assert!(drawn.unwrap().success());
    shard_cli::shard(&scenes, &folder.path().join("a"), &["--format", format]);
    let shard = folder.path().join(format!("a-000000.{format}"));
    let bytes = fs::metadata(&shard).unwrap().len();
    assert!(bytes > 50_000, "{bytes}");
    (folder, shard)
}

/// Changes a byte within the longest run of bytes that is no header: where an image is.
fn damage(shard: &Path, share: f64) {
    let mut bytes = fs::read(shard).unwrap();
    let at = (bytes.len() as f64 * share) as usize;
    let place = (at..bytes.len()).find(|&at| bytes[at..at + 8].iter().all(|byte| *byte != 0));
    bytes[place.unwrap() + 4] ^= 0x10;
    fs::write(shard, bytes).unwrap();
}

fn profile(shard: &Path) -> Output {
    Command::new(bin::qfdata())
        .args([
            "profile",
            "--json",
            "--seconds",
            "0.2",
            "--batch-size",
            "4",
            "--shards",
        ])
        .arg(shard)
        .output()
        .unwrap()
}

#[test]
fn a_changed_byte_costs_its_sample_and_is_named() {
    for extension in ["tar", "arrow"] {
        let (_folder, shard) = indexed_shard(extension);
        damage(&shard, 0.3);
        let output = profile(&shard);
        let said = String::from_utf8_lossy(&output.stderr);
        // All rows of an Arrow shard this small are in one record batch.
        if extension == "arrow" {
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("checksum_mismatch"), "{said}");
            continue;
        }
        assert!(output.status.success(), "{said}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let skipped = report["counters"]["skipped"]["checksum_mismatch"].as_u64();
        assert!(skipped.is_some_and(|count| count > 0), "{report}");
        assert!(said.contains("are not those that were indexed"), "{said}");
    }
    // Of a zstd frame the frame's own checksum.
    let (_folder, shard) = indexed_shard("tar.zst");
    damage(&shard, 0.4);
    let output = profile(&shard);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("a-000000.tar.zst"), "{said}");
}

#[test]
fn a_run_leaves_it_out_unless_it_is_told_not_to_look() {
    let (folder, shard) = indexed_shard("tar");
    damage(&shard, 0.3);
    let shards = shard.display().to_string();
    for (verify, expected) in [("samples", 1), ("index", 0), ("off", 0)] {
        let run_dir = path(&folder, verify);
        let setting = format!("data.verify=\"{verify}\"");
        let more = [
            "--steps",
            "2",
            "--set",
            &setting,
            "--set",
            "data.shuffle=\"none\"",
        ];
        let output = command(&small_run(&run_dir, &shards, &more))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        let skipped = Path::new(&run_dir).join("skipped.jsonl");
        let lines = fs::read_to_string(skipped).unwrap_or_default();
        let mismatches = lines
            .lines()
            .filter(|line| line.contains("checksum_mismatch"));
        assert_eq!(mismatches.count(), expected, "{verify}: {lines} {said}");
    }
}
