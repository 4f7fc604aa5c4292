//! The configuration that a run's folder holds.

use std::path::Path;

use anyhow::bail;
use qf_config::RunDir;

use crate::settings::Settings;

/// The resolved configuration of an existing run.
///
/// # Errors
/// A folder without a run, whose neighbours are named; a file that cannot be read.
pub fn load_config(run_dir: &RunDir) -> anyhow::Result<Settings> {
    let path = run_dir.config();
    if !run_dir.path().is_dir() {
        bail!("{}{}", no_such_folder(run_dir), runs_beside(run_dir.path()));
    }
    if !path.exists() {
        bail!(
            "{} holds no run (no config.toml){}",
            run_dir.path().display(),
            runs_beside(run_dir.path())
        );
    }
    Ok(Settings::file(&path)?.without_old_defaults())
}

/// Of the folder of a run that is not there.
pub fn no_such_folder(run_dir: &RunDir) -> String {
    let path = run_dir.path().display();
    format!("{path}: no such folder; give the one that --run-dir named")
}

/// The runs in the folder around `path`, for a message.
fn runs_beside(path: &Path) -> String {
    /// Names in the message, at most.
    const SHOWN: usize = 4;
    let around = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let entries = std::fs::read_dir(around).into_iter().flatten().flatten();
    let runs = entries
        .map(|entry| entry.path())
        .filter(|path| RunDir::new(path).config().exists());
    let mut runs: Vec<_> = runs.map(|path| path.display().to_string()).collect();
    // The newest, where folders are named by date, come first.
    runs.sort_by(|a, b| b.cmp(a));
    runs.truncate(SHOWN);
    match runs.is_empty() {
        true => String::new(),
        false => format!("; these do: {}", runs.join(", ")),
    }
}
