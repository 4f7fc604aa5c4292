//! Every file of the collections through every path that a file can take: as a shard, as an image (in
//! a tar and an Arrow shard, in every quality), as a row of a manifest, as captions, index, vocabulary, weights
//! and settings. Nothing panics, hangs or takes more memory than its limits allow, and what fails says why.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qf_model::weights::WeightsFile;
use qf_pipeline::augment::{ImageProcessor, ImageTransform, SampleRng};
use qf_pipeline::captions::{captions_from_json, captions_from_text, CaptionLines};
use qf_pipeline::config::{OnBad, Processing};
use qf_pipeline::decode::{DecodeLimits, DecodeQuality, Decoder, OnTruncated};
use qf_pipeline::index::{Found, ShardIndex};
use qf_pipeline::loader::{Counters, LoaderState};
use qf_pipeline::source::{resolve_shards, ShardLocation};
use qf_pipeline::stop::Stop;
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::write::{ShardFormat, ShardOptions, ShardSample, ShardWriter};
use qf_pipeline::{Loader, LoaderConfig, PipelineError};
use serde_json::{json, Value};

use crate::{bin, test_data};

const COLLECTIONS: [&str; 5] = [
    "data/hostile",
    "data/arrow",
    "data/wds",
    "data/photos",
    "data/cases",
];

/// For one file, one way.
const MAX_TIME: Duration = Duration::from_secs(5);

const QUALITIES: [DecodeQuality; 3] = [
    DecodeQuality::Exact,
    DecodeQuality::Balanced,
    DecodeQuality::Fast,
];

/// All files; `None` where the collections are not there.
fn files(test: &str) -> Option<Vec<PathBuf>> {
    let mut found = Vec::new();
    for collection in COLLECTIONS {
        below(&test_data::find(test, collection)?, &mut found);
    }
    found.sort();
    assert!(found.len() > 1000, "{} files", found.len());
    Some(found)
}

fn below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => below(&path, found),
            false => found.push(path),
        }
    }
}

/// Runs it, and fails if that takes too long.
fn timed<T>(what: &str, path: &Path, run: impl FnOnce() -> T) -> T {
    let started = Instant::now();
    let result = run();
    let took = started.elapsed();
    assert!(took < MAX_TIME, "{} {what}: {took:?}", path.display());
    result
}

fn tokenizer() -> Arc<CaptionTokenizer> {
    let entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a"];
    let entries = entries.iter().map(|entry| entry.to_string()).collect();
    Arc::new(CaptionTokenizer::from_vocab(entries).expect("a vocabulary"))
}

fn config(processing: Processing) -> LoaderConfig {
    let config = LoaderConfig {
        batch_size: 8,
        image_size: 32,
        threads: 2,
        on_bad_sample: OnBad::Skip,
        ..LoaderConfig::default()
    };
    LoaderConfig {
        processing,
        ..config.for_evaluation()
    }
}

/// Loads a shard to its end, or to the error that ends it.
fn load(shard: &Path, config: LoaderConfig) -> Result<Counters, PipelineError> {
    let shards = resolve_shards(&[shard.to_str().expect("UTF-8")])?;
    let mut loader = Loader::builder(config)
        .shards(shards)
        .batches(tokenizer())?;
    while let Some(batch) = loader.next_batch()? {
        assert!(batch.counters().balance());
    }
    Ok(loader.state().counters.clone())
}

#[test]
fn every_file_is_a_shard_or_is_refused_with_a_reason() {
    let Some(files) = files("every_file_is_a_shard_or_is_refused_with_a_reason") else {
        return;
    };
    // A file's own name could be taken for a pattern.
    let folder = tempfile::tempdir().expect("a folder");
    let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
    for (number, file) in files.iter().enumerate() {
        let shard = folder.path().join(format!("{number}.tar"));
        std::os::unix::fs::symlink(file, &shard).expect("links");
        let end = timed("as a shard", file, || {
            load(&shard, config(Processing::Train))
        });
        let end = match end {
            Ok(counters) => {
                assert!(counters.balance(), "{}: {counters:?}", file.display());
                "read to the end"
            }
            Err(PipelineError::BadShard(error)) => {
                assert_eq!(error.shard, shard.display().to_string());
                let message = &error.message;
                assert!(!message.is_empty() && !message.contains('\n'), "{message}");
                "unreadable"
            }
            Err(PipelineError::TooFewSamples(_)) => "no good sample",
            Err(other) => panic!("{}: {other}", file.display()),
        };
        *ends.entry(end).or_default() += 1;
    }
    println!("{} files as shards: {ends:?}", files.len());
    assert!(
        ends["read to the end"] > 20 && ends["unreadable"] > 500,
        "{ends:?}"
    );
}

/// A shard of all files as images.
fn shard_of(files: &[PathBuf], folder: &Path, format: ShardFormat) -> PathBuf {
    let shard = folder.join(format!("files.{}", format.extension()));
    let mut writer = ShardWriter::create(&shard, &ShardOptions::new(format)).expect("creates");
    for (number, file) in files.iter().enumerate() {
        let sample = ShardSample {
            key: format!("{number:04}"),
            // Wrong half of the time: the bytes count.
            extension: ["jpg", "png"][number % 2].into(),
            image: fs::read(file).expect("reads"),
            captions: vec!["a a".into()],
            text_member: true,
            json: None,
            members: Vec::new(),
        };
        writer.write(&sample).expect("writes");
    }
    writer.finish().expect("finishes");
    shard
}

/// Through loaders: both containers, training in every quality with and without damaged images, evaluation.
#[test]
fn every_file_is_an_image_of_a_shard_or_a_counted_sample() {
    let Some(files) = files("every_file_is_an_image_of_a_shard_or_a_counted_sample") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let mut counts: BTreeMap<String, Counters> = BTreeMap::new();
    for format in [ShardFormat::Tar, ShardFormat::Arrow] {
        let shard = shard_of(&files, folder.path(), format);
        for decode_quality in QUALITIES {
            for on_truncated in [OnTruncated::Error, OnTruncated::Grey] {
                let config = LoaderConfig {
                    decode_quality,
                    on_truncated,
                    ..config(Processing::Train)
                };
                let counters = load(&shard, config).expect("reads to the end");
                assert!(counters.balance(), "{counters:?}");
                assert_eq!(counters.read, files.len() as u64);
                let name = format!("{decode_quality:?} {on_truncated:?}");
                // The container changes nothing.
                let before = counts.entry(name).or_insert(counters.clone());
                assert_eq!(*before, counters, "{format} {decode_quality:?}");
            }
        }
        let counters = load(&shard, config(Processing::Eval)).expect("reads to the end");
        assert_eq!(counters.read, files.len() as u64);
        counts.insert(format!("{format} evaluation"), counters);
    }
    println!("{} files as images: {counts:#?}", files.len());
    let whole = counts["Exact Error"].delivered;
    assert!(whole > 500 && whole < files.len() as u64, "{whole}");
    assert!(counts["Exact Grey"].delivered > whole, "{counts:?}");
}

/// One by one, for the time of each and the message of what fails.
#[test]
fn every_file_is_an_image_in_every_quality_or_says_why_not() {
    let Some(files) = files("every_file_is_an_image_in_every_quality_or_says_why_not") else {
        return;
    };
    let mut processor = ImageProcessor::new(ImageTransform::train(64)).expect("valid");
    let (mut good, mut bad, mut panics) = (0, 0, Vec::new());
    for (number, file) in files.iter().enumerate() {
        let bytes = fs::read(file).expect("reads");
        for on_truncated in [OnTruncated::Error, OnTruncated::Grey] {
            let mut decoder = Decoder::new(DecodeLimits::default(), on_truncated);
            for quality in QUALITIES {
                let mut out = processor.blank();
                let done = timed(&format!("as an image, {quality:?}"), file, || {
                    let opened = decoder.open(&bytes)?;
                    let mut rng = SampleRng::new(1, 0, 0, number as u32);
                    let size = (opened.width(), opened.height());
                    let view = processor.transform().draw(size.0, size.1, &mut rng);
                    processor.render_opened(&mut decoder, &opened, &view, quality, out.as_mut())
                });
                match done {
                    Ok(_) => good += 1,
                    Err(error) => {
                        bad += 1;
                        let message = error.to_string();
                        assert!(message.len() > 10, "{}: {message}", file.display());
                        if message.contains("its decoder failed") {
                            panics.push(format!("{}: {message}", file.display()));
                        }
                    }
                }
            }
        }
    }
    println!("{good} pictures, {bad} refusals; panics of decoders: {panics:#?}");
    assert!(good > 3000 && bad > 1000, "{good}, {bad}");
    let ours = panics.iter().find(|panic| panic.contains("pipeline/"));
    assert_eq!(ours, None);
}

/// The programs on all of them: what was skipped is counted, and memory stays within the limits.
#[test]
fn every_file_is_a_row_of_a_manifest() {
    let Some(files) = files("every_file_is_a_row_of_a_manifest") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let manifest = folder.path().join("rows.jsonl");
    let rows = files
        .iter()
        .map(|file| format!("{}\n", json!({"path": file, "caption": "a dog"})));
    fs::write(&manifest, rows.collect::<String>()).expect("writes");
    let sharded = Command::new(bin::qfdata())
        .args(["shard", "--json", "--out"])
        .arg(folder.path().join("rows"))
        .arg(&manifest)
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&sharded.stderr);
    // Some rows were skipped.
    assert_eq!(sharded.status.code(), Some(3), "{said}");
    let report: Value = serde_json::from_slice(&sharded.stdout).expect("JSON");
    let written = report["samples"].as_u64().expect("a number");
    assert!(written > 500, "{report}");

    let profiled = Command::new(bin::qfdata())
        .args(["profile", "--json", "--seconds", "20", "--batch-size", "8"])
        .args(["--threads", "2", "--image-size", "64", "--shuffle", "none"])
        .arg("--shards")
        .arg(folder.path().join("rows-*.tar"))
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&profiled.stderr);
    assert!(profiled.status.success(), "{said}");
    let profile: Value = serde_json::from_slice(&profiled.stdout).expect("JSON");
    let peak = profile["peak_rss_mb"].as_f64().expect("a number");
    println!("{written} of {} rows, {peak:.0} MB: {report}", files.len());
    // 512 MiB for decoders, 200 MB for all else.
    assert!(peak < 750.0, "{peak} MB");
}

/// As everything else that is read from a file.
#[test]
fn every_file_as_captions_index_vocabulary_weights_and_settings() {
    let Some(files) = files("every_file_as_captions_index_vocabulary_weights_and_settings") else {
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let shard = folder.path().join("a.tar");
    let sidecar = folder.path().join("a.tar.qfidx");
    let mut captioned = 0;
    for file in &files {
        timed("as metadata", file, || {
            let bytes = fs::read(file).expect("reads");
            for lines in [CaptionLines::Each, CaptionLines::One] {
                captioned += usize::from(captions_from_text(&bytes, lines).is_ok());
            }
            let _ = captions_from_json(&bytes);
            let _ = serde_json::from_slice::<LoaderState>(&bytes);
            if let Err(error) = CaptionTokenizer::from_file(file) {
                assert!(error.to_string().contains(&file.display().to_string()));
            }
            // As the index of itself, and of another shard.
            fs::copy(file, &sidecar).expect("copies");
            for of in [&bytes[..], &[0; 1024]] {
                fs::write(&shard, of).expect("writes");
                let found = ShardIndex::find(&ShardLocation::local(&shard), &Stop::default());
                let is_used = matches!(found, Ok(Found::Index(_) | Found::Absent));
                assert!(!is_used, "{}: {found:?}", file.display());
            }
            let weights = WeightsFile::open(file).map(|_| ());
            let error = weights.expect_err("no file of weights").to_string();
            let name = file.file_name().expect("a name").to_string_lossy();
            assert!(error.contains(&*name), "{error}");
        });
    }
    println!("{} files, {captioned} of them text", files.len());
    assert!(captioned > 20, "{captioned}");
}
