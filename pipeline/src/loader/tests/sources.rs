//! Where samples come from: indices, streams, filters, members, things that change underfoot.

use super::*;
use crate::filter::{Filters, MetadataFilter};
use crate::sample::EncodedSample;

fn sidecars(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|ending| ending == "qfidx"))
        .collect()
}

/// An index changes how samples are reached and nothing else, with memory for a few or for none.
#[test]
fn batches_are_the_same_with_and_without_an_index() {
    for format in ShardFormat::ALL {
        let dir = tempfile::tempdir().unwrap();
        let shards = write_shards(dir.path(), format, &[17, 3, 0, 25]);
        for shuffle in [ShuffleMode::None, ShuffleMode::Shards, ShuffleMode::Buffer] {
            let config = |bytes: usize, io_threads| LoaderConfig {
                shuffle,
                shuffle_buffer_bytes: bytes,
                read_ahead_bytes: bytes,
                io_threads,
                ..config()
            };
            let expected = run(&config(1 << 20, 2), &shards, None);
            assert_eq!(expected.len(), 33);
            assert_eq!(run(&config(0, 1), &shards, None), expected, "{format}");
            let indices: Vec<_> = sidecars(dir.path())
                .into_iter()
                .map(|path| (std::fs::read(&path).unwrap(), path))
                .collect();
            assert_eq!(indices.len(), 4);
            for (_, path) in &indices {
                std::fs::remove_file(path).unwrap();
            }
            assert_eq!(
                run(&config(1 << 20, 2), &shards, None),
                expected,
                "{format}"
            );
            assert_eq!(run(&config(0, 3), &shards, None), expected, "{format}");
            // And a run that began with indices goes on without them.
            let state = Some(expected[12].state.clone());
            assert_eq!(run(&config(0, 2), &shards, state), expected[13..]);
            for (bytes, path) in indices {
                std::fs::write(path, bytes).unwrap();
            }
        }
    }
}

#[test]
fn a_full_shuffle_needs_random_access_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let full = LoaderConfig {
        shuffle: ShuffleMode::Full,
        ..config()
    };
    for format in [ShardFormat::Tar, ShardFormat::TarZst, ShardFormat::Arrow] {
        let shards = write_shards(dir.path(), format, &[9, 20]);
        let batches = run(&full, &shards, None);
        assert_eq!(batches.len(), 21);
        let mut keys: Vec<String> = batches[..7].iter().flat_map(|b| b.keys.clone()).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), 28);
    }
    let gz = write_shards(dir.path(), ShardFormat::TarGz, &[9]);
    let message = start(&full, &gz, None).err().unwrap().to_string();
    assert!(
        message.contains("s-000.tar.gz") && message.contains("buffer"),
        "{message}"
    );
    std::fs::remove_file(dir.path().join("s-001.tar.qfidx")).unwrap();
    let tar = resolve_shards(&[format!("{}/s-*.tar", dir.path().display())]).unwrap();
    let message = start(&full, &tar, None).err().unwrap().to_string();
    assert!(message.contains("s-001.tar has no index"), "{message}");
    assert!(message.contains("qfdata index"), "{message}");
}

#[test]
fn shards_that_change_or_vanish_are_named() {
    let endless = LoaderConfig {
        epochs: 0,
        ..config()
    };
    for indexed in [true, false] {
        for (vanish, words) in [(true, "was there when|No such file"), (false, "bytes now")] {
            let dir = tempfile::tempdir().unwrap();
            let shards = write_shards(dir.path(), ShardFormat::Tar, &[12, 12]);
            if !indexed {
                for path in sidecars(dir.path()) {
                    std::fs::remove_file(path).unwrap();
                }
            }
            let mut loader = start(&endless, &shards, None).unwrap();
            loader.next_batch().unwrap().unwrap();
            let second = dir.path().join("s-001.tar");
            if vanish {
                std::fs::remove_file(&second).unwrap();
            } else {
                // Replaced, as a copy tool does it: what is open already stays as it was.
                let bytes = std::fs::read(dir.path().join("s-000.tar")).unwrap();
                let new = dir.path().join("new");
                std::fs::write(&new, &bytes[..bytes.len() - 512]).unwrap();
                std::fs::rename(new, &second).unwrap();
            }
            let message = loader.find_map(Result::err).unwrap().to_string();
            assert!(message.contains("s-001.tar"), "{message}");
            assert!(words.split('|').any(|w| message.contains(w)), "{message}");
        }
    }
    // Of the same size, and other samples.
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), ShardFormat::Tar, &[12, 12]);
    std::fs::copy(dir.path().join("s-000.tar"), dir.path().join("s-001.tar")).unwrap();
    let message = run_to_error(&endless, &shards);
    assert!(
        message.contains("s-001.tar") && message.contains("index"),
        "{message}"
    );
    // With leave to go on: a sample that is another one, where the fingerprint does not reach, is
    // counted as unreadable, and its shard once.
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), ShardFormat::Tar, &[12, 12]);
    let second = dir.path().join("s-001.tar");
    let mut bytes = std::fs::read(&second).unwrap();
    for at in 0..bytes.len() - 6 {
        // Digits exchanged leave the checksums of headers as they are.
        if bytes[at..].starts_with(b"00014.") {
            bytes[at..at + 5].copy_from_slice(b"00041");
        }
    }
    std::fs::write(&second, bytes).unwrap();
    let lenient = LoaderConfig {
        on_bad_shard: OnBad::Skip,
        epochs: 2,
        ..config()
    };
    let mut loader = start(&lenient, &shards, None).unwrap();
    while loader.next_batch().unwrap().is_some() {}
    let counters = &loader.state().counters;
    assert!(counters.balance());
    assert_eq!(counters.skipped[&SkipReason::UnreadableShard], 2);
    assert_eq!(counters.bad_shards, 1);
    assert_eq!(counters.delivered + counters.dropped_last, 46);
}

fn run_to_error(config: &LoaderConfig, shards: &[ShardLocation]) -> String {
    match start(config, shards, None) {
        Ok(mut loader) => loader.find_map(Result::err).unwrap().to_string(),
        Err(error) => error.to_string(),
    }
}

/// A tar of samples with JSON and a class label.
fn labelled(dir: &Path) -> Vec<ShardLocation> {
    let path = dir.join("labelled.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
    for number in 0..24usize {
        let json = format!(r#"{{"caption": "x", "similarity": 0.{:02}}}"#, number + 20);
        let caption = "dog ".repeat(1 + number % 3);
        let members: [(&str, Vec<u8>); 5] = [
            ("png", png(number)),
            ("txt", caption.into_bytes()),
            ("json", json.into_bytes()),
            ("cls", number.to_string().into_bytes()),
            ("npy", vec![number as u8; 3]),
        ];
        for (extension, data) in members {
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            let name = format!("{number:03}.{extension}");
            tar.append_data(&mut header, name, &data[..]).unwrap();
        }
    }
    tar.finish().unwrap();
    resolve_shards(&[path.to_string_lossy()]).unwrap()
}

#[test]
fn filters_leave_out_and_count() {
    let dir = tempfile::tempdir().unwrap();
    let shards = labelled(dir.path());
    let filtered = |filters: Filters| {
        let config = LoaderConfig {
            filters,
            epochs: 1,
            drop_last: false,
            // A filter is not a fault.
            on_bad_sample: OnBad::Error,
            ..config()
        };
        let mut loader = start(&config, &shards, None).unwrap();
        while loader.next_batch().unwrap().is_some() {}
        let counters = loader.state().counters.clone();
        assert!(counters.balance());
        (counters.delivered, counters.skipped)
    };
    let similar = Filters {
        metadata: vec![MetadataFilter {
            field: "similarity".into(),
            min: Some(0.28),
            max: None,
        }],
        ..Filters::default()
    };
    assert_eq!(
        filtered(similar),
        (16, [(SkipReason::FilteredMetadata, 8)].into())
    );
    let wordy = Filters {
        min_caption_words: 2,
        max_caption_words: 2,
        ..Filters::default()
    };
    assert_eq!(
        filtered(wordy),
        (8, [(SkipReason::FilteredCaption, 16)].into())
    );
    let all = Filters {
        min_side: 20,
        max_side: 24,
        max_aspect: 1.2,
        ..Filters::default()
    };
    assert_eq!(filtered(all), (24, [].into()));
    let config = LoaderConfig {
        filters: Filters {
            min_side: 21,
            ..Filters::default()
        },
        ..config()
    };
    let message = run_to_error(&config, &shards);
    assert!(message.contains("24 skipped as filtered_size"), "{message}");
}

#[test]
fn members_that_are_asked_for_come_with_the_batch_and_with_samples() {
    let dir = tempfile::tempdir().unwrap();
    let shards = labelled(dir.path());
    let config = LoaderConfig {
        extra_members: ["cls", "json", "npy", "missing"].map(String::from).to_vec(),
        shuffle: ShuffleMode::None,
        epochs: 1,
        ..config()
    };
    let mut number = 0;
    for batch in start(&config, &shards, None).unwrap() {
        for members in batch.unwrap().members {
            let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
            assert_eq!(names, ["json", "cls", "npy"]);
            assert_eq!(members[1].class_label(), Ok(number));
            let json = members[0].json().unwrap();
            let similarity = format!("0.{:02}", number + 20).parse::<f64>().unwrap();
            assert_eq!(json["similarity"], similarity);
            assert!(members[0].class_label().is_err() && members[2].json().is_err());
            number += 1;
        }
    }
    assert_eq!(number, 24);

    let builder = || Loader::builder(config.clone()).shards(shards.clone());
    let all: Vec<EncodedSample> = builder().samples().unwrap().map(Result::unwrap).collect();
    assert_eq!(all.len(), 24);
    assert_eq!(all[7].members.len(), 5);
    let mut samples = builder().samples().unwrap();
    for _ in 0..10 {
        samples.next_sample().unwrap().unwrap();
    }
    let state = samples.state();
    assert_eq!(
        (state.counters.delivered, state.counters.balance()),
        (10, true)
    );
    let rest = builder().resume(state).samples().unwrap();
    assert!(rest.map(Result::unwrap).eq(all[10..].iter().cloned()));
}

#[test]
fn dropping_in_the_middle_ends_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), ShardFormat::Tar, &[40, 40, 40]);
    for indexed in [true, false] {
        if !indexed {
            for path in sidecars(dir.path()) {
                std::fs::remove_file(path).unwrap();
            }
        }
        let endless = LoaderConfig {
            epochs: 0,
            ..config()
        };
        let mut loader = start(&endless, &shards, None).unwrap();
        loader.next_batch().unwrap().unwrap();
        let begun = Instant::now();
        drop(loader);
        assert!(begun.elapsed() < Duration::from_secs(1));
        let mut samples = Loader::builder(endless)
            .shards(shards.clone())
            .samples()
            .unwrap();
        samples.next_sample().unwrap().unwrap();
        let begun = Instant::now();
        drop(samples);
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
}

/// A plain tar shard of these PNGs, without an index.
fn unindexed(
    dir: &Path,
    count: usize,
    mut image: impl FnMut(usize) -> Vec<u8>,
) -> (std::path::PathBuf, Vec<ShardLocation>) {
    let path = dir.join("s.tar");
    let mut writer = ShardWriter::create(&path, &ShardOptions::new(ShardFormat::Tar)).unwrap();
    for number in 0..count {
        let sample = ShardSample {
            key: format!("{number:05}"),
            extension: "png".into(),
            image: image(number),
            captions: vec!["dog".into()],
            text_member: true,
            json: None,
            members: Vec::new(),
        };
        writer.write(&sample).unwrap();
    }
    writer.finish().unwrap();
    let index = sidecars(dir).pop().unwrap();
    std::fs::remove_file(index).unwrap();
    let shards = resolve_shards(&[path.to_string_lossy()]).unwrap();
    (path, shards)
}

/// Long members over the shuffle's budget stay in their shard until their turn comes: the same
/// batches, and each byte read about once.
#[test]
fn what_the_shuffle_puts_off_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut state = 1u32;
    let (path, shards) = unindexed(dir.path(), 40, |_| {
        let image = image::RgbImage::from_fn(64, 64, |_, _| {
            image::Rgb([0; 3].map(|_: u8| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            }))
        });
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    });
    let config = |bytes| LoaderConfig {
        shuffle_buffer_bytes: bytes,
        epochs: 3,
        on_bad_shard: OnBad::Skip,
        ..config()
    };
    let expected = run(&config(1 << 20), &shards, None);
    assert_eq!(expected.len(), 30);
    let whole = std::fs::read(&path).unwrap();
    for bytes in [0, 30_000] {
        assert_eq!(run(&config(bytes), &shards, None), expected);
        let state = Some(expected[12].state.clone());
        assert_eq!(run(&config(bytes), &shards, state), expected[13..]);
        let mut loader = start(&config(bytes), &shards, None).unwrap();
        while loader.next_batch().unwrap().is_some() {}
        let read = loader.report().stages[0].bytes;
        let once = 3 * whole.len() as u64;
        // Headers are read in blocks, and the reader may be a shard ahead of the end.
        assert!(
            read > once / 10 * 9 && read < once / 10 * 15,
            "{read} of {once}"
        );
    }
    // Cut off within a picture, or behind one: samples before that come as ever.
    for len in [whole.len() / 2 + 3000, whole.len() / 2 + 3000 - 12_800] {
        std::fs::write(&path, &whole[..len]).unwrap();
        let [first, second] = [0, 1 << 20].map(|bytes| {
            let mut loader = start(&config(bytes), &shards, None).unwrap();
            let mut batches = Vec::new();
            while let Some(batch) = loader.next_batch().unwrap() {
                batches.push(seen(&batch));
            }
            assert_eq!(loader.state().counters.bad_shards, 3);
            batches
        });
        let keys =
            |batches: &[Seen]| -> Vec<_> { batches.iter().map(|b| b.keys.clone()).collect() };
        assert_eq!(keys(&first), keys(&second));
        assert!(first == second && first.len() > 10);
    }
}

/// A shard that becomes shorter while it is in use costs the samples that were in it.
#[test]
fn a_picture_that_is_gone_when_its_turn_comes_is_a_bad_sample() {
    let dir = tempfile::tempdir().unwrap();
    let (path, shards) = unindexed(dir.path(), 40, |number| {
        let mut image = png(number);
        // What follows the end of a PNG is not looked at.
        image.resize(8 << 10, 0);
        image
    });
    let config = LoaderConfig {
        shuffle_buffer_bytes: 0,
        shuffle_buffer_samples: 40,
        prefetch_batches: 1,
        epochs: 1,
        ..config()
    };
    let mut loader = start(&config, &shards, None).unwrap();
    let first = loader.next_batch().unwrap().unwrap();
    assert_eq!(first.batch_size, 4);
    std::fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1000)
        .unwrap();
    while loader.next_batch().unwrap().is_some() {}
    let counters = loader.state().counters.clone();
    let skipped = counters.skipped.get(&SkipReason::UnreadableShard).copied();
    assert!(skipped.is_some_and(|count| count > 5), "{counters:?}");
    assert!(counters.balance(), "{counters:?}");
    assert_eq!(counters.read, 40);
}
