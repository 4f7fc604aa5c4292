//! docs/reference/command-line.md, from the definitions of the commands.

use clap::{Arg, ArgAction, Command};

/// The part of the page on one program: its commands with all arguments and options, as Markdown.
pub fn markdown(mut command: Command) -> String {
    // Adds --help and --version.
    command.build();
    let mut page = String::new();
    write_command(&command, &[], &mut page);
    page
}

fn write_command(command: &Command, before: &[&str], page: &mut String) {
    let path = [before, &[command.get_name()]].concat();
    let level = "#".repeat((path.len() + 1).min(4));
    *page += &format!("{level} {}\n\n", path.join(" "));
    let about = command.get_long_about().or(command.get_about());
    if let Some(about) = about {
        *page += &format!("{}\n\n", sentence(&about.to_string()));
    }
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ");
    *page += &format!("```text\n{usage}\n```\n\n");
    let shown =
        |arg: &&Arg| !arg.is_hide_set() && arg.get_id() != "help" && arg.get_id() != "version";
    let (positional, options): (Vec<&Arg>, Vec<&Arg>) =
        (command.get_arguments().filter(shown)).partition(|arg| arg.is_positional());
    write_table("argument", &positional, page);
    write_table("option", &options, page);
    let below: Vec<&Command> = (command.get_subcommands())
        .filter(|below| !below.is_hide_set() && below.get_name() != "help")
        .collect();
    if before.is_empty() && !below.is_empty() {
        *page += "| command | |\n|---|---|\n";
        for command in &below {
            let about = command.get_about().map(|about| about.to_string());
            *page += &format!(
                "| `{}` | {} |\n",
                command.get_name(),
                cell(&about.unwrap_or_default())
            );
        }
        page.push('\n');
    }
    for command in below {
        write_command(command, &path, page);
    }
}

fn write_table(what: &str, args: &[&Arg], page: &mut String) {
    if args.is_empty() {
        return;
    }
    *page += &format!("| {what} | |\n|---|---|\n");
    for arg in args {
        *page += &format!("| `{}` | {} |\n", cell(&form(arg)), cell(&meaning(arg)));
    }
    page.push('\n');
}

/// `--nproc <N>`, `<FILE>...`.
fn form(arg: &Arg) -> String {
    let dashed = match (arg.get_short(), arg.get_long()) {
        (Some(short), Some(long)) => format!("-{short}, --{long}"),
        (Some(short), None) => format!("-{short}"),
        (None, Some(long)) => format!("--{long}"),
        (None, None) => return arg.to_string(),
    };
    let takes_value = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    match (takes_value, arg.get_value_names()) {
        (true, Some(names)) => {
            let names: Vec<String> = names.iter().map(|name| format!("<{name}>")).collect();
            format!("{dashed} {}", names.join(" "))
        }
        _ => dashed,
    }
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help());
    let mut text = help.map(|help| help.to_string()).unwrap_or_default();
    let defaults = arg.get_default_values();
    if !defaults.is_empty() && !arg.is_hide_default_value_set() {
        let defaults: Vec<_> = defaults.iter().map(|d| d.to_string_lossy()).collect();
        text += &format!(" [default: {}]", defaults.join(" "));
    }
    let values = arg.get_possible_values();
    let values: Vec<&str> = (values.iter().filter(|value| !value.is_hide_set()))
        .map(|value| value.get_name())
        .collect();
    let is_flag = values == ["true", "false"];
    if !values.is_empty() && !is_flag && !arg.is_hide_possible_values_set() {
        text += &format!(" [possible values: {}]", values.join(", "));
    }
    text
}

/// In a cell of a table: on one line, nothing taken for Markdown or HTML outside code.
fn cell(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.replace('|', "\\|")
}

fn sentence(text: &str) -> String {
    let text = text.trim().trim_end_matches('.');
    format!("{text}.")
}

#[cfg(test)]
mod tests {
    use clap::builder::PossibleValue;

    use super::*;

    #[test]
    fn commands_arguments_and_options_are_listed() {
        let format = Arg::new("format").long("format").value_name("FORMAT");
        let format = format.help("How | it\nis written").default_value("tar");
        let format = format.value_parser([PossibleValue::new("tar"), PossibleValue::new("zst")]);
        let files = Arg::new("files")
            .value_name("FILE")
            .num_args(1..)
            .help("Inputs");
        let secret = Arg::new("secret").long("secret").hide(true);
        let pack = Command::new("pack")
            .about("Pack them")
            .args([format, files, secret]);
        let hidden = Command::new("reference").hide(true);
        let page = markdown(Command::new("tool").subcommand(pack).subcommand(hidden));
        for part in [
            "## tool\n",
            "| `pack` | Pack them |",
            "### tool pack\n\nPack them.\n",
            "| `--format <FORMAT>` | How \\| it is written [default: tar] [possible values: tar, zst] |",
            "| `[FILE]...` | Inputs |",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(
            !page.contains("secret") && !page.contains("reference"),
            "{page}"
        );
    }
}
