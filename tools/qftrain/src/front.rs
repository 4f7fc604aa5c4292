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
    let paths = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    missing_from(Path::new(LIBTORCH?), std::env::split_paths(&paths))
}

fn missing_from(built_with: &Path, paths: impl Iterator<Item = PathBuf>) -> Option<String> {
    let mut folders = paths.chain([built_with.to_owned()]);
    if folders.any(|folder| folder.join("libtorch_cpu.so").exists()) {
        return None;
    }
    Some(format!(
        "libtorch is gone from {}, where it was when qftrain was built; run `make install` in the checkout \
         to fetch it again, or name the lib folder of a libtorch of the same version in LD_LIBRARY_PATH",
        built_with.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_libtorch_that_is_gone_is_said_unless_another_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (gone, other) = (folder.path().join("gone"), folder.path().join("other"));
        std::fs::create_dir(&other).unwrap();
        let missing = |paths: &[&PathBuf]| missing_from(&gone, paths.iter().map(|p| (*p).clone()));
        let text = missing(&[&other]).unwrap();
        for part in ["gone", "make install", "LD_LIBRARY_PATH"] {
            assert!(text.contains(part), "{text}");
        }
        std::fs::write(other.join("libtorch_cpu.so"), "").unwrap();
        assert_eq!(missing(&[&other]), None);
        assert!(missing(&[]).is_some());
        // What this build was linked with is there.
        assert_eq!(missing_libtorch(), None);
        assert!(LIBTORCH.is_some());
    }
}
