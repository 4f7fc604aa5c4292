//! `qfdata`: builds, inspects and profiles shards of captioned images.
//!
//! Exit codes: 0 done, 1 failed (one `error:` line on stderr says why), 2 wrong usage, 130
//! interrupted by Ctrl-C.

mod data;
mod index;
mod interrupt;
mod order;
mod output;
mod paths;
mod preview;
mod profile;
mod progress;
mod shard;
mod size;
mod synth;
mod vocab;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use qf_pipeline::error::full_message;
use qf_pipeline::mistakes::plain;

/// Builds, inspects and profiles shards of captioned images.
#[derive(Parser)]
#[command(
    name = "qfdata",
    version,
    arg_required_else_help = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted by Ctrl-C.\n\
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
    let cli = match parse() {
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
            output::remark(format_args!("error: {}", full_message(error.as_ref())));
            interrupt::exit_code(&error)
        }
    }
}

/// The command line. Of a value that cannot be, clap says what Rust's parsers say; users get plain words.
fn parse() -> Result<Cli, ExitCode> {
    let matches = paths::refuse_urls(Cli::command()).try_get_matches();
    let cli = matches.and_then(|matches| Cli::from_arg_matches(&matches));
    cli.map_err(|error| {
        if error.kind() != ErrorKind::ValueValidation {
            error.exit();
        }
        output::remark(format_args!("{}", plain(&error.render().to_string())));
        ExitCode::from(2)
    })
}
