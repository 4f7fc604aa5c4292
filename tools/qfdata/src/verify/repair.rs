//! `--repair`: a copy of the shards without what is bad about them.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::bail;
use qf_cli::output::remark;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::words::counted;
use qf_pipeline::write::ShardFormat;
use serde::Serialize;

use crate::copy::{copy_shard, Copied, CopyOptions, Sink};
use crate::inspect::InspectOptions;
use crate::interrupt::Interrupt;

/// What became of the samples.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Repaired {
    shards: usize,
    samples: u64,
    /// Bad ones and exact doubles.
    left_out_samples: u64,
    /// Files that belong to no sample and lead out of the folder.
    left_out_files: u64,
    /// Shards of which nothing could be copied.
    left_out_shards: Vec<String>,
    /// Shards that could not be read to their end.
    cut_shards: Vec<String>,
}

impl Repaired {
    pub(super) fn lines(&self) -> Vec<String> {
        let samples = counted(self.samples, "sample", "samples");
        let shards = counted(self.shards as u64, "shard", "shards");
        let mut lines = vec![format!(
            "repaired: {samples} in {shards}; left out: {}, {}",
            counted(self.left_out_samples, "sample", "samples"),
            counted(self.left_out_files, "file", "files")
        )];
        for shard in &self.cut_shards {
            lines.push(format!("  {shard}: what follows the damage is lost"));
        }
        for shard in &self.left_out_shards {
            lines.push(format!("  {shard}: nothing could be copied"));
        }
        lines
    }
}

/// # Errors
/// A folder that holds shards of these names already, or two shards of one name.
pub(super) fn check_target(out: &Path, shards: &[ShardLocation]) -> anyhow::Result<()> {
    let mut names = HashSet::new();
    for shard in shards {
        let target = target_of(out, shard);
        if !names.insert(target.clone()) {
            bail!(
                "two shards are named {}; repair the folders one after the other",
                shard.base_name()
            );
        }
        if target.exists() {
            bail!(
                "{} exists; --repair writes into a folder without it",
                target.display()
            );
        }
    }
    Ok(())
}

fn target_of(out: &Path, shard: &ShardLocation) -> PathBuf {
    out.join(shard.base_name())
}

/// Copies what is good, in the format that each shard has.
pub(super) fn repair(
    out: &Path,
    shards: &[ShardLocation],
    options: &InspectOptions,
    left_out: &HashSet<(u32, u32)>,
    interrupt: &Interrupt,
) -> anyhow::Result<Repaired> {
    let mut repaired = Repaired::default();
    for (index, shard) in (0..).zip(shards) {
        interrupt.check()?;
        let keeps = |sample: u32| !left_out.contains(&(index, sample));
        let copying = CopyOptions {
            read: options.config.read_options(),
            keeps: &keeps,
            passes_over_bad: true,
        };
        let mut sink = Sink::new(|format: ShardFormat| Ok((target_of(out, shard), format)));
        let copied = copy_shard(shard, &copying, &interrupt.stop(), &mut sink)?;
        interrupt.check()?;
        let Copied {
            samples,
            left_out_samples,
            left_out_files,
            error,
        } = copied;
        repaired.samples += samples;
        repaired.left_out_samples += left_out_samples;
        repaired.left_out_files += left_out_files;
        let name = shard.name.to_string();
        if let Some(error) = error {
            remark(format_args!("{error}"));
            if samples > 0 {
                repaired.cut_shards.push(name.clone());
            }
        }
        match samples {
            0 => repaired.left_out_shards.push(name),
            _ => {
                sink.finish()?;
                repaired.shards += 1;
            }
        }
    }
    Ok(repaired)
}
