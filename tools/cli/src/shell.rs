//! What a shell and `man` want to know of a program: completions and manual pages.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;

/// Arguments of `completions`.
#[derive(Args)]
pub struct CompletionsArgs {
    /// The shell to complete in
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Args)]
pub struct ManArgs {
    /// Write a page for the program and one for each command into this folder, instead of the program's to
    /// standard output
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Writes the completions of a program to standard output.
///
/// # Errors
/// Standard output that cannot be written.
pub fn write_completions(mut command: Command, args: &CompletionsArgs) -> anyhow::Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    write_out(&script)
}

/// Writes manual pages of a program, `NAME.1` and `NAME-COMMAND.1`.
///
/// # Errors
/// A folder or file that cannot be written.
pub fn write_manual(command: Command, args: &ManArgs) -> anyhow::Result<()> {
    let Some(folder) = &args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        return write_out(&page);
    };
    fs::create_dir_all(folder)
        .with_context(|| format!("cannot create the folder {}", folder.display()))?;
    clap_mangen::generate_to(command, folder)
        .with_context(|| format!("cannot write manual pages into {}", folder.display()))
}

fn write_out(bytes: &[u8]) -> anyhow::Result<()> {
    match io::stdout().write_all(bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}
