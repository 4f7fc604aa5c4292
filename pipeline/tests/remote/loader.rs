//! A loader over shards that are somewhere else.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use qf_pipeline::loader::{LoaderState, World};
use qf_pipeline::order::ShuffleMode;
use qf_pipeline::remote::{CacheOptions, RemoteOptions};
use qf_pipeline::source::{resolve_shards, ShardLocation};
use qf_pipeline::text::CaptionTokenizer;
use qf_pipeline::write::{ShardFormat, ShardOptions, ShardSample, ShardWriter};
use qf_pipeline::{Loader, LoaderConfig};

use crate::server::{Fault, Server};
use crate::{one, options};

fn png(number: usize) -> Vec<u8> {
    let image = image::RgbImage::from_fn(60, 50, |x, y| {
        // Noise, so that it stays as large as photographs are.
        let noise = (x * 7919 + y * 104_729 + number as u32 * 31).wrapping_mul(2_654_435_761);
        image::Rgb([(noise >> 8) as u8, (noise >> 16) as u8, (noise >> 24) as u8])
    });
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Three shards with their indices.
pub(crate) fn write_shards(folder: &Path, format: ShardFormat) -> Vec<ShardLocation> {
    let mut number = 0;
    for (shard, count) in [20, 13, 31].into_iter().enumerate() {
        let path = folder.join(format!("s-{shard}.{format}"));
        let mut writer = ShardWriter::create(path, &ShardOptions::new(format)).unwrap();
        for _ in 0..count {
            let sample = ShardSample {
                key: format!("{number:04}"),
                extension: "png".into(),
                image: png(number),
                captions: vec!["a dog".into(), "the dog".into()],
                text_member: true,
                json: None,
                members: Vec::new(),
            };
            writer.write(&sample).unwrap();
            number += 1;
        }
        writer.finish().unwrap();
    }
    resolve_shards(&[format!("{}/s-*.{format}", folder.display())]).unwrap()
}

pub(crate) fn put(server: &Server, folder: &Path, with_index: bool) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| with_index || !name.ends_with(".qfidx"))
        .collect();
    names.sort();
    let urls = names.iter().map(|name| {
        let bytes = std::fs::read(folder.join(name)).unwrap();
        (name, server.put(name, bytes, Some(name)))
    });
    urls.filter(|(name, _)| !name.ends_with(".qfidx"))
        .map(|(_, url)| url)
        .collect()
}

pub(crate) fn config(shuffle: ShuffleMode) -> LoaderConfig {
    LoaderConfig {
        batch_size: 5,
        image_size: 16,
        text_len: 8,
        epochs: 2,
        threads: 2,
        shuffle,
        shuffle_buffer_samples: 17,
        ..LoaderConfig::default()
    }
}

/// Keys and pixels of each batch, and the last state.
pub(crate) type Seen = Vec<(Vec<String>, Vec<u8>, LoaderState)>;

pub(crate) fn run(
    config: LoaderConfig,
    shards: &[ShardLocation],
    resume: Option<LoaderState>,
) -> Seen {
    let words = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "dog",
    ];
    let vocabulary = words.map(String::from).to_vec();
    let tokenizer = Arc::new(CaptionTokenizer::from_vocab(vocabulary).unwrap());
    let loader = Loader::builder(config)
        .shards(shards.to_vec())
        .world(World::SINGLE)
        .resume(resume)
        .batches(tokenizer)
        .unwrap();
    let seen = loader.map(|batch| {
        let batch = batch.unwrap();
        let keys = batch.ids.iter().map(|id| id.key.clone()).collect();
        (
            keys,
            batch.pixels().as_bytes().to_vec(),
            batch.state.clone(),
        )
    });
    seen.collect()
}

/// Whatever the server does, the batches are those of the files: with an index, by ranges, and without,
/// shard by shard.
#[test]
fn batches_are_those_of_the_files() {
    for format in [ShardFormat::Tar, ShardFormat::TarZst, ShardFormat::Arrow] {
        let folder = tempfile::tempdir().unwrap();
        let local = write_shards(folder.path(), format);
        let cache = tempfile::tempdir().unwrap();
        for (shuffle, with_index, cached) in [
            (ShuffleMode::Full, true, false),
            (ShuffleMode::Buffer, true, true),
            (ShuffleMode::Buffer, false, false),
            (ShuffleMode::Shards, false, true),
        ] {
            let expected = run(config(shuffle), &local, None);
            assert_eq!(expected.len(), 24);
            let server = Server::start();
            let urls = put(&server, folder.path(), with_index);
            let options = RemoteOptions {
                stall_timeout: Duration::from_millis(300),
                cache: cached.then(|| CacheOptions {
                    dir: cache.path().join(format!("{shuffle:?}")),
                    max_bytes: 1 << 30,
                }),
                ..options()
            };
            let remote: Vec<_> = urls.iter().map(|url| one(url, &options)).collect();
            let names = ["s-0", "s-1", "s-2"].map(|name| format!("{name}.{format}"));
            server.script(&names[0], &[Fault::Reset(700), Fault::Busy(0), Fault::Fine]);
            server.script(&names[1], &[Fault::Hang(3000), Fault::Short(100)]);
            server.script(&names[2], &[Fault::Slow(900), Fault::Status(500)]);
            let seen = run(config(shuffle), &remote, None);
            assert!(seen == expected, "{format} {shuffle:?}");
            // A state of the files goes on from the server: what counts is what the shards are.
            let state = Some(expected[9].2.clone());
            assert!(run(config(shuffle), &remote, state)[..] == expected[10..]);
        }
    }
}

#[test]
fn a_loader_is_dropped_within_a_second_while_its_server_hangs() {
    for with_index in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        write_shards(folder.path(), ShardFormat::Tar);
        let server = Server::start();
        let urls = put(&server, folder.path(), with_index);
        let remote: Vec<_> = urls.iter().map(|url| one(url, &options())).collect();
        for name in ["s-0.tar", "s-1.tar", "s-2.tar"] {
            server.script(name, &[Fault::Silence; 40]);
        }
        let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog"];
        let tokenizer = CaptionTokenizer::from_vocab(words.map(String::from).to_vec()).unwrap();
        let loader = Loader::builder(config(ShuffleMode::Buffer))
            .shards(remote)
            .batches(Arc::new(tokenizer))
            .unwrap();
        server.wait_hanging(1);
        let begun = Instant::now();
        drop(loader);
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
}

#[test]
fn an_error_names_the_shard_and_its_server() {
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path(), ShardFormat::Tar);
    let server = Server::start();
    let urls = put(&server, folder.path(), true);
    let options = RemoteOptions {
        outage: Duration::from_millis(300),
        ..options()
    };
    let remote: Vec<_> = urls.iter().map(|url| one(url, &options)).collect();
    server.script("s-1.tar", &[Fault::Busy(0); 10_000]);
    let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "dog"];
    let tokenizer = CaptionTokenizer::from_vocab(words.map(String::from).to_vec()).unwrap();
    let mut loader = Loader::builder(config(ShuffleMode::Buffer))
        .shards(remote)
        .batches(Arc::new(tokenizer))
        .unwrap();
    let message = loader.find_map(Result::err).unwrap().to_string();
    assert!(
        message.contains("/s-1.tar") && message.contains("503"),
        "{message}"
    );
}
