//! `qftrain report`.

use std::path::PathBuf;

use clap::Args;

/// Arguments of `report`.
#[derive(Args)]
pub struct ReportArgs {
    /// Folders of runs; several are shown side by side, with their differing settings
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,

    /// The page [default: report.html in the folder of the run, of several report.html here]
    #[arg(long, short, value_name = "FILE")]
    pub out: Option<PathBuf>,
}
