//! The loader's promises, on small generated shards of every format.

mod edges;
mod ranks;
mod skips;
mod sources;
mod traced;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::batch::{Batch, HostAllocator, HostBuffer, PlainAllocator, SourceView};
use crate::config::{CaptionChoice, LoaderConfig, OnBad};
use crate::error::{PipelineError, SkipReason};
use crate::order::ShuffleMode;
use crate::source::{resolve_shards, ShardLocation};
use crate::text::{CaptionTokenizer, TokenRows};
use crate::write::{ShardFormat, ShardOptions, ShardSample, ShardWriter};

/// A PNG whose colours depend on `number`, so that images can be told apart.
fn png(number: usize) -> Vec<u8> {
    let image = image::RgbImage::from_fn(24, 20, |x, y| {
        image::Rgb([
            (number * 7) as u8,
            (x * 10) as u8,
            (y * 12 + number as u32) as u8,
        ])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Writes `per_shard.len()` shards with that many samples each.
fn write_shards(dir: &Path, format: ShardFormat, per_shard: &[usize]) -> Vec<ShardLocation> {
    let mut number = 0;
    for (shard, &count) in per_shard.iter().enumerate() {
        let path = dir.join(format!("s-{shard:03}.{format}"));
        let mut writer = ShardWriter::create(path, &ShardOptions::new(format)).unwrap();
        for _ in 0..count {
            let sample = ShardSample {
                key: format!("{number:05}"),
                extension: "png".into(),
                image: png(number),
                captions: vec![
                    format!("red {number}"),
                    format!("blue {number}"),
                    "dog".into(),
                ],
                text_member: true,
                json: None,
                members: Vec::new(),
            };
            writer.write(&sample).unwrap();
            number += 1;
        }
        writer.finish().unwrap();
    }
    resolve_shards(&[format!("{}/s-*.{format}", dir.display())]).unwrap()
}

/// Shards `NAME-000.tar` … of samples keyed NAME00000 …, those of the numbers `bad` without a picture.
fn shards_with(dir: &Path, name: &str, per_shard: &[usize], bad: &[usize]) -> Vec<ShardLocation> {
    let mut number = 0;
    for (shard, &count) in per_shard.iter().enumerate() {
        let path = dir.join(format!("{name}-{shard:03}.tar"));
        let mut writer = ShardWriter::create(path, &ShardOptions::new(ShardFormat::Tar)).unwrap();
        for _ in 0..count {
            let image = match bad.contains(&number) {
                true => b"no picture".to_vec(),
                false => png(number),
            };
            let sample = ShardSample {
                key: format!("{name}{number:05}"),
                extension: "png".into(),
                image,
                captions: vec!["dog".into()],
                text_member: true,
                json: None,
                members: Vec::new(),
            };
            writer.write(&sample).unwrap();
            number += 1;
        }
        writer.finish().unwrap();
    }
    resolve_shards(&[format!("{}/{name}-*.tar", dir.display())]).unwrap()
}

fn tokenizer() -> Arc<CaptionTokenizer> {
    let words = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "dog",
    ];
    let mut vocabulary: Vec<String> = words.map(String::from).to_vec();
    vocabulary.extend((0..10).flat_map(|digit| [format!("{digit}"), format!("##{digit}")]));
    Arc::new(CaptionTokenizer::from_vocab(vocabulary).unwrap())
}

fn config() -> LoaderConfig {
    LoaderConfig {
        batch_size: 4,
        image_size: 16,
        text_len: 8,
        epochs: 3,
        threads: 2,
        shuffle_buffer_samples: 10,
        on_bad_sample: OnBad::Skip,
        ..LoaderConfig::default()
    }
}

/// Everything of a batch that the model sees, and where it comes from.
#[derive(Debug, PartialEq)]
struct Seen {
    keys: Vec<String>,
    pixels: Vec<u8>,
    tokens: TokenRows,
    captions: Vec<String>,
    views: Vec<SourceView>,
    epoch: u64,
    state: LoaderState,
}

fn seen(batch: &Batch) -> Seen {
    let pixels = batch.pixels().as_bytes().len();
    assert_eq!(pixels, batch.batch_size * 3 * batch.image_size.pow(2));
    Seen {
        keys: batch.ids.iter().map(|id| id.key.clone()).collect(),
        pixels: batch.pixels().as_bytes().to_vec(),
        tokens: batch.tokens.clone(),
        captions: batch.captions.clone(),
        views: batch.views.clone(),
        epoch: batch.epoch,
        state: batch.state.clone(),
    }
}

fn start(
    config: &LoaderConfig,
    shards: &[ShardLocation],
    resume: Option<LoaderState>,
) -> Result<Loader, PipelineError> {
    Loader::builder(config.clone())
        .shards(shards.to_vec())
        .resume(resume)
        .batches(tokenizer())
}

fn run(config: &LoaderConfig, shards: &[ShardLocation], resume: Option<LoaderState>) -> Vec<Seen> {
    let loader = start(config, shards, resume).unwrap();
    loader.map(|batch| seen(&batch.unwrap())).collect()
}

#[test]
fn batches_do_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), ShardFormat::Tar, &[7, 1, 0, 12, 5]);
    for shuffle in [ShuffleMode::None, ShuffleMode::Shards, ShuffleMode::Buffer] {
        let one = LoaderConfig {
            threads: 1,
            io_threads: 1,
            shuffle,
            ..config()
        };
        let expected = run(&one, &shards, None);
        assert_eq!(expected.len(), 3 * 6);
        for (threads, io_threads, prefetch_batches) in [(2, 2, 1), (5, 3, 9)] {
            let many = LoaderConfig {
                threads,
                io_threads,
                prefetch_batches,
                ..one.clone()
            };
            assert_eq!(run(&many, &shards, None), expected, "{shuffle:?}");
        }
    }
}

#[test]
fn every_format_gives_the_same_batches() {
    let dir = tempfile::tempdir().unwrap();
    let batches = |format| {
        let shards = write_shards(dir.path(), format, &[6, 9]);
        // The state names the files, which differ; all that the model sees does not.
        let strip = |seen: Seen| (seen.keys, seen.pixels, seen.tokens, seen.captions);
        run(&config(), &shards, None)
            .into_iter()
            .map(strip)
            .collect::<Vec<_>>()
    };
    let expected = batches(ShardFormat::Tar);
    assert_eq!(expected.len(), 9);
    for format in [ShardFormat::TarGz, ShardFormat::TarZst, ShardFormat::Arrow] {
        assert_eq!(batches(format), expected, "{format}");
    }
}

#[test]
fn epochs_visit_every_sample_once_in_a_new_order_with_new_views() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), ShardFormat::Tar, &[8, 8, 8]);
    let batches = run(&config(), &shards, None);
    let epoch = |number: u64| -> Vec<String> {
        let of_epoch = batches.iter().filter(|batch| batch.epoch == number);
        of_epoch.flat_map(|batch| batch.keys.clone()).collect()
    };
    let sorted = |mut keys: Vec<String>| {
        keys.sort();
        keys
    };
    let all: Vec<String> = (0..24).map(|number| format!("{number:05}")).collect();
    for number in 0..3 {
        assert_eq!(sorted(epoch(number)), all);
        assert_ne!(epoch(number), epoch((number + 1) % 3));
    }
    let captions_of = |key: &str| -> Vec<&String> {
        let rows = batches
            .iter()
            .flat_map(|batch| batch.keys.iter().zip(&batch.captions));
        rows.filter(|(row, _)| *row == key)
            .map(|(_, caption)| caption)
            .collect()
    };
    let varied = all.iter().filter(|key| {
        let captions = captions_of(key);
        captions.iter().any(|caption| caption != &captions[0])
    });
    assert!(
        varied.count() > 12,
        "of 24 samples, 8 in 9 see two captions in three visits"
    );
}

#[test]
fn resuming_anywhere_gives_the_batches_that_would_have_come() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), ShardFormat::Tar, &[7, 3, 12]);
    // A sample without captions and a shard that ends early are positions of the order too.
    let broken = dir.path().join("s-003.tar");
    let bytes = std::fs::read(dir.path().join("s-002.tar")).unwrap();
    std::fs::write(&broken, &bytes[..bytes.len() / 2]).unwrap();
    let mut shards = shards;
    shards.extend(resolve_shards(&[broken.to_string_lossy()]).unwrap());
    for shuffle in [ShuffleMode::None, ShuffleMode::Buffer] {
        let config = LoaderConfig {
            shuffle,
            on_bad_shard: OnBad::Skip,
            ..config()
        };
        let whole = run(&config, &shards, None);
        for at in 0..whole.len() {
            // Through JSON, as a checkpoint keeps it.
            let saved = serde_json::to_string(&whole[at].state).unwrap();
            let state = serde_json::from_str(&saved).unwrap();
            assert_eq!(
                run(&config, &shards, Some(state)),
                whole[at + 1..],
                "from batch {at}"
            );
        }
    }
}

#[test]
fn a_state_of_other_data_or_settings_is_refused_with_both_values() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), ShardFormat::Tar, &[8, 8]);
    let state = run(&config(), &shards, None).remove(0).state;
    let refused = |config: LoaderConfig, shards: &[ShardLocation], words: &[&str]| {
        let result = start(&config, shards, Some(state.clone()));
        let message = result.err().unwrap().to_string();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
    };
    refused(
        LoaderConfig {
            seed: 7,
            ..config()
        },
        &shards,
        &["seed", "42", "7"],
    );
    refused(
        LoaderConfig {
            batch_size: 8,
            ..config()
        },
        &shards,
        &["global batch", "4", "8"],
    );
    refused(config(), &shards[..1], &["number of shards", "2", "1"]);
    let swapped = [shards[1].clone(), shards[0].clone()];
    refused(config(), &swapped, &["shard names and sizes"]);
}

#[test]
fn counters_reconcile_and_bad_samples_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
    let mut add = |name: &str, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, data).unwrap();
    };
    for number in 0..9 {
        add(&format!("{number}.png"), &png(number));
        add(&format!("{number}.txt"), b"dog");
    }
    add("a.png", b"no image at all");
    add("a.txt", b"dog");
    add("b.png", &png(1)[..60]);
    add("b.txt", b"dog");
    add("c.png", &png(1));
    add("d.txt", b"dog");
    add("e.png", &png(1));
    add("e.txt", b" \n ");
    add("f.png", &png(1));
    add("f.txt", b" !!! ");
    add("g.png", &png(1));
    add("g.PNG", &png(1));
    add("0.png", &png(1));
    add("h.png", &png(1));
    add("h.json", b"{\"w\": 1}");
    tar.finish().unwrap();
    let shards = resolve_shards(&[path.to_string_lossy()]).unwrap();
    let config = LoaderConfig {
        epochs: 2,
        ..config()
    };
    let mut loader = start(&config, &shards, None).unwrap();
    while let Some(batch) = loader.next_batch().unwrap() {
        let counters = batch.counters();
        assert_eq!(
            counters.read,
            counters.delivered + counters.skipped_total() + counters.dropped_last
        );
    }
    let counters = &loader.state().counters;
    assert!(counters.balance(), "{counters:?}");
    let expected = [
        (SkipReason::NoImage, 1),
        (SkipReason::NoCaption, 1),
        (SkipReason::EmptyCaption, 2),
        (SkipReason::BadCaption, 1),
        (SkipReason::UnknownImageFormat, 1),
        (SkipReason::BrokenImage, 1),
        (SkipReason::RepeatedMember, 1),
        (SkipReason::RepeatedKey, 1),
    ];
    let twice = expected.map(|(reason, count)| (reason, 2 * count));
    assert_eq!(counters.skipped, twice.into_iter().collect());
    assert_eq!(
        (counters.read, counters.delivered, counters.dropped_last),
        (36, 16, 2)
    );

    let strict = LoaderConfig {
        on_bad_sample: OnBad::Error,
        shuffle: ShuffleMode::None,
        ..config
    };
    let mut loader = start(&strict, &shards, None).unwrap();
    let message = loop {
        match loader.next_batch() {
            Ok(batch) => assert!(batch.is_some(), "the bad sample must be an error"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(message.contains("odd.tar#a@"), "{message}");
    assert!(message.contains("on_bad_sample"), "{message}");
    assert!(
        loader.next_batch().unwrap().is_none(),
        "an error ends the loader"
    );
}

#[test]
fn bad_shards_give_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), ShardFormat::Tar, &[20]);
    let whole = std::fs::read(shards[0].path().unwrap()).unwrap();
    let zst = write_shards(dir.path(), ShardFormat::TarZst, &[20]);
    let zst = std::fs::read(zst[0].path().unwrap()).unwrap();
    let cases: [(&str, &[u8], &str); 6] = [
        (
            "truncated.tar",
            &whole[..whole.len() / 2 + 100],
            "truncated",
        ),
        ("truncated.tar.zst", &zst[..zst.len() / 2], "truncated"),
        ("empty.tar", b"", "empty"),
        (
            "text.tar",
            &b"this is a text, not an archive. ".repeat(40),
            "not a shard",
        ),
        ("short.tar", b"PK", "not a shard"),
        (
            "cut.tar.gz",
            &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3],
            "truncated",
        ),
    ];
    for (name, bytes, word) in cases {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let shards = resolve_shards(&[path.to_string_lossy()]).unwrap();
        let config = LoaderConfig {
            shuffle: ShuffleMode::None,
            epochs: 1,
            ..config()
        };
        let loader = start(&config, &shards, None).unwrap();
        let errors: Vec<String> = loader
            .filter_map(|batch| batch.err())
            .map(|error| error.to_string())
            .collect();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(
            errors[0].contains(name) && errors[0].contains(word),
            "{errors:?}"
        );
    }
}

#[test]
fn evaluation_reads_everything_once_with_all_captions() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), ShardFormat::Tar, &[3, 4]);
    let batches = run(&config().for_evaluation(), &shards, None);
    let keys: Vec<_> = batches
        .iter()
        .flat_map(|batch| batch.keys.clone())
        .collect();
    assert_eq!(
        keys,
        (0..7)
            .map(|number| format!("{number:05}"))
            .collect::<Vec<_>>()
    );
    assert_eq!(batches[1].captions.len(), 9);
    assert_eq!(
        (batches[1].tokens.len(), batches[1].tokens.text_len()),
        (9, 8)
    );
    assert_eq!(batches[0].captions[..3], ["red 0", "blue 0", "dog"]);
    assert_eq!(config().for_evaluation().captions, CaptionChoice::All);
}

#[test]
fn too_few_samples_is_an_error_and_not_an_endless_loop() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), ShardFormat::Tar, &[3]);
    let mut loader = start(
        &LoaderConfig {
            epochs: 0,
            ..config()
        },
        &shards,
        None,
    )
    .unwrap();
    let message = loader.next_batch().err().unwrap().to_string();
    assert!(
        message.contains("hold 3 samples") && message.contains("batch of 4"),
        "{message}"
    );
}

#[test]
fn dropping_the_loader_ends_its_threads_and_buffers_are_recycled() {
    struct Counting(std::sync::atomic::AtomicUsize);
    impl HostAllocator for Counting {
        fn allocate(&self, len: usize) -> Result<Box<dyn HostBuffer>, String> {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            PlainAllocator.allocate(len)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), ShardFormat::Tar, &[20, 20]);
    let counting = Arc::new(Counting(Default::default()));
    let config = LoaderConfig {
        epochs: 0,
        ..config()
    };
    // In the queue, in the collator's hands, with the consumer, being filled, and on the way in.
    let ahead = config.threads * 4 + config.batch_size + 1;
    let most = config.prefetch_batches + 3 + ahead / config.batch_size;
    assert_ne!(config.threads, 0);
    let mut loader = Loader::builder(config)
        .shards(shards)
        .allocator(counting.clone())
        .batches(tokenizer())
        .unwrap();
    for _ in 0..50 {
        loader.next_batch().unwrap().unwrap();
    }
    drop(loader); // Joins all threads, in the middle of an endless run.
    let allocated = counting.0.load(std::sync::atomic::Ordering::Relaxed);
    assert!(allocated <= most, "{allocated} of {most}");
    assert_eq!(Arc::strong_count(&counting), 1);
}
