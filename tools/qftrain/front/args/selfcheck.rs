//! `qftrain selfcheck`.

use std::path::PathBuf;

use clap::Args;
use qf_config::DeviceChoice;

/// Arguments of `selfcheck`.
#[derive(Args)]
pub struct SelfCheckArgs {
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,

    /// Compare with the reference's numbers, too: a folder with golden_a and golden_traj
    #[arg(long, value_name = "DIR")]
    pub golden: Option<PathBuf>,

    /// Print one JSON line per check and one in the end
    #[arg(long)]
    pub json: bool,
}
