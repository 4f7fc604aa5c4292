//! One job on many machines: `qfdata plan` cuts the rows of an input into parts, `qfdata shard --plan P
//! --part I` makes the shards of one on any machine, `qfdata status P` says which are complete, and
//! `qfdata finish P` checks and sums them up.
//!
//! A part is a run of its own under a prefix of its own, `PREFIX-00003`. So it goes on where it was
//! killed, like any run, and its statistics, which are written last, are its completion marker. They
//! carry the plan's id. Nothing is coordinated: what a part holds depends on the plan alone.

mod file;
mod finish;
mod status;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Range;
use std::time::Instant;

use anyhow::{anyhow, bail, Context};
use clap::{Args, Parser};
use qf_cli::output::{remark, say, InPart};
use qf_pipeline::source::DisplayUrl;
use qf_pipeline::words::counted;

use super::args::{part as parse_part, JobArgs, Part, PartArg, ShardArgs};
use super::output::Output;
use super::source::any::Source;
use super::source::detect;
use super::{check, settings, shard_options, Run};
use crate::interrupt::Interrupt;
use file::{Plan, PlannedPart};
pub(crate) use finish::FinishArgs;
pub(crate) use status::StatusArgs;

/// What numbers the tasks of a job, in this order: Slurm's arrays, Kubernetes' Indexed Jobs, launchers.
const PART_VARIABLES: [&str; 3] = ["SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX", "RANK"];

/// Cut a job of `qfdata shard` into parts for many machines.
///
/// Takes the input and the options of `qfdata shard`, looks at the input, and writes nothing but the plan:
/// what the input was, the options, and the rows of each part. Then, on any machine that sees the same
/// input and the same target:
///
///   qfdata shard --plan PLAN --part I   for I from 0 to N-1, in any order, at any time, also again
///   qfdata status PLAN                  which parts are complete
///   qfdata finish PLAN                  check the shards of all, and write the joined statistics
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub(crate) struct PlanArgs {
    /// Number of parts
    #[arg(long, value_name = "N")]
    parts: NonZeroU32,

    /// File or object (s3://, gs://, az://) that the plan is written to
    #[arg(long, value_name = "FILE")]
    plan: String,

    #[command(flatten)]
    job: JobArgs,
}

/// Which part of a plan a run makes.
#[derive(Clone, Debug)]
pub(super) struct PartOfPlan {
    plan: Plan,
    part: PlannedPart,
}

impl PartOfPlan {
    /// The rows of the input that belong to it.
    pub(super) fn rows(&self) -> Range<u64> {
        self.part.rows.clone()
    }

    /// What tells its shards from those of any other part or plan.
    pub(super) fn settings(&self) -> [(&'static str, String); 2] {
        let part = format!("{}/{}", self.part.part, self.plan.parts.len());
        [("plan", self.plan.id.clone()), ("--part", part)]
    }

    /// That the input is still the one of the plan.
    pub(super) fn check_input(&self, source: &Source) -> anyhow::Result<()> {
        if source.fingerprint() != self.plan.input_fingerprint {
            bail!(
                "the input is not the one that the plan was made of: its files changed (name, size or time), \
                 or this machine sees others; make the plan again with `qfdata plan`"
            );
        }
        Ok(())
    }
}

/// Runs `qfdata plan`.
pub(crate) fn plan(args: &PlanArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    let interrupt = Interrupt::install()?;
    let job = &args.job;
    let Some(out) = job.out.as_deref().filter(|_| !job.input.is_empty()) else {
        bail!("a plan needs INPUT and --out, as `qfdata shard` does");
    };
    check(job)?;
    shard_options(job)?;
    Output::new(out, job.format)?;
    refuse_what_parts_cannot(job)?;
    let source = detect::open(&job.input, &job.reading, &interrupt)?;
    for note in source.notes() {
        remark(format_args!("{}: {note}", job.input.join(", ")));
    }
    let rows = source.count(&interrupt.stop())?;
    if rows == 0 {
        bail!("{} has no rows", job.input.join(", "));
    }
    let ranges = cut(rows, u64::from(args.parts.get()), job.max_count.get());
    let plan = Plan::new(
        file::arguments_of_job(std::env::args_os())?,
        source.fingerprint(),
        settings(job),
        ranges,
    )?;
    plan.write(&args.plan)?;
    say(format_args!(
        "{}: {} in {}, found in {:.1} s",
        DisplayUrl::of(&args.plan),
        counted(rows, "row", "rows"),
        counted(plan.parts.len() as u64, "part", "parts"),
        started.elapsed().as_secs_f64()
    ))?;
    say(format_args!(
        "next: qfdata shard --plan {} --part I, for I from 0 to {}",
        DisplayUrl::of(&args.plan),
        plan.parts.len() - 1
    ))
}

/// Options whose meaning spans parts, and inputs that would put a secret into the plan.
fn refuse_what_parts_cannot(job: &JobArgs) -> anyhow::Result<()> {
    if job.drop_doubles.is_some() {
        bail!(
            "--drop-doubles compares all samples, and parts do not see each other's; leave it out, and pass \
             the finished shards through `qfdata shard 'PREFIX-*.tar' --drop-doubles ...`"
        );
    }
    if job.input.iter().any(|input| input == "-") {
        bail!("a plan cannot take its input from standard input: every part reads it; save the list to a file");
    }
    for spec in job.input.iter().chain(&job.out) {
        if DisplayUrl::of(spec).to_string() != *spec {
            bail!(
                "{} holds a secret or a query, which the plan would hold as well; give credentials by the \
                 environment of each machine",
                DisplayUrl::of(spec)
            );
        }
    }
    Ok(())
}

/// Rows of each part: as equal as can be, cut where shards of `max_count` end if there are enough of these.
fn cut(rows: u64, parts: u64, max_count: u64) -> Vec<Range<u64>> {
    let unit = match rows.div_ceil(max_count) >= parts {
        true => max_count,
        false => 1,
    };
    let units = u128::from(rows.div_ceil(unit));
    let bound = |part: u64| {
        let units = units * u128::from(part) / u128::from(parts);
        // At most `units` × `unit`, which is less than `rows` + `unit`.
        rows.min(u64::try_from(units * u128::from(unit)).unwrap_or(u64::MAX))
    };
    (0..parts)
        .map(|part| bound(part)..bound(part + 1))
        .collect()
}

/// The job of a part: its shards have a prefix of their own.
fn job_of_part(job: &JobArgs, plan: &Plan, part: u32) -> anyhow::Result<JobArgs> {
    let out = job.out.as_deref().context("the plan has no --out")?;
    let (index, count) = (u64::from(part), plan.parts.len() as u64);
    Ok(JobArgs {
        out: Some(Part { index, count }.prefix(out)),
        ..job.clone()
    })
}

/// The command line that a plan holds.
#[derive(Parser)]
struct Words {
    #[command(flatten)]
    args: ShardArgs,
}

/// Options of the plan's job. Its relative paths start from the folder where the plan was made.
fn job_of(plan: &Plan) -> anyhow::Result<JobArgs> {
    let words = std::iter::once("qfdata shard".to_owned()).chain(plan.arguments.iter().cloned());
    let parsed = Words::try_parse_from(words);
    let job = match parsed {
        Ok(words) => words.args.job,
        Err(error) => bail!(
            "this qfdata ({}) cannot take the options of the plan, which was made by {}: {}",
            env!("CARGO_PKG_VERSION"),
            plan.qfdata,
            error.kind()
        ),
    };
    if plan.qfdata != env!("CARGO_PKG_VERSION") {
        log::warn!(
            "the plan was made by qfdata {}, this is {}; parts by different versions may differ",
            plan.qfdata,
            env!("CARGO_PKG_VERSION")
        );
    }
    Ok(job)
}

/// Runs `qfdata shard --plan`.
pub(super) fn shard_part(args: &ShardArgs, spec: &str, started: Instant) -> anyhow::Result<()> {
    let interrupt = Interrupt::install()?;
    let plan = Plan::read(spec)?;
    plan.enter_folder()?;
    let mut job = job_of(&plan)?;
    take_free_options(&mut job, &args.job)?;
    let number = part_number(args.part, plan.parts.len())?;
    let part = plan.parts[number as usize].clone();
    job = job_of_part(&job, &plan, number)?;
    if let Some(done) = status::statistics(&plan, &job, number)? {
        if !job.quiet {
            let samples = counted(done.samples, "sample", "samples");
            say(format_args!("part {number} is complete already: {samples}"))?;
        }
        return Ok(());
    }
    let of_plan = PartOfPlan { plan, part };
    Run::new(&job, interrupt, Some(of_plan))?.write(started)?;
    Ok(())
}

/// Options that may differ from machine to machine; all others are the plan's.
fn take_free_options(job: &mut JobArgs, given: &JobArgs) -> anyhow::Result<()> {
    let plain = Words::try_parse_from(["qfdata shard", "--plan", "x"]);
    let plain = plain.ok().map(|words| settings(&words.args.job));
    let has_others = plain.is_some_and(|plain| plain != settings(given));
    if has_others || !given.input.is_empty() || given.out.is_some() || given.overwrite {
        bail!(
            "with --plan, input, target and all options that decide what shards hold are the plan's; beside it \
             only --part, --threads, --json, --quiet, --parallel-downloads, --per-host, --timeout and --retries \
             can be given"
        );
    }
    job.threads = given.threads.or(job.threads);
    job.json |= given.json;
    job.quiet |= given.quiet;
    job.downloads.take_rates(&given.downloads);
    Ok(())
}

/// The part by `--part I` or `I/N`, else by the environment.
#[allow(clippy::disallowed_methods)] // The environment belongs to the tools.
fn part_number(given: Option<PartArg>, parts: usize) -> anyhow::Result<u32> {
    let (part, from) = match given {
        Some(part) => (part, "--part"),
        None => {
            let set = PART_VARIABLES.iter().find_map(|name| {
                let value = std::env::var(name).ok()?;
                Some((value, *name))
            });
            let Some((text, name)) = set else {
                bail!(
                    "which part? give --part I, or run it where {} is set",
                    PART_VARIABLES.join(", ")
                );
            };
            let part = parse_part(&text).map_err(|_| anyhow!("{name}={text} is no part"))?;
            (part, name)
        }
    };
    let PartArg { index, count } = part;
    if let Some(count) = count.filter(|count| *count != parts as u64) {
        bail!("{from} {index}/{count}: the plan has {parts} parts, not {count}");
    }
    match u32::try_from(index) {
        Ok(part) if (part as usize) < parts => Ok(part),
        _ => bail!(
            "{from} {index}: the plan has parts 0 to {}; number the tasks of the job from 0",
            parts - 1
        ),
    }
}

/// Runs `qfdata status`.
pub(crate) fn status(args: &StatusArgs) -> anyhow::Result<()> {
    status::run(args)
}

/// Runs `qfdata finish`.
pub(crate) fn finish(args: &FinishArgs) -> anyhow::Result<()> {
    let skipped = finish::run(args)?;
    match skipped {
        0 => Ok(()),
        skipped => {
            let rows = counted(skipped, "row", "rows");
            Err(InPart(format!("{rows} of the input could not become a sample")).into())
        }
    }
}

/// Sums counts by cause.
fn add_counts(to: &mut BTreeMap<String, u64>, counts: &BTreeMap<String, u64>) {
    for (cause, count) in counts {
        *to.entry(cause.clone()).or_default() += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_all_rows_once() {
        for (rows, parts, max_count) in
            [(10, 3, 4), (1000, 7, 10), (5, 9, 2), (1, 1, 1), (64, 8, 8)]
        {
            let ranges = cut(rows, parts, max_count);
            assert_eq!(ranges.len() as u64, parts);
            assert_eq!((ranges[0].start, ranges[ranges.len() - 1].end), (0, rows));
            assert!(ranges.windows(2).all(|pair| pair[0].end == pair[1].start));
            let sizes = ranges.iter().map(|range| range.end - range.start);
            let (least, most) = (sizes.clone().min().unwrap(), sizes.max().unwrap());
            assert!(most - least <= max_count, "{ranges:?}");
        }
        // Where shards are full, only the last of all is not.
        assert_eq!(cut(95, 3, 10), [0..30, 30..60, 60..95]);
    }

    #[test]
    fn a_part_is_named_in_range() {
        let number = |text| part_number(Some(parse_part(text).unwrap()), 4);
        assert_eq!(number("3").unwrap(), 3);
        assert_eq!(number("0/4").unwrap(), 0);
        for (wrong, says) in [("4", "0 to 3"), ("1/5", "4 parts")] {
            let error = number(wrong).unwrap_err().to_string();
            assert!(error.contains(says), "{wrong}: {error}");
        }
    }
}
