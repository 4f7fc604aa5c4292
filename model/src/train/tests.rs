//! Reading, uploading and computing at the same time.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use qf_config::run_dir::RunDir;
use qf_pipeline::PipelineError;
use tch::Device;

use super::non_finite::tests::trainer_and_loader;
use super::*;
use crate::feed::DeviceFeed;
use crate::SingleProcess;

const STEPS: u64 = 12;

/// Trains; `in_step` runs within every step, `before_batch` before each batch.
fn train(
    in_step: impl Fn(u64),
    before_batch: impl Fn() + Send + 'static,
) -> Result<RunProfile, Box<RunFailure>> {
    let end = run(in_step, before_batch, &Arc::default())?;
    assert_eq!((end.outcome, end.profile.steps), (Outcome::Finished, STEPS));
    Ok(end.profile)
}

/// The same until `stop` is set.
fn run(
    in_step: impl Fn(u64),
    before_batch: impl Fn() + Send + 'static,
    stop: &Arc<AtomicBool>,
) -> Result<RunEnd, Box<RunFailure>> {
    let folder = tempfile::tempdir().unwrap();
    let before_batch = move |_| {
        before_batch();
        None
    };
    run_in(folder.path(), in_step, before_batch, stop)
}

/// The same in a folder; the loader fails where `before_batch` does.
fn run_in(
    folder: &Path,
    in_step: impl Fn(u64),
    before_batch: impl Fn(u64) -> Option<PipelineError> + Send + 'static,
    stop: &Arc<AtomicBool>,
) -> Result<RunEnd, Box<RunFailure>> {
    // With two pairs the negatives are certain, whatever other tests draw from torch's generator.
    let (mut trainer, loader) = trainer_and_loader(folder, 2);
    let mut asked = 0;
    let mut feed = DeviceFeed::start_with(loader, Device::Cpu, None, move |loader| {
        asked += 1;
        match before_batch(asked) {
            Some(error) => Err(error),
            None => loader.next_batch(),
        }
    })
    .unwrap();
    let mut table = toml::Table::new();
    table.insert("steps".into(), (STEPS as i64).into());
    let model = toml::Table::try_from(trainer.model.config()).unwrap();
    table.insert("model".into(), model.into());
    let config: TrainConfig = table.try_into().unwrap();
    let run_dir = RunDir::new(folder.join("run"));
    std::fs::create_dir_all(run_dir.path()).unwrap();
    trainer.run(RunContext {
        config: &config,
        feed: &mut feed,
        validator: None,
        ranks: &SingleProcess,
        run_dir: &run_dir,
        stop,
        trace: None,
        observer: &mut |record: &MetricsRecord| match record {
            MetricsRecord::Train(record) => in_step(record.step),
            _ => unreachable!("nothing else is logged"),
        },
    })
}

#[test]
fn while_a_step_runs_the_batches_after_the_next_are_asked_for() {
    let asked = Arc::new(AtomicU64::new(0));
    let counter = asked.clone();
    let profile = train(
        |step| {
            // The next one, and the one after that; without reading ahead this waits in vain.
            let begun = Instant::now();
            while asked.load(Ordering::Relaxed) < step + 2 {
                assert!(begun.elapsed() < Duration::from_secs(60), "step {step}");
                std::thread::sleep(Duration::from_millis(1));
            }
        },
        move || {
            counter.fetch_add(1, Ordering::Relaxed);
        },
    );
    let profile = profile.unwrap();
    let upload = profile.loader.stages.last().unwrap();
    assert_eq!(upload.name, "upload");
    // What was used, what waits and what is on its way.
    let images = 2 * STEPS..=2 * (STEPS + 2);
    assert!(images.contains(&upload.items), "{}", upload.items);
    assert_eq!(profile.loader.queues.last().unwrap().items, STEPS);
}

#[test]
fn a_run_that_waits_for_data_in_vain_can_be_stopped() {
    let stop = Arc::new(AtomicBool::new(false));
    let (hangs, asked) = (stop.clone(), AtomicU64::new(0));
    let end = run(
        |step| {
            if step == 3 {
                // The fourth batch does not come before this, and until it is set nothing ends.
                let stop = stop.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(200));
                    stop.store(true, Ordering::Relaxed);
                });
            }
        },
        move || {
            if asked.fetch_add(1, Ordering::Relaxed) == 3 {
                while !hangs.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                // Long enough that the run looks first; it may as well get the batch.
                std::thread::sleep(Duration::from_millis(500));
            }
        },
        &stop,
    );
    let end = end.unwrap();
    assert_eq!(end.outcome, Outcome::Interrupted);
    // Batches of two; one that came at the last moment and was not used is not counted.
    assert_eq!(end.data.counters.delivered, 2 * end.profile.steps);
    assert!(
        (3..=4).contains(&end.profile.steps),
        "{}",
        end.profile.steps
    );
}

/// Whatever ends a run between two steps, what was trained is in a checkpoint.
#[test]
fn a_run_that_fails_saves_its_steps_first() {
    let never = Arc::default();
    let gone = || PipelineError::Thread("the data is gone".into());
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = folder.path().join("run/checkpoints");
    let fails_at = |batch: u64| move |asked: u64| (asked == batch).then(gone);
    let failure = run_in(folder.path(), |_| (), fails_at(6), &never);
    let failure = failure.err().unwrap();
    assert!(failure.error.to_string().contains("the data is gone"));
    assert_eq!(failure.step, 5);
    assert!(matches!(failure.saved, Saved::Yes), "{failure:?}");
    let saved = crate::checkpoint::newest(&checkpoints).unwrap().unwrap();
    assert_eq!((saved.state.step, saved.state.loader.batches), (5, 5));

    // Where no step was made there is nothing to save.
    let folder = tempfile::tempdir().unwrap();
    let failure = run_in(folder.path(), |_| (), fails_at(1), &never);
    let failure = failure.err().unwrap();
    assert!(matches!(failure.saved, Saved::NothingNew), "{failure:?}");
    assert!(!folder.path().join("run/checkpoints").exists());

    // Where it cannot be written, that is said, and what ended the run.
    let folder = tempfile::tempdir().unwrap();
    let block = |step: u64| {
        if step == 3 {
            std::fs::write(folder.path().join("run/checkpoints"), "a file").unwrap();
        }
    };
    let failure = run_in(folder.path(), block, fails_at(6), &never);
    let failure = failure.err().unwrap();
    assert!(failure.error.to_string().contains("the data is gone"));
    let Saved::No(Some(cause)) = failure.saved else {
        panic!("{failure:?}");
    };
    assert!(cause.to_string().contains("checkpoints"), "{cause}");
}

#[test]
fn a_loader_that_is_slower_is_named() {
    for pause in PAUSES.map(Duration::from_millis) {
        let profile = train(|_| (), move || std::thread::sleep(pause)).unwrap();
        assert!(profile.first_batch_secs >= pause.as_secs_f64());
        // A machine that is busy with other things is named first: then a longer pause shows.
        if profile.data_wait_share > 0.1 && !profile.bottleneck.starts_with("got ") {
            let named = profile.bottleneck.starts_with("the loader");
            return assert!(named, "{}", profile.bottleneck);
        }
    }
    panic!("the step takes longer than any pause");
}

/// Pauses, each tried where those before were too short to stand out from what else the machine does.
const PAUSES: [u64; 4] = [50, 100, 300, 900];

/// Takes batches with a pause after each, from a loader with a pause before each. Returns the time from
/// the first batch on, and the share of it that was spent waiting for the others.
fn take(step: Duration, load: Duration) -> (f64, f64) {
    let folder = tempfile::tempdir().unwrap();
    let (_, loader) = trainer_and_loader(folder.path(), 2);
    let mut feed = DeviceFeed::start_with(loader, Device::Cpu, None, move |loader| {
        std::thread::sleep(load);
        loader.next_batch()
    })
    .unwrap();
    assert!(feed.next_batch().unwrap().is_some());
    let (start, mut waiting) = (Instant::now(), Duration::ZERO);
    for _ in 0..STEPS {
        std::thread::sleep(step);
        let asked = Instant::now();
        assert!(feed.next_batch().unwrap().is_some());
        waiting += asked.elapsed();
    }
    let elapsed = start.elapsed().as_secs_f64();
    (elapsed, waiting.as_secs_f64() / elapsed)
}

#[test]
fn a_slow_step_and_a_slow_loader_take_as_long_as_the_slower() {
    let mut found = Vec::new();
    for pause in PAUSES.map(Duration::from_millis) {
        let (both, _) = take(pause, pause);
        // One after the other they take twice the longer by sleeping alone, however fast the machine.
        let longer = STEPS as f64 * pause.as_secs_f64();
        found.push(both / longer);
        if both < 1.25 * longer {
            return println!("both slow: {:.2} of the slower", both / longer);
        }
    }
    panic!("times of the slower: {found:?}");
}

#[test]
fn a_step_never_waits_for_a_loader_that_is_faster() {
    let mut found = Vec::new();
    for pause in PAUSES {
        // Without reading ahead it waits for a sixth of the time.
        let (_, waiting) = take(
            Duration::from_millis(pause),
            Duration::from_millis(pause / 5),
        );
        found.push(waiting);
        if waiting <= 0.01 {
            // One that is little faster is for a quiet machine to judge: see docs/performance.md.
            let (_, waiting) = take(Duration::from_millis(120), Duration::from_millis(100));
            return println!(
                "a loader 1.2 times as fast: {:.2} % of the time waiting",
                100.0 * waiting
            );
        }
    }
    panic!("shares of waiting: {found:?}");
}

#[test]
fn a_feed_that_nobody_reads_ends_when_it_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    for reads in 0..3 {
        let (_, loader) = trainer_and_loader(folder.path(), 2);
        let expected = loader.state().clone();
        let mut feed = DeviceFeed::start(loader, Device::Cpu, None).unwrap();
        assert_eq!(feed.state(), &expected);
        for _ in 0..reads {
            let batch = feed.next_batch().unwrap().unwrap();
            // Not that of the batches which wait.
            assert_eq!(feed.state(), &batch.host.state);
            assert_eq!(batch.input.images.size(), [2, 3, 32, 32]);
        }
    }
}

#[test]
fn a_failing_loader_says_so_once() {
    let folder = tempfile::tempdir().unwrap();
    let (_, loader) = trainer_and_loader(folder.path(), 2);
    let mut left = 2;
    let mut feed = DeviceFeed::start_with(loader, Device::Cpu, None, move |loader| {
        left -= 1;
        match left {
            0 => Err(qf_pipeline::PipelineError::Thread("gone".into())),
            _ => loader.next_batch(),
        }
    })
    .unwrap();
    assert!(feed.next_batch().unwrap().is_some());
    assert!(feed
        .next_batch()
        .is_err_and(|error| error.to_string().contains("gone")));
    assert!(feed.next_batch().unwrap().is_none());
}
