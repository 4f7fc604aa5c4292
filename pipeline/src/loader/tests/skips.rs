//! What is left out: named once, and not without end.

use super::*;
use crate::filter::Filters;

/// The samples of 40 that are no pictures.
const BAD: [usize; 3] = [3, 17, 31];

fn with_reports(config: &LoaderConfig, shards: &[ShardLocation]) -> Loader {
    let builder = Loader::builder(config.clone()).shards(shards.to_vec());
    builder.report_skips().batches(tokenizer()).unwrap()
}

#[test]
fn each_bad_sample_is_reported_with_the_batch_that_it_is_missing_from() {
    let dir = tempfile::tempdir().unwrap();
    let shards = shards_with(dir.path(), "s", &[20, 20], &BAD);
    let config = LoaderConfig {
        shuffle: ShuffleMode::None,
        ..config()
    };
    let mut loader = with_reports(&config, &shards);
    let reports = loader.skip_reports().unwrap().clone();
    let mut seen: Vec<(u64, SkippedSample)> = Vec::new();
    while let Some(batch) = loader.next_batch().unwrap() {
        let taken = reports.take_before(batch.state.batches);
        assert_eq!(taken.unnamed, 0);
        seen.extend(taken.named.into_iter().map(|r| (batch.state.batches, r)));
        // Whatever is ahead in the queue, the reports are those of the counters.
        assert_eq!(seen.len() as u64, batch.state.counters.bad_total());
    }
    let keys: Vec<&str> = seen.iter().map(|(_, report)| &*report.key).collect();
    let once = ["s00003", "s00017", "s00031"];
    assert_eq!(keys, [once; 3].concat());
    for (index, (batch, report)) in seen.iter().enumerate() {
        let number = BAD[index % 3];
        assert_eq!(report.epoch, index as u64 / 3);
        assert_eq!(report.reason, SkipReason::UnknownImageFormat);
        assert_eq!(report.sample, Some(number as u32 % 20));
        assert!(report.shard.ends_with(&format!("s-{:03}.tar", number / 20)));
        // Nine batches of 37 samples an epoch.
        let of_epoch = (number - index % 3) as u64 / 4 + 1;
        assert_eq!(*batch, 9 * report.epoch + of_epoch, "{report:?}");
    }
    let mut named = NamedOnce::new(0);
    let new = seen
        .iter()
        .filter(|(_, r)| named.is_new(&r.shard, r.sample, r.epoch));
    assert_eq!(new.count(), 3);
}

fn ends(config: &LoaderConfig, sets: Vec<DataSet>) -> Result<u64, PipelineError> {
    let mut builder = Loader::builder(config.clone());
    for set in sets {
        builder = builder.data_set(set);
    }
    let mut loader = builder.batches(tokenizer()).unwrap();
    while loader.next_batch()?.is_some() {}
    Ok(loader.state().counters.bad_total())
}

#[test]
fn too_many_bad_samples_end_the_run_with_a_summary() {
    let dir = tempfile::tempdir().unwrap();
    let bad: Vec<usize> = (0..40).filter(|number| number % 5 == 0).collect();
    let shards = shards_with(dir.path(), "s", &[40], &bad);
    let only = || vec![DataSet::only(shards.clone())];
    let of = |max_bad_share, epochs| LoaderConfig {
        max_bad_share,
        epochs,
        ..config()
    };
    let error = ends(&of(0.1, 0), only()).unwrap_err();
    let PipelineError::TooManyBad { bad, looked_at, .. } = &error else {
        panic!("{error}");
    };
    // Not before 1,000 were looked at: the 25th epoch ends there, with the first bad one after it.
    assert!((1000..1020).contains(looked_at), "{error}");
    assert!((200..205).contains(bad), "{error}");
    let message = error.to_string();
    for word in [
        " of 100",
        "samples are bad, 20.",
        "max_bad_share = 0.1 allows 10.0 %",
        "unknown_image_format",
        "s-000.tar#s000",
    ] {
        assert!(message.contains(word), "`{word}`: {message}");
    }
    // As many as are allowed are no reason, nor are few samples.
    assert_eq!(ends(&of(0.25, 30), only()).unwrap(), 240);
    assert_eq!(ends(&of(0.1, 20), only()).unwrap(), 160);
    assert_eq!(ends(&of(1.0, 30), only()).unwrap(), 240);
    assert!(ends(&of(0.0, 30), only()).is_err());
}

#[test]
fn a_set_of_a_mixture_is_judged_by_itself_and_filters_never() {
    let dir = tempfile::tempdir().unwrap();
    let bad: Vec<usize> = (0..40).filter(|number| number % 5 == 0).collect();
    let good = shards_with(dir.path(), "good", &[40], &[]);
    let poor = shards_with(dir.path(), "poor", &[40], &bad);
    let set = |name: &str, weight, shards: &[ShardLocation]| DataSet {
        name: name.into(),
        weight,
        shards: shards.to_vec(),
    };
    let endless = LoaderConfig {
        epochs: 0,
        max_bad_share: 0.1,
        ..config()
    };
    let sets = vec![set("good", 0.6, &good), set("poor", 0.4, &poor)];
    // 8 % of all samples, but 20 % of one set's.
    let message = ends(&endless, sets).unwrap_err().to_string();
    assert!(message.contains("of data set `poor` are bad"), "{message}");

    // What filters leave out is not bad: here most of it.
    let filtered = LoaderConfig {
        max_bad_share: 0.0,
        epochs: 30,
        filters: Filters {
            min_caption_words: 2,
            ..Filters::default()
        },
        ..config()
    };
    let long = write_shards(dir.path(), ShardFormat::Tar, &[8]);
    let mut loader = start(&filtered, &[good, long].concat(), None).unwrap();
    while loader.next_batch().unwrap().is_some() {}
    let counters = &loader.state().counters;
    assert_eq!((counters.skipped_total(), counters.bad_total()), (1200, 0));
    let counters = Counters {
        read: 1000,
        delivered: 100,
        skipped: [(SkipReason::FilteredSize, 850), (SkipReason::NoImage, 30)].into(),
        dropped_last: 20,
        bad_shards: 0,
    };
    assert!(counters.balance());
    assert_eq!((counters.bad_total(), counters.looked_at()), (30, 130));
}
