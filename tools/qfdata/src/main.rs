//! `qfdata`: builds, inspects and profiles shards of captioned images.
//!
//! Exit codes: 0 done, 1 failed (one `error:` line on stderr says why), 2 wrong usage, 3 done in part
//! (some of the input could not be used), 130 interrupted by Ctrl-C.

mod cat;
mod convert;
mod copy;
mod data;
mod extract;
mod files;
mod hash128;
mod head;
mod index;
mod inspect;
mod interrupt;
mod ls;
mod merge;
mod order;
mod preview;
mod profile;
mod progress;
mod shard;
mod size;
mod split;
mod stats;
mod synth;
mod threads;
mod unreadable;
mod verify;
mod view;
mod vocab;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use qf_cli::args::{first_steps, parse};
use qf_cli::output::{self, InPart};
use qf_cli::{reference, shell, version};
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

/// Without arguments: the two next steps.
const FIRST_STEPS: &str = "\
    qfdata builds, inspects and profiles shards of captioned images.\n\n\
    Pack a folder of photographs (NAME.jpg beside NAME.txt), then train on it:\n  \
      qfdata shard photos/ --out shards/photos\n  \
      qftrain --shards 'shards/photos-*.tar'\n\n\
    No photographs at hand: qfdata synth --out photos renders some. All commands: qfdata --help.";

#[derive(Subcommand)]
enum Command {
    /// Pack captioned images into shards
    Shard(shard::ShardArgs),
    /// Cut a job of `shard` into parts for many machines
    Plan(shard::PlanArgs),
    /// Say which parts of a plan are complete
    Status(shard::StatusArgs),
    /// Check that all parts of a plan are complete, and join their statistics
    Finish(shard::FinishArgs),
    /// Write the index of shards beside them, or check it
    Index(index::IndexArgs),
    /// List the files of shards
    Ls(ls::LsArgs),
    /// Write files of shards to standard output
    Cat(cat::CatArgs),
    /// Show the first samples of shards
    Head(head::HeadArgs),
    /// Write the files of shards into a folder
    Extract(extract::ExtractArgs),
    /// Check shards: structure, images, captions, doubles, indices
    Verify(verify::VerifyArgs),
    /// Count samples, sizes, captions, formats, scripts and doubles
    Stats(stats::StatsArgs),
    /// Look at a data set: contact sheet, histograms, problems, crops, near doubles
    View(view::ViewArgs),
    /// Join shards into one
    Merge(merge::MergeArgs),
    /// Cut shards anew, to a number of samples or bytes
    Split(split::SplitArgs),
    /// Write shards in another format
    Convert(convert::ConvertArgs),
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
    output::start_log();
    let cli = match parse::<Cli>(version_details) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let result = match cli.command {
        Command::Shard(args) => shard::run(&args),
        Command::Plan(args) => shard::plan(&args),
        Command::Status(args) => shard::status(&args),
        Command::Finish(args) => shard::finish(&args),
        Command::Index(args) => index::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Cat(args) => cat::run(&args),
        Command::Head(args) => head::run(&args),
        Command::Extract(args) => extract::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Stats(args) => stats::run(&args),
        Command::View(args) => view::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Split(args) => split::run(&args),
        Command::Convert(args) => convert::run(&args),
        Command::Vocab(args) => vocab::run(&args),
        Command::Order(args) => order::run(&args),
        Command::Preview(args) => preview::run(&args),
        Command::Profile(args) => profile::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Completions(args) => shell::write_completions(Cli::command(), &args),
        Command::Man(args) => shell::write_manual(Cli::command(), &args),
        Command::Reference => output::say(format_args!(
            "{}",
            reference::markdown(Cli::command()).trim_end()
        )),
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

/// What `--version` adds.
fn version_details() -> String {
    let codecs = format!(
        "JPEG (libjpeg-turbo {}), WebP (libwebp {}), PNG, GIF, BMP, TIFF",
        qf_codecs::libjpeg_turbo_version(),
        qf_codecs::libwebp_version()
    );
    version::details(&[("codecs", codecs)])
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
