//! `qfdata plan`: looks at the input, and cuts it into parts.

use std::num::NonZeroU32;
use std::ops::Range;
use std::time::Instant;

use anyhow::bail;
use clap::Args;
use qf_cli::output::{remark, say};
use qf_pipeline::source::DisplayUrl;
use qf_pipeline::words::counted;

use super::file::{self, Plan};
use crate::interrupt::Interrupt;
use crate::shard::args::JobArgs;
use crate::shard::output::Output;
use crate::shard::run::{check, settings, shard_options};
use crate::shard::source::detect;

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
}
