//! `qftrain`: trains a BLIP-2 Q-Former from shards of captioned images, and uses it: retrieval,
//! captions, scores.
//!
//! Exit codes: 0 done (also after Ctrl-C, once the checkpoint is written), 1 failed (one `error:`
//! line on stderr says why), 2 wrong usage, 3 done but for inputs that could not be used (each named on
//! stderr).

mod agreement;
mod bench;
mod caption;
mod configuration;
mod data;
mod eval;
mod export;
mod hub;
mod image_paths;
mod launch;
mod library_environment;
mod model_source;
mod progress;
mod ranks;
mod resumption;
mod score;
mod selfcheck;
mod session;
mod settings;
mod signals;
mod train;
mod vocabulary;
mod weights;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use qf_cli::args::parse;
use qf_cli::output;
use qf_model::host_memory::keep_blocks;
use qf_pipeline::error::full_message;

/// Trains a BLIP-2 Q-Former (ITC + ITM + ITG) from shards of captioned images.
#[derive(Parser)]
#[command(
    name = "qftrain",
    version,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = "Examples:\n  \
        qftrain --shards 'shards/photos-*.tar' --steps 1000 --run-dir runs/a\n  \
        qftrain --shards 'shards/photos-*.tar' --run-dir runs/a --resume\n  \
        qftrain --nproc 8 --shards 'shards/photos-*.tar' --run-dir runs/b\n  \
        qftrain eval --run-dir runs/a --shards 'shards/held-*.tar' --json\n  \
        qftrain caption --run-dir runs/a photo.jpg\n  \
        qftrain score --run-dir runs/a photo.jpg 'two dogs' 'a red bus'\n  \
        qftrain export --run-dir runs/a --format hf --out exported\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but for inputs that cannot be read. RUST_LOG=info or debug shows more."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: train::TrainArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Measure image-text retrieval of a trained model on held-out shards or annotated images
    Eval(eval::EvalArgs),
    /// Time a training step by part, on synthetic data
    Bench(bench::BenchArgs),
    /// Caption images by beam search or sampling
    Caption(caption::CaptionArgs),
    /// Score texts against an image: matching probability and contrastive similarity
    Score(score::ScoreArgs),
    /// Write a trained model for transformers or LAVIS
    Export(export::ExportArgs),
    /// Check that this machine computes what it should: every gradient, uploads, checkpoints, ranks
    Selfcheck(selfcheck::SelfCheckArgs),
}

fn main() -> ExitCode {
    // Before the program starts itself once more, which help and mistakes can do without.
    let cli = match parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    library_environment::prepare();
    output::start_log();
    if let Err(error) = keep_blocks() {
        log::warn!("memory of tensors comes from libtorch's own allocator: {error}");
    }
    let result = match &cli.command {
        Some(Command::Eval(args)) => eval::run(args),
        Some(Command::Bench(args)) => bench::run(args),
        Some(Command::Caption(args)) => caption::run(args),
        Some(Command::Score(args)) => score::run(args),
        Some(Command::Export(args)) => export::run(args),
        Some(Command::Selfcheck(args)) => selfcheck::run(args),
        None => train::run(&cli.train),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::remark(format_args!("error: {}", full_message(error.as_ref())));
            match error.is::<output::InPart>() {
                true => ExitCode::from(3),
                false => ExitCode::FAILURE,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn every_option_that_takes_a_path_refuses_urls() {
        let (accepted, options) = qf_cli::args::accepted_urls(&Cli::command());
        assert_eq!(accepted, Vec::<String>::new());
        assert!(options >= 10, "{options} options found");
    }
}
