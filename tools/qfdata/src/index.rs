//! `qfdata index`: the sidecars that make shards countable and their samples reachable one by one.

pub(crate) mod dali;
mod wids;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::bail;
use clap::Args;
use qf_pipeline::atomic_file;
use qf_pipeline::error::full_message;
use qf_pipeline::index::{build_index, Access, Checksums, Found, ShardIndex, INDEX_ENDING};
use qf_pipeline::remote::RemoteOptions;
use qf_pipeline::shard::read::ReadOptions;
use qf_pipeline::source::{resolve_shards_with, ShardLocation};
use qf_pipeline::stop::Stop;
use qf_pipeline::words::counted;
use serde::Serialize;

use crate::data::ReadArgs;
use crate::interrupt::Interrupt;
use crate::progress;
use crate::threads::{self, threads};
use qf_cli::output::{remark, say};

/// Write the index of shards beside them, or check it.
///
/// NAME.tar.qfidx holds the keys and offsets of the samples of NAME.tar and its checksum. With it a
/// loader knows the exact number of samples, resumes at once, and can shuffle all samples. `qfdata
/// shard` writes it with each shard; this command makes up for shards from elsewhere, reading each
/// once. An index is kept if it is sound, fits the length and the fingerprint of its shard, is not older,
/// and has checksums or is to have none; any other is written again.
#[derive(Args, Debug)]
pub(crate) struct IndexArgs {
    /// Shards: files, globs, {000..012} ranges; with --check also URLs; several allowed
    #[arg(num_args = 1.., required = true, value_name = "SHARDS")]
    shards: Vec<String>,

    /// Write nothing: read every shard as for a new index, and compare
    #[arg(long, conflicts_with = "overwrite")]
    check: bool,

    /// Write all indexes again, those that fit as well
    #[arg(long)]
    overwrite: bool,

    /// Leave out the checksums of shards and samples: of a local .tar only headers are read. (Others have to
    /// be read, and decompressed, in full.) Indexes that are there stay as they are
    #[arg(long, conflicts_with = "check")]
    no_checksum: bool,

    /// Write the index of NVIDIA DALI beside each tar shard instead: NAME.idx, as wds2idx does
    #[arg(long, conflicts_with_all = ["check", "overwrite", "no_checksum"])]
    dali_index: bool,

    /// Write the index of `wids` (of Python's webdataset) instead, one file for all shards, which are tar:
    /// `ShardListDataset` reads it
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath,
        conflicts_with_all = ["check", "overwrite", "no_checksum", "dali_index"])]
    wids: Option<PathBuf>,

    /// Shards read at a time [default: number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    #[command(flatten)]
    reading: ReadArgs,

    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
}

/// What became of one shard.
enum Outcome {
    Written(u32, Option<Access>),
    Kept(u32, Option<Access>),
    Checked(u32, Option<Access>),
    /// Fits, as far as an index without checksums tells.
    CheckedHeaders(u32, Option<Access>),
    Failed(String),
}

/// What is printed with `--json`.
#[derive(Default, Serialize)]
struct Summary {
    shards: usize,
    written: usize,
    /// Were there and fit.
    kept: usize,
    /// Were there and fit to the last byte (`--check`).
    checked: usize,
    failed: usize,
    /// Checked indexes that have no checksums of shard and samples.
    without_checksums: usize,
    samples: u64,
    /// Indexed shards by how single samples are reached.
    access: BTreeMap<&'static str, usize>,
    seconds: f64,
    errors: Vec<String>,
}

impl Summary {
    fn count(&mut self, outcome: Outcome) {
        let (counter, samples, access) = match outcome {
            Outcome::Written(samples, access) => (&mut self.written, samples, access),
            Outcome::Kept(samples, access) => (&mut self.kept, samples, access),
            Outcome::Checked(samples, access) => (&mut self.checked, samples, access),
            Outcome::CheckedHeaders(samples, access) => {
                self.without_checksums += 1;
                (&mut self.checked, samples, access)
            }
            Outcome::Failed(error) => {
                self.failed += 1;
                self.errors.push(error);
                return;
            }
        };
        *counter += 1;
        self.samples += u64::from(samples);
        *self.access.entry(access_name(access)).or_default() += 1;
    }
}

fn access_name(access: Option<Access>) -> &'static str {
    match access {
        None => "streaming only",
        Some(Access::Tar) => "tar",
        Some(Access::ZstdFrames) => "zstd frames",
        Some(Access::ArrowBatches) => "arrow batches",
    }
}

/// Runs the subcommand.
pub(crate) fn run(args: &IndexArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    // Credentials and endpoints of remote shards, which can be checked, are those of the environment.
    let remote = RemoteOptions::from_vars(std::env::vars_os());
    let shards = resolve_shards_with(&args.shards, &remote)?;
    let interrupt = Interrupt::install()?;
    if !args.check {
        remove_leftovers(&shards);
    }
    let threads = threads(args.threads);
    let outcomes = treat_all(args, &shards, threads, &interrupt)?;
    interrupt.check()?;
    let mut summary = Summary {
        shards: shards.len(),
        ..Summary::default()
    };
    let missed = shards.len().saturating_sub(outcomes.len());
    if let Some(target) = &args.wids {
        let counts = outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Written(samples, _) => Some(*samples),
            _ => None,
        });
        let counts: Vec<_> = counts.collect();
        // All or nothing: shards that are missing from it would be missed by nobody.
        if counts.len() == shards.len() {
            wids::write(target, &shards, &counts)?;
        }
    }
    outcomes
        .into_iter()
        .for_each(|outcome| summary.count(outcome));
    if missed > 0 {
        summary.failed += missed;
        let missed = counted(missed as u64, "shard was", "shards were");
        let error = format!("{missed} not treated, their thread died; this is a bug");
        summary.errors.push(error);
    }
    summary.seconds = started.elapsed().as_secs_f64();
    for error in &summary.errors {
        remark(format_args!("no index: {error}"));
    }
    if args.json {
        say(format_args!("{}", serde_json::to_string(&summary)?))?;
    } else {
        print(args, &summary)?;
    }
    match (summary.failed, args.check) {
        (0, _) => Ok(()),
        (failed, true) => bail!(
            "{failed} of {} shards have no index that fits",
            shards.len()
        ),
        (failed, false) => bail!("{failed} of {} shards got no index", shards.len()),
    }
}

fn print(args: &IndexArgs, summary: &Summary) -> anyhow::Result<()> {
    let Summary {
        shards,
        written,
        kept,
        checked,
        failed,
        without_checksums,
        samples,
        seconds,
        ..
    } = summary;
    let done = match args.check {
        true => {
            let fit = counted(*checked as u64, "index fits", "indexes fit");
            let bare = match without_checksums {
                0 => String::new(),
                bare => format!(" ({bare} without checksums: only headers were compared)"),
            };
            format!("{fit}{bare}, {failed} do not")
        }
        false if args.wids.is_some() => format!("{written} listed, {failed} failed"),
        false => {
            let written = counted(*written as u64, "index", "indexes");
            format!("{written} written, {kept} kept, {failed} failed")
        }
    };
    say(format_args!(
        "{}: {done}; {} in {seconds:.1} s",
        counted(*shards as u64, "shard", "shards"),
        counted(*samples, "sample", "samples")
    ))?;
    let access: Vec<_> = summary
        .access
        .iter()
        .map(|(access, shards)| format!("{access} {shards}"))
        .collect();
    if !access.is_empty() {
        say(format_args!(
            "access to single samples: {}",
            access.join(", ")
        ))?;
    }
    Ok(())
}

/// Removes temporary files that killed runs left beside the shards.
fn remove_leftovers(shards: &[ShardLocation]) {
    let paths = shards.iter().filter_map(|shard| shard.path());
    let folders: BTreeSet<&Path> = paths.filter_map(Path::parent).collect();
    for folder in folders {
        let folder = match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => folder,
        };
        let is_index = |target: &str| target.ends_with(INDEX_ENDING);
        if let Err(error) = atomic_file::remove_leftovers(folder, &is_index) {
            log::warn!("{} cannot be cleaned up: {error}", folder.display());
        }
    }
}

/// Outcomes in the order of the shards; short if the user interrupts.
fn treat_all(
    args: &IndexArgs,
    shards: &[ShardLocation],
    threads: usize,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<Outcome>> {
    let doing = if args.check { "checking" } else { "indexing" };
    let bar = progress::bar(doing, shards.len());
    let next = AtomicUsize::new(0);
    let stop = Stop::default();
    let is_done = AtomicBool::new(false);
    let outcomes = Mutex::new(Vec::with_capacity(shards.len()));
    std::thread::scope(|scope| {
        // A shard may take minutes: an interruption ends the reads in progress.
        let watcher = threads::spawn(scope, || {
            while !is_done.load(Ordering::Acquire) {
                if interrupt.check().is_err() {
                    stop.set();
                    break;
                }
                std::thread::park_timeout(std::time::Duration::from_millis(100));
            }
        })?;
        let workers: Result<Vec<_>, _> = (0..threads.min(shards.len()))
            .map(|_| {
                threads::spawn(scope, || {
                    while !stop.is_set() {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(shard) = shards.get(number) else {
                            break;
                        };
                        let outcome = treat(args, shard, &stop)
                            .unwrap_or_else(|error| Outcome::Failed(full_message(error.as_ref())));
                        let mut outcomes = outcomes.lock().unwrap_or_else(|p| p.into_inner());
                        outcomes.push((number, outcome));
                        bar.inc(1);
                    }
                })
            })
            .collect();
        if workers.is_err() {
            stop.set();
        }
        let workers = workers.map(|workers| {
            for worker in workers {
                // A worker that panicked has said so, and its shard is missed by the count below.
                let _ = worker.join();
            }
        });
        is_done.store(true, Ordering::Release);
        watcher.thread().unpark();
        workers
    })?;
    bar.finish_and_clear();
    let mut outcomes = outcomes.into_inner().unwrap_or_else(|p| p.into_inner());
    outcomes.sort_by_key(|(number, _)| *number);
    Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
}

fn treat(args: &IndexArgs, shard: &ShardLocation, stop: &Stop) -> anyhow::Result<Outcome> {
    let options = ReadOptions {
        // Keys are those of the images.
        needs_captions: false,
        ..args.reading.config().read_options()
    };
    if args.dali_index {
        let (_, samples) = dali::write(shard, &options, stop)?;
        return Ok(Outcome::Written(
            u32::try_from(samples).unwrap_or(u32::MAX),
            Some(Access::Tar),
        ));
    }
    if args.wids.is_some() {
        let samples = wids::samples(shard, &options, stop)?;
        return Ok(Outcome::Written(samples, Some(Access::Tar)));
    }
    if args.check {
        let index = present(shard, stop)?;
        index.verify(shard, &options, stop)?;
        return Ok(match index.has_checksums() {
            true => Outcome::Checked(index.len(), index.access()),
            false => Outcome::CheckedHeaders(index.len(), index.access()),
        });
    }
    if !args.overwrite {
        match keepable(shard, args.no_checksum, stop) {
            Ok(index) => return Ok(Outcome::Kept(index.len(), index.access())),
            Err(why) => log::info!("{why:#}; it is written"),
        }
    }
    if shard.path().is_none() {
        bail!(
            "shard {}: an index can be written beside local shards only; index the shards where \
             they are made, and upload both",
            shard.name
        );
    }
    let checksums = match args.no_checksum {
        true => Checksums::LeftOut,
        false => Checksums::Taken,
    };
    let index = build_index(shard, &options, checksums, stop, &|_| {})?;
    for note in index.notes() {
        log::warn!("shard {} {note}", shard.name);
    }
    index.write_beside(shard)?;
    Ok(Outcome::Written(index.samples(), index.access()))
}

/// The index that lies beside a shard.
fn present(shard: &ShardLocation, stop: &Stop) -> anyhow::Result<ShardIndex> {
    let name = &shard.name;
    match ShardIndex::find(shard, stop)? {
        Found::Index(index) => Ok(index),
        Found::Absent => bail!("shard {name} has no index; run `qfdata index {name}`"),
        Found::Unusable(why) => bail!("shard {name} has no index: {why}"),
        Found::Outdated(version) => bail!(
            "the index of shard {name} is of version {version} of its format, which is not used any \
             more; run `qfdata index {name}`"
        ),
    }
}

/// The index that lies beside a shard, if there is no reason to write it again.
fn keepable(shard: &ShardLocation, is_bare: bool, stop: &Stop) -> anyhow::Result<ShardIndex> {
    let index = present(shard, stop)?;
    if !index.has_checksums() && !is_bare {
        bail!("the index of shard {} has no checksums", shard.name);
    }
    index.verify_tables(shard, stop)?;
    if let (Some(path), Some(sidecar)) = (shard.path(), shard.sidecar(INDEX_ENDING).path()) {
        let modified = |path: &Path| std::fs::metadata(path).and_then(|data| data.modified());
        if modified(path)? > modified(sidecar)? {
            bail!("shard {} is newer than its index", shard.name);
        }
    }
    Ok(index)
}
