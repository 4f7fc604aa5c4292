//! One pass over shards that looks at everything: `verify`, `stats` and `view` stand on it.
//!
//! ```text
//! reader thread: shard after shard ──queue──▶ workers: decode, hash, read captions ──▶ caller, in stored order
//! ```
//!
//! Memory does not depend on how much there is to read: at most [`IN_WORK`] samples a thread are between
//! reader and caller.

pub(crate) mod codes;
pub(crate) mod doubles;
mod finding;
mod options;
mod picture;
mod sample;
pub(crate) mod shard;
mod text;

use std::collections::BTreeMap;

use anyhow::Context;
use crossbeam::channel::{bounded, unbounded, Receiver, Sender};
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::{EncodedSample, SampleError};

pub(crate) use finding::Finding;
pub(crate) use options::InspectOptions;
pub(crate) use sample::Facts;
use sample::Inspector;
pub(crate) use shard::ShardEnd;

/// Samples a thread that are read and not yet handed out.
const IN_WORK: usize = 8;

/// What the pass tells, in stored order.
pub(crate) enum Event {
    /// A sample, or what is wrong with it, and what was found on the way to it.
    Sample(Box<Facts>),
    /// A shard has been read, to its end or as far as it goes.
    ShardEnd(ShardEnd),
}

/// What the reader hands to a worker.
enum Work {
    /// With findings about files that lie before its end, and whether it is a row of an Arrow shard.
    Sample(Result<EncodedSample, SampleError>, Vec<Finding>, bool),
    End(ShardEnd),
}

/// Goes through the shards; `visit` gets every event in stored order and ends the pass with an error or
/// with `false`.
///
/// # Errors
/// That of `visit`; threads that cannot be started; settings that cannot work.
pub(crate) fn inspect(
    shards: &[ShardLocation],
    options: &InspectOptions,
    stop: &Stop,
    visit: &mut dyn FnMut(Event) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let threads = options.threads.max(1);
    let inspector = Inspector::new(options)?;
    // A unit for each sample between reader and caller.
    let (units_in, units_out) = bounded::<()>(threads * IN_WORK);
    let (to_workers, work) = bounded::<(u64, Work)>(2 * threads);
    let (to_caller, done) = unbounded::<(u64, Event)>();
    std::thread::scope(|scope| {
        let reader = std::thread::Builder::new().name("qf-read".into());
        reader
            .spawn_scoped(scope, || {
                read_all(shards, options, stop, units_in, to_workers)
            })
            .context("cannot start a thread")?;
        for number in 0..threads {
            let (work, to_caller) = (work.clone(), to_caller.clone());
            let inspector = &inspector;
            let worker = std::thread::Builder::new().name(format!("qf-inspect-{number}"));
            worker
                .spawn_scoped(scope, move || run_worker(inspector, &work, &to_caller))
                .context("cannot start a thread")?;
        }
        drop((work, to_caller));
        let result = hand_out(&done, &units_out, visit);
        // Whoever still waits for room ends.
        stop.set();
        drop((units_out, done));
        result
    })
}

fn hand_out(
    done: &Receiver<(u64, Event)>,
    units: &Receiver<()>,
    visit: &mut dyn FnMut(Event) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    for (number, event) in done {
        waiting.insert(number, event);
        while let Some(event) = waiting.remove(&next) {
            next += 1;
            // One was taken for each event.
            let _ = units.try_recv();
            if !visit(event)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Reads the shards one after another until nobody wants more.
fn read_all(
    shards: &[ShardLocation],
    options: &InspectOptions,
    stop: &Stop,
    units: Sender<()>,
    to_workers: Sender<(u64, Work)>,
) {
    let mut number = 0;
    for (index, location) in (0..).zip(shards) {
        let mut send = |work: Work| {
            let is_wanted =
                !stop.is_set() && units.send(()).is_ok() && to_workers.send((number, work)).is_ok();
            number += 1;
            is_wanted
        };
        let end = shard::read(
            location,
            index,
            options,
            stop,
            &mut |sample, findings, is_row| send(Work::Sample(sample, findings, is_row)),
        );
        if stop.is_set() || !send(Work::End(end)) {
            break;
        }
    }
}

fn run_worker(
    inspector: &Inspector,
    work: &Receiver<(u64, Work)>,
    to_caller: &Sender<(u64, Event)>,
) {
    let mut stage = inspector.stage();
    for (number, work) in work {
        let event = match work {
            Work::Sample(sample, findings, is_row) => {
                Event::Sample(Box::new(stage.inspect(sample, findings, is_row)))
            }
            Work::End(end) => Event::ShardEnd(end),
        };
        if to_caller.send((number, event)).is_err() {
            break;
        }
    }
}
