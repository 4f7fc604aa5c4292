//! `qftrain` as it is called. It answers what needs no libtorch; for everything else it sets what libraries
//! read from the environment when they are loaded, and becomes `qftrain-torch`.
//!
//! Exit codes: 0 done (also after Ctrl-C, once the checkpoint is written), 1 failed (one `error:`
//! line on stderr says why), 2 wrong usage, 3 done but for inputs that could not be used (each named on
//! stderr).

use std::io::{Error, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use qf_cli::output::{complain, remark, start_log_at};
use qf_pipeline::error::full_message;
use qftrain::libtorch::Libtorch;
use qftrain::{cli, library_environment};

/// The program that links libtorch.
const PROGRAM: &str = "qftrain-torch";

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    start_log_at("warn");
    match cli::answer(&cli) {
        None => become_program(),
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            complain(format_args!("{}", full_message(error.as_ref())));
            ExitCode::FAILURE
        }
    }
}

/// Starts the program in this process; returns where that fails.
fn become_program() -> ExitCode {
    let problem = match (program(), Libtorch::find()) {
        (Ok(program), Ok(_)) => {
            let error = Command::new(&program)
                .arg0("qftrain")
                .args(std::env::args_os().skip(1))
                .envs(library_environment::missing())
                .exec();
            format!("cannot start {} ({error})", program.display())
        }
        (Ok(_), Err(problem)) => problem,
        (Err(error), _) => format!(
            "{PROGRAM} is neither beside this program nor in ../libexec/qformer ({error}); run `make install` again"
        ),
    };
    remark(format_args!("error: {problem}"));
    ExitCode::FAILURE
}

/// Beside this program, as cargo puts it, or in `../libexec/qformer`, as `make install` does.
fn program() -> Result<PathBuf, Error> {
    let own = std::env::current_exe()?;
    let folder = own.parent().unwrap_or(Path::new("."));
    let installed = folder.join("../libexec/qformer").join(PROGRAM);
    [folder.join(PROGRAM), installed]
        .into_iter()
        .find(|path| path.exists())
        .ok_or_else(|| Error::from(ErrorKind::NotFound))
}
