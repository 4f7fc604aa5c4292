//! `qftrain config`: presets, what settings mean, a file checked, two runs compared.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use clap::{Args, Subcommand};
use qf_config::RunDir;
use qf_config::TrainConfig;

use crate::reference::Reference;
use crate::resumption::differences;
use crate::run_config::load_config;
use crate::settings::{Settings, PRESETS};
use qf_cli::output::say;

/// Arguments of `config`.
#[derive(Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: Option<ConfigCommand>,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print a preset as a configuration file, every line explained
    Show {
        /// A preset; `qftrain config` lists them
        #[arg(value_name = "PRESET")]
        preset: String,
    },
    /// Say of a setting: meaning, unit, default, when to change it, LAVIS's value
    Explain {
        /// Names as in the configuration file, e.g. optimizer.beta2 or data [default: list all]
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
    },
    /// Check a configuration file without reading data
    Check {
        /// A file, or a run folder
        #[arg(value_name = "FILE")]
        file: PathBuf,

        /// Any setting by its name, as in training; several allowed
        #[arg(long, value_name = "KEY=VALUE")]
        set: Vec<String>,
    },
    /// List the settings in which two runs, files or presets differ
    Diff {
        /// A run folder, a configuration file or a preset
        #[arg(value_name = "A")]
        a: String,

        /// Another
        #[arg(value_name = "B")]
        b: String,

        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write docs/reference/configuration.md
    #[command(hide = true)]
    Reference,
}

/// Prints what is asked for.
///
/// # Errors
/// A preset, setting or file that there is not, or a file that is no configuration.
pub fn run(args: &ConfigArgs) -> anyhow::Result<()> {
    match &args.command {
        None => say(format_args!("{}", presets())),
        Some(ConfigCommand::Show { preset }) => say(format_args!(
            "{}",
            Settings::preset_text(preset)?.trim_end()
        )),
        Some(ConfigCommand::Explain { keys }) => explain(keys),
        Some(ConfigCommand::Check { file, set }) => check(file, set),
        Some(ConfigCommand::Diff { a, b, json }) => diff(a, b, *json),
        Some(ConfigCommand::Reference) => {
            say(format_args!("{}", Reference::load()?.page().trim_end()))
        }
    }
}

/// The presets with what they are for: the comment that each file begins with.
fn presets() -> String {
    let mut text = String::new();
    for (_, file) in PRESETS {
        for (index, line) in head(file).enumerate() {
            let indent = if index == 0 { "" } else { "  " };
            text += &format!("{indent}{line}\n");
        }
        text.push('\n');
    }
    text + "qftrain config show PRESET > my.toml prints one, to be changed and given with --config.\n\
            qftrain config explain KEY says what a setting means."
}

/// The lines of the comment at the beginning of a configuration file.
fn head(file: &str) -> impl Iterator<Item = &str> {
    let comment = file.lines().take_while(|line| line.starts_with('#'));
    comment.map(|line| line.strip_prefix("# ").unwrap_or_default().trim_end())
}

fn explain(keys: &[String]) -> anyhow::Result<()> {
    let reference = Reference::load()?;
    if keys.is_empty() {
        say(format_args!("{}", reference.list()))?;
        return say(format_args!(
            "\nqftrain config explain KEY says more of one."
        ));
    }
    let mut texts = Vec::new();
    for key in keys {
        let found = reference.find(key)?;
        texts.extend(found.into_iter().map(|setting| setting.in_words()));
    }
    say(format_args!("{}", texts.join("\n\n")))
}

fn check(file: &Path, set: &[String]) -> anyhow::Result<()> {
    let mut settings = read(file)?;
    for text in set {
        settings.set_from_text(text)?;
    }
    let config = settings.resolve()?;
    config
        .validate()
        .with_context(|| format!("configuration {}", file.display()))?;
    say(format_args!("{}: {}", file.display(), summary(&config)))
}

/// The resolved configuration of a run folder, or a file.
fn read(path: &Path) -> anyhow::Result<Settings> {
    match path.is_dir() {
        true => load_config(&RunDir::new(path)),
        false => Settings::file(path),
    }
}

fn summary(config: &TrainConfig) -> String {
    let missing = match config.shards.is_empty() && config.mix.is_empty() {
        true => "; it names no shards, so training needs --shards",
        false => "",
    };
    format!(
        "good: {} steps, batch {}, {} px{missing}",
        config.steps, config.data.batch_size, config.data.image_size
    )
}

/// A run folder, a file or a preset.
fn named(text: &str) -> anyhow::Result<TrainConfig> {
    let path = Path::new(text);
    let is_preset = PRESETS.iter().any(|(name, _)| *name == text);
    if !path.exists() && !is_preset {
        let names: Vec<_> = PRESETS.iter().map(|(name, _)| *name).collect();
        bail!(
            "{text} is no run folder, no file and no preset; the presets are {}",
            names.join(", ")
        );
    }
    let settings = match path.exists() {
        true => read(path)?,
        false => Settings::preset(text)?,
    };
    settings.resolve().with_context(|| text.to_owned())
}

fn diff(a: &str, b: &str, json: bool) -> anyhow::Result<()> {
    let differences = differences(&named(a)?, &named(b)?)?;
    if json {
        let pairs = differences.into_iter().map(|difference| {
            let values = serde_json::json!({ "a": difference.before, "b": difference.now });
            (difference.setting, values)
        });
        let object: serde_json::Map<_, _> = pairs.collect();
        return say(format_args!("{}", serde_json::to_string(&object)?));
    }
    if differences.is_empty() {
        return say(format_args!("no setting differs"));
    }
    let width = |lengths: &mut dyn Iterator<Item = usize>| lengths.max().unwrap_or(0);
    let names = width(&mut differences.iter().map(|d| d.setting.len()));
    let before = width(&mut differences.iter().map(|d| d.before.chars().count()));
    for difference in &differences {
        let line = format!(
            "{:names$}  {:before$}  {}",
            difference.setting, difference.before, difference.now
        );
        say(format_args!("{}", line.trim_end()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_says_what_it_is_for() {
        for (name, file) in PRESETS {
            let lines: Vec<&str> = head(file).collect();
            assert!(lines[0].starts_with(&format!("{name}: ")), "{name}");
            for word in ["Hardware: ", "Data: ", "Time: ", "Start: "] {
                let found = lines.iter().any(|line| line.starts_with(word));
                assert!(
                    found,
                    "configs/{name}.toml does not say `{word}…` at its head"
                );
            }
        }
    }
}
