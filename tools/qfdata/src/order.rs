//! `qfdata order`: what a rank will see, by key, from the loader's own order.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{bail, Context};
use clap::Args;
use qf_pipeline::atomic_file::AtomicFile;
use qf_pipeline::loader::{Loader, LoaderState, OrderBatch, World};
use qf_pipeline::order::ShuffleMode;
use qf_pipeline::printable::Printable;
use qf_pipeline::words::counted;
use qf_pipeline::LoaderConfig;
use serde::Serialize;

use crate::data::{with_data, DataArgs};
use crate::interrupt::EndAtOnce;
use qf_cli::output::say;

/// List what a rank will see, in order, without decoding.
///
/// One line a batch: its number, and SHARD#KEY of each sample. Nothing is decoded, and of indexed shards
/// only indices are read. Bad samples are listed; training passes over them, and what follows moves up.
#[derive(Args)]
pub(crate) struct OrderArgs {
    #[command(flatten)]
    data: DataArgs,

    /// Images per batch of all ranks together; ranks share it evenly
    #[arg(long, default_value_t = 16, value_name = "IMAGES")]
    batch: usize,

    /// Number of ranks
    #[arg(long, default_value_t = 1)]
    world: u32,

    /// Which of them, from 0
    #[arg(long, default_value_t = 0)]
    rank: u32,

    /// Seed of the order
    #[arg(long, default_value_t = 42)]
    seed: u64,

    /// The first epoch to list, from 0
    #[arg(
        long,
        default_value_t = 0,
        value_parser = clap::value_parser!(u64).range(..1 << 32),
        conflicts_with = "from_state"
    )]
    epoch: u64,

    /// How many epochs to list, all before a saved state included; 0 for no end [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u64).range(..1 << 32))]
    epochs: Option<u64>,

    /// How samples are shuffled: none, shards, buffer or full
    #[arg(long, default_value = "buffer", value_parser = parse_shuffle)]
    shuffle: ShuffleMode,

    /// Consecutive samples that `--shuffle buffer` mixes
    #[arg(long, default_value_t = LoaderConfig::default().shuffle_buffer_samples, value_name = "SAMPLES")]
    shuffle_buffer_samples: usize,

    /// List the partial last batch of an epoch too
    #[arg(long)]
    keep_last: bool,

    /// Go on after the batch that a state was saved with
    #[arg(long, value_name = "FILE")]
    from_state: Option<PathBuf>,

    /// Stop when this many batches of the run are listed
    #[arg(long, value_name = "STEP")]
    stop_at: Option<u64>,

    /// Write the state after the last listed batch; it stands for all ranks
    #[arg(long, value_name = "FILE")]
    save_state: Option<PathBuf>,

    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(crate) fn parse_shuffle(name: &str) -> Result<ShuffleMode, String> {
    let found = ShuffleMode::ALL
        .into_iter()
        .find(|mode| mode.name() == name);
    found.ok_or_else(|| "expected none, shards, buffer or full".into())
}

/// What is printed with `--json`.
#[derive(Serialize)]
struct Line {
    step: u64,
    samples: Vec<String>,
}

pub(crate) fn run(args: &OrderArgs) -> anyhow::Result<()> {
    // Nothing is written but, at the end, a state.
    let signals = EndAtOnce::install()?;
    let world = World::new(args.rank, args.world)?;
    let resume = args.from_state.as_deref().map(read_state).transpose()?;
    let epochs = match args.epochs {
        Some(0) => 0,
        Some(epochs) => args.epoch + epochs,
        None if args.data.is_mixture() => 0,
        // The rest of the epoch that the state is in.
        None => resume
            .as_ref()
            .map_or(args.epoch, LoaderState::epoch)
            .saturating_add(1),
    };
    if epochs == 0 && args.stop_at.is_none() {
        bail!("the order has no end here: give --stop-at STEP");
    }
    let config = LoaderConfig {
        max_bad_share: 1.0,
        batch_size: world.share_of(args.batch)?,
        seed: args.seed,
        shuffle: args.shuffle,
        shuffle_buffer_samples: args.shuffle_buffer_samples,
        epochs,
        drop_last: !args.keep_last,
        ..args.data.config()
    };
    let builder = Loader::builder(config)
        .world(world)
        .first_epoch(args.epoch)
        .resume(resume.clone());
    let mut listing = with_data(builder, args.data.resolve()?).listing()?;
    let mut done = resume.as_ref().map_or(0, |state| state.batches);
    let mut state = resume;
    while args.stop_at.is_none_or(|end| done < end) {
        let Some(batch) = listing.next_batch()? else {
            break;
        };
        done = batch.state.batches;
        print(&batch, args.json)?;
        state = Some(batch.state);
    }
    if let Some(end) = args.stop_at.filter(|end| done < *end) {
        let done = counted(done, "batch", "batches");
        bail!("the order ends after {done}, before --stop-at {end}");
    }
    if let Some(path) = &args.save_state {
        let Some(state) = state else {
            bail!("no batch was listed, so there is no state to save; --stop-at is 0");
        };
        signals.finish(|| write_state(path, &state))?;
    }
    Ok(())
}

fn print(batch: &OrderBatch, json: bool) -> anyhow::Result<()> {
    let keys = batch.keys.iter();
    if json {
        let samples = keys.map(|(shard, key)| format!("{shard}#{key}")).collect();
        let line = Line {
            step: batch.step,
            samples,
        };
        say(format_args!("{}", serde_json::to_string(&line)?))
    } else {
        // One line a step, whatever a key holds.
        let name =
            |(shard, key): &(Arc<str>, String)| format!("{}#{}", Printable(shard), Printable(key));
        let samples: Vec<String> = keys.map(name).collect();
        say(format_args!("step {}: {}", batch.step, samples.join(" ")))
    }
}

fn read_state(path: &Path) -> anyhow::Result<LoaderState> {
    let text = std::fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a state of `qfdata order`", path.display()))
}

fn write_state(path: &Path, state: &LoaderState) -> anyhow::Result<()> {
    let mut file = AtomicFile::create(path)?;
    serde_json::to_writer(&mut file, state)?;
    file.write_all(b"\n")?;
    file.commit()?;
    Ok(())
}
