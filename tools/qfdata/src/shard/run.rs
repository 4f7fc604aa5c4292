//! A run: from the source of the input to shards under a prefix, with what an earlier run left.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use indicatif::ProgressBar;
use qf_cli::output::remark;
use qf_pipeline::shard::arrow::CaptionType;
use qf_pipeline::source::scheme;
use qf_pipeline::words::counted;
use qf_pipeline::write::{ShardFormat, ShardOptions};

use super::args::{Doubles, JobArgs, OnBad};
use super::doubles::Seen;
use super::fetch::Fetcher;
use super::flow::{Flow, Outcome};
use super::geometry::{Geometry, ResizeMode};
use super::journal::{Earlier, Journal};
use super::output::Output;
use super::parts::part::PartOfPlan;
use super::plan;
use super::record::{closed_together, RunRecord, Settings, WholeShard};
use super::report::Report;
use super::source::any::Source;
use super::source::detect;
use super::statistics::Statistics;
use super::work::Recipe;
use super::writer::{lock, ShardSet, Writing};
use crate::interrupt::Interrupt;
use crate::progress;
use crate::threads::{self, threads};

/// A run of the command.
pub(super) struct Run<'a> {
    args: &'a JobArgs,
    /// Of the input: those of the part, or all.
    part: Option<PartOfPlan>,
    interrupt: Interrupt,
    /// The prefix, where statistics and the journal are.
    output: Output,
    /// Where shards go; two, if some are held out.
    sides: Vec<Output>,
    options: ShardOptions,
    threads: usize,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        args: &'a JobArgs,
        interrupt: Interrupt,
        part: Option<PartOfPlan>,
    ) -> anyhow::Result<Run<'a>> {
        check(args)?;
        let out = args.out.as_deref().unwrap_or_default();
        let output = match args.part {
            Some(part) => Output::new(&part.prefix(out), args.format)?,
            None => Output::new(out, args.format)?,
        };
        Ok(Run {
            sides: output.sides(args.held_out.is_some()),
            output,
            options: shard_options(args)?,
            threads: threads(args.threads),
            args,
            part,
            interrupt,
        })
    }

    pub(super) fn write(&self, started: Instant) -> anyhow::Result<Report> {
        let (args, output) = (self.args, &self.output);
        let record = RunRecord::new(self.settings(), args.overwrite);
        let (mut journal, earlier) = Journal::open(output, record)?;
        let existing = self.existing()?;
        output.remove_leftovers()?;
        self.sides.iter().try_for_each(Output::remove_leftovers)?;
        let goes_on = self.may_replace(&existing, &mut journal, earlier.as_ref())?;
        let others = self.others(journal.record().overwrite)?;

        let source = self.source()?;
        journal
            .record_mut()
            .set("input fingerprint", source.fingerprint());
        if let Some(earlier) = earlier.filter(|_| goes_on) {
            self.go_on(&existing, &mut journal, earlier);
        }
        let mut report = Report::new(output, &source);
        report.kept = journal.whole().len() as u64;
        let options = ShardOptions {
            // One type for the whole data set; of others, nobody asks.
            caption_type: match args.format {
                ShardFormat::Arrow => source.caption_type(),
                _ => CaptionType::List,
            },
            ..self.options
        };
        let fetcher = match source.has_urls() {
            true => Some(Fetcher::new(&args.downloads)?),
            false => None,
        };
        let rows = match (&self.part, args.part) {
            (Some(part), _) => part.rows(),
            (None, Some(part)) => part.rows(source.count(&self.interrupt.stop())?),
            (None, None) => 0..u64::MAX,
        };
        if args.on_bad == OnBad::Error && !source.has_urls() {
            self.look_first(&source, rows.clone())?;
        }
        let flow = (&source, fetcher.as_ref(), rows);
        let journal = Mutex::new(journal);
        let written = self.shards(flow, options, &journal);
        let mut journal = journal.into_inner().unwrap_or_else(PoisonError::into_inner);
        let behind = match written {
            Ok(behind) => behind,
            Err(error) => return Err(self.stopped(error, &mut journal)),
        };
        let shards = journal.whole().to_vec();
        report.count(&shards, &behind, &self.sides, started.elapsed());
        if shards.is_empty() && self.part.is_none() {
            bail!(
                "{} holds no sample that could be written: {}",
                args.input.join(", "),
                report.accounts()
            );
        }
        report.removed_stale = self.remove_stale(&existing, &shards)?;
        for (output, number) in others {
            output.remove(number)?;
            report.removed_stale += 1;
        }
        let statistics = report.statistics(
            source.fingerprint(),
            journal.record().settings(),
            &shards,
            args.held_out(),
        )?;
        output.put(&output.stats_name(), &statistics)?;
        journal.finish(output)?;
        if !args.quiet {
            report.print(&self.sides, args.json)?;
        }
        Ok(report)
    }

    /// Numbers of the shards that are there, of each side.
    fn existing(&self) -> anyhow::Result<Vec<Vec<u64>>> {
        self.sides.iter().map(Output::existing).collect()
    }

    /// Shards of an earlier run under this prefix, by its statistics, that are named the other way: with sides
    /// where this run has none, or without.
    fn others(&self, overwrite: bool) -> anyhow::Result<Vec<(Output, u64)>> {
        let mut others = Vec::new();
        let statistics = self.output.get(&self.output.stats_name())?;
        let statistics =
            statistics.and_then(|text| serde_json::from_slice::<Statistics>(&text).ok());
        let holds_out = self.sides.len() > 1;
        let earlier = statistics.filter(|earlier| earlier.held_out.is_some() != holds_out);
        let Some(earlier) = earlier else {
            return Ok(others);
        };
        for output in self.output.sides(!holds_out) {
            let is_listed = |number: &u64| {
                let path = output.shard(*number);
                earlier
                    .shards
                    .iter()
                    .any(|shard| path.ends_with(&shard.file))
            };
            for number in output.existing()?.into_iter().filter(is_listed) {
                if !overwrite {
                    bail!(
                        "{} exists already, of a run {} --held-out; choose another --out, or replace its shards \
                         with --overwrite",
                        output.shown(number),
                        if holds_out { "without" } else { "with" }
                    );
                }
                others.push((output.clone(), number));
            }
        }
        Ok(others)
    }

    /// Removes shards of an earlier run behind those of this one; returns how many there were.
    fn remove_stale(&self, existing: &[Vec<u64>], whole: &[WholeShard]) -> anyhow::Result<u64> {
        let mut removed = 0;
        for (side, (output, existing)) in self.sides.iter().zip(existing).enumerate() {
            let is_held_out = side > 0;
            let written = whole.iter().filter(|shard| shard.held_out == is_held_out);
            let written = written.count() as u64;
            for &number in existing.iter().filter(|&&number| number >= written) {
                output.remove(number)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    fn settings(&self) -> Settings {
        let mut settings = settings(self.args);
        let part = self.part.iter().flat_map(PartOfPlan::settings);
        settings.extend(part.map(|(name, value)| (name.to_owned(), value)));
        settings
    }

    fn source(&self) -> anyhow::Result<Source> {
        let args = self.args;
        let mut source = detect::open(&args.input, &args.reading, &self.interrupt)?;
        if !args.quiet {
            for note in source.notes() {
                remark(format_args!("{}: {note}", args.input.join(", ")));
            }
        }
        if let Some(part) = &self.part {
            part.check_input(&source)?;
        }
        if let Some(seed) = args.shuffle_seed {
            let folder = self.output.folder();
            source = source.shuffled(seed, folder, &self.interrupt.stop())?;
        }
        Ok(source)
    }

    /// Whether shards that are there may be replaced: those of an earlier run of the same settings that
    /// did not finish, on which this one then goes on, or any with `--overwrite`.
    fn may_replace(
        &self,
        existing: &[Vec<u64>],
        journal: &mut Journal,
        earlier: Option<&Earlier>,
    ) -> anyhow::Result<bool> {
        let mut shown = self
            .sides
            .iter()
            .zip(existing)
            .filter_map(|(output, numbers)| {
                let first = numbers.first()?;
                Some(output.shown(*first))
            });
        let Some(first) = shown.next() else {
            return Ok(false);
        };
        let count: usize = existing.iter().map(Vec::len).sum();
        let shards = counted(count as u64, "shard", "shards");
        let before = earlier.map(|run| (&run.record, journal.record().difference(&run.record)));
        match before {
            Some((run, None)) => {
                if !self.args.quiet {
                    remark(format_args!(
                        "an earlier run of this ({}) did not finish; this one goes on",
                        run.who()
                    ));
                }
                journal.record_mut().overwrite |= run.overwrite;
                Ok(true)
            }
            _ if self.args.overwrite => Ok(false),
            Some((run, Some((setting, now, then)))) => bail!(
                "{first} is of a run that did not finish ({}), with other settings ({setting}: {then} \
                 then, {now} now); finish it by the same command, choose another --out, or replace its \
                 {shards} with --overwrite",
                run.who(),
            ),
            None => bail!(
                "{first} exists already, with {shards} of this prefix and format in all; choose \
                 another --out, or replace them with --overwrite"
            ),
        }
    }

    /// Keeps the whole shards of an earlier run, if its input was this one.
    fn go_on(&self, existing: &[Vec<u64>], journal: &mut Journal, earlier: Earlier) {
        if journal.record().difference_of_input(&earlier.record) {
            if !self.args.quiet {
                remark(format_args!(
                    "the input has changed since then; its shards are written again"
                ));
            }
            return;
        }
        let is_there = |shard: &WholeShard| {
            let side = usize::from(shard.held_out);
            let (output, existing) = (self.sides.get(side), existing.get(side));
            existing.is_some_and(|existing| existing.contains(&shard.number))
                && output.and_then(|output| output.whole_bytes(shard.number))
                    == Some(shard.file_bytes)
        };
        let whole = earlier.whole.into_iter().take_while(is_there);
        let whole = closed_together(whole.collect());
        log::info!("{} shards are whole", whole.len());
        journal.go_on(whole);
    }

    /// Goes through all rows without writing: with `--on-bad error`, nothing is written if one is bad.
    fn look_first(&self, source: &Source, rows: Range<u64>) -> anyhow::Result<()> {
        let mut first = None;
        let (mut bad, mut good) = (0u64, 0u64);
        let recipe = self.recipe();
        let flow = self.flow(source, &recipe, None, rows);
        flow.run(&mut |outcome| {
            match outcome.sample {
                Err(skip) if !skip.cause.is_wanted() => {
                    bad += 1;
                    first.get_or_insert(skip);
                }
                _ => good += 1,
            }
            Ok(())
        })?;
        match first {
            None => Ok(()),
            Some(first) => bail!(
                "{first}; {} bad, {good} good. Nothing was written; set --on-bad warn or skip to go on \
                 without the bad ones",
                counted(bad - 1, "more input is", "more inputs are")
            ),
        }
    }

    fn shards(
        &self,
        (source, fetcher, rows): (&Source, Option<&Fetcher>, Range<u64>),
        options: ShardOptions,
        journal: &Mutex<Journal>,
    ) -> anyhow::Result<BTreeMap<String, u64>> {
        let args = self.args;
        let limits = plan::Limits {
            max_count: args.max_count.get(),
            max_bytes: args.max_bytes,
        };
        let seen = Seen::new(args.drop_doubles, args.near_distance);
        let start = lock(journal).whole().last().map(|shard| shard.rows_end);
        let rows = start.unwrap_or(rows.start)..rows.end;
        let writing = Writing {
            output: &self.output,
            sides: &self.sides,
            held_out: args.held_out(),
            dali_index: args.dali_index,
            options,
            limits,
            on_bad: args.on_bad,
            seen,
            repeats_keys: source.repeats_keys(),
        };
        let bar = self.bar(source, &rows);
        let recipe = self.recipe();
        let flow = self.flow(source, &recipe, fetcher, rows);
        let skipped = std::thread::scope(|scope| {
            let mut shards = ShardSet::new(writing, journal, scope)?;
            flow.run(&mut |outcome: Outcome| {
                bar.inc(1);
                shards.accept(outcome)
            })?;
            shards.finish()
        });
        bar.finish_and_clear();
        skipped
    }

    fn flow<'b>(
        &'b self,
        source: &'b Source,
        recipe: &'b Recipe,
        fetcher: Option<&'b Fetcher>,
        rows: Range<u64>,
    ) -> Flow<'b> {
        Flow {
            source,
            rows,
            recipe,
            threads: self.threads,
            fetcher,
            interrupt: &self.interrupt,
        }
    }

    fn bar(&self, source: &Source, rows: &Range<u64>) -> ProgressBar {
        if self.args.quiet {
            return ProgressBar::hidden();
        }
        let bar = match source.rows() {
            Some(all) => {
                let left = rows.end.min(all).saturating_sub(rows.start);
                progress::bar("writing", usize::try_from(left).unwrap_or(usize::MAX))
            }
            None => progress::counter("writing"),
        };
        // The thread that ticks is started by a function that panics where there is none to have.
        if !bar.is_hidden() && threads::has_one() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        bar
    }

    fn recipe(&self) -> Recipe {
        let images = &self.args.images;
        Recipe {
            check: images.check_images,
            geometry: Geometry {
                mode: images.resize,
                size: images.image_size,
                only_if_bigger: images.only_if_bigger,
            },
            image_format: images.image_format,
            quality: images.quality,
            min_side: images.min_size,
            max_side: images.max_size,
            max_aspect: images.max_aspect,
            perceptual: images.phash || self.args.drop_doubles == Some(Doubles::Near),
            max_image_bytes: u64::MAX,
        }
    }

    /// What is left of a run that failed, and what to do.
    fn stopped(&self, error: anyhow::Error, journal: &mut Journal) -> anyhow::Error {
        let whole = journal.whole().len() as u64;
        let is_empty = |shards: Vec<Vec<u64>>| shards.iter().all(Vec::is_empty);
        if whole == 0 && self.existing().is_ok_and(is_empty) {
            journal.take_back();
        }
        if whole == 0 {
            return error.context("stopped before a shard was complete");
        }
        error.context(format!(
            "stopped with {} complete under {}; the same command goes on behind them",
            counted(whole, "shard", "shards"),
            self.sides[0].pattern(
                journal
                    .whole()
                    .iter()
                    .filter(|shard| !shard.held_out)
                    .count() as u64
            )
        ))
    }
}

/// Options that do not go together.
pub(super) fn check(args: &JobArgs) -> anyhow::Result<()> {
    let images = &args.images;
    if images.only_if_bigger && images.resize == ResizeMode::No {
        bail!("--only-if-bigger has no effect without --resize; leave it out, or choose a mode");
    }
    let is_remote = args.out.as_deref().is_some_and(|out| scheme(out).is_some());
    let prefix = args.out.as_deref().unwrap_or_default();
    let prefix = prefix.rsplit('/').next().unwrap_or_default();
    if args.dali_index && prefix.contains('.') {
        bail!(
            "--dali-index: DALI names an index by what comes before the first dot, so that those of {prefix}-... would \
             be one; choose an --out without a dot"
        );
    }
    if args.dali_index && (args.format != ShardFormat::Tar || is_remote) {
        bail!("--dali-index: DALI's index is of plain tar shards in a folder; leave it out, or write those");
    }
    if images.max_size != 0 && images.max_size < images.min_size {
        bail!("--max-size is below --min-size; no image is left");
    }
    if images.max_aspect.is_nan() || (images.max_aspect != 0.0 && images.max_aspect < 1.0) {
        bail!("--max-aspect must be at least 1 (longer side by shorter)");
    }
    Ok(())
}

/// What decides the bytes of the shards, beside the files of the input. The number of threads does not.
pub(super) fn settings(args: &JobArgs) -> Settings {
    // All of them by name: a new option is here, or the compiler asks for it.
    let JobArgs {
        input,
        out: _,
        reading,
        images,
        downloads,
        format: _, // part of the lock's name
        max_count,
        max_bytes,
        threads: _,
        level,
        shuffle_seed,
        part,
        on_bad,
        drop_doubles,
        near_distance,
        held_out,
        held_out_seed,
        no_index,
        dali_index,
        overwrite: _,
        json: _,
        quiet: _,
    } = args;
    let mut settings = Settings::new();
    let mut set = |option: &str, value: String| settings.insert(option.to_owned(), value);
    let path = |input: &String| {
        let path = std::fs::canonicalize(input);
        path.map_or_else(
            |_| qf_pipeline::source::DisplayUrl::of(input).to_string(),
            |path| path.display().to_string(),
        )
    };
    set(
        "INPUT",
        input.iter().map(path).collect::<Vec<_>>().join(", "),
    );
    set("--max-count", max_count.to_string());
    set("--max-bytes", max_bytes.to_string());
    set("--on-bad", format!("{on_bad:?}").to_lowercase());
    set("--no-index", no_index.to_string());
    if *dali_index {
        set("--dali-index", "true".to_owned());
    }
    let given = [
        ("--level", level.map(|level| level.to_string())),
        (
            "--part",
            part.map(|part| format!("{}/{}", part.index, part.count)),
        ),
        ("--shuffle-seed", shuffle_seed.map(|seed| seed.to_string())),
        (
            "--drop-doubles",
            drop_doubles.map(|kind| format!("{kind:?} {near_distance}").to_lowercase()),
        ),
        (
            "--held-out",
            held_out.map(|share| format!("{share}, seed {held_out_seed}")),
        ),
    ];
    for (option, value) in given {
        value.map(|value| set(option, value));
    }
    reading.settings(&mut settings);
    images.settings(&mut settings);
    downloads.settings(&mut settings);
    settings
}

pub(super) fn shard_options(args: &JobArgs) -> anyhow::Result<ShardOptions> {
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

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::shard::args::ShardArgs;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: ShardArgs,
    }

    fn settings_of(options: &[&str]) -> Settings {
        let line = [&["x", "in", "--out", "o"], options].concat();
        let args = Cli::try_parse_from(line).ok().unwrap().args;
        settings(&JobArgs {
            part: args.part.map(|part| part.of_count().unwrap()),
            ..args.job
        })
    }

    #[test]
    fn what_decides_the_bytes_of_shards_is_a_setting() {
        let plain = settings_of(&[]);
        for options in [
            &["--max-count", "7"][..],
            &["--max-bytes", "7MB"],
            &["--level", "7"],
            &["--shuffle-seed", "7"],
            &["--drop-doubles", "exact"],
            &["--part", "0/7"],
            &["--no-index"],
            &["--held-out", "10%"],
            &["--dali-index"],
            &["--split", "val"],
            &["--delimiter", ";"],
            &["--path-column", "x"],
            &["--caption-column", "x"],
            &["--keep-columns", "none"],
            &["--caption-lines", "one"],
            &["--images", "x"],
            &["--from", "csv"],
            &["--check-images", "decode"],
            &["--resize", "border"],
            &["--image-size", "7"],
            &["--only-if-bigger"],
            &["--image-format", "png"],
            &["--quality", "7"],
            &["--min-size", "7"],
            &["--max-size", "7"],
            &["--max-aspect", "7"],
            &["--phash"],
            &["--max-download", "7"],
            &["--ignore-opt-out"],
            &["--allow-private-addresses"],
        ] {
            assert_ne!(settings_of(options), plain, "{options:?}");
        }
        for options in [
            &["--threads", "7"][..],
            &["--json"],
            &["--quiet"],
            &["--overwrite"],
            &["--parallel-downloads", "7"],
            &["--timeout", "7"],
        ] {
            assert_eq!(settings_of(options), plain, "{options:?}");
        }
    }
}
