//! `qfdata shard`: captioned images in, shards out.
//!
//! A flow ([`flow`]): rows of a source are read in order, downloaded where they are URLs, worked on by
//! every core, put back in order, and written: doubles dropped, shards cut, metadata beside each. What a
//! shard holds depends on the rows before it and on the settings, never on threads. Each shard that is
//! whole is written down ([`journal`]), and a run that is started again goes on behind the last.

mod alpha;
mod args;
mod doubles;
mod fetch;
mod flow;
mod geometry;
mod held_out;
mod journal;
mod keys;
mod kind;
mod load;
mod lock;
mod metadata;
mod output;
mod parts;
mod plan;
mod record;
mod report;
mod row;
mod run;
mod source;
mod statistics;
mod store;
mod work;
mod writer;
mod zip_file;

use std::time::Instant;

use qf_cli::output::InPart;
use qf_pipeline::words::counted;

use crate::interrupt::Interrupt;
pub(crate) use args::ShardArgs;
use args::{JobArgs, PartArg};
pub(crate) use parts::finish::{finish, FinishArgs};
pub(crate) use parts::planning::{plan, PlanArgs};
pub(crate) use parts::status::{status, StatusArgs};
use run::Run;

/// Runs the subcommand.
pub(crate) fn run(args: &ShardArgs) -> anyhow::Result<()> {
    let started = Instant::now();
    if let Some(plan) = &args.plan {
        return parts::making::shard_part(args, plan, started);
    }
    let job = JobArgs {
        part: args.part.map(PartArg::of_count).transpose()?,
        ..args.job.clone()
    };
    let interrupt = Interrupt::install()?;
    let report = Run::new(&job, interrupt, None)?.write(started)?;
    match report.bad() {
        0 => Ok(()),
        bad => Err(InPart(format!(
            "{} of the input could not become a sample",
            counted(bad, "row", "rows")
        ))
        .into()),
    }
}
