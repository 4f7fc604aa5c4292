//! The same data in every format, on any number of threads: the same batches.

use std::path::Path;
use std::sync::Arc;

use qf_pipeline::source::resolve_shards;
use qf_pipeline::stop::Stop;
use qf_pipeline::text::{CaptionTokenizer, TokenRows, VocabularyOptions};
use qf_pipeline::vocabulary::vocabulary_from_shards;
use qf_pipeline::{Batch, Loader, LoaderConfig};

use crate::shard_cli;
use crate::test_data;
use crate::train_cli;

/// What must not depend on the format.
#[derive(PartialEq)]
struct Content {
    pixels: Vec<u8>,
    tokens: TokenRows,
    captions: Vec<String>,
    /// Key, shard and place in it.
    places: Vec<(String, u32, u32)>,
    epoch: u64,
}

impl Content {
    fn of(batch: &Batch) -> Content {
        let place = |id: &qf_pipeline::SampleId| (id.key.clone(), id.shard_index, id.sample_index);
        Content {
            pixels: batch.pixels().as_bytes().to_vec(),
            tokens: batch.tokens.clone(),
            captions: batch.captions.clone(),
            places: batch.ids.iter().map(place).collect(),
            epoch: batch.epoch,
        }
    }
}

fn first_batches(config: &LoaderConfig, glob: &str, threads: usize) -> Vec<Content> {
    let shards = resolve_shards(&[glob]).unwrap();
    let options = VocabularyOptions::default();
    let stop = Stop::default();
    let trained = vocabulary_from_shards(&shards, config, &options, 1_000, &stop).unwrap();
    let tokenizer = CaptionTokenizer::from_vocab(trained.entries).unwrap();
    let config = LoaderConfig {
        threads,
        ..config.clone()
    };
    Loader::builder(config)
        .shards(shards)
        .batches(Arc::new(tokenizer))
        .unwrap()
        .take(10)
        .map(|batch| Content::of(&batch.unwrap()))
        .collect()
}

fn check(config: &LoaderConfig, glob: impl Fn(&str) -> String, formats: &[&str]) {
    let expected = first_batches(config, &glob("tar"), 1);
    assert_eq!(expected.len(), 10);
    let images = config.batch_size * 3 * config.image_size * config.image_size;
    assert!(expected.iter().all(|batch| batch.pixels.len() == images));
    assert!(expected[0].pixels != expected[1].pixels);
    for (number, format) in formats.iter().enumerate() {
        let threads = 2 - number % 2;
        let found = first_batches(config, &glob(format), threads);
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.places, expected.places, "{format}, batch {at}");
            assert!(found == expected, "{format}, {threads} threads: batch {at}");
        }
        assert_eq!(found.len(), expected.len());
    }
}

#[test]
fn scenes() {
    let config = LoaderConfig {
        batch_size: 5,
        image_size: 48,
        ..LoaderConfig::default()
    };
    let formats = ["tar", "tar.gz", "tar.zst", "arrow", "arrow"];
    check(&config, train_cli::glob, &formats);
}

#[test]
fn photographs() {
    let Some(pairs) = test_data::find("photographs", "data/pairs") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let prefix = folder.path().join("pairs");
    // The three shards differ in length; sidecars of the folder are none of the samples.
    for format in ["tar", "tar.zst", "arrow"] {
        let options = ["--format", format, "--max-count", "100"];
        let summary = shard_cli::shard(&pairs, &prefix, &options);
        assert_eq!(
            (&summary["samples"], &summary["shards"]),
            (&271.into(), &3.into())
        );
    }
    let glob = |format: &str| glob_of(&prefix, format);
    check(&LoaderConfig::default(), glob, &["tar", "tar.zst", "arrow"]);
}

fn glob_of(prefix: &Path, format: &str) -> String {
    format!("{}-*.{format}", prefix.display())
}
