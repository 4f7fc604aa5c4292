//! The command line: parsed, with mistakes in plain words.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{value_parser, Arg, Command, CommandFactory, FromArgMatches};
use qf_pipeline::mistakes::plain;
use qf_pipeline::source::local_path;

use crate::output::{remark, say};

/// Parses the arguments of the process.
///
/// Help, the version and wrong usage are printed here, and the process ends. Options of type
/// [`PathBuf`] refuse URLs. `--version` is followed by `details`, `-V` is not.
///
/// # Errors
///
/// A value that an option cannot take, in plain words on stderr; the process should end with this exit code (2).
pub fn parse<C: CommandFactory + FromArgMatches>(
    details: impl Fn() -> String,
) -> Result<C, ExitCode> {
    let matches = refuse_urls(C::command()).try_get_matches();
    matches
        .and_then(|matches| C::from_arg_matches(&matches))
        .map_err(|error| {
            if error.kind() == ErrorKind::DisplayVersion && asks_for_details() {
                let text = format!("{}{}", error.render(), details());
                return match say(format_args!("{}", text.trim_end())) {
                    Ok(()) => ExitCode::SUCCESS,
                    Err(_) => ExitCode::FAILURE,
                };
            }
            if error.kind() != ErrorKind::ValueValidation {
                error.exit();
            }
            remark(format_args!("{}", plain(&error.render().to_string())));
            ExitCode::from(2)
        })
}

/// Where the program was called without an argument: prints `steps` on stderr, and the exit code (2).
pub fn first_steps(steps: &str) -> Option<ExitCode> {
    if std::env::args_os().len() > 1 {
        return None;
    }
    remark(format_args!("{steps}"));
    Some(ExitCode::from(2))
}

fn asks_for_details() -> bool {
    std::env::args_os().any(|argument| argument == "--version")
}

/// The command, and those below it, where every option or argument of type [`PathBuf`] refuses a URL:
/// taken for a path, `s3://bucket` would be a folder `s3:`.
pub fn refuse_urls(command: Command) -> Command {
    let refuse_url = |arg: Arg| match is_path(&arg) {
        true => arg.value_parser(OsStringValueParser::new().try_map(local_path)),
        false => arg,
    };
    command.mut_args(refuse_url).mut_subcommands(refuse_urls)
}

fn is_path(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == value_parser!(PathBuf).type_id()
}

/// The URLs that options and arguments holding a path accept, as command lines, and how many options were
/// tried: for a test of a program, which wants none of the first.
#[doc(hidden)]
pub fn accepted_urls(command: &Command) -> (Vec<String>, usize) {
    const URLS: [&str; 5] = [
        "s3://bucket/x",
        "gs://b/x",
        "az://c/x",
        "https://h/x",
        "file:///x",
    ];
    let options = path_options(command, &[]);
    let mut accepted = Vec::new();
    for (subcommands, arg) in &options {
        for url in URLS {
            let mut line = vec!["program".to_string()];
            line.extend(subcommands.clone());
            line.push(match arg.get_long() {
                Some(long) => format!("--{long}={url}"),
                None => url.to_string(),
            });
            let refused = refuse_urls(command.clone())
                .try_get_matches_from(&line)
                .is_err_and(|error| {
                    error.kind() == ErrorKind::ValueValidation && error.to_string().contains(url)
                });
            if !refused {
                accepted.push(line.join(" "));
            }
        }
    }
    (accepted, options.len())
}

/// Every option that holds a path, with the subcommands before it.
fn path_options(command: &Command, before: &[String]) -> Vec<(Vec<String>, Arg)> {
    let own = command.get_arguments().filter(|arg| is_path(arg));
    let mut options: Vec<_> = own.map(|arg| (before.to_vec(), arg.clone())).collect();
    for below in command.get_subcommands() {
        let path = [before, &[below.get_name().to_string()]].concat();
        options.extend(path_options(below, &path));
    }
    options
}
