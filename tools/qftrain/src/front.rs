//! `qftrain` as it is called: sets what libraries read from the environment when they are loaded, and becomes
//! `qftrain-torch`, the program itself. Without it every command would load libtorch twice, and a libtorch
//! that is gone would be a message of the dynamic linker.

#[path = "library_environment.rs"]
mod library_environment;

use std::io::{Error, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use qf_cli::output::remark;

/// The program that links libtorch.
const PROGRAM: &str = "qftrain-torch";

/// The folder that this program's libtorch was in when it was built, if the build script knows it.
const LIBTORCH: Option<&str> = option_env!("QF_TORCH_LIB");

fn main() -> ExitCode {
    let problem = match program() {
        Ok(program) => {
            if let Some(problem) = missing_libtorch() {
                problem
            } else {
                let error = Command::new(&program)
                    .arg0("qftrain")
                    .args(std::env::args_os().skip(1))
                    .envs(library_environment::missing())
                    .exec();
                format!("cannot start {} ({error})", program.display())
            }
        }
        Err(error) => format!(
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

/// What to tell of a libtorch that the dynamic linker will not find.
#[allow(clippy::disallowed_methods)] // The environment belongs to the tools.
fn missing_libtorch() -> Option<String> {
    let built_with = Path::new(LIBTORCH?);
    let paths = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&paths).chain([built_with.to_owned()]);
    if folders.any(|folder| folder.join("libtorch_cpu.so").exists()) {
        return None;
    }
    Some(format!(
        "libtorch is gone from {}, where it was when qftrain was built; run `make install` in the checkout \
         to fetch it again, or name the lib folder of a libtorch of the same version in LD_LIBRARY_PATH",
        built_with.display()
    ))
}
