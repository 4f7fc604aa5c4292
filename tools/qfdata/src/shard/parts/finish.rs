//! `qfdata finish`: all parts are complete and their shards are there; one file sums them up.

use std::collections::BTreeMap;

use anyhow::{bail, Context};
use clap::Args;
use qf_cli::output::{say, InPart};
use qf_pipeline::words::counted;
use serde::Serialize;

use super::file::Plan;
use super::job::{job_of, job_of_part};
use super::status::{check_shards, statistics};
use crate::shard::output::Output;
use crate::shard::row::SkipCause;
use crate::shard::statistics::{HeldOutStatistics, ShardStatistics};
use crate::size;

/// Check that all parts of a plan are complete, and join their statistics.
///
/// Fails, naming them, where parts are missing, or a shard that a part counted is not there with its
/// length. Writes PREFIX.FORMAT_stats.json. Exit code 3: done, with rows skipped.
#[derive(Args, Clone, Debug)]
pub(crate) struct FinishArgs {
    /// What `qfdata plan` wrote: a file or an object
    #[arg(value_name = "PLAN")]
    plan: String,

    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Default, Serialize)]
struct Total {
    plan: String,
    format: &'static str,
    parts: usize,
    found: u64,
    samples: u64,
    captions: u64,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out: Option<HeldOutStatistics>,
    skipped: BTreeMap<String, u64>,
    shards: Vec<ShardStatistics>,
}

/// Runs the subcommand.
pub(crate) fn finish(args: &FinishArgs) -> anyhow::Result<()> {
    let skipped = join(args)?;
    match skipped {
        0 => Ok(()),
        skipped => {
            let rows = counted(skipped, "row", "rows");
            Err(InPart(format!("{rows} of the input could not become a sample")).into())
        }
    }
}

/// How many rows were skipped that were not left out as asked.
fn join(args: &FinishArgs) -> anyhow::Result<u64> {
    let plan = Plan::read(&args.plan)?;
    plan.enter_folder()?;
    let job = job_of(&plan)?;
    let out = job.out.clone().context("the plan has no --out")?;
    let output = Output::new(&out, job.format)?;
    let mut total = Total {
        plan: plan.id.clone(),
        format: output.extension(),
        parts: plan.parts.len(),
        ..Total::default()
    };
    let mut missing = Vec::new();
    for part in &plan.parts {
        let job = job_of_part(&job, &plan, part.part)?;
        match statistics(&plan, &job, part.part)? {
            None => missing.push(part.part),
            Some(done) => {
                check_shards(&job, part.part, &done.shards)?;
                if done.found != part.rows.end - part.rows.start {
                    bail!(
                        "part {}: it has {} rows, and its statistics count {}; remove its shards, and run it again",
                        part.part,
                        part.rows.end - part.rows.start,
                        done.found
                    );
                }
                total.found += done.found;
                total.samples += done.samples;
                total.captions += done.captions;
                total.bytes += done.bytes;
                if let Some(part) = done.held_out {
                    let total = total.held_out.get_or_insert_default();
                    *total = HeldOutStatistics {
                        bytes: total.bytes + part.bytes,
                        captions: total.captions + part.captions,
                        samples: total.samples + part.samples,
                        shards: total.shards + part.shards,
                        ..part
                    };
                }
                for (cause, count) in done.skipped {
                    *total.skipped.entry(cause).or_default() += count;
                }
                total.shards.extend(done.shards);
            }
        }
    }
    if let Some(first) = missing.first() {
        bail!(
            "{} of {} not complete ({}); run `qfdata shard --plan {} --part {first}` and so on, then \
             `qfdata finish` again",
            missing.len(),
            counted(plan.parts.len() as u64, "part", "parts"),
            some(&missing),
            args.plan
        );
    }
    if total.samples == 0 {
        bail!("no row of the input became a sample: {:?}", total.skipped);
    }
    let mut text = serde_json::to_vec_pretty(&total)?;
    text.push(b'\n');
    output.put(&output.stats_name(), &text)?;
    print(args, &total, &out)?;
    Ok(SkipCause::bad_rows(&total.skipped))
}

/// The first few parts.
fn some(parts: &[u32]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<_> = parts.iter().take(SHOWN).map(u32::to_string).collect();
    let more = if parts.len() > SHOWN { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

fn print(args: &FinishArgs, total: &Total, out: &str) -> anyhow::Result<()> {
    if args.json {
        return say(format_args!("{}", serde_json::to_string(total)?));
    }
    let pattern = format!("{out}-*.{}", total.format);
    say(format_args!(
        "{pattern}: {} of {}, {}, {}, {}",
        counted(total.shards.len() as u64, "shard", "shards"),
        counted(total.parts as u64, "part", "parts"),
        counted(total.samples, "sample", "samples"),
        counted(total.captions, "caption", "captions"),
        size::display(total.bytes)
    ))?;
    if let Some(part) = &total.held_out {
        say(format_args!(
            "  {} in {} ({out}-*-val-*.{}) held out",
            counted(part.samples, "sample", "samples"),
            counted(part.shards, "shard", "shards"),
            total.format
        ))?;
    }
    for (cause, count) in &total.skipped {
        say(format_args!(
            "  {} skipped as {cause}",
            counted(*count, "row", "rows")
        ))?;
    }
    Ok(())
}
