//! What a loader puts into a trace.

use std::collections::BTreeMap;

use super::*;
use crate::trace::{SpanEvent, Trace, TraceFile, TraceLimits};

fn traced_run(config: &LoaderConfig, shards: &[ShardLocation]) -> (Vec<Seen>, TraceFile) {
    let dir = tempfile::tempdir().unwrap();
    let trace = Trace::create(dir.path().join("trace.json"), TraceLimits::default()).unwrap();
    trace.name_this_thread("train");
    let mut loader = Loader::builder(config.clone())
        .shards(shards.to_vec())
        .trace(trace.clone())
        .batches(tokenizer())
        .unwrap();
    let batches = loader.by_ref().map(|batch| seen(&batch.unwrap())).collect();
    drop(loader);
    let summary = trace.finish().unwrap();
    assert_eq!(summary.dropped(), 0);
    (batches, TraceFile::read(&summary.path).unwrap())
}

fn is_slow(span: &&SpanEvent) -> bool {
    span.args.contains_key("slow")
}

#[test]
fn a_traced_loader_gives_the_same_batches_and_says_what_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let config = LoaderConfig {
        threads: 3,
        io_threads: 1,
        epochs: 2,
        ..config()
    };
    for (format, indexed) in [
        (ShardFormat::Tar, true),
        (ShardFormat::Tar, false),
        (ShardFormat::TarZst, true),
        (ShardFormat::TarGz, false),
        (ShardFormat::Arrow, true),
    ] {
        let folder = dir.path().join(format!("{format}-{indexed}"));
        std::fs::create_dir(&folder).unwrap();
        let shards = write_shards(&folder, format, &[9, 1, 14]);
        for shard in &shards {
            let index = shard.sidecar(".qfidx");
            let path = index.path().unwrap();
            if !indexed && path.exists() {
                std::fs::remove_file(path).unwrap();
            }
        }
        let (batches, file) = traced_run(&config, &shards);
        assert_eq!(batches, run(&config, &shards, None), "{format}");

        // Each sample of both epochs once, in each stage.
        for stage in ["decode", "augment", "tokenise", "collate"] {
            assert_eq!(file.spans(stage).count(), 2 * 24, "{format}: {stage}");
        }
        assert_eq!(file.spans("hand over batch").count(), batches.len());
        let tracks: Vec<&str> = file.tracks.iter().map(|t| t.name.as_str()).collect();
        for name in ["qf-read-0", "qf-sequence", "qf-collate"] {
            assert!(tracks.contains(&name), "{format}: {tracks:?}");
        }
        // Stages are where they run.
        for track in &file.tracks {
            for span in &track.spans {
                let thread = match span.name.as_str() {
                    "open" | "read" | "decompress" => "qf-read-",
                    "decode" | "augment" | "tokenise" => "qf-work-",
                    "collate" | "hand over batch" | "wait: sample in decoding" => "qf-collate",
                    "wait: batches full" | "wait: samples in decoding empty" => "qf-collate",
                    "wait: samples in decoding full" => "qf-sequence",
                    "wait: samples read ahead empty" => "qf-sequence",
                    "wait: samples read ahead full" => "qf-read-",
                    "wait: batches empty" => "train",
                    name => panic!("{format}: a span `{name}`"),
                };
                assert!(track.name.starts_with(thread), "{}: {thread}", track.name);
                if span.name.starts_with("wait: ") {
                    assert!(span.duration_ns >= 100_000, "{span:?}");
                }
            }
        }
        // Reads say the shard and how much; all of it together is what was read.
        let names: Vec<&str> = shards.iter().map(|shard| &*shard.name).collect();
        for span in file.spans("read").chain(file.spans("open")) {
            assert!(names.contains(&span.args["shard"].as_str().unwrap()));
        }
        let read: u64 = file
            .spans("read")
            .map(|s| s.args["bytes"].as_u64().unwrap())
            .sum();
        let stored: u64 = shards
            .iter()
            .map(|shard| shard.size(&crate::stop::Stop::default()).unwrap().unwrap())
            .sum();
        assert!(read > stored, "{format}: {read} bytes of twice {stored}");
        let decompresses = matches!(format, ShardFormat::TarZst | ShardFormat::TarGz);
        assert_eq!(file.spans("decompress").next().is_some(), decompresses);
        let mut counters: BTreeMap<&str, usize> = BTreeMap::new();
        for counter in &file.counters {
            *counters.entry(&counter.name).or_default() += 1;
        }
        let expected = ["batches ready", "samples in decoding", "samples read ahead"];
        assert_eq!(counters.into_keys().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn a_slow_sample_says_which_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.tar");
    let mut writer = ShardWriter::create(&path, &ShardOptions::new(ShardFormat::Tar)).unwrap();
    let large = {
        let image = image::RgbImage::from_fn(2500, 2500, |x, y| {
            image::Rgb([(x * y) as u8, (x ^ y) as u8, (x + y) as u8])
        });
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    };
    for number in 0..40 {
        let sample = ShardSample {
            key: format!("{number:05}"),
            extension: "png".into(),
            image: if number == 30 {
                large.clone()
            } else {
                png(number)
            },
            captions: vec!["dog".into()],
            text_member: true,
            json: None,
            members: Vec::new(),
        };
        writer.write(&sample).unwrap();
    }
    writer.finish().unwrap();
    let shards = resolve_shards(&[path.to_string_lossy()]).unwrap();
    let config = LoaderConfig {
        threads: 1,
        epochs: 1,
        shuffle: ShuffleMode::None,
        ..config()
    };
    let (_, file) = traced_run(&config, &shards);
    let slow: Vec<_> = file.spans("decode").filter(is_slow).collect();
    let found = slow.iter().find(|span| span.args["key"] == "00030");
    let found = found.unwrap_or_else(|| panic!("{slow:?}"));
    assert_eq!(found.args["shard"], path.to_string_lossy().as_ref());
    assert_eq!(found.args["bytes"], large.len());
    let longest = file.spans("decode").map(|span| span.duration_ns).max();
    assert_eq!(longest, Some(found.duration_ns));
    // Ordinary ones say nothing.
    let others = file.spans("decode").filter(|span| !is_slow(span));
    assert!(others
        .map(|span| span.args.len())
        .eq(std::iter::repeat_n(0, 40 - slow.len())));
    // Who waited for it says so, too.
    let mut waits = file.spans("wait: sample in decoding");
    assert!(waits.any(|span| span.args["key"] == "00030"));
}

#[test]
fn a_trace_of_some_batches_holds_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), ShardFormat::Tar, &[20]);
    let config = LoaderConfig {
        epochs: 0,
        prefetch_batches: 1,
        ..config()
    };
    let path = dir.path().join("trace.json");
    let trace = Trace::create(&path, TraceLimits::default()).unwrap();
    trace.set_recording(false);
    let mut loader = Loader::builder(config)
        .shards(shards)
        .trace(trace.clone())
        .batches(tokenizer())
        .unwrap();
    let mut take = |batches| {
        for _ in 0..batches {
            loader.next_batch().unwrap().unwrap();
        }
    };
    take(20);
    trace.set_recording(true);
    take(10);
    trace.set_recording(false);
    take(20);
    // The loader is still running.
    assert!(trace.finish().unwrap().events > 0);
    take(20);
    let file = TraceFile::read(&path).unwrap();
    let batches = file.spans("hand over batch").count();
    assert!((8..=14).contains(&batches), "{batches}");
}
