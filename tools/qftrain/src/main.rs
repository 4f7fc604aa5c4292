//! `qftrain`: trains a BLIP-2 Q-Former from shards of captioned images, and uses it: retrieval,
//! captions, scores.
//!
//! Exit codes: 0 done (also after Ctrl-C, once the checkpoint is written), 1 failed (one `error:`
//! line on stderr says why), 2 wrong usage, 3 done but for inputs that could not be used (each named on
//! stderr).

mod agreement;
mod bench;
mod caption;
mod classify;
mod config_command;
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
mod library_environment;
mod model_source;
mod progress;
mod ranks;
mod report;
mod restart;
mod resumption;
mod score;
mod search;
mod selfcheck;
mod session;
mod settings;
mod signals;
mod train;
mod vocabulary;
mod watch;
mod weights;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use qf_cli::args::{first_steps, parse};
use qf_cli::{output, reference, shell, version};
use qf_model::collective::carries_nccl;
use qf_model::device::{cuda_version, LIBTORCH_VERSION};
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
        qftrain report runs/a runs/b\n  \
        qftrain score --run-dir runs/a photo.jpg 'two dogs' 'a red bus'\n  \
        qftrain embed --run-dir runs/a photos/ --out photos.parquet\n  \
        qftrain search --run-dir runs/a --embeddings photos.parquet 'two dogs'\n  \
        qftrain export --run-dir runs/a --format hf --out exported\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done but for inputs that cannot be read. RUST_LOG=info or debug shows more."
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    train: train::TrainArgs,
}

/// Without arguments: the two next steps.
const FIRST_STEPS: &str = "\
    qftrain trains a BLIP-2 Q-Former from shards of captioned images.\n\n\
    Pack a folder of photographs (NAME.jpg beside NAME.txt), then train on it:\n  \
      qfdata shard photos/ --out shards/photos\n  \
      qftrain --shards 'shards/photos-*.tar'\n\n\
    Presets and what they are for: qftrain config. All commands and options: qftrain --help.";

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
    /// Write embeddings of images and texts, and outputs of the queries, as Parquet or npy
    Embed(embed::EmbedArgs),
    /// Find the images of such a file that are most like a text
    Search(search::SearchArgs),
    /// Classify the images of class folders without training on them, by prompts
    Classify(classify::ClassifyArgs),
    /// Write a trained model for transformers or LAVIS
    Export(export::ExportArgs),
    /// Print presets, explain settings, check a configuration, compare two runs
    Config(config_command::ConfigArgs),
    /// Show runs as one page: curves, held-out images, where the time went
    Report(report::ReportArgs),
    /// Check that this machine computes what it should: every gradient, uploads, checkpoints, ranks
    Selfcheck(selfcheck::SelfCheckArgs),
    /// Print completions for a shell
    Completions(shell::CompletionsArgs),
    /// Print the manual page, or write those of all commands
    Man(shell::ManArgs),
    /// Print the part of docs/reference/command-line.md on this program
    #[command(hide = true)]
    #[command(name = "command-line-reference")]
    Reference,
}

fn main() -> ExitCode {
    if let Some(code) = first_steps(FIRST_STEPS) {
        return code;
    }
    // Before the program starts itself once more, which help and mistakes can do without.
    let cli = match parse::<Cli>(version_details) {
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
        eprintln!("error: the system gives no more threads: {error}");
        return ExitCode::FAILURE;
    }
    let result = match &cli.command {
        Some(Command::Eval(args)) => eval::run(args),
        Some(Command::Bench(args)) => bench::run(args),
        Some(Command::Caption(args)) => caption::run(args),
        Some(Command::Score(args)) => score::run(args),
        Some(Command::Embed(args)) => embed::run(args),
        Some(Command::Search(args)) => search::run(args),
        Some(Command::Classify(args)) => classify::run(args),
        Some(Command::Export(args)) => export::run(args),
        Some(Command::Config(args)) => config_command::run(args),
        Some(Command::Report(args)) => report::run(args),
        Some(Command::Selfcheck(args)) => selfcheck::run(args),
        Some(Command::Completions(args)) => shell::write_completions(Cli::command(), args),
        Some(Command::Man(args)) => shell::write_manual(Cli::command(), args),
        Some(Command::Reference) => output::say(format_args!(
            "{}",
            reference::markdown(Cli::command()).trim_end()
        )),
        None => {
            let commands = Cli::command();
            let names = commands
                .get_subcommands()
                .map(|command| command.get_name().to_owned());
            train::run(&cli.train, &names.collect::<Vec<_>>())
        }
    };
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

/// The version of libtorch that this program was built with, and the library that it runs with.
fn libtorch() -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps.lines().filter_map(|line| line.split_once('/'));
    let mut paths = paths.map(|(_, path)| format!("/{path}"));
    match paths.find(|path| path.contains("/libtorch_cpu.so")) {
        Some(path) => format!("{LIBTORCH_VERSION}, {path}"),
        None => LIBTORCH_VERSION.into(),
    }
}

/// What `--version` adds.
fn version_details() -> String {
    let cuda = match cuda_version() {
        Some(version) => version,
        None => "none: this libtorch has no CUDA part".into(),
    };
    let several = match carries_nccl() {
        true => "NCCL, Gloo",
        false => "Gloo (NCCL: make setup QF_NCCL=1, then build)",
    };
    version::details(&[
        ("libtorch", libtorch()),
        ("CUDA", cuda),
        ("groups", several.into()),
    ])
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
