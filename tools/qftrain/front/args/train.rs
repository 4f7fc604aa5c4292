//! Options of a training run.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use qf_config::DeviceChoice;
use qf_pipeline::mistakes::nearest;

use super::ColumnArgs;

/// Arguments of a training run.
#[derive(Args)]
pub struct TrainArgs {
    /// A folder of photographs (NAME.jpg beside NAME.txt), which is packed into shards first, or shards as in
    /// --shards
    #[arg(value_name = "PHOTOS", conflicts_with_all = ["shards", "mix"])]
    pub photos: Vec<String>,

    /// Training shards: files, globs, {000..012} ranges, folders; several allowed
    #[arg(long, num_args = 1.., value_name = "SHARDS")]
    pub shards: Vec<String>,

    /// A data set of a mixture, e.g. coco:0.7='coco-*.tar'; give one for each, instead of --shards
    #[arg(long, value_name = "NAME:WEIGHT=SHARDS", conflicts_with = "shards")]
    pub mix: Vec<String>,

    /// Where captions and images are
    #[command(flatten)]
    pub columns: ColumnArgs,

    /// Keep remote shards in this folder (remote.cache_bytes bounds it)
    #[arg(long, value_name = "FOLDER")]
    pub cache: Option<PathBuf>,

    /// Folder of the run: configuration, metrics.jsonl, checkpoints [default: runs/DATE-TIME]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Continue the run in --run-dir with its next batch; `auto` starts one where there is none
    #[arg(long, requires = "run_dir", value_name = "auto", num_args = 0..=1,
          default_missing_value = "always", hide_possible_values = true)]
    pub resume: Option<Resume>,

    /// Resume with settings that change learning rates, pixels, texts or losses
    #[arg(long, requires = "resume")]
    pub allow_changes: bool,

    /// Configuration to start from, see `qftrain config` [default: tiny on a CPU, small on a GPU]
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    pub preset: Option<String>,

    /// Configuration file to start from, see configs/
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Optimiser steps of the whole run
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
    pub steps: Option<i64>,

    /// Images per step, of each rank
    #[arg(long)]
    pub batch_size: Option<u32>,

    /// Highest learning rate
    #[arg(long)]
    pub lr: Option<f64>,

    /// Seed of weights, dropout and negatives, and of the order of data
    #[arg(long)]
    pub seed: Option<u32>,

    /// vocab.txt or tokenizer.json [default: a vocabulary trained from the shards]
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,

    /// Start the Q-Former from a BERT: a file, a folder, or hf://ORG/NAME
    #[arg(long, value_name = "WEIGHTS")]
    pub bert: Option<String>,

    /// Start the vision tower from published weights: a file, a folder, or hf://ORG/NAME
    #[arg(long, value_name = "WEIGHTS")]
    pub vision_weights: Option<String>,

    /// Start from a whole model: a LAVIS .pth, a Hugging Face folder, a run, or hf://ORG/NAME
    #[arg(long, value_name = "WEIGHTS")]
    pub weights: Option<String>,

    /// Threads that decode, augment and tokenise, of each rank [default: its share of the machine's cores]
    #[arg(long)]
    pub threads: Option<u32>,

    /// Held-out shards to validate on while training; several allowed
    #[arg(long, num_args = 1.., value_name = "SHARDS")]
    pub val_shards: Vec<String>,

    /// Validate after every so many steps
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(i64).range(1..))]
    pub val_every: Option<i64>,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,

    /// Train with so many processes on this machine, one per GPU or sharing the CPU
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub nproc: Option<u32>,

    /// Form a group even of one process: what several need (NCCL, Gloo) can be tried on one device
    #[arg(long)]
    pub force_group: bool,

    /// Check shards, weights and memory, say what a run would do and how long it would take, and train nothing
    #[arg(long, conflicts_with_all = ["nproc", "profile", "json"])]
    pub dry_run: bool,

    /// Write a trace of the first steps to RUN_DIR/trace.json (open it in ui.perfetto.dev), and
    /// compare the run with what the machine can do
    #[arg(long)]
    pub profile: bool,

    /// Steps in the trace
    #[arg(long, value_name = "STEPS", default_value_t = 50, requires = "profile",
          conflicts_with = "dry_run", value_parser = clap::value_parser!(u64).range(1..))]
    pub profile_steps: u64,

    /// What goes into RUN_DIR/tensorboard: off, scalars, images (of held-out data, too), histograms (of
    /// all weights, too)
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "images",
        hide_possible_values = true
    )]
    pub tensorboard: EventLevel,

    /// Serve the run's figures to Prometheus at http://ADDRESS/metrics: a port of this machine alone, or an
    /// address with one, as in 0.0.0.0:9400; rank 0 serves those of all ranks
    #[arg(long, value_name = "PORT|ADDRESS:PORT", conflicts_with = "dry_run")]
    pub metrics_addr: Option<MetricsAddress>,

    /// Print the lines of metrics.jsonl on stdout, and everything else on stderr
    #[arg(long)]
    pub json: bool,

    /// Print warnings and errors alone; train.log has everything
    #[arg(long, short, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Print what RUST_LOG=info shows, and the tables of the profile
    #[arg(long, short)]
    pub verbose: bool,

    /// How long ranks wait
    #[command(flatten)]
    pub timeouts: TimeoutArgs,

    /// Any setting by its name in the configuration file, e.g. data.shuffle=none; several
    /// allowed, applied last
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl TrainArgs {
    /// What was given to train on, folders included.
    pub fn training_data(&self) -> &[String] {
        match self.photos.is_empty() {
            true => &self.shards,
            false => &self.photos,
        }
    }

    /// Refuses a word that is no file but nearly a command: `qftrain evla`.
    pub fn check_photos(&self, commands: &[String]) -> Result<(), clap::Error> {
        let names: Vec<&str> = commands.iter().map(String::as_str).collect();
        for word in &self.photos {
            let is_plain = word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
            if !is_plain || std::path::Path::new(word).exists() {
                continue;
            }
            let near = match nearest(word, &names) {
                Some(near) => format!("; did you mean the command '{near}'?"),
                None => String::new(),
            };
            return Err(clap::Error::raw(
                clap::error::ErrorKind::InvalidSubcommand,
                format!("'{word}' is no command, no folder and no shard{near}"),
            ));
        }
        Ok(())
    }
}

/// Where figures are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsAddress(pub SocketAddr);

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(port) = text.parse() {
            return Ok(MetricsAddress((Ipv4Addr::LOCALHOST, port).into()));
        }
        let text = match text.strip_prefix("localhost:") {
            Some(port) => format!("127.0.0.1:{port}"),
            None => text.to_owned(),
        };
        let address = text.parse().map(MetricsAddress);
        address.map_err(|_| {
            "take a port, or an IP address and a port, as in 9400 or 0.0.0.0:9400".into()
        })
    }
}

/// When a run is continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Resume {
    /// It has to be there.
    Always,
    /// Where it is there.
    Auto,
}

/// What goes into TensorBoard's event files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum EventLevel {
    /// Nothing: no file.
    Off,
    /// Losses, rates, retrieval.
    Scalars,
    /// Held-out images with their captions and the model's own, too.
    Images,
    /// Histograms of all weights after each validation, too.
    Histograms,
}

/// How long ranks wait, from the command line.
#[derive(clap::Args, Clone, Debug)]
pub struct TimeoutArgs {
    /// Seconds in which all ranks must have started [default: 300]
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    pub join_timeout: Option<u64>,

    /// Seconds after which a rank without a heartbeat counts as dead [default: 15]
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(3..))]
    pub rank_timeout: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_of_this_machine() {
        for (text, address) in [
            ("9400", "127.0.0.1:9400"),
            ("localhost:0", "127.0.0.1:0"),
            ("0.0.0.0:9400", "0.0.0.0:9400"),
            ("[::]:9400", "[::]:9400"),
        ] {
            let parsed: MetricsAddress = text.parse().unwrap();
            assert_eq!(parsed.0, address.parse().unwrap());
        }
        for wrong in ["", ":9400", "70000", "host", "host:9400", "127.0.0.1"] {
            assert!(wrong.parse::<MetricsAddress>().is_err(), "{wrong}");
        }
    }
}
