//! The command line of `qftrain`.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use qf_cli::output::say;
use qf_cli::shell::{write_completions, write_manual, CompletionsArgs, ManArgs};
use qf_cli::{args, reference};

use crate::args::{
    BenchArgs, CaptionArgs, ClassifyArgs, EmbedArgs, EvalArgs, ExportArgs, ReportArgs, ScoreArgs,
    SearchArgs, SelfCheckArgs, TrainArgs,
};
use crate::config_command::{self, ConfigArgs};
use crate::libtorch;

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
pub struct Cli {
    /// What to do instead of training
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The run to train
    #[command(flatten)]
    pub train: TrainArgs,
}

/// Without arguments: the two next steps.
pub const FIRST_STEPS: &str = "\
    qftrain trains a BLIP-2 Q-Former from shards of captioned images.\n\n\
    Pack a folder of photographs (NAME.jpg beside NAME.txt), then train on it:\n  \
      qfdata shard photos/ --out shards/photos\n  \
      qftrain --shards 'shards/photos-*.tar'\n\n\
    Presets and what they are for: qftrain config. All commands and options: qftrain --help.";

/// A command.
#[derive(Subcommand)]
pub enum Command {
    /// Measure image-text retrieval of a trained model on held-out shards or annotated images
    Eval(EvalArgs),
    /// Time a training step by part, on synthetic data
    Bench(BenchArgs),
    /// Caption images by beam search or sampling
    Caption(CaptionArgs),
    /// Score texts against an image: matching probability and contrastive similarity
    Score(ScoreArgs),
    /// Write embeddings of images and texts, and outputs of the queries, as Parquet or npy
    Embed(EmbedArgs),
    /// Find the images of such a file that are most like a text
    Search(SearchArgs),
    /// Classify the images of class folders without training on them, by prompts
    Classify(ClassifyArgs),
    /// Write a trained model for transformers or LAVIS
    Export(ExportArgs),
    /// Print presets, explain settings, check a configuration, compare two runs
    Config(ConfigArgs),
    /// Show runs as one page: curves, held-out images, where the time went
    Report(ReportArgs),
    /// Check that this machine computes what it should: every gradient, uploads, checkpoints, ranks
    Selfcheck(SelfCheckArgs),
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write those of all commands
    Man(ManArgs),
    /// Print the part of docs/reference/command-line.md on this program
    #[command(hide = true)]
    #[command(name = "command-line-reference")]
    Reference,
}

/// Parses the arguments of the process; help, the version, mistakes and the first steps are printed here.
///
/// # Errors
/// The exit code of a process that was called without arguments or with wrong ones.
pub fn parse() -> Result<Cli, ExitCode> {
    if let Some(code) = args::first_steps(FIRST_STEPS) {
        return Err(code);
    }
    let cli = args::parse::<Cli>(libtorch::version_details)?;
    if cli.command.is_none() {
        let commands = Cli::command();
        let names = commands.get_subcommands().map(|command| command.get_name());
        let names: Vec<String> = names.map(str::to_owned).collect();
        if let Err(error) = cli.train.check_photos(&names) {
            error.format(&mut Cli::command()).exit();
        }
    }
    Ok(cli)
}

/// The result of a command that needs no libtorch, `None` for one that does.
pub fn answer(cli: &Cli) -> Option<anyhow::Result<()>> {
    match cli.command.as_ref()? {
        Command::Config(args) => Some(config_command::run(args)),
        Command::Completions(args) => Some(write_completions(Cli::command(), args)),
        Command::Man(args) => Some(write_manual(Cli::command(), args)),
        Command::Reference => {
            let page = reference::markdown(Cli::command());
            Some(say(format_args!("{}", page.trim_end())))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;
    use clap::{CommandFactory, Parser};

    use super::Cli;

    #[test]
    fn every_option_that_takes_a_path_refuses_urls() {
        let (accepted, options) = qf_cli::args::accepted_urls(&Cli::command());
        assert_eq!(accepted, Vec::<String>::new());
        assert!(options >= 10, "{options} options found");
    }

    #[test]
    fn values_that_libtorch_or_the_disk_would_choke_on_are_refused() {
        for words in [
            ["bench", "--threads", "0"],
            ["bench", "--threads", "100000"],
            ["report", "run", "--out="],
        ] {
            let words = std::iter::once("qftrain").chain(words);
            let matches =
                qf_cli::args::refuse_urls(Cli::command()).try_get_matches_from(words.clone());
            let kind = matches.err().map(|error| error.kind());
            assert_eq!(kind, Some(ErrorKind::ValueValidation), "{words:?}");
        }
    }

    /// clap drops "requires" where what is required conflicts with another option that is there: an option
    /// would be ignored without a word.
    #[test]
    fn no_option_is_ignored_because_another_rules_out_what_it_needs() {
        for words in [
            "eval --run-dir run --shards x.tar --images photos",
            "eval --run-dir run --tokenizer vocab.txt --shards x.tar",
            "caption --run-dir run photos --beams 3 --top-k 4",
            "caption --run-dir run photos --length-penalty 1 --temperature 2",
            "caption --run-dir run photos --beams 3 --seed 4",
            "--shards x.tar --dry-run --profile-steps 4",
            "--shards x.tar --dry-run --json",
        ] {
            let words = std::iter::once("qftrain").chain(words.split(' '));
            let error = Cli::try_parse_from(words.clone()).err();
            let kind = error.map(|error| error.kind());
            assert_eq!(kind, Some(ErrorKind::ArgumentConflict), "{words:?}");
        }
    }
}
