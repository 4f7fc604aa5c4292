//! Archives, compression and indices: see `tests/cases/mod.rs`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use super::case;
use crate::bin;
use crate::test_data;

fn qfdata(folder: &Path, line: &str) -> Output {
    let mut command = Command::new(bin::qfdata());
    command.current_dir(folder).args(line.split_whitespace());
    command.output().expect("qfdata starts")
}

/// Standard output and error of a call that must succeed.
fn done(folder: &Path, line: &str) -> (String, String) {
    let output = qfdata(folder, line);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert!(output.status.success(), "{line}: {err}");
    (out, err)
}

/// What a call that must fail says.
fn fails(folder: &Path, line: &str) -> String {
    let output = qfdata(folder, line);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{line}: {message}");
    assert!(!message.contains("panicked"), "{line}: {message}");
    message
}

fn contains(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
}

/// A copy of a case that may be written to.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(case(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// Keys in the order in which they are listed.
fn keys(listing: &str) -> Vec<String> {
    let key = |line: &str| line.rsplit_once('#').unwrap().1.to_owned();
    listing.lines().map(key).collect()
}

/// Keys of a shard by streaming, then by a new index, which must be the same; and what was said.
fn keys_both_ways(folder: &Path, shard: &str) -> (Vec<String>, String) {
    let list = format!("order --shards {shard} --batch 1 --shuffle none --keep-last");
    let (streamed, said) = done(folder, &list);
    let (_, said_by_index) = done(folder, &format!("index {shard}"));
    let (indexed, _) = done(folder, &list);
    assert_eq!(streamed, indexed, "{shard}");
    done(folder, &format!("index --check {shard}"));
    (keys(&streamed), said + &said_by_index)
}

/// Keys of an archive as webdataset groups them.
const WEBDATASET_KEYS: &str = r#"
import json, sys
import webdataset
samples = webdataset.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False)
print(json.dumps([sample["__key__"] for sample in samples]))
"#;

fn webdataset_keys(test: &str, shard: &Path) -> Option<Vec<String>> {
    let python = test_data::python(test)?;
    let mut command = Command::new(python);
    let output = command.args(["-c", WEBDATASET_KEYS]).arg(shard).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn a_damaged_gzip_file_is_an_error_everywhere() {
    let folder = copy("gz-crc");
    let folder = folder.path();
    let sides = ["in.tar.gz", "damaged", "checksum"];
    contains(
        &fails(folder, "order --shards in.tar.gz --batch 1 --shuffle none"),
        &sides,
    );
    contains(&fails(folder, "index in.tar.gz"), &sides);
    assert!(!folder.join("in.tar.gz.qfidx").exists());
    contains(
        &fails(folder, "index --check in.tar.gz"),
        &["in.tar.gz", "no index"],
    );
    contains(
        &fails(
            folder,
            "profile --shards in.tar.gz --seconds 1 --batch-size 2",
        ),
        &sides,
    );
    let training = Command::new(bin::qftrain())
        .current_dir(folder)
        .args(["--preset", "tiny", "--shards", "in.tar.gz", "--steps", "50"])
        .args(["--run-dir", "run", "--batch-size", "2"])
        .output()
        .unwrap();
    let message = String::from_utf8(training.stderr).unwrap();
    assert!(!training.status.success(), "{message}");
    contains(&message, &sides);
}

/// The index of a sound file, then the file damaged behind its last sample, cut short, or with bytes
/// behind it.
#[test]
fn the_end_of_a_compressed_shard_counts() {
    let folder = copy("zst-trailing");
    let folder = folder.path();
    let script = r#"
import gzip, io, sys
import zstandard
frames = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)
tar = frames.decompress(open("in.tar.zst", "rb").read().rstrip(b"\0"))
assert len(tar) % 512 == 0 and len(tar) > 2048, len(tar)
open("s.tar.gz", "wb").write(gzip.compress(tar, 1, mtime=0))
open("s.tar.zst", "wb").write(zstandard.ZstdCompressor(write_checksum=True).compress(tar))
half = len(tar) // 1024 * 512
open("two.tar.gz", "wb").write(gzip.compress(tar[:half], mtime=0) + gzip.compress(tar[half:], mtime=0))
"#;
    let Some(python) = test_data::python("the_end_of_a_compressed_shard_counts") else {
        return;
    };
    let made = Command::new(python)
        .current_dir(folder)
        .args(["-c", script])
        .output();
    let made = made.unwrap();
    assert!(made.status.success(), "{made:?}");
    let (expected, _) = keys_both_ways(folder, "in.tar.zst");
    assert_eq!(expected.len(), 4);
    assert_eq!(keys_both_ways(folder, "two.tar.gz").0, expected);
    for name in ["s.tar.gz", "s.tar.zst"] {
        let (found, said) = keys_both_ways(folder, name);
        assert_eq!((&found, &*said), (&expected, ""), "{name}");
        let path = folder.join(name);
        let bytes = fs::read(&path).unwrap();
        let list = format!("order --shards {name} --batch 1 --shuffle none");
        let check = format!("index --check {name}");
        let index = format!("index {name}");
        // The checksum itself: gzip's is followed by a length.
        let at = bytes.len() - if name.ends_with("gz") { 8 } else { 4 };
        let mut flipped = bytes.clone();
        flipped[at] ^= 1;
        for (what, damaged) in [("damaged", &flipped[..]), ("truncated", &bytes[..at + 2])] {
            fs::write(&path, damaged).unwrap();
            fs::remove_file(folder.join(format!("{name}.qfidx"))).unwrap();
            contains(&fails(folder, &list), &[name, what]);
            contains(&fails(folder, &index), &[name, what]);
            // As if an index had been written that notices nothing.
            fs::write(&path, &bytes).unwrap();
            done(folder, &index);
            fs::write(&path, damaged).unwrap();
            contains(&fails(folder, &check), &[name]);
        }
        fs::remove_file(folder.join(format!("{name}.qfidx"))).unwrap();
        // Padding is nothing; other bytes are passed over, and said.
        fs::write(&path, [&bytes[..], &[0; 1000]].concat()).unwrap();
        assert_eq!(keys_both_ways(folder, name).1, "");
        fs::remove_file(folder.join(format!("{name}.qfidx"))).unwrap();
        fs::write(&path, [&bytes[..], &[0; 9], b"something else"].concat()).unwrap();
        let (found, said) = keys_both_ways(folder, name);
        assert_eq!(found, expected);
        let from = format!("from byte {} of the file on", bytes.len() + 9);
        contains(&said, &["not compressed", &from]);
        assert_eq!(
            said.matches("not compressed").count(),
            2,
            "once each: {said}"
        );
    }
}

#[test]
fn an_index_of_another_shard_is_noticed_and_rebuilt() {
    // Of an index of the first version, which knows no fingerprint: it is not used.
    let folder = copy("stale-index");
    let list = "order --shards s.tar --batch 1 --shuffle none";
    fs::copy(
        folder.path().join("old.qfidx"),
        folder.path().join("s.tar.qfidx"),
    )
    .unwrap();
    let (listed, said) = done(folder.path(), list);
    let new = ["new7", "new6", "new5", "new4"];
    assert_eq!(keys(&listed), new);
    contains(&said, &["s.tar", "version 1", "qfdata index"]);
    contains(
        &done(folder.path(), "index --json s.tar").0,
        &["\"written\":1,\"kept\":0"],
    );
    let (listed, said) = done(folder.path(), list);
    assert_eq!(
        (keys(&listed), &*said),
        (new.map(String::from).to_vec(), "")
    );

    // An index of this version, then another shard of the same length in its place.
    let folder = folder.path();
    let (shard, index) = (folder.join("s.tar"), folder.join("s.tar.qfidx"));
    let packed = Command::new("tar")
        .current_dir(folder)
        .args(["-cf", "other.tar", "--format=ustar", "README"])
        .output();
    assert!(packed.unwrap().status.success());
    let old: Vec<u8> = fs::read(&shard).unwrap();
    let mut other = fs::read(folder.join("other.tar")).unwrap();
    other.resize(old.len(), 0);
    assert_ne!(old, other);
    let stale = fs::read(&index).unwrap();
    fs::write(&shard, &other).unwrap();
    // The index is the newer file: only what is in the shard can tell.
    fs::write(&index, &stale).unwrap();
    for line in [
        list,
        "order --shards s.tar --batch 1 --shuffle full",
        "order --shards s.tar --batch 1 --shuffle buffer",
        "index --check s.tar",
    ] {
        let words = [
            "s.tar.qfidx",
            "another shard of the same length",
            "run `qfdata index s.tar`",
        ];
        contains(&fails(folder, line), &words);
    }
    // The advice works, and a second call finds nothing to do.
    fs::write(&shard, &old).unwrap();
    done(folder, "index --overwrite s.tar");
    fs::write(&shard, &other).unwrap();
    fs::write(&index, &stale).unwrap();
    contains(
        &done(folder, "index --json s.tar").0,
        &["\"written\":1,\"kept\":0"],
    );
    contains(
        &done(folder, "index --json s.tar").0,
        &["\"written\":0,\"kept\":1"],
    );
    done(folder, "index --check s.tar");
}

/// What differs in the middle of a large shard shows where it is read, and that advice works, too.
#[test]
fn a_sample_replaced_in_the_middle_is_noticed_where_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut tar = tar::Builder::new(Vec::new());
    for number in 0..40 {
        let mut header = tar::Header::new_ustar();
        header.set_size(8000);
        let name = format!("{number:04}.jpg");
        let data: Vec<u8> = (0..8000u32).map(|at| (at * number % 251) as u8).collect();
        tar.append_data(&mut header, name, &data[..]).unwrap();
        header.set_size(5);
        let name = format!("{number:04}.txt");
        tar.append_data(&mut header, name, &b"a dog"[..]).unwrap();
    }
    let bytes = tar.into_inner().unwrap();
    fs::write(folder.join("s.tar"), &bytes).unwrap();
    done(folder, "index s.tar");
    let index = fs::read(folder.join("s.tar.qfidx")).unwrap();
    let mut changed = bytes;
    for at in 0..changed.len() - 5 {
        // Two digits exchanged leave the checksums of headers as they are.
        if changed[at..].starts_with(b"0007.") {
            changed[at..at + 4].copy_from_slice(b"0070");
        }
    }
    fs::write(folder.join("s.tar"), &changed).unwrap();
    fs::write(folder.join("s.tar.qfidx"), &index).unwrap();
    let profile = "profile --shards s.tar --seconds 1 --batch-size 2";
    let advice = "run `qfdata index --overwrite s.tar`";
    contains(&fails(folder, profile), &["`0007`", "`0070`", advice]);
    contains(&fails(folder, "index --check s.tar"), &["SHA-256", advice]);
    done(folder, "index --overwrite s.tar");
    done(folder, "index --check s.tar");
}

/// Copies have any times, and the order of files in any direction.
#[test]
fn times_do_not_matter_to_a_copy() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::copy(case("stale-index").join("new.tar"), folder.join("s.tar")).unwrap();
    done(folder, "index s.tar");
    for newer in ["s.tar", "s.tar.qfidx"] {
        let file = fs::File::options()
            .write(true)
            .open(folder.join(newer))
            .unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
        file.set_modified(later).unwrap();
        let (_, said) = done(folder, "order --shards s.tar --batch 1 --shuffle full");
        assert_eq!(said, "");
        done(folder, "index --check s.tar");
        let (told, _) = done(folder, "index --json s.tar");
        // A newer shard is read again, where somebody asks for indices.
        let expected = if newer == "s.tar" {
            "\"written\":1"
        } else {
            "\"kept\":1"
        };
        contains(&told, &[expected]);
    }
}

#[test]
fn a_damaged_index_gives_no_wrong_key() {
    // Of version 1: not used.
    let folder = copy("qfidx-silent");
    let folder = folder.path();
    let full = "order --shards s-000000.tar --batch 1 --shuffle full";
    contains(&fails(folder, full), &["version 1", "qfdata index"]);
    done(folder, "index s-000000.tar");
    let (sound, _) = done(folder, full);
    let path = folder.join("s-000000.tar.qfidx");
    let bytes = fs::read(&path).unwrap();
    // Bytes of the header, of records and of names.
    let noticed = (0..bytes.len()).step_by(97).filter(|at| {
        let mut flipped = bytes.clone();
        flipped[*at] ^= 1 << (at % 8);
        fs::write(&path, flipped).unwrap();
        let output = qfdata(folder, full);
        let message = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            // What is not needed for keys: nothing wrong may come of it.
            assert_eq!(
                String::from_utf8(output.stdout).unwrap(),
                sound,
                "byte {at}"
            );
            return false;
        }
        contains(&message, &["s-000000.tar.qfidx", "qfdata index"]);
        // The advice works.
        done(folder, "index s-000000.tar");
        assert_eq!(fs::read(&path).unwrap(), bytes);
        true
    });
    let mutations = bytes.len().div_ceil(97);
    assert_eq!(
        noticed.count(),
        mutations,
        "all of a shard's index is read for its keys"
    );
}

#[test]
fn extended_attributes_cost_no_sample() {
    let folder = copy("pax-binary-xattr");
    let (found, said) = keys_both_ways(folder.path(), "in.tar");
    assert_eq!((found.len(), &*said), (8, ""));
    let test = "extended_attributes_cost_no_sample";
    if let Some(expected) = webdataset_keys(test, &folder.path().join("in.tar")) {
        assert_eq!(found, expected);
    }
    let folder = copy("pax-newline");
    for kind in ["apple", "comment_newline", "xattr_newline"] {
        let name = format!("pax_{kind}.tar");
        let (found, said) = keys_both_ways(folder.path(), &name);
        assert_eq!((found.len(), &*said), (9, ""), "{name}");
        if let Some(expected) = webdataset_keys(test, &folder.path().join(&name)) {
            assert_eq!(found, expected, "{name}");
        }
    }
}

#[test]
fn sparse_members_and_labels_are_read() {
    for (name, count) in [("pax-sparse", 3), ("tar-label", 3)] {
        let folder = copy(name);
        let (found, said) = keys_both_ways(folder.path(), "in.tar");
        assert_eq!((found.len(), &*said), (count, ""), "{name}");
        let test = "sparse_members_and_labels_are_read";
        if let Some(expected) = webdataset_keys(test, &folder.path().join("in.tar")) {
            assert_eq!(found, expected, "{name}");
        }
    }
}

#[test]
fn archives_behind_each_other_are_read() {
    let folder = copy("tar-concat");
    let (found, said) = keys_both_ways(folder.path(), "in.tar");
    assert_eq!(found, ["0000", "0001", "0002", "0003", "0004"]);
    contains(&said, &["in.tar", "several archives", "byte 10240"]);
    let listed = Command::new("tar")
        .current_dir(folder.path())
        .args(["--ignore-zeros", "-tf", "in.tar"])
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let images = listed.lines().filter_map(|name| name.strip_suffix(".png"));
    assert_eq!(images.collect::<Vec<_>>(), found);
    // Said once, however often it is read.
    let epochs = "order --shards in.tar --batch 1 --epochs 5";
    fs::remove_file(folder.path().join("in.tar.qfidx")).unwrap();
    let (listed, said) = done(folder.path(), epochs);
    assert_eq!(listed.lines().count(), 25);
    assert_eq!(said.matches("several archives").count(), 1, "{said}");
    // Bytes that are of no archive are not read, and said to be there.
    let mut bytes = fs::read(folder.path().join("in.tar")).unwrap();
    bytes.extend(b"no archive");
    fs::write(folder.path().join("garbage.tar"), &bytes).unwrap();
    let (found, said) = keys_both_ways(folder.path(), "garbage.tar");
    assert_eq!(found.len(), 5);
    contains(&said, &["behind the end of its archive", "byte 20480"]);
}

#[test]
fn a_large_window_names_its_limit_and_the_setting() {
    let folder = copy("zstd-long");
    let folder = folder.path();
    let list = "order --shards in.tar.zst --batch 16 --keep-last";
    let words = ["196 MiB", "128 MiB", "--max-zstd-window-log 28"];
    for line in [
        list,
        "index in.tar.zst",
        "vocab --shards in.tar.zst --out v.txt",
    ] {
        let message = fails(folder, line);
        contains(&message, &words);
        assert!(
            !message.contains("damaged") && !message.contains("fetch"),
            "{message}"
        );
    }
    let (streamed, _) = done(folder, &format!("{list} --max-zstd-window-log 28"));
    assert!(!streamed.is_empty());
    done(folder, "index in.tar.zst --max-zstd-window-log 28");
    let (indexed, _) = done(folder, &format!("{list} --max-zstd-window-log 28"));
    assert_eq!(streamed, indexed);
}

#[test]
fn zeros_behind_zstd_frames_are_padding() {
    let folder = copy("zst-trailing");
    let (found, said) = keys_both_ways(folder.path(), "in.tar.zst");
    assert_eq!((found.len(), &*said), (4, ""));
}
