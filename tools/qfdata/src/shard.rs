//! `qfdata shard`: captioned images in, shards out.
//!
//! List the input, inspect every sample, cut the list into shards, write the shards in parallel. All
//! that can be wrong with a sample is found before the first shard is opened, so shards are full and
//! what they hold does not depend on the number of threads. Memory: the list (a path or two a sample;
//! a manifest's captions), and one sample a thread.

mod folder;
mod input;
mod lock;
mod manifest;
mod plan;
mod report;
mod table;

use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{anyhow, bail, Context};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum, ValueHint};
use qf_pipeline::atomic_file;
use qf_pipeline::captions::CaptionLines;
use qf_pipeline::index::INDEX_ENDING;
use qf_pipeline::shard::arrow::CaptionType;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::warnings::Warnings;
use qf_pipeline::words::counted;
use qf_pipeline::write::{ShardFormat, ShardOptions, ShardWriter, WrittenShard};
use rayon::prelude::*;

use crate::interrupt::Interrupt;
use crate::{progress, size};
use input::{Listing, Planned, Skip};
use lock::{PrefixLock, RunRecord, Settings};
use qf_cli::output::remark;
use report::Report;

/// Digits of a shard's number; more shards than that get longer numbers.
const NUMBER_DIGITS: usize = 6;

/// Pack captioned images into shards.
///
/// INPUT is a folder, searched recursively, of images (JPEG, PNG, WebP, GIF, BMP, TIFF) with captions
/// in files of the same stem: .txt (one caption a line) or .json (a string, a list of strings, or an
/// object with `caption` or `captions`). Or it is a manifest, .csv, .tsv or .jsonl, with a path and a
/// caption a row; paths are relative to the manifest, several rows of a path are several captions.
///
/// Images are stored as they are. Keys are relative paths without extension (dots become `_`), or row
/// numbers for a manifest. Equal input and options give equal shards, whatever the number of threads.
///
/// One run at a time writes to a prefix. Where one was killed, the same command again goes on.
#[derive(Args, Debug)]
pub(crate) struct ShardArgs {
    /// Folder of images, or .csv, .tsv or .jsonl manifest
    #[arg(value_hint = ValueHint::AnyPath)]
    input: PathBuf,

    /// Path and start of the name of the shards: photos gives photos-000000.tar and so on
    #[arg(long, value_name = "PREFIX", value_hint = ValueHint::AnyPath)]
    out: PathBuf,

    /// Format of the shards
    #[arg(
        long,
        default_value = "tar",
        value_parser = PossibleValuesParser::new(ShardFormat::ALL.map(ShardFormat::extension))
            .try_map(|name| name.parse::<ShardFormat>())
    )]
    format: ShardFormat,

    /// Most samples in a shard
    #[arg(long, value_name = "N", default_value = "10000")]
    max_count: NonZeroU64,

    /// Largest shard, before compression: 500MB, 1GiB. Only a sample that is larger by itself goes
    /// over it
    #[arg(long, value_name = "SIZE", default_value = "1GB", value_parser = size::parse)]
    max_bytes: u64,

    /// Shards written at a time [default: number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Compression level: 0 to 9 for tar.gz [default: 1], 1 to 22 for tar.zst [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..=22))]
    level: Option<i32>,

    /// Manifest column with the paths of the images [default: found by name: path, file_name, ...]
    #[arg(long, value_name = "NAME")]
    path_column: Option<String>,

    /// Manifest column with the captions [default: found by name: caption, text, ...]
    #[arg(long, value_name = "NAME")]
    caption_column: Option<String>,

    /// What a .txt of a folder holds: each (line is a caption) or one [default: each, or one where the
    /// .json beside it says so]
    #[arg(long, value_name = "each|one")]
    caption_lines: Option<CaptionLines>,

    /// Mix the samples in an order drawn from this seed [default: order of the input]
    #[arg(long, value_name = "SEED")]
    shuffle_seed: Option<u64>,

    /// What to do about inputs that cannot become a sample
    #[arg(long, value_enum, default_value_t = OnBad::Warn)]
    on_bad: OnBad,

    /// How images are checked
    #[arg(long, value_enum, default_value_t = CheckImages::Header)]
    check_images: CheckImages,

    /// Write no index beside the shards; `qfdata index` can do so later
    #[arg(long)]
    no_index: bool,

    /// Replace existing shards of this prefix and format, and remove those that are left over
    #[arg(long)]
    overwrite: bool,

    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
}

/// What to do about inputs that cannot become a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnBad {
    /// Count them
    Skip,
    /// Count and name them
    Warn,
    /// Write nothing
    Error,
}

/// How images are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum CheckImages {
    /// By their first bytes, which also decide the extension they get
    Header,
    /// Not at all: the extension counts
    None,
}

/// Runs the subcommand.
pub(crate) fn run(args: &ShardArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let interrupt = Interrupt::install()?;
    let output = Output::new(&args.out, args.format)?;
    let options = shard_options(args)?;
    let threads = match args.threads {
        Some(threads) => usize::from(threads),
        None => std::thread::available_parallelism().map_or(1, |n| n.get()),
    };
    let mut lock = PrefixLock::take(&output.folder, &output.name, output.extension)?;
    let record = RunRecord::new(settings(args)?, args.overwrite);
    let existing = output.existing()?;
    let record = may_replace(&output, &existing, record, lock.unfinished())?;
    remove_leftovers(&output)?;

    let listing = list(args, &interrupt)?;
    if let Some(columns) = &listing.columns {
        remark(format_args!("{}: {columns}", args.input.display()));
    }
    let mut report = Report::new(args.format, &listing);
    let (mut samples, skips) = inspect(listing, args.check_images, threads, &interrupt)?;
    report.count_skips(&skips);
    complain(&skips, args.on_bad, samples.len())?;
    if samples.is_empty() {
        bail!(
            "{} holds no sample that could be written: {}",
            args.input.display(),
            report.accounts()
        );
    }
    if let Some(seed) = args.shuffle_seed {
        plan::shuffle(&mut samples, seed);
    }
    let options = ShardOptions {
        // One type for the whole data set.
        caption_type: match samples.iter().all(|sample| sample.captions == 1) {
            true => CaptionType::One,
            false => CaptionType::List,
        },
        ..options
    };
    let limits = plan::Limits {
        max_count: args.max_count.get(),
        max_bytes: args.max_bytes,
    };
    let runs = plan::cut(&samples, args.format, limits);
    let runs: Vec<&[Planned]> = runs.into_iter().map(|run| &samples[run]).collect();
    lock.begin(&record)?;
    let written = write_shards(&runs, &output, &options, threads, &interrupt);
    if written.is_err() && output.existing().is_ok_and(|shards| shards.is_empty()) {
        lock.take_back();
    }
    let written = written?;

    for number in existing {
        if number >= runs.len() as u64 {
            remove_shard(&output.shard(number))?;
            report.removed_stale += 1;
        }
    }
    lock.finish()?;
    report.count_written(&written, started.elapsed());
    report.print(&output.pattern(written.len()), args.json)
}

/// What decides the bytes of the shards, beside the files of the input. The number of threads does not.
fn settings(args: &ShardArgs) -> anyhow::Result<Settings> {
    // All of them by name: a new option is here, or the compiler asks for it.
    let ShardArgs {
        input,
        out: _,
        format: _, // part of the lock's name
        max_count,
        max_bytes,
        threads: _,
        level,
        path_column,
        caption_column,
        caption_lines,
        shuffle_seed,
        on_bad,
        check_images,
        no_index,
        overwrite: _,
        json: _,
    } = args;
    let input = fs::canonicalize(input).with_context(|| format!("input {}", input.display()))?;
    let mut settings = Settings::new();
    let mut set = |option: &str, value: String| settings.insert(option.to_owned(), value);
    set("INPUT", input.display().to_string());
    set("--max-count", max_count.to_string());
    set("--max-bytes", max_bytes.to_string());
    set("--on-bad", format!("{on_bad:?}").to_lowercase());
    set("--check-images", format!("{check_images:?}").to_lowercase());
    set("--no-index", no_index.to_string());
    let given = [
        ("--path-column", path_column.clone()),
        ("--caption-column", caption_column.clone()),
        (
            "--caption-lines",
            caption_lines.map(|lines| lines.name().to_owned()),
        ),
        ("--level", level.map(|level| level.to_string())),
        ("--shuffle-seed", shuffle_seed.map(|seed| seed.to_string())),
    ];
    for (option, value) in given {
        value.map(|value| set(option, value));
    }
    Ok(settings)
}

/// Whether shards that are there may be replaced: those of an earlier run of the same input and
/// settings that did not finish, or any with `--overwrite`. Returns what to write down of this run.
fn may_replace(
    output: &Output,
    existing: &[u64],
    mut record: RunRecord,
    unfinished: Option<&RunRecord>,
) -> anyhow::Result<RunRecord> {
    let Some(first) = existing.first() else {
        return Ok(record);
    };
    let shards = counted(existing.len() as u64, "shard", "shards");
    let before = unfinished.map(|run| (run, record.difference(run)));
    match before {
        Some((run, None)) => {
            remark(format_args!(
                "an earlier run of this ({}) did not finish; its {shards} are written again",
                run.who()
            ));
            record.overwrite |= run.overwrite;
            Ok(record)
        }
        _ if record.overwrite => Ok(record),
        Some((run, Some((setting, now, then)))) => bail!(
            "{} is of a run that did not finish ({}), with other settings ({setting}: {then} then, \
             {now} now); finish it by the same command, choose another --out, or replace its \
             {shards} with --overwrite",
            output.shard(*first).display(),
            run.who(),
        ),
        None => bail!(
            "{} exists already, with {shards} of this prefix and format in all; choose another \
             --out, or replace them with --overwrite",
            output.shard(*first).display(),
        ),
    }
}

/// Removes temporary files that killed runs left under this prefix.
fn remove_leftovers(output: &Output) -> anyhow::Result<()> {
    let is_ours = |target: &str| {
        let shard = target.strip_suffix(INDEX_ENDING).unwrap_or(target);
        output.number_of(shard).is_some()
    };
    let folder = output.folder();
    let removed = atomic_file::remove_leftovers(folder, &is_ours)
        .with_context(|| format!("--out: cannot clean up {}", folder.display()))?;
    if removed > 0 {
        log::info!("{removed} temporary files of killed runs removed");
    }
    Ok(())
}

fn shard_options(args: &ShardArgs) -> anyhow::Result<ShardOptions> {
    let mut options = ShardOptions {
        index: !args.no_index,
        ..ShardOptions::new(args.format)
    };
    if let Some(level) = args.level {
        let (least, most) = match args.format {
            ShardFormat::TarGz => (0, 9),
            ShardFormat::TarZst => (1, 22),
            other => bail!("--level has no effect with --format {other}; leave it out"),
        };
        if !(least..=most).contains(&level) {
            bail!(
                "--level {level}: {} has levels {least} to {most}",
                args.format
            );
        }
        options.level = level;
    }
    Ok(options)
}

/// Removes a shard of an earlier run; its index first, which is none without it.
fn remove_shard(shard: &Path) -> anyhow::Result<()> {
    let sidecar = ShardLocation::local(shard).sidecar(INDEX_ENDING);
    for path in sidecar.path().into_iter().chain([shard]) {
        match fs::remove_file(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path != shard => {}
            result => result.with_context(|| format!("cannot remove stale {}", path.display()))?,
        }
    }
    Ok(())
}

/// Names of the shards.
struct Output {
    folder: PathBuf,
    name: String,
    extension: &'static str,
}

impl Output {
    fn new(prefix: &Path, format: ShardFormat) -> anyhow::Result<Self> {
        let ends_in_separator = prefix.as_os_str().as_encoded_bytes().ends_with(b"/");
        let name = match prefix.file_name() {
            Some(name) if !ends_in_separator => name,
            _ => bail!(
                "--out {} names a folder; add the start of the shards' names, e.g. {}",
                prefix.display(),
                prefix.join("photos").display()
            ),
        };
        let name = name.to_str().context("--out: the name is not UTF-8")?;
        Ok(Self {
            folder: prefix.parent().unwrap_or(Path::new("")).to_owned(),
            name: name.to_owned(),
            extension: format.extension(),
        })
    }

    fn shard(&self, number: u64) -> PathBuf {
        let Self {
            name, extension, ..
        } = self;
        self.folder
            .join(format!("{name}-{number:0NUMBER_DIGITS$}.{extension}"))
    }

    /// As `--shards` of the other commands takes it.
    fn pattern(&self, shards: usize) -> String {
        let Self {
            name, extension, ..
        } = self;
        let numbers = match shards {
            0 | 1 => format!("{:0NUMBER_DIGITS$}", 0),
            _ => format!("{{{:0NUMBER_DIGITS$}..{:0NUMBER_DIGITS$}}}", 0, shards - 1),
        };
        let file = format!("{name}-{numbers}.{extension}");
        self.folder.join(file).display().to_string()
    }

    fn folder(&self) -> &Path {
        match self.folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => &self.folder,
        }
    }

    /// The number of a shard, by its file's name.
    fn number_of(&self, name: &str) -> Option<u64> {
        let digits = name
            .strip_prefix(self.name.as_str())?
            .strip_prefix('-')?
            .strip_suffix(self.extension)?
            .strip_suffix('.')?;
        let is_number = digits.len() >= NUMBER_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|_| is_number)
    }

    /// Numbers of the shards that are there, in order.
    fn existing(&self) -> anyhow::Result<Vec<u64>> {
        let folder = self.folder();
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("--out: cannot list {}", folder.display()))
            }
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            numbers.extend(name.to_str().and_then(|name| self.number_of(name)));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

fn list(args: &ShardArgs, interrupt: &Interrupt) -> anyhow::Result<Listing> {
    let input = &args.input;
    let metadata = fs::metadata(input).with_context(|| format!("input {}", input.display()))?;
    if metadata.is_dir() {
        let column_option = [
            (&args.path_column, "--path-column"),
            (&args.caption_column, "--caption-column"),
        ];
        for (value, option) in column_option {
            if value.is_some() {
                bail!(
                    "{option} is for manifests, but {} is a folder",
                    input.display()
                );
            }
        }
        let mut listing = folder::list(input, interrupt)?;
        input::decide_lines(&mut listing, args.caption_lines);
        if listing.candidates.is_empty() && listing.skips.is_empty() {
            bail!(
                "no images in {} ({} other files); looked for .jpg, .png, .webp, .gif, .bmp, .tif",
                input.display(),
                listing.other_files + listing.captions_without_image
            );
        }
        return Ok(listing);
    }
    let syntax = manifest::Syntax::of(input).ok_or_else(|| {
        anyhow!(
            "input {} is neither a folder nor a .csv, .tsv or .jsonl manifest",
            input.display()
        )
    })?;
    let columns = manifest::Columns {
        path: args.path_column.as_deref(),
        caption: args.caption_column.as_deref(),
    };
    if args.caption_lines.is_some() {
        bail!(
            "--caption-lines is for folders, but {} is a manifest",
            input.display()
        );
    }
    let listing = manifest::list(input, syntax, &columns, interrupt)?;
    if listing.candidates.is_empty() && listing.skips.is_empty() {
        bail!("manifest {} has no rows", input.display());
    }
    Ok(listing)
}

fn inspect(
    listing: Listing,
    check_images: CheckImages,
    threads: usize,
    interrupt: &Interrupt,
) -> anyhow::Result<(Vec<Planned>, Vec<Skip>)> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .context("cannot start threads")?;
    let bar = progress::bar("inspecting", listing.candidates.len());
    let check_header = check_images == CheckImages::Header;
    let inspected = pool.install(|| {
        listing
            .candidates
            .into_par_iter()
            .map(|candidate| {
                interrupt.check()?;
                bar.inc(1);
                Ok(input::inspect(candidate, check_header))
            })
            .collect::<anyhow::Result<Vec<_>>>()
    });
    bar.finish_and_clear();
    let mut samples = Vec::new();
    let mut skips = listing.skips;
    for result in inspected? {
        match result {
            Ok(sample) => samples.push(sample),
            Err(skip) => skips.push(skip),
        }
    }
    Ok((samples, skips))
}

fn complain(skips: &[Skip], on_bad: OnBad, good: usize) -> anyhow::Result<()> {
    match (on_bad, skips) {
        (OnBad::Error, [first, rest @ ..]) => bail!(
            "{first}; {} bad, {good} good. Nothing was written; set --on-bad warn or skip to go on \
             without the bad ones",
            counted(rest.len() as u64, "more input is", "more inputs are")
        ),
        (OnBad::Warn, skips) => {
            let mut warnings = Warnings::default();
            for skip in skips {
                warnings.warn(skip.cause.name(), format_args!("skipped {skip}"));
            }
        }
        (OnBad::Skip | OnBad::Error, _) => {}
    }
    Ok(())
}

/// Each worker takes the next shard and writes it whole. After the first failure the others stop at
/// their next sample.
fn write_shards(
    runs: &[&[Planned]],
    output: &Output,
    options: &ShardOptions,
    threads: usize,
    interrupt: &Interrupt,
) -> anyhow::Result<Vec<WrittenShard>> {
    let bar = progress::bar("writing", runs.iter().map(|run| run.len()).sum());
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    // Results by shard number, in the order in which they come.
    let results = Mutex::new(Vec::with_capacity(runs.len()));
    let keep = |number: usize, result: anyhow::Result<WrittenShard>| {
        if result.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        let mut results = results.lock().unwrap_or_else(|poison| poison.into_inner());
        results.push((number, result));
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.min(runs.len()) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(run) = runs.get(number) else { break };
                    let mut writing = Writing {
                        stop: &stop,
                        interrupt,
                        bar: &bar,
                    };
                    match writing.shard(run, output.shard(number as u64), options) {
                        Ok(Some(shard)) => keep(number, Ok(shard)),
                        Ok(None) => break,
                        Err(error) => keep(number, Err(error)),
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    let mut results = results
        .into_inner()
        .unwrap_or_else(|poison| poison.into_inner());
    results.sort_by_key(|(number, _)| *number);
    let complete = results.iter().filter(|(_, result)| result.is_ok()).count();
    results
        .into_iter()
        .map(|(_, result)| {
            result.with_context(|| {
                format!(
                    "stopped with {complete} of {} complete under {}; the same command goes on, and \
                     writes all of them again",
                    counted(runs.len() as u64, "shard", "shards"),
                    output.pattern(runs.len())
                )
            })
        })
        .collect()
}

/// What a worker writes under.
struct Writing<'a> {
    stop: &'a AtomicBool,
    interrupt: &'a Interrupt,
    bar: &'a indicatif::ProgressBar,
}

impl Writing<'_> {
    /// `None` if another worker failed meanwhile.
    fn shard(
        &mut self,
        run: &[Planned],
        target: PathBuf,
        options: &ShardOptions,
    ) -> anyhow::Result<Option<WrittenShard>> {
        let mut writer = ShardWriter::create(target, options)?;
        for planned in run {
            self.interrupt.check()?;
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let sample = input::load(planned).map_err(|message| anyhow!(message))?;
            writer.write(&sample)?;
            self.bar.inc(1);
        }
        Ok(Some(writer.finish()?))
    }
}
