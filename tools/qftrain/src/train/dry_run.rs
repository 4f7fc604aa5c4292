//! `--dry-run`: what a run would do, need and take. Nothing stays but a cache of packed images.

use std::time::{Duration, Instant};

use anyhow::bail;
use qf_model::flops::{StepFlops, StepShape};
use qf_model::host::text_lengths;
use qf_model::train::{Rehearsal, StepMemory, TrainConfig, Trainer};
use qf_model::ComputeOptions;
use qf_pipeline::index::ShardIndex;
use qf_pipeline::loader::Loader;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::words::counted;
use tch::Device;

use super::disk::{bytes, Room};
use super::plan::Plan;
use crate::session::device_name;
use qf_cli::output::{remark, say};

/// How long the loader is timed, after its first batch.
const LOADER_TIME: Duration = Duration::from_secs(3);

/// Checks every shard, reads the first batches, makes a few steps, and prints what follows from it.
///
/// # Errors
/// Shards that cannot be opened, data that gives no batch, and a batch that does not fit the memory.
pub(super) fn report(plan: &Plan, mut loader: Loader, trainer: &mut Trainer) -> anyhow::Result<()> {
    remark(format_args!(
        "dry run: trains nothing and leaves no run folder"
    ));
    let (config, shards) = (&plan.config, &plan.shards);
    let data = DataSize::of(shards)?;
    say(format_args!("data       {}", data.in_words(shards.len())))?;
    let rate = LoaderRate::measure(&mut loader, config)?;
    drop(loader);
    say(format_args!("loader     {}", rate.in_words()))?;
    say(format_args!("model      {}", describe_model(trainer)))?;
    say(format_args!(
        "step       {}",
        describe_step(config, rate.caption_tokens)
    ))?;
    let device = trainer.model.params().device();
    let rehearsal = trainer.rehearse(config)?;
    if let Some(memory) = &rehearsal.memory {
        say(format_args!(
            "memory     {}",
            describe_memory(memory, config, device)
        ))?;
    }
    let room = Room::of(plan, trainer);
    say(format_args!("disk       {}", room.in_words()))?;
    let Some(step_secs) = rehearsal.step_secs else {
        bail!("{}", too_large(&rehearsal, config, device));
    };
    say(format_args!(
        "time       {}",
        describe_time(step_secs, &rate, config, trainer.step, device)
    ))?;
    if let Some(samples) = data.samples {
        let images = (config.data.batch_size * config.accumulate_steps) as f64;
        let epochs = config.steps as f64 * images / samples.max(1) as f64;
        say(format_args!(
            "           {epochs:.1} times through the data on one rank"
        ))?;
    }
    Ok(())
}

/// How much data there is.
struct DataSize {
    bytes: u64,
    /// Where every shard has an index that says so.
    samples: Option<u64>,
}

impl DataSize {
    /// Looks at every shard and its index.
    fn of(shards: &[ShardLocation]) -> anyhow::Result<DataSize> {
        let stop = Stop::default();
        let (mut bytes, mut samples) = (0, Some(0u64));
        for shard in shards {
            match shard.size(&stop) {
                Ok(size) => bytes += size.unwrap_or(0),
                Err(error) => bail!("shard {} cannot be read ({error})", shard.name),
            }
            let own = ShardIndex::open(shard, &stop)?.map(|index| u64::from(index.len()));
            samples = samples.zip(own).map(|(sum, own)| sum + own);
        }
        Ok(DataSize { bytes, samples })
    }

    fn in_words(&self, shards: usize) -> String {
        let samples = match self.samples {
            Some(samples) => counted(samples, "sample", "samples"),
            None => {
                "no index for some, so samples are not counted (`qfdata index` writes them)".into()
            }
        };
        let shards = counted(shards as u64, "shard", "shards");
        format!("{shards}, {}; {samples}", bytes(self.bytes as f64))
    }
}

/// How fast batches come, with nothing beside it.
struct LoaderRate {
    first_batch: Duration,
    images_per_s: f64,
    /// Tokens of a caption, `[CLS]` and `[SEP]` included, on average.
    caption_tokens: f64,
}

impl LoaderRate {
    fn measure(loader: &mut Loader, config: &TrainConfig) -> anyhow::Result<LoaderRate> {
        let started = Instant::now();
        let Some(first) = loader.next_batch()? else {
            bail!(
                "the data gives no batch of {}; a smaller --batch-size or more data does",
                config.data.batch_size
            );
        };
        let first_batch = started.elapsed();
        let lengths: Vec<i64> = text_lengths(&first);
        let caption_tokens = lengths.iter().sum::<i64>() as f64 / lengths.len().max(1) as f64;
        drop(first);
        let started = Instant::now();
        let mut images = 0;
        while started.elapsed() < LOADER_TIME {
            match loader.next_batch()? {
                Some(batch) => images += batch.ids.len(),
                None => break,
            }
        }
        let secs = started.elapsed().as_secs_f64().max(1e-9);
        Ok(LoaderRate {
            first_batch,
            images_per_s: images as f64 / secs,
            caption_tokens,
        })
    }

    fn in_words(&self) -> String {
        format!(
            "first batch after {:.1} s, then {:.0} images/s by itself; {:.0} tokens a caption",
            self.first_batch.as_secs_f64(),
            self.images_per_s,
            self.caption_tokens
        )
    }
}

fn describe_model(trainer: &Trainer) -> String {
    let count = |tensors: &mut dyn Iterator<Item = usize>| tensors.sum::<usize>() as f64 / 1e6;
    let params = trainer.model.params();
    let all = count(&mut params.named_parameters().iter().map(|p| p.tensor.numel()));
    let trained = count(&mut params.trainable().map(|p| p.tensor.numel()));
    format!("{all:.1} M parameters, {trained:.1} M of them trained")
}

/// Operations of a step as the reference counts them, and as it is computed here.
fn describe_step(config: &TrainConfig, caption_tokens: f64) -> String {
    let batch = config.data.batch_size;
    let Some(vit) = config.model.vision.vit() else {
        return counted(batch as u64, "image", "images");
    };
    let lengths = vec![caption_tokens.round().max(2.0) as i64; batch];
    let shape = StepShape {
        lengths: &lengths,
        text_len: config.data.text_len as i64,
        image_tokens: vit.tokens(),
    };
    let own = StepFlops::step(&config.model, &shape, ComputeOptions::default()).total();
    let reference = StepFlops::reference(&config.model, &shape).total();
    format!(
        "{} × {}, {:.2} GFLOP an image ({:.2} as the reference computes it)",
        counted(batch as u64, "image", "images"),
        counted(config.accumulate_steps as u64, "batch", "batches"),
        own / batch as f64 / 1e9,
        reference / batch as f64 / 1e9
    )
}

fn describe_memory(memory: &StepMemory, config: &TrainConfig, device: Device) -> String {
    let batch = config.data.batch_size;
    format!(
        "{} and {} an image: batch {batch} takes {} of the {} on {}; up to {} would fit",
        bytes(memory.fixed),
        bytes(memory.per_image),
        bytes(memory.of(batch)),
        bytes(memory.available),
        device_name(device),
        counted(memory.largest_batch() as u64, "image", "images")
    )
}

fn too_large(rehearsal: &Rehearsal, config: &TrainConfig, device: Device) -> String {
    let batch = config.data.batch_size;
    let largest = rehearsal.memory.map_or(0, |memory| memory.largest_batch());
    let place = device_name(device);
    match largest {
        0 => format!("not even a batch of 2 fits the memory of {place}; take a smaller model or data.image_size"),
        _ => format!(
            "a batch of {batch} does not fit the memory of {place}; take --batch-size {largest} or less \
             (accumulate_steps makes up for it, model.vision.checkpoint_activations saves memory of a \
             trained tower)"
        ),
    }
}

/// The loader works beside a GPU; on the CPU both need the same cores.
fn describe_time(
    step_secs: f64,
    rate: &LoaderRate,
    config: &TrainConfig,
    done: u64,
    device: Device,
) -> String {
    let batch = config.data.batch_size as f64;
    let loader_secs = batch / rate.images_per_s.max(1e-9);
    let (secs, bound) = match device.is_cuda() {
        true if loader_secs > step_secs => (loader_secs, "the loader is slower than the step"),
        true => (step_secs, "the loader keeps up"),
        false => (step_secs + loader_secs, "steps and loader share the cores"),
    };
    let secs = secs * config.accumulate_steps as f64;
    let left = config.steps.saturating_sub(done);
    format!(
        "{:.3} s a step, {:.1} images/s ({bound}): {} take {}",
        secs,
        batch * config.accumulate_steps as f64 / secs,
        counted(left, "step", "steps"),
        duration(secs * left as f64)
    )
}

fn duration(secs: f64) -> String {
    let minutes = secs / 60.0;
    match secs {
        _ if secs < 120.0 => format!("{secs:.0} s"),
        _ if minutes < 120.0 => format!("{minutes:.0} min"),
        _ if minutes < 48.0 * 60.0 => format!("{:.1} h", minutes / 60.0),
        _ => format!("{:.1} days", minutes / 60.0 / 24.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        for (secs, text) in [
            (9.4, "9 s"),
            (119.0, "119 s"),
            (600.0, "10 min"),
            (9000.0, "2.5 h"),
            (864_000.0, "10.0 days"),
        ] {
            assert_eq!(duration(secs), text);
        }
    }
}
