//! `qftrain-torch`: what `qftrain` does with libtorch. Trains a BLIP-2 Q-Former from shards of captioned
//! images, and uses it: retrieval, captions, scores.
//!
//! Exit codes: 0 done (also after Ctrl-C, once the checkpoint is written), 1 failed (one `error:`
//! line on stderr says why), 2 wrong usage, 3 done but for inputs that could not be used (each named on
//! stderr).

mod agreement;
mod bench;
mod caption;
mod classify;
mod configuration;
mod data;
mod embed;
mod eval;
mod export;
mod gallery;
mod hub;
mod image_batches;
mod image_folder;
mod image_paths;
mod launch;
mod model_source;
mod progress;
mod ranks;
mod report;
mod restart;
mod score;
mod search;
mod selfcheck;
mod session;
mod signals;
mod train;
mod vocabulary;
mod watch;
mod weights;

use std::process::ExitCode;

use qf_cli::output;
use qf_model::host_memory::keep_blocks;
use qf_pipeline::error::full_message;
use qftrain::cli::{self, Cli, Command};

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    restart::with_library_environment();
    output::start_log_at(match cli.train.verbose {
        true => "info",
        false => "warn",
    });
    if let Err(error) = keep_blocks() {
        log::warn!("memory of tensors comes from libtorch's own allocator: {error}");
    }
    if let Err(error) = qf_model::host_threads::start() {
        output::complain(format_args!("the system gives no more threads: {error}"));
        return ExitCode::FAILURE;
    }
    let result = cli::answer(&cli).unwrap_or_else(|| run(&cli));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(format_args!("{}", full_message(error.as_ref())));
            match error.is::<output::InPart>() {
                true => ExitCode::from(3),
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// What needs libtorch.
fn run(cli: &Cli) -> anyhow::Result<()> {
    match &cli.command {
        None => train::run(&cli.train),
        Some(Command::Eval(args)) => eval::run(args),
        Some(Command::Bench(args)) => bench::run(args),
        Some(Command::Caption(args)) => caption::run(args),
        Some(Command::Score(args)) => score::run(args),
        Some(Command::Embed(args)) => embed::run(args),
        Some(Command::Search(args)) => search::run(args),
        Some(Command::Classify(args)) => classify::run(args),
        Some(Command::Export(args)) => export::run(args),
        Some(Command::Report(args)) => report::run(args),
        Some(Command::Selfcheck(args)) => selfcheck::run(args),
        // Answered without libtorch.
        Some(
            Command::Config(_) | Command::Completions(_) | Command::Man(_) | Command::Reference,
        ) => Ok(()),
    }
}
