//! The loader from the command line: its order, its memory, its start.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use qf_pipeline::write::{ShardFormat, ShardOptions, ShardSample, ShardWriter};
use serde_json::Value;

use crate::bin;

/// Runs `qfdata` with words separated by spaces.
fn qfdata(folder: &Path, line: &str) -> Output {
    Command::new(bin::qfdata())
        .current_dir(folder)
        .args(line.split_whitespace())
        .output()
        .expect("qfdata starts")
}

fn done(folder: &Path, line: &str) -> String {
    let output = qfdata(folder, line);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qfdata {line}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one line of an error.
fn fails(folder: &Path, line: &str) -> String {
    let output = qfdata(folder, line);
    assert_eq!(output.status.code(), Some(1), "qfdata {line}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error.lines().count(), 1, "{error}");
    error
}

/// Samples of each batch of `qfdata order … --json`.
fn order(folder: &Path, line: &str) -> Vec<(u64, Vec<String>)> {
    let lines = done(folder, &format!("order {line} --json"));
    let parse = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let samples = line["samples"].as_array().unwrap().iter();
        let samples = samples.map(|sample| sample.as_str().unwrap().to_string());
        (line["step"].as_u64().unwrap(), samples.collect())
    };
    lines.lines().map(parse).collect()
}

fn write_shards(folder: &Path, format: ShardFormat, counts: &[usize], image: &[u8]) {
    let mut number = 0;
    for (shard, &count) in counts.iter().enumerate() {
        let path = folder.join(format!("s-{shard:03}.{format}"));
        let mut writer = ShardWriter::create(path, &ShardOptions::new(format)).unwrap();
        for _ in 0..count {
            let sample = ShardSample {
                key: format!("{number:06}"),
                extension: "png".into(),
                image: image.to_vec(),
                captions: vec!["a dog".into()],
                text_member: true,
                json: None,
                members: Vec::new(),
            };
            writer.write(&sample).unwrap();
            number += 1;
        }
        writer.finish().unwrap();
    }
}

fn png(side: u32) -> Vec<u8> {
    let image = image::RgbImage::from_fn(side, side, |x, y| {
        image::Rgb([x as u8, y as u8, (x * y) as u8])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

#[test]
fn order_of_ranks_and_of_resumed_runs() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    write_shards(folder, ShardFormat::TarZst, &[100, 0, 57, 83], &png(8));
    let all = "--shards s-{000..003}.tar.zst --batch 24 --seed 1";
    for shuffle in ["none", "shards", "buffer", "full"] {
        let of = |world: u32, rest: &str| -> Vec<Vec<String>> {
            let ranks: Vec<_> = (0..world)
                .map(|rank| {
                    let rest = rest.replace("RANK", &rank.to_string());
                    let line =
                        format!("{all} --shuffle {shuffle} --world {world} --rank {rank} {rest}");
                    order(folder, &line)
                })
                .collect();
            (0..ranks[0].len())
                .map(|step| ranks.iter().flat_map(|rank| rank[step].1.clone()).collect())
                .collect()
        };
        let whole = of(1, "--epoch 2");
        assert_eq!(whole.len(), 10);
        let distinct: BTreeSet<_> = whole.iter().flatten().collect();
        assert_eq!(distinct.len(), 240);
        assert!(whole[0][0].starts_with("s-") && whole[0][0].contains(".tar.zst#"));
        assert_eq!(of(3, "--epoch 2"), whole);
        let begin = of(4, "--epoch 2 --stop-at 4 --save-state state-RANK.json");
        assert_eq!(begin, whole[..4]);
        // The state of any rank stands for all.
        assert_eq!(of(8, "--from-state state-3.json"), whole[4..]);
        let middle = of(
            1,
            "--from-state state-0.json --stop-at 5 --save-state next.json",
        );
        assert_eq!(middle, whole[4..5]);
        assert_eq!(of(2, "--from-state next.json"), whole[5..]);
    }
    let size = fs::metadata(folder.join("next.json")).unwrap().len();
    assert!(size < 64 << 10, "{size}");
    let lines = order(
        folder,
        &format!("{all} --shuffle full --from-state next.json --epochs 4"),
    );
    assert_eq!((lines[0].0, lines.len()), (5, 15));
    let text = done(folder, &format!("order {all} --stop-at 1"));
    assert!(text.starts_with("step 0: s-"), "{text}");
    let kept = order(folder, "--shards s-002.tar.zst --keep-last");
    assert_eq!((kept.len(), kept[3].1.len()), (4, 9));
}

#[test]
fn mistakes_name_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    write_shards(folder, ShardFormat::Tar, &[30, 30], &png(8));
    let all = "order --shards s-000.tar s-001.tar";
    done(folder, &format!("{all} --stop-at 2 --save-state s.json"));
    for (line, words) in [
        ("--batch 16 --world 3", &["16", "3 ranks"][..]),
        ("--world 2 --rank 2", &["rank 2 of 2"]),
        ("--from-state s.json --seed 7", &["seed", "(42)", "(7)"]),
        (
            "--from-state s.json --batch 8",
            &["global batch", "(16)", "(8)"],
        ),
        (
            "--from-state s.json --shuffle full",
            &["shuffle", "(buffer)", "(full)"],
        ),
        ("--from-state none.json", &["none.json"]),
        ("--from-state s-000.tar", &["s-000.tar", "not a state"]),
        ("--batch 100", &["60 samples", "batch of 100"]),
        ("--stop-at 9", &["3 batches", "--stop-at 9"]),
        ("--epochs 0", &["--stop-at"]),
    ] {
        let error = fails(folder, &format!("{all} {line}"));
        assert!(error.starts_with("error: "), "{error}");
        for word in words {
            assert!(error.contains(word), "{line}: {error}");
        }
    }
    let other = "order --shards s-000.tar --from-state s.json";
    let error = fails(folder, other);
    assert!(
        error.contains("number of shards (2)") && error.contains("(1)"),
        "{error}"
    );
    // An index that no longer fits, and a shard that has none.
    let bytes = fs::read(folder.join("s-001.tar")).unwrap();
    fs::write(folder.join("s-000.tar"), &bytes[..bytes.len() - 512]).unwrap();
    let error = fails(folder, all);
    assert!(
        error.contains("s-000.tar") && error.contains("qfdata index"),
        "{error}"
    );
    fs::remove_file(folder.join("s-000.tar.qfidx")).unwrap();
    let error = fails(folder, &format!("{all} --shuffle full"));
    assert!(error.contains("s-000.tar has no index"), "{error}");
    done(folder, "index s-000.tar");
    done(folder, &format!("{all} --shuffle full"));
    let output = qfdata(folder, &format!("{all} --shufle full"));
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("--shuffle"), "{error}");
}

#[test]
fn a_mixture_is_listed_by_weight() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    for name in ["a", "b"] {
        fs::create_dir(folder.join(name)).unwrap();
        write_shards(&folder.join(name), ShardFormat::Tar, &[10], &png(8));
    }
    let line = "--mix few:1=a/s-000.tar --mix many:3=b/s-000.tar --batch 8 --stop-at 6";
    let batches = order(folder, line);
    assert_eq!(batches.len(), 6);
    for (_, samples) in &batches {
        let few = samples.iter().filter(|sample| sample.starts_with("a/"));
        assert_eq!(few.count(), 2);
    }
    let error = fails(folder, "order --mix few=a/s-000.tar --stop-at 1");
    assert!(error.contains("NAME:WEIGHT=SHARDS"), "{error}");
}

fn profile(folder: &Path, line: &str) -> Value {
    let json = done(folder, &format!("profile {line} --seconds 2 --json"));
    serde_json::from_str(&json).unwrap()
}

/// A line for the performance page.
fn report(what: &str, begun: Instant) {
    println!("{what}: {:.2} s", begun.elapsed().as_secs_f64());
}

/// Memory does not follow the size of the data set, and neither does the time to go on.
#[test]
fn ten_thousand_shards() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    write_shards(folder, ShardFormat::Tar, &[40], &png(96));
    for ending in ["tar", "tar.qfidx"] {
        for number in 1..10_000 {
            let link = folder.join(format!("s-{number:05}.{ending}"));
            fs::hard_link(folder.join(format!("s-000.{ending}")), link).unwrap();
        }
        fs::rename(
            folder.join(format!("s-000.{ending}")),
            folder.join(format!("s-00000.{ending}")),
        )
        .unwrap();
    }
    for shuffle in ["buffer", "full"] {
        let all = format!("--shards s-*.tar --shuffle {shuffle}");
        let profile = profile(folder, &all);
        let rss = profile["peak_rss_mb"].as_f64().unwrap();
        println!(
            "{shuffle}: peak RSS {rss:.0} MB, {} images/s",
            profile["images_per_s"]
        );
        assert!(rss <= 300.0, "{shuffle}: {rss} MB");
        let begun = Instant::now();
        done(
            folder,
            &format!("order {all} --stop-at 1 --save-state first.json"),
        );
        report(
            &format!("{shuffle}: to the first batch of 10,000 shards"),
            begun,
        );
        // Nearly at the end of the epoch.
        let state = fs::read_to_string(folder.join("first.json")).unwrap();
        let mut state: Value = serde_json::from_str(&state).unwrap();
        // Of what is changed here.
        state.as_object_mut().unwrap().remove("sha256").unwrap();
        state["sets"][0]["position"] = 399_952.into();
        state["row"] = 24_997.into();
        state["batches"] = 24_998.into();
        fs::write(folder.join("late.json"), state.to_string()).unwrap();
        let begun = Instant::now();
        let rest = order(folder, &format!("{all} --from-state late.json"));
        report(
            &format!("{shuffle}: to go on in the last batches of the epoch"),
            begun,
        );
        assert_eq!((rest[0].0, rest.len()), (24_998, 2));
    }
}

#[test]
fn a_shard_of_two_gigabytes() {
    const MEMBER_BYTES: usize = 150_000;
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let file = BufWriter::with_capacity(1 << 20, fs::File::create(folder.join("s.tar")).unwrap());
    let mut tar = tar::Builder::new(file);
    // What follows the end of a PNG is nobody's, and makes it as long as a photograph.
    let mut image = png(96);
    image.resize(MEMBER_BYTES, 0xa5);
    for number in 0..14_000 {
        for (ending, data) in [("png", &image[..]), ("txt", b"a dog")] {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("{number:06}.{ending}"), data)
                .unwrap();
        }
    }
    tar.into_inner().unwrap().flush().unwrap();
    assert!(fs::metadata(folder.join("s.tar")).unwrap().len() > 2_000_000_000);
    for indexed in [false, true] {
        if indexed {
            done(folder, "index s.tar");
        }
        for shuffle in ["buffer", "full"] {
            if shuffle == "full" && !indexed {
                continue;
            }
            let profile = profile(folder, &format!("--shards s.tar --shuffle {shuffle}"));
            let rss = profile["peak_rss_mb"].as_f64().unwrap();
            println!("2 GB, indexed {indexed}, {shuffle}: peak RSS {rss:.0} MB");
            assert!(rss <= 300.0, "indexed {indexed}, {shuffle}: {rss} MB");
        }
    }
}
