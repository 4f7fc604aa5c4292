//! Edges: ranks that see little, epochs of one row, damage, states that nobody saved.

use super::*;

fn set(name: &str, weight: f64, shards: &[ShardLocation]) -> DataSet {
    DataSet {
        name: name.into(),
        weight,
        shards: shards.to_vec(),
    }
}

/// A rank whose slots never meet one of the sets goes on past the ends of its epochs.
#[test]
fn a_mixture_on_ranks_that_see_only_one_of_its_sets() {
    let dir = tempfile::tempdir().unwrap();
    let a = shards_with(dir.path(), "a", &[6], &[]);
    let b = shards_with(dir.path(), "b", &[6], &[]);
    for rank in 0..2 {
        let config = LoaderConfig {
            batch_size: 1,
            epochs: 0,
            ..config()
        };
        let loader = Loader::builder(config)
            .world(World::new(rank, 2).unwrap())
            .data_set(set("a", 1.0, &a))
            .data_set(set("b", 1.0, &b))
            .batches(tokenizer())
            .unwrap();
        let batches: Result<Vec<_>, _> = loader.take(30).collect();
        assert_eq!(
            batches.map(|b| b.len()).map_err(|e| e.to_string()),
            Ok(30),
            "rank {rank}"
        );
    }
}

/// A state of `Samples` near the end of an epoch continues as batches.
#[test]
fn batches_go_on_from_a_state_of_samples() {
    let dir = tempfile::tempdir().unwrap();
    let shards = shards_with(dir.path(), "s", &[10], &[]);
    for taken in 1..=10 {
        let mut samples = Loader::builder(config())
            .shards(shards.clone())
            .samples()
            .unwrap();
        for _ in 0..taken {
            samples.next_sample().unwrap().unwrap();
        }
        let loader = start(&config(), &shards, Some(samples.state())).unwrap();
        let batches: Result<Vec<_>, _> = loader.collect();
        assert_eq!(
            batches.map(|_| ()).map_err(|e| e.to_string()),
            Ok(()),
            "after {taken}"
        );
    }
}

/// A run whose ranks all made up for bad samples in the epoch after the last ends where it would
/// have, wherever it is resumed.
#[test]
fn a_run_resumed_past_its_last_epoch_ends() {
    let dir = tempfile::tempdir().unwrap();
    let bad: Vec<usize> = (0..32).step_by(2).collect();
    let shards = shards_with(dir.path(), "s", &[32], &bad);
    let config = LoaderConfig {
        batch_size: 2,
        epochs: 1,
        shuffle: ShuffleMode::None,
        ..config()
    };
    let rank = |rank, resume: Option<LoaderState>| {
        Loader::builder(config.clone())
            .shards(shards.clone())
            .world(World::new(rank, 2).unwrap())
            .resume(resume)
            .batches(tokenizer())
            .unwrap()
    };
    let states = |rank_number| -> Vec<LoaderState> {
        rank(rank_number, None)
            .map(|batch| batch.unwrap().state.clone())
            .collect()
    };
    let (first, second) = (states(0), states(1));
    assert_eq!((first.len(), second.len()), (8, 8));
    for step in 0..8 {
        let merged = LoaderState::merge(&[first[step].clone(), second[step].clone()]).unwrap();
        let rest = rank(0, Some(merged)).take(50).count();
        assert_eq!(rest, 7 - step, "after batch {step}");
    }
}

/// A bad sample costs no step where an epoch has a single row.
#[test]
fn a_bad_sample_in_an_epoch_of_one_row() {
    let dir = tempfile::tempdir().unwrap();
    let shards = shards_with(dir.path(), "s", &[4], &[0]);
    let config = LoaderConfig {
        batch_size: 2,
        epochs: 3,
        shuffle: ShuffleMode::None,
        ..config()
    };
    for rank in 0..2 {
        let loader = Loader::builder(config.clone())
            .shards(shards.clone())
            .world(World::new(rank, 2).unwrap())
            .batches(tokenizer())
            .unwrap();
        let batches: Result<Vec<_>, _> = loader.take(50).collect();
        assert_eq!(
            batches.map(|b| b.len()).map_err(|e| e.to_string()),
            Ok(3),
            "rank {rank}"
        );
    }
}

/// Counters that no run reaches are refused.
#[test]
fn a_state_with_impossible_counters() {
    let dir = tempfile::tempdir().unwrap();
    let shards = shards_with(dir.path(), "s", &[16], &[]);
    let mut state = run(&config(), &shards, None)[0].state.clone();
    state.counters.read = u64::MAX;
    let message = match start(&config(), &shards, Some(state)) {
        Err(error) => error.to_string(),
        Ok(loader) => match loader.collect::<Result<Vec<_>, _>>() {
            Ok(_) => "accepted".into(),
            Err(error) => error.to_string(),
        },
    };
    assert!(message.contains("does not fit together"), "{message}");
}

/// Which samples a damaged position of an indexed shard costs does not depend on who reads with whom.
#[test]
fn damage_in_an_indexed_shard_costs_the_same_samples_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let shards = shards_with(dir.path(), "s", &[64], &[]);
    // The header of sample 10: its magic and checksum.
    let path = dir.path().join("s-000.tar");
    let mut bytes = std::fs::read(&path).unwrap();
    let name = b"s00010.png";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
    bytes[at..at + 512].fill(0x41);
    std::fs::write(&path, bytes).unwrap();
    let keys = |world: u32, start_at: usize| {
        let mut keys = std::collections::BTreeSet::new();
        for rank in 0..world {
            let config = LoaderConfig {
                batch_size: (8 / world) as usize,
                epochs: 1,
                shuffle: ShuffleMode::None,
                on_bad_shard: OnBad::Skip,
                drop_last: false,
                ..config()
            };
            let whole = Loader::builder(config.clone())
                .shards(shards.clone())
                .world(World::new(rank, world).unwrap());
            let mut resume = None;
            if start_at > 0 {
                let mut listing = Loader::builder(config)
                    .shards(shards.clone())
                    .world(World::new(rank, world).unwrap())
                    .listing()
                    .unwrap();
                for _ in 0..start_at {
                    resume = Some(listing.next_batch().unwrap().unwrap().state);
                }
            }
            for sample in whole.resume(resume).samples().unwrap() {
                keys.insert(sample.unwrap().id.key);
            }
        }
        keys
    };
    let one = keys(1, 0);
    let got = [keys(2, 0), keys(8, 0)].map(|keys| keys.len());
    // After 24 of them: nothing before number 24 is lost by having been passed over.
    let resumed = keys(1, 3).len();
    assert_eq!(
        (one.len(), got, resumed),
        (63, [63, 63], 40),
        "one bad sample costs one sample"
    );
}

/// Every rank stops at a bad shard where one does.
#[test]
fn every_rank_notices_a_bad_shard() {
    let dir = tempfile::tempdir().unwrap();
    let shards = shards_with(dir.path(), "s", &[16, 16], &[]);
    std::fs::remove_file(dir.path().join("s-001.tar.qfidx")).ok();
    std::fs::remove_file(dir.path().join("s-000.tar.qfidx")).ok();
    let file = std::fs::File::options()
        .write(true)
        .open(dir.path().join("s-000.tar"))
        .unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    for rank in 0..2 {
        let config = LoaderConfig {
            batch_size: 2,
            epochs: 1,
            ..config()
        };
        let listing = Loader::builder(config)
            .shards(shards.clone())
            .world(World::new(rank, 2).unwrap())
            .listing()
            .unwrap();
        let listed: Result<Vec<_>, _> = listing.collect();
        assert!(
            matches!(listed, Err(PipelineError::BadShard(_))),
            "rank {rank}"
        );
    }
}

/// States of all ranks after the last, partial batch of an epoch.
#[test]
fn keep_last_on_ranks() {
    let dir = tempfile::tempdir().unwrap();
    // Two rows of 8: the second has 6.
    let shards = shards_with(dir.path(), "s", &[14], &[]);
    let config = LoaderConfig {
        batch_size: 4,
        epochs: 1,
        drop_last: false,
        shuffle: ShuffleMode::None,
        ..config()
    };
    let listing = |rank, size, batch_size, resume: Option<LoaderState>| {
        Loader::builder(LoaderConfig {
            batch_size,
            ..config.clone()
        })
        .shards(shards.clone())
        .world(World::new(rank, size).unwrap())
        .resume(resume)
        .listing()
        .unwrap()
        .map(|batch| batch.unwrap())
        .collect::<Vec<_>>()
    };
    for rank in 0..2 {
        let last = listing(rank, 2, 4, None).pop().unwrap();
        let rest = listing(0, 1, 8, Some(last.state));
        let keys: Vec<_> = rest.iter().flat_map(|batch| &batch.keys).collect();
        assert!(keys.is_empty(), "state of rank {rank}: again {keys:?}");
    }
}

/// Settings that no machine has memory for.
#[test]
fn budgets_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let shards = shards_with(dir.path(), "s", &[16], &[]);
    for bytes in [0, usize::MAX / 2, usize::MAX] {
        let config = LoaderConfig {
            read_ahead_bytes: bytes,
            shuffle_buffer_bytes: bytes,
            ..config()
        };
        let got = start(&config, &shards, None).map(|loader| loader.count());
        assert!(
            matches!(got, Ok(12) | Err(PipelineError::Config { .. })),
            "{bytes}: {:?}",
            got.map_err(|e| e.to_string())
        );
    }
}

/// An order that gives nothing ends with an error, also where it has no end.
#[test]
fn a_listing_of_nothing_ends() {
    let dir = tempfile::tempdir().unwrap();
    let shards = shards_with(dir.path(), "s", &[3], &[]);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let config = LoaderConfig {
            epochs: 0,
            ..config()
        };
        let mut listing = Loader::builder(config).shards(shards).listing().unwrap();
        let _ = sender.send(listing.next_batch().map(|batch| batch.is_some()));
    });
    let first = receiver.recv_timeout(std::time::Duration::from_secs(60));
    assert!(
        matches!(first, Ok(Err(PipelineError::TooFewSamples(_)))),
        "{first:?}"
    );
}

/// Page-locked memory is short on many machines: the loader says so, at once or after the batches that had some.
#[test]
fn no_memory_for_a_batch_ends_the_loader_with_an_error() {
    struct Short {
        allocated: std::sync::atomic::AtomicUsize,
        most: usize,
    }
    impl HostAllocator for Short {
        fn allocate(&self, len: usize) -> Result<Box<dyn HostBuffer>, String> {
            let before = (self.allocated).fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if before >= self.most {
                return Err("no page-locked memory (out of memory)".into());
            }
            PlainAllocator.allocate(len)
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let shards = shards_with(dir.path(), "s", &[40], &[3]);
    for most in 0..3 {
        let short = Arc::new(Short {
            allocated: Default::default(),
            most,
        });
        let mut loader = Loader::builder(config())
            .shards(shards.clone())
            .allocator(short.clone())
            .batches(tokenizer())
            .unwrap();
        // All batches are held: no buffer comes back.
        let mut batches = Vec::new();
        let error = loop {
            match loader.next_batch() {
                Ok(batch) => batches.push(batch.expect("30 batches want 30 buffers")),
                Err(error) => break error.to_string(),
            }
        };
        assert!(batches.len() <= most, "{}", batches.len());
        assert!(
            error.contains("batch_size") && error.contains("page-locked memory (out of memory)"),
            "{error}"
        );
        assert!(loader.state().counters.balance());
        drop((loader, batches));
        assert_eq!(Arc::strong_count(&short), 1, "all threads have ended");
    }
}
