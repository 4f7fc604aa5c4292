//! Options that take a path take no URL.

use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{value_parser, Arg, Command};
use qf_pipeline::source::local_path;

/// The command, and those below it, where every option or argument of type [`PathBuf`] refuses a URL:
/// taken for a path, `s3://bucket` would be a folder `s3:`.
pub(crate) fn refuse_urls(command: Command) -> Command {
    let refuse_url = |arg: Arg| match is_path(&arg) {
        true => arg.value_parser(OsStringValueParser::new().try_map(local_path)),
        false => arg,
    };
    command.mut_args(refuse_url).mut_subcommands(refuse_urls)
}

fn is_path(arg: &Arg) -> bool {
    arg.get_value_parser().type_id() == value_parser!(PathBuf).type_id()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::Cli;

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

    #[test]
    fn every_option_that_takes_a_path_refuses_urls() {
        let options = path_options(&Cli::command(), &[]);
        for (subcommands, arg) in &options {
            for url in [
                "s3://bucket/x",
                "gs://b/x",
                "az://c/x",
                "https://h/x",
                "file:///x",
            ] {
                let mut line = vec!["program".to_string()];
                line.extend(subcommands.clone());
                match arg.get_long() {
                    Some(long) => line.push(format!("--{long}={url}")),
                    None => line.push(url.to_string()),
                }
                let error = refuse_urls(Cli::command())
                    .try_get_matches_from(&line)
                    .unwrap_err();
                let message = error.to_string();
                assert_eq!(
                    error.kind(),
                    clap::error::ErrorKind::ValueValidation,
                    "{line:?}: {message}"
                );
                assert!(message.contains(url), "{line:?}: {message}");
            }
        }
        assert!(options.len() >= LEAST_OPTIONS, "{}", options.len());
    }

    /// So that the test notices where it no longer finds them.
    const LEAST_OPTIONS: usize = 8;
}
