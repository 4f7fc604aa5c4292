//! Which trained model a command uses.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use qf_config::{DeviceChoice, Precision};

/// Where the model comes from and where it runs.
#[derive(Args)]
pub struct ModelArgs {
    /// Folder of the run whose newest checkpoint is used
    #[arg(long, value_name = "DIR", required_unless_present = "weights")]
    pub run_dir: Option<PathBuf>,

    /// A model from elsewhere instead: a LAVIS checkpoint, a folder of transformers, or
    /// hf://ORG/NAME
    #[arg(long, value_name = "WEIGHTS", conflicts_with_all = ["run_dir", "step", "ema"])]
    pub weights: Option<String>,

    /// vocab.txt or tokenizer.json of --weights [default: the one beside it]
    #[arg(long, value_name = "FILE", requires = "weights",
          conflicts_with_all = ["run_dir", "step", "ema"])]
    pub tokenizer: Option<PathBuf>,

    /// Use the checkpoint of this step, or `best` by validation, instead of the newest
    #[arg(long, value_name = "STEP|best")]
    pub step: Option<StepChoice>,

    /// Use the moving averages of the weights (of a run with optimizer.ema_decay)
    #[arg(long)]
    pub ema: bool,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    pub device: DeviceChoice,
}

/// A checkpoint of a run.
#[derive(Clone, Copy)]
pub enum StepChoice {
    /// The best by validation.
    Best,
    /// The one of this step.
    Step(u64),
}

impl FromStr for StepChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(step) => Ok(StepChoice::Step(step)),
            Err(_) if text == "best" => Ok(StepChoice::Best),
            Err(_) => Err("take the number of a step, or best".into()),
        }
    }
}

/// A model that is to be computed with, and the precision in which it is.
#[derive(Args)]
pub struct InferenceArgs {
    /// The model
    #[command(flatten)]
    pub model: ModelArgs,

    /// Element type of matrix products: f32, bf16 or f16 [default: the run's; with --weights bf16 on a
    /// GPU, f32 on the CPU]
    #[arg(long, value_name = "TYPE")]
    pub precision: Option<Precision>,
}
