//! `qftrain bench`.

use clap::Args;
use qf_config::{DeviceChoice, Precision};

/// Arguments of `bench`.
#[derive(Args)]
pub struct BenchArgs {
    /// Preset whose model is timed, see `qftrain config`
    #[arg(long, value_name = "NAME", default_value = "blip2-vit-g")]
    pub preset: String,

    /// Any setting by its name in the configuration file; several allowed, applied last
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Give the image features instead of running the vision tower
    #[arg(long)]
    pub features: bool,

    /// Images per step
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(2..))]
    pub batch_size: u32,

    /// Steps that are timed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub steps: u32,

    /// Steps before them
    #[arg(long, default_value_t = 1)]
    pub warmup: u32,

    /// Tokens of the captions, by commas, repeated to fill the batch [default: 16 of COCO's]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(i64).range(2..))]
    pub lengths: Vec<i64>,

    /// Compute every row as the reference does
    #[arg(long)]
    pub all_rows: bool,

    /// Threads of libtorch [default: one per core]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,

    /// Element type of matrix products: f32, bf16 or f16 [default: bf16 on a GPU, f32 on the CPU]
    #[arg(long, value_name = "TYPE")]
    pub precision: Option<Precision>,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,

    /// Print one JSON line per step instead of a table
    #[arg(long)]
    pub json: bool,
}
