//! Options that `merge`, `split` and `convert` share, and what they print.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use clap::Args;
use qf_cli::output::{remark, say, InPart};
use qf_pipeline::shard::read::ReadOptions;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::words::counted;
use qf_pipeline::write::ShardFormat;
use qf_pipeline::LoaderConfig;
use serde::Serialize;

use super::engine::{copy_shard, CopyOptions};
use super::sink::{refuse_same_stems, stem, Limits, Sink};
use crate::data::{settings, CaptionLinesArg, ListedShards};
use crate::interrupt::Interrupt;
use crate::progress;

/// Longest sample that is copied; what is longer is left out and named.
const MAX_SAMPLE_BYTES: u64 = 1 << 30;

/// What `merge`, `split` and `convert` take alike.
#[derive(Args)]
pub(crate) struct CopyArgs {
    #[command(flatten)]
    pub(crate) shards: ListedShards,

    #[command(flatten)]
    lines: CaptionLinesArg,

    /// Compression level: 0-9 for gzip, 1-22 for Zstandard [default: 1 and 3]
    #[arg(long, value_name = "LEVEL")]
    level: Option<i32>,

    /// Put the name of its shard before each key, as a folder, so that equal keys do not meet
    #[arg(long)]
    by_shard: bool,

    /// Write no index beside the shards
    #[arg(long)]
    no_index: bool,

    /// Replace shards that are there
    #[arg(long)]
    overwrite: bool,

    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,

    /// Print no summary
    #[arg(long, short)]
    quiet: bool,
}

/// The shards to be written.
pub(crate) enum Target<'a> {
    /// One.
    File(&'a Path, ShardFormat),
    /// Some, named by a prefix and a number.
    Numbered(&'a str, Option<ShardFormat>),
    /// As many as there are, named alike, in a folder.
    Folder(&'a Path, ShardFormat),
}

/// What is printed with `--json`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct CopySummary {
    shards: usize,
    samples: u64,
    left_out_samples: u64,
    left_out_files: u64,
    /// Members and columns beside image and captions: an Arrow shard has no place for them.
    dropped_members: u64,
    unreadable_shards: usize,
    written: Vec<PathBuf>,
}

impl CopyArgs {
    /// Refuses to replace a shard, and to write what is read.
    fn check(&self, target: &Path, shards: &[ShardLocation]) -> anyhow::Result<()> {
        let real = target.canonicalize();
        let is_input = shards.iter().filter_map(ShardLocation::path).any(|path| {
            path == target || matches!((&real, path.canonicalize()), (Ok(a), Ok(b)) if *a == b)
        });
        if is_input {
            bail!(
                "{} is one of the shards that are read; write to another name",
                target.display()
            );
        }
        if target.exists() && !self.overwrite {
            bail!("{} exists; --overwrite replaces it", target.display());
        }
        Ok(())
    }

    /// Copies all shards.
    ///
    /// # Errors
    /// Those of the target; [`InPart`] if something was left out.
    pub(crate) fn run(&self, target: &Target<'_>, limits: Limits) -> anyhow::Result<()> {
        let shards = self.shards.resolve()?;
        let interrupt = Interrupt::install()?;
        let config = settings(
            self.lines.over(self.shards.config()),
            &shards,
            &interrupt.stop(),
        );
        let mut summary = CopySummary::default();
        if self.by_shard {
            refuse_same_stems(&shards, "copy one of them by itself")?;
        }
        if let Target::Folder(folder, format) = target {
            refuse_same_stems(&shards, "write them into folders of their own")?;
            for shard in &shards {
                self.check(&in_folder(folder, shard, *format), &shards)?;
            }
        }
        let bar = progress::bar("copying", shards.len());
        match target {
            Target::Folder(folder, format) => {
                for shard in &shards {
                    let path = in_folder(folder, shard, *format);
                    let mut sink = self.sink(|_| Ok((path.clone(), *format)), &config);
                    self.copy(shard, (&config, &interrupt), &mut sink, &mut summary)?;
                    summary.take(&mut sink)?;
                    bar.inc(1);
                }
            }
            Target::File(path, format) => {
                self.check(path, &shards)?;
                let mut sink = self.sink(|_| Ok((path.to_path_buf(), *format)), &config);
                for shard in &shards {
                    self.copy(shard, (&config, &interrupt), &mut sink, &mut summary)?;
                    bar.inc(1);
                }
                summary.take(&mut sink)?;
            }
            Target::Numbered(prefix, format) => {
                let (mut number, mut written_as) = (0u64, None);
                let next = |read: ShardFormat| {
                    let format = format.unwrap_or(read);
                    let path = PathBuf::from(format!("{prefix}-{number:06}.{format}"));
                    number += 1;
                    written_as = Some(format);
                    self.check(&path, &shards)?;
                    Ok((path, format))
                };
                let mut sink = self.sink(next, &config).limits(limits);
                for shard in &shards {
                    self.copy(shard, (&config, &interrupt), &mut sink, &mut summary)?;
                    bar.inc(1);
                }
                summary.take(&mut sink)?;
                drop(sink);
                if let Some(format) = written_as.filter(|_| self.overwrite) {
                    self.remove_later(prefix, number, format, &shards)?;
                }
            }
        }
        bar.finish_and_clear();
        summary.shards = shards.len();
        self.print(&summary)
    }

    /// Removes the shards of an earlier run that come after the last one written: a pattern would find both.
    fn remove_later(
        &self,
        prefix: &str,
        from: u64,
        format: ShardFormat,
        shards: &[ShardLocation],
    ) -> anyhow::Result<()> {
        let mut removed = 0;
        for number in from.. {
            let path = PathBuf::from(format!("{prefix}-{number:06}.{format}"));
            if !path.exists() || shards.iter().any(|shard| shard.path() == Some(&path)) {
                break;
            }
            let index = PathBuf::from(format!("{}.qfidx", path.display()));
            for file in [index, path] {
                match fs::remove_file(&file) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(error)
                            .with_context(|| format!("cannot remove {}", file.display()));
                    }
                    _ => {}
                }
            }
            removed += 1;
        }
        if removed > 0 && !self.quiet {
            let shards = counted(removed, "shard", "shards");
            remark(format_args!("{shards} of an earlier run removed"));
        }
        Ok(())
    }

    fn sink<'a>(
        &self,
        next: impl FnMut(ShardFormat) -> anyhow::Result<(PathBuf, ShardFormat)> + 'a,
        config: &'a LoaderConfig,
    ) -> Sink<'a> {
        let captions = config.caption_source(config.caption_lines.unwrap_or_default());
        Sink::new(next).written_with((self.level, !self.no_index), self.by_shard, captions)
    }

    fn copy(
        &self,
        shard: &ShardLocation,
        (config, interrupt): (&LoaderConfig, &Interrupt),
        sink: &mut Sink<'_>,
        summary: &mut CopySummary,
    ) -> anyhow::Result<()> {
        interrupt.check()?;
        let options = CopyOptions {
            read: ReadOptions {
                max_sample_bytes: MAX_SAMPLE_BYTES,
                ..config.read_options()
            },
            keeps: &|_| true,
            passes_over_bad: false,
        };
        let copied = copy_shard(shard, &options, &interrupt.stop(), sink)?;
        interrupt.check()?;
        summary.samples += copied.samples;
        summary.left_out_samples += copied.left_out_samples;
        summary.left_out_files += copied.left_out_files;
        if let Some(error) = copied.error {
            remark(format_args!("{error}"));
            summary.unreadable_shards += 1;
        }
        Ok(())
    }

    fn print(&self, summary: &CopySummary) -> anyhow::Result<()> {
        if self.json {
            say(format_args!("{}", serde_json::to_string(summary)?))?;
        } else if !self.quiet {
            for path in &summary.written {
                say(format_args!("{}", path.display()))?;
            }
            let samples = counted(summary.samples, "sample", "samples");
            let written = counted(summary.written.len() as u64, "shard", "shards");
            say(format_args!("{samples} in {written}"))?;
        }
        let parts = [
            (summary.unreadable_shards as u64, "shard could not be read to its end", "shards could not be read to their end"),
            (summary.left_out_samples, "sample was left out", "samples were left out"),
            (summary.left_out_files, "file was left out", "files were left out"),
            (
                summary.dropped_members,
                "member beside image and captions was dropped (Arrow shards have no place for it)",
                "members beside image and captions were dropped (Arrow shards have no place for them)",
            ),
        ];
        let said: Vec<String> = parts
            .iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, one, many)| counted(*count, one, many))
            .collect();
        if summary.samples == 0 {
            bail!("no sample was copied; {}", said.join("; "));
        }
        match said.is_empty() {
            true => Ok(()),
            false => Err(InPart(said.join("; ")).into()),
        }
    }
}

/// Where a shard goes in a folder, in another format.
fn in_folder(folder: &Path, shard: &ShardLocation, format: ShardFormat) -> PathBuf {
    folder.join(format!("{}.{format}", stem(shard.base_name())))
}

impl CopySummary {
    fn take(&mut self, sink: &mut Sink<'_>) -> anyhow::Result<()> {
        sink.finish()?;
        self.written.append(&mut sink.written);
        self.dropped_members += sink.dropped_members;
        Ok(())
    }
}
