//! Which trained model a command uses, and loading it.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::bail;
use clap::Args;
use qf_model::checkpoint::{self, Checkpoint};
use qf_model::context::choose_kernels;
use qf_model::device::{open_device, DeviceChoice};
use qf_model::run_dir::RunDir;
use qf_model::train::TrainConfig;
use qf_model::{Blip2Qformer, Precision};
use qf_pipeline::text::{CaptionProcessor, CaptionTokenizer};
use tch::Device;

use crate::session::{load_config, load_tokenizer};
use crate::settings::Settings;
use crate::weights::WeightsModel;

/// Where the model comes from and where it runs.
#[derive(Args)]
pub(crate) struct ModelArgs {
    /// Folder of the run whose newest checkpoint is used
    #[arg(long, value_name = "DIR", required_unless_present = "weights")]
    run_dir: Option<PathBuf>,

    /// A model from elsewhere instead: a LAVIS checkpoint, a folder of transformers, or
    /// hf://ORG/NAME
    #[arg(long, value_name = "WEIGHTS", conflicts_with_all = ["run_dir", "step", "ema"])]
    weights: Option<String>,

    /// vocab.txt or tokenizer.json of --weights [default: the one beside it]
    #[arg(long, value_name = "FILE", requires = "weights")]
    tokenizer: Option<PathBuf>,

    /// Use the checkpoint of this step, or `best` by validation, instead of the newest
    #[arg(long, value_name = "STEP|best")]
    step: Option<StepChoice>,

    /// Use the moving averages of the weights (of a run with optimizer.ema_decay)
    #[arg(long)]
    ema: bool,

    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
}

#[derive(Clone, Copy)]
enum StepChoice {
    Best,
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
pub(crate) struct InferenceArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// Element type of matrix products: f32, bf16 or f16 [default: the run's; with --weights bf16 on a
    /// GPU, f32 on the CPU]
    #[arg(long, value_name = "TYPE")]
    precision: Option<Precision>,
}

impl InferenceArgs {
    /// [`ModelArgs::open`].
    pub(crate) fn open(&self) -> anyhow::Result<ModelSource<'_>> {
        self.model.open()
    }

    /// Reads the values of what was opened.
    pub(crate) fn load(&self, source: ModelSource<'_>) -> anyhow::Result<LoadedModel> {
        let mut loaded = source.load()?;
        choose_kernels(loaded.config.kernels())?;
        let of_run = loaded.config.precision.filter(|_| loaded.step.is_some());
        let precision = self.precision.or(of_run);
        let precision = precision.unwrap_or(Precision::for_device(loaded.device));
        loaded.model.set_precision(precision)?;
        Ok(loaded)
    }
}

/// A model ready for use.
pub(crate) struct LoadedModel {
    pub(crate) model: Blip2Qformer,
    pub(crate) tokenizer: Arc<CaptionTokenizer>,
    /// The configuration it was trained with.
    pub(crate) config: TrainConfig,
    pub(crate) device: Device,
    /// Steps that it was trained for, where it comes from a run.
    pub(crate) step: Option<u64>,
    /// Which step of its run, or which weights, in words.
    pub(crate) origin: String,
}

/// A model whose configuration is known and whose values are not read yet.
pub(crate) struct ModelSource<'a> {
    pub(crate) config: TrainConfig,
    pub(crate) tokenizer: Arc<CaptionTokenizer>,
    args: &'a ModelArgs,
    values: Values,
}

/// Where a model's values are.
enum Values {
    Run(RunDir),
    Weights(Box<WeightsModel>, String),
}

impl ModelArgs {
    /// Finds the model and its configuration, before anything large is read.
    pub(crate) fn open(&self) -> anyhow::Result<ModelSource<'_>> {
        let (config, tokenizer, values) = match (&self.weights, &self.run_dir) {
            (Some(place), _) => {
                let weights = WeightsModel::open(place, self.tokenizer.as_deref())?;
                let mut config = Settings::preset("blip2-vit-g")?.resolve()?;
                config.model = weights.config.clone();
                if let Some(vit) = config.model.vision.vit() {
                    config.data.image_size = usize::try_from(vit.image_size)?;
                }
                let tokenizer = weights.tokenizer.clone();
                (
                    config,
                    tokenizer,
                    Values::Weights(Box::new(weights), place.clone()),
                )
            }
            (None, Some(path)) => {
                let run_dir = RunDir::new(path);
                let mut config = load_config(&run_dir)?.resolve()?;
                let tokenizer = load_tokenizer(&run_dir)?;
                // What the checkpoint's weights are compared with.
                config.model.qformer.fit_to_tokenizer(&tokenizer);
                (config, tokenizer, Values::Run(run_dir))
            }
            (None, None) => bail!("--run-dir is missing"),
        };
        Ok(ModelSource {
            config,
            tokenizer,
            args: self,
            values,
        })
    }

    fn checkpoint(&self, run_dir: &RunDir) -> anyhow::Result<Checkpoint> {
        let folder = run_dir.checkpoints();
        let found = match self.step {
            None => checkpoint::newest(&folder)?,
            Some(StepChoice::Best) => checkpoint::best(&folder)?,
            Some(StepChoice::Step(step)) => checkpoint::of_step(&folder, step)?,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        let path = run_dir.path().display();
        let steps: Vec<_> = checkpoint::list(&folder)?
            .iter()
            .map(|(step, _)| step.to_string())
            .collect();
        match self.step {
            Some(StepChoice::Best) if !steps.is_empty() => bail!(
                "{path} knows no best checkpoint, for it was trained without validation; take \
                 --step {}",
                steps.join(" or ")
            ),
            Some(StepChoice::Step(wanted)) if !steps.is_empty() => bail!(
                "{path} holds no checkpoint of step {wanted}, but of {}",
                steps.join(", ")
            ),
            _ => bail!("{path} holds no checkpoint yet; train it, or let it reach its first save"),
        }
    }
}

impl ModelSource<'_> {
    /// Reads the values, in 32 bits.
    pub(crate) fn load(self) -> anyhow::Result<LoadedModel> {
        let ModelSource {
            config,
            tokenizer,
            args,
            values,
        } = self;
        let device = open_device(args.device)?;
        let run_dir = match values {
            Values::Run(run_dir) => run_dir,
            Values::Weights(weights, place) => {
                return Ok(LoadedModel {
                    model: weights.load(device)?,
                    tokenizer,
                    config,
                    device,
                    step: None,
                    origin: place,
                })
            }
        };
        let Checkpoint { folder, state } = args.checkpoint(&run_dir)?;
        let load = |model: &mut Blip2Qformer| {
            checkpoint::load_model(&folder, model)?;
            match args.ema {
                true => checkpoint::load_averages(&folder, model),
                false => Ok(()),
            }
        };
        let (model, ()) = Blip2Qformer::loaded(&config.model, device, config.seed, load)?;
        Ok(LoadedModel {
            model,
            tokenizer,
            config,
            device,
            step: Some(state.step),
            origin: format!("step {}", state.step),
        })
    }
}

impl LoadedModel {
    /// The caption processor that training used.
    pub(crate) fn caption_processor(&self) -> anyhow::Result<CaptionProcessor> {
        let data = &self.config.data;
        Ok(CaptionProcessor::new(data.max_words, data.prompt.as_str())?)
    }
}

/// Refuses captions longer than the model's positions.
pub(crate) fn check_text_len(text_len: usize, config: &TrainConfig) -> anyhow::Result<()> {
    let positions = config.model.qformer.max_positions;
    if text_len as i64 > positions {
        bail!("--text-len {text_len}: the model has {positions} positions");
    }
    Ok(())
}
