//! Ranks, elastic resumption, mixtures: what is seen, by key.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::remote::RemoteOptions;

/// What one rank lists: the keys of each batch and the state after it.
type Listed = Vec<(Vec<String>, LoaderState)>;

fn ranks(batch: usize, size: u32) -> impl Iterator<Item = (World, LoaderConfig)> {
    (0..size).map(move |rank| {
        let world = World::new(rank, size).unwrap();
        let config = LoaderConfig {
            batch_size: world.share_of(batch).unwrap(),
            ..config()
        };
        (world, config)
    })
}

fn list(
    config: LoaderConfig,
    world: World,
    sets: &[DataSet],
    resume: Option<&LoaderState>,
    batches: usize,
) -> Listed {
    let mut builder = Loader::builder(config).world(world).resume(resume.cloned());
    for set in sets {
        builder = builder.data_set(set.clone());
    }
    let listing = builder.listing().unwrap().take(batches);
    let listed = listing.map(|batch| {
        let batch = batch.unwrap();
        let keys = batch.keys.into_iter().map(|(_, key)| key).collect();
        (keys, batch.state)
    });
    listed.collect()
}

/// The keys of each global batch, from the parts of all ranks.
fn global(parts: &[Listed]) -> Vec<Vec<String>> {
    let steps = parts[0].len();
    assert!(
        parts.iter().all(|part| part.len() == steps),
        "all ranks do the same number of steps"
    );
    (0..steps)
        .map(|step| parts.iter().flat_map(|part| part[step].0.clone()).collect())
        .collect()
}

fn without_indices(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "qfidx") {
            std::fs::remove_file(path).unwrap();
        }
    }
}

const SHUFFLES: [ShuffleMode; 4] = ShuffleMode::ALL;

/// For all W, W' and steps: what W ranks saw before, and W' after, is the order of one process.
#[test]
fn any_world_size_goes_on_from_any_other() {
    let dir = tempfile::tempdir().unwrap();
    // 151 samples: two epochs of 6 batches of 24, and 7 left over each.
    let shards = write_shards(dir.path(), ShardFormat::Tar, &[40, 1, 0, 73, 37]);
    let sets = [DataSet::only(shards)];
    for indexed in [true, false] {
        if !indexed {
            without_indices(dir.path());
        }
        for shuffle in SHUFFLES {
            if shuffle == ShuffleMode::Full && !indexed {
                continue;
            }
            let config = |config: LoaderConfig| LoaderConfig {
                shuffle,
                epochs: 2,
                shuffle_buffer_samples: 20,
                ..config
            };
            let (world, alone) = ranks(24, 1).next().unwrap();
            let whole = list(config(alone), world, &sets, None, usize::MAX);
            let expected: Vec<Vec<String>> = whole.iter().map(|(keys, _)| keys.clone()).collect();
            assert_eq!(expected.len(), 12);
            for epoch in [&expected[..6], &expected[6..]] {
                let seen: BTreeSet<&String> = epoch.iter().flatten().collect();
                assert_eq!(seen.len(), 144, "nothing twice in an epoch: {shuffle:?}");
            }
            let sizes: &[u32] = if indexed {
                &[1, 2, 3, 4, 8]
            } else {
                &[1, 3, 8]
            };
            for &before in sizes {
                let parts: Vec<Listed> = ranks(24, before)
                    .map(|(world, c)| list(config(c), world, &sets, None, usize::MAX))
                    .collect();
                assert_eq!(global(&parts), expected, "{before} ranks, {shuffle:?}");
                for step in [1, 5, 6, 7, 11] {
                    let states: Vec<LoaderState> =
                        parts.iter().map(|part| part[step - 1].1.clone()).collect();
                    let merged = LoaderState::merge(&states).unwrap();
                    // Nothing was bad, so any rank's state says the same, counters apart.
                    assert_eq!(
                        (states[0].row, &states[0].slots),
                        (merged.row, &merged.slots)
                    );
                    let json = serde_json::to_string(&merged).unwrap();
                    assert!(json.len() < 1024, "{json}");
                    for &after in sizes {
                        let rest: Vec<Listed> = ranks(24, after)
                            .map(|(world, c)| {
                                list(config(c), world, &sets, Some(&merged), usize::MAX)
                            })
                            .collect();
                        let rest = global(&rest);
                        assert_eq!(rest, expected[step..], "{before} → {after} at {step}");
                    }
                }
            }
        }
    }
}

/// Runs one rank of a loader over data with bad samples.
fn load(
    config: LoaderConfig,
    world: World,
    shards: &[ShardLocation],
    resume: Option<&LoaderState>,
    batches: usize,
) -> Listed {
    let loader = Loader::builder(config)
        .shards(shards.to_vec())
        .world(world)
        .resume(resume.cloned())
        .batches(tokenizer())
        .unwrap();
    let seen = loader.take(batches).map(|batch| {
        let batch = batch.unwrap();
        assert_eq!(batch.ids.len(), batch.batch_size);
        assert!(batch.counters().balance());
        let keys = batch.ids.iter().map(|id| id.key.clone()).collect();
        (keys, batch.state)
    });
    seen.collect()
}

/// A shard of 200 samples, every one whose number `is_bad` says so undecodable.
fn partly_bad(dir: &Path, is_bad: impl Fn(usize) -> bool) -> Vec<ShardLocation> {
    let bad: Vec<usize> = (0..200).filter(|&number| is_bad(number)).collect();
    shards_with(dir, "", &[200], &bad)
}

/// Bad samples put ranks into different rows. Still every rank does every step, resumption at other
/// world sizes loses and repeats nothing, and each good sample comes once an epoch.
#[test]
fn bad_samples_cost_no_step_and_no_other_sample() {
    let dir = tempfile::tempdir().unwrap();
    // Of slot 2, in stored order, two thirds are bad.
    let is_bad = |number: usize| (number % 8 == 2 && number % 24 != 2) || number % 29 == 5;
    let shards = partly_bad(dir.path(), is_bad);
    let good: BTreeSet<String> = (0..200)
        .filter(|&number| !is_bad(number))
        .map(|number| format!("{number:05}"))
        .collect();
    for shuffle in [ShuffleMode::None, ShuffleMode::Buffer, ShuffleMode::Full] {
        let config = |config: LoaderConfig| LoaderConfig {
            shuffle,
            epochs: 0,
            ..config
        };
        let mut seen: BTreeMap<String, u32> = BTreeMap::new();
        let mut state: Option<LoaderState> = None;
        for (size, steps) in [(4, 2), (2, 3), (8, 1), (1, 3), (4, 1), (4, 2)] {
            let parts: Vec<Listed> = ranks(8, size)
                .map(|(world, c)| load(config(c), world, &shards, state.as_ref(), steps))
                .collect();
            for key in global(&parts).into_iter().flatten() {
                *seen.entry(key).or_default() += 1;
            }
            let states: Vec<_> = parts.iter().map(|part| part[steps - 1].1.clone()).collect();
            let merged = LoaderState::merge(&states).unwrap();
            assert!(merged.counters.balance(), "{:?}", merged.counters);
            assert_eq!(merged.counters.delivered, 8 * merged.batches);
            // Through JSON, as a checkpoint keeps it.
            let json = serde_json::to_string(&merged).unwrap();
            state = Some(serde_json::from_str(&json).unwrap());
        }
        // 12 batches: no epoch is over for anybody, and nothing came twice.
        assert!(seen.values().all(|&count| count == 1), "{shuffle:?}");
        assert!(seen.keys().all(|key| good.contains(key)));
        assert_eq!(seen.len(), 96);
        // On one rank all that is left of the epoch comes, once.
        let last = LoaderConfig {
            epochs: 1,
            drop_last: true,
            batch_size: 8,
            ..config(super::config())
        };
        for (keys, _) in load(last, World::SINGLE, &shards, state.as_ref(), usize::MAX) {
            for key in keys {
                *seen.entry(key).or_default() += 1;
            }
        }
        assert!(seen.values().all(|&count| count == 1), "{shuffle:?}");
        assert!(
            good.len() - seen.len() < 8,
            "less than a batch is left over"
        );
    }
}

#[test]
fn every_rank_does_as_many_steps_as_the_epochs_have_rows() {
    let dir = tempfile::tempdir().unwrap();
    let shards = partly_bad(dir.path(), |number| number % 8 == 2);
    let steps = |size| -> Vec<usize> {
        let parts = ranks(8, size).map(|(world, config)| {
            let config = LoaderConfig {
                epochs: 2,
                shuffle: ShuffleMode::None,
                ..config
            };
            load(config, world, &shards, None, usize::MAX).len()
        });
        parts.collect()
    };
    // One rank ends with its data: 175 good samples an epoch are 21 batches of 8.
    assert_eq!(steps(1), [42]);
    // More of them do what the positions allow: 25 rows an epoch.
    assert_eq!(steps(2), [50, 50]);
    assert_eq!(steps(4), [50; 4]);
}

#[test]
fn worlds_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), ShardFormat::Tar, &[30]);
    let message = World::new(1, 3)
        .unwrap()
        .share_of(16)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("16") && message.contains("3 ranks"),
        "{message}"
    );
    assert!(World::new(2, 2).is_err());
    let sets = [DataSet::only(shards)];
    let states: Vec<LoaderState> = ranks(8, 2)
        .map(|(world, config)| list(config, world, &sets, None, 2).pop().unwrap().1)
        .collect();
    let (world, other) = ranks(12, 2).next().unwrap();
    let refused = Loader::builder(other)
        .world(world)
        .resume(states[0].clone())
        .shards(sets[0].shards.clone())
        .listing();
    let message = refused.err().unwrap().to_string();
    assert!(
        message.contains("(8)") && message.contains("(12)"),
        "{message}"
    );
    let later = list(config(), World::SINGLE, &sets, None, 1).remove(0).1;
    assert!(LoaderState::merge(&[states[0].clone(), later]).is_err());
    assert!(LoaderState::merge(&[]).is_err());
    let three = [&states[0], &states[0], &states[0]].map(Clone::clone);
    assert!(LoaderState::merge(&three).is_err());
    let mut odd = states[0].clone();
    odd.slots[0].rows = u64::MAX;
    assert!(odd.check(&odd.order).is_err());
}

#[test]
fn a_mixture_keeps_its_shares_and_each_set_its_epochs() {
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    };
    let set = |name: &str, weight: f64, format, counts: &[usize]| DataSet {
        name: name.into(),
        weight,
        shards: write_shards(&folder(name), format, counts),
    };
    let sets = [
        set("large", 6.0, ShardFormat::Tar, &[50, 40]),
        set("small", 3.0, ShardFormat::TarGz, &[7, 4]), // no random access
        set("rare", 1.0, ShardFormat::TarZst, &[30]),
    ];
    let config = |config: LoaderConfig| LoaderConfig {
        epochs: 0,
        ..config
    };
    let whole = |size: u32, resume: Option<&LoaderState>, steps: usize| -> Vec<Vec<String>> {
        let parts: Vec<Listed> = ranks(20, size)
            .map(|(world, c)| list(config(c), world, &sets, resume, steps))
            .collect();
        global(&parts)
    };
    let expected = whole(1, None, 12);
    assert_eq!(whole(2, None, 12), expected);
    assert_eq!(whole(5, None, 12), expected);
    let (world, alone) = ranks(20, 1).next().unwrap();
    let listed = list(config(alone.clone()), world, &sets, None, 12);
    for (batches, (_, state)) in listed.iter().enumerate() {
        let delivered: Vec<u64> = state.set_counters.iter().map(|c| c.delivered).collect();
        let places = 20 * (batches as u64 + 1);
        for (count, share) in delivered.iter().zip([0.6, 0.3, 0.1]) {
            assert!(
                (*count as f64 - share * places as f64).abs() <= 1.0,
                "{delivered:?}"
            );
        }
        let steps = 11 - batches;
        assert_eq!(whole(4, Some(state), steps), expected[batches + 1..]);
    }
    let end = &listed[11].1;
    // 240 positions: 144 of 90, 72 of 11, 24 of 30.
    let epochs: Vec<u64> = end.sets.iter().map(|set| set.epoch).collect();
    assert_eq!(
        epochs,
        [1, 5, 0],
        "where the last row began, after 132, 66 and 22 of them"
    );
    // The loader itself hands out the same, decoded, and keeps counters of each set.
    let mut builder = Loader::builder(config(alone));
    for set in &sets {
        builder = builder.data_set(set.clone());
    }
    let loader = builder.batches(tokenizer()).unwrap();
    for (batch, (keys, state)) in loader.take(12).zip(&listed) {
        let batch = batch.unwrap();
        let seen: Vec<&String> = batch.ids.iter().map(|id| &id.key).collect();
        assert!(seen.into_iter().eq(keys));
        assert_eq!(&batch.state, state);
    }
    let text = format!("x:0.5={}/large/*.tar", dir.path().display());
    assert_eq!(
        DataSet::from_spec(&text, &RemoteOptions::default())
            .unwrap()
            .shards
            .len(),
        2
    );
    for bad in ["x=y", "x:1", "x:one=y", ":1=y", "x:1="] {
        assert!(
            DataSet::from_spec(bad, &RemoteOptions::default()).is_err(),
            "{bad}"
        );
    }
    let refuse = |sets: &[DataSet], config: LoaderConfig, word: &str| {
        let mut builder = Loader::builder(config);
        for set in sets {
            builder = builder.data_set(set.clone());
        }
        let message = builder.listing().err().unwrap().to_string();
        assert!(message.contains(word), "{message}");
    };
    let weightless = DataSet {
        weight: 0.0,
        ..sets[0].clone()
    };
    let endless = config(super::config());
    refuse(&[weightless], endless.clone(), "weight");
    refuse(
        &[sets[0].clone(), sets[0].clone()],
        endless.clone(),
        "large",
    );
    refuse(&sets, super::config(), "epochs");
    refuse(&[], endless, "data set");
}
