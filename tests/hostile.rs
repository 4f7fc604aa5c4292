//! Archives and images made to break readers, through the whole loader: no panic, no hang, a clear
//! error or samples that add up.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qf_pipeline::config::OnBad;
use qf_pipeline::process::peak_rss_bytes;
use qf_pipeline::shard::read::{read_shard, NoObserver, ReadOptions};
use qf_pipeline::source::resolve_shards;
use qf_pipeline::stop::Stop;
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::{Loader, LoaderConfig, PipelineError};
use serde_json::Value;

use crate::test_data;

/// No file of the collections is large; a reader that takes this long is stuck.
const MAX_TIME: Duration = Duration::from_secs(20);

/// The largest images are some 10 megapixels of RGBA; a runaway reader takes gigabytes.
const MAX_RSS_BYTES: u64 = 4 << 30;

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else if path.file_name().is_some_and(|name| name != "SOURCES.md") {
            files.push(path);
        }
    }
    files.sort();
    files
}

fn tokenizer() -> Arc<CaptionTokenizer> {
    let entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a"];
    let entries = entries.iter().map(|entry| entry.to_string()).collect();
    Arc::new(CaptionTokenizer::from_vocab(entries).unwrap())
}

/// Loads a shard to its end, or to the error that ends it, which must name the shard.
fn load(shard: &Path) -> Result<qf_pipeline::loader::Counters, PipelineError> {
    let shards = resolve_shards(&[shard.to_str().unwrap()]).unwrap();
    let config = LoaderConfig {
        batch_size: 4,
        image_size: 16,
        threads: 2,
        on_bad_sample: OnBad::Skip,
        max_image_pixels: 1 << 24,
        max_sample_bytes: 64 << 20,
        ..LoaderConfig::default()
    };
    let started = Instant::now();
    let mut loader = Loader::builder(config.for_evaluation())
        .shards(shards)
        .batches(tokenizer())?;
    let result = loop {
        match loader.next_batch() {
            Ok(Some(batch)) => assert!(batch.counters().balance()),
            Ok(None) => break Ok(loader.state().counters.clone()),
            Err(error) => break Err(error),
        }
    };
    drop(loader);
    assert!(started.elapsed() < MAX_TIME, "{} hangs", shard.display());
    let rss = peak_rss_bytes().unwrap_or(0);
    assert!(rss < MAX_RSS_BYTES, "{}: {rss} bytes", shard.display());
    match &result {
        Ok(counters) => assert!(counters.balance(), "{}: {counters:?}", shard.display()),
        Err(PipelineError::BadShard(error)) => {
            assert_eq!(error.shard, shard.display().to_string());
            assert!(!error.message.is_empty() && !error.message.contains('\n'));
            if shard
                .extension()
                .is_some_and(|extension| extension == "tar")
            {
                // Where it breaks, not where it claims to end.
                let length = fs::metadata(shard).unwrap().len();
                assert!(error.offset_bytes <= length, "{error}");
            }
        }
        Err(PipelineError::TooFewSamples(_)) => {}
        Err(other) => panic!("{}: {other}", shard.display()),
    }
    result
}

#[test]
fn archives() {
    for collection in ["data/hostile/tar", "data/hostile/zst", "data/wds"] {
        let Some(folder) = test_data::find("archives", collection) else {
            return;
        };
        let files = files_below(&folder);
        assert!(files.len() > 5, "{collection}");
        let mut ends: BTreeMap<&str, usize> = BTreeMap::new();
        for file in &files {
            let end = match load(file) {
                Ok(_) => "read to the end",
                Err(PipelineError::BadShard(_)) => "unreadable",
                Err(_) => "no sample",
            };
            *ends.entry(end).or_default() += 1;
        }
        println!("{collection}: {} files, {ends:?}", files.len());
    }
}

#[test]
fn images() {
    let Some(folder) = test_data::find("images", "data/hostile/images") else {
        return;
    };
    let files = files_below(&folder);
    assert!(files.len() > 100);
    let scratch = tempfile::tempdir().unwrap();
    let shard = scratch.path().join("images.tar");
    let mut archive = tar::Builder::new(fs::File::create(&shard).unwrap());
    let mut add = |name: &str, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, data).unwrap();
    };
    for (number, file) in files.iter().enumerate() {
        // Under a wrong extension half of the time: the bytes count.
        let extension = ["jpg", "png"][number % 2];
        add(
            &format!("{number:04}.{extension}"),
            &fs::read(file).unwrap(),
        );
        add(&format!("{number:04}.txt"), b"a a");
    }
    archive.into_inner().unwrap();
    let counters = load(&shard).unwrap();
    assert_eq!(counters.read, files.len() as u64);
    assert!(counters.delivered > 50, "{counters:?}");
    println!("{} images: {counters:?}", files.len());
}

const LIST_TAR: &str = r#"
import json, sys, tarfile
from webdataset import tariterators

def keys(path):
    files, last = [], None
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            if not member.isreg():
                continue
            prefix, suffix = tariterators.base_plus_ext(member.name)
            if prefix is None or member.name.rsplit("/", 1)[-1].startswith("."):
                continue
            if prefix != last:
                files.append([prefix, {}])
                last = prefix
            data = archive.extractfile(member).read()
            files[-1][1].setdefault(suffix.lower(), len(data))
    return files

print(json.dumps([keys(path) for path in sys.argv[1:]]))
"#;

/// Python's tarfile and webdataset's rule for names see the same samples in others' archives.
#[test]
fn foreign_archives_hold_what_python_finds() {
    let test = "foreign_archives_hold_what_python_finds";
    let Some(folder) = test_data::find(test, "data/wds") else {
        return;
    };
    let Some(python) = test_data::python(test) else {
        return;
    };
    let archives: Vec<PathBuf> = files_below(&folder)
        .into_iter()
        .filter(|file| {
            file.extension()
                .is_some_and(|extension| extension != "json")
        })
        .collect();
    let output = Command::new(python)
        .args(["-c", LIST_TAR])
        .args(&archives)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let expected: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let mut samples = 0;
    for (archive, expected) in archives.iter().zip(expected) {
        let expected: Vec<(String, BTreeMap<String, usize>)> =
            serde_json::from_value(expected).unwrap();
        let extensions = expected.iter().flat_map(|(_, members)| members.keys());
        let options = ReadOptions {
            extra_members: extensions.cloned().collect(),
            ..ReadOptions::default()
        };
        let location = &resolve_shards(&[archive.to_str().unwrap()]).unwrap()[0];
        let mut found = Vec::new();
        read_shard(
            location,
            0,
            &options,
            &NoObserver,
            &Stop::default(),
            &mut |sample| {
                let sample = sample.unwrap();
                let members = sample.members.iter();
                let members = members.map(|member| (member.name.clone(), member.data.len_bytes()));
                found.push((sample.id.key.clone(), members.collect()));
                true
            },
        )
        .unwrap();
        assert_eq!(found, expected, "{}", archive.display());
        samples += found.len();
    }
    assert!(samples > 50, "{samples} samples");
}
