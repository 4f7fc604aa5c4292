//! `qfdata`: builds, inspects and profiles shards of captioned images.
//!
//! Exit codes: 0 done, 1 failed (one `error:` line on stderr says why), 2 wrong usage, 3 done in part
//! (some of the input could not be used), 130 interrupted by Ctrl-C.

mod data;
mod index;
mod interrupt;
mod order;
mod preview;
mod profile;
mod progress;
mod shard;
mod size;
mod synth;
mod vocab;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use qf_cli::args::parse;
use qf_cli::output::{self, InPart};
use qf_pipeline::error::full_message;

/// Builds, inspects and profiles shards of captioned images.
#[derive(Parser)]
#[command(
    name = "qfdata",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done in part (some of the input could not be used), 130 interrupted by Ctrl-C.\n\
                  RUST_LOG=info or debug shows more."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Pack captioned images into shards
    Shard(shard::ShardArgs),
    /// Write the index of shards beside them, or check it
    Index(index::IndexArgs),
    /// Train a WordPiece vocabulary from the captions of shards
    Vocab(vocab::VocabArgs),
    /// List what a rank will see, in order, without decoding
    Order(order::OrderArgs),
    /// Show a batch as the model sees it: a picture, a page, an array
    Preview(preview::PreviewArgs),
    /// Measure how fast shards load, stage by stage, and name the bottleneck
    Profile(profile::ProfileArgs),
    /// Render a captioned data set of simple scenes
    Synth(synth::SynthArgs),
}

fn main() -> ExitCode {
    output::start_log();
    let cli = match parse::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let result = match cli.command {
        Command::Shard(args) => shard::run(&args),
        Command::Index(args) => index::run(&args),
        Command::Vocab(args) => vocab::run(&args),
        Command::Order(args) => order::run(&args),
        Command::Preview(args) => preview::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Synth(args) => synth::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = full_message(error.as_ref());
            match error.is::<InPart>() {
                true => output::remark(format_args!("{message}")),
                false => output::remark(format_args!("error: {message}")),
            }
            interrupt::exit_code(&error)
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
        assert!(options >= 8, "{options} options found");
    }
}
