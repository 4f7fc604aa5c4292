//! Reading, uploading and computing at the same time.

use std::time::{Duration, Instant};

use tch::Device;

use super::non_finite::tests::trainer_and_loader;
use super::*;
use crate::SingleProcess;

const STEPS: u64 = 12;

/// Trains with a pause in every step, and another before every batch; returns seconds and profile.
fn train(step: Duration, load: Duration) -> (f64, RunProfile) {
    let folder = tempfile::tempdir().unwrap();
    // With two pairs the negatives are certain, whatever other tests draw from torch's generator.
    let (mut trainer, loader) = trainer_and_loader(folder.path(), 2);
    let mut feed = DeviceFeed::start_with(loader, Device::Cpu, move |loader| {
        std::thread::sleep(load);
        loader.next_batch()
    })
    .unwrap();
    let mut table = toml::Table::new();
    table.insert("steps".into(), (STEPS as i64).into());
    table.insert(
        "model".into(),
        toml::Table::try_from(trainer.model.config())
            .unwrap()
            .into(),
    );
    let config: TrainConfig = table.try_into().unwrap();
    let run_dir = RunDir::new(folder.path().join("run"));
    std::fs::create_dir(run_dir.path()).unwrap();
    let start = Instant::now();
    let (outcome, profile) = trainer
        .run(RunContext {
            config: &config,
            feed: &mut feed,
            validator: None,
            ranks: &SingleProcess,
            run_dir: &run_dir,
            stop: &AtomicBool::new(false),
            trace: None,
            on_record: &mut |_| std::thread::sleep(step),
        })
        .unwrap();
    assert_eq!((outcome, profile.steps), (Outcome::Finished, STEPS));
    (start.elapsed().as_secs_f64(), profile)
}

#[test]
fn a_slow_step_and_a_slow_loader_take_as_long_as_the_slower() {
    let pause = Duration::from_millis(100);
    let (slow_step, _) = train(pause, Duration::ZERO);
    let (slow_loader, waiting) = train(Duration::ZERO, pause);
    let (both, _) = train(pause, pause);
    let [sum, longest] = [slow_step + slow_loader, slow_step.max(slow_loader)];
    // One after the other it would be the sum, twice the longest.
    assert!(
        both < 0.7 * sum,
        "{both} s, alone {slow_step} and {slow_loader}"
    );
    assert!(
        both < 1.4 * longest,
        "{both} s, alone {slow_step} and {slow_loader}"
    );
    assert!(waiting.data_wait_share > 0.2, "{}", waiting.data_wait_share);
    assert!(
        waiting.bottleneck.starts_with("the loader"),
        "{}",
        waiting.bottleneck
    );
}

#[test]
fn a_step_never_waits_for_a_loader_that_is_faster() {
    // One that is a little faster is for a quiet machine to judge: see docs/performance.md.
    let (_, little) = train(Duration::from_millis(100), Duration::from_millis(80));
    println!(
        "a loader 1.25 times as fast: {:.2} % of the time waiting",
        100.0 * little.data_wait_share
    );
    let (_, profile) = train(Duration::from_millis(100), Duration::from_millis(20));
    assert!(
        profile.data_wait_share <= 0.01,
        "{}",
        profile.data_wait_share
    );
    assert!(
        profile.first_batch_secs >= 0.02,
        "{}",
        profile.first_batch_secs
    );
    let upload = profile.loader.stages.last().unwrap();
    assert_eq!(upload.name, "upload");
    // What was used, what waits and what is on its way.
    assert!(
        (2 * STEPS..=2 * (STEPS + 2)).contains(&upload.items),
        "{}",
        upload.items
    );
    let queue = profile.loader.queues.last().unwrap();
    assert!(queue.mean_items > 0.8, "{}", queue.mean_items);
}

#[test]
fn a_feed_that_nobody_reads_ends_when_it_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    for reads in 0..3 {
        let (_, loader) = trainer_and_loader(folder.path(), 2);
        let expected = loader.state().clone();
        let mut feed = DeviceFeed::start(loader, Device::Cpu).unwrap();
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
    let mut feed = DeviceFeed::start_with(loader, Device::Cpu, move |loader| {
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
