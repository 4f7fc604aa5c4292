//! Which trained model a command uses, and loading it.

use std::sync::Arc;

use anyhow::bail;
use qf_model::checkpoint::{self, Checkpoint};
use qf_model::context::choose_kernels;
use qf_model::device::{default_precision, open_device};
use qf_model::run_dir::RunDir;
use qf_model::train::TrainConfig;
use qf_model::Blip2Qformer;
use qf_pipeline::text::{CaptionProcessor, CaptionTokenizer};
use qftrain::args::{InferenceArgs, ModelArgs, StepChoice};
use qftrain::run_config::load_config;
use qftrain::settings::Settings;
use tch::Device;

use crate::session::load_tokenizer;
use crate::weights::WeightsModel;

/// Reads the values of what was opened, for computing with.
pub(crate) fn load(args: &InferenceArgs, source: ModelSource<'_>) -> anyhow::Result<LoadedModel> {
    let mut loaded = source.load()?;
    choose_kernels(loaded.config.kernels())?;
    let of_run = loaded.config.precision.filter(|_| loaded.step.is_some());
    let precision = args.precision.or(of_run);
    let precision = precision.unwrap_or(default_precision(loaded.device));
    loaded.model.set_precision(precision)?;
    Ok(loaded)
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

fn checkpoint(args: &ModelArgs, run_dir: &RunDir) -> anyhow::Result<Checkpoint> {
    let folder = run_dir.checkpoints();
    let found = match args.step {
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
    match args.step {
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

impl ModelSource<'_> {
    /// Finds the model and its configuration, before anything large is read.
    pub(crate) fn open(args: &ModelArgs) -> anyhow::Result<ModelSource<'_>> {
        let (config, tokenizer, values) = match (&args.weights, &args.run_dir) {
            (Some(place), _) => {
                let weights = WeightsModel::open(place, args.tokenizer.as_deref())?;
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
            args,
            values,
        })
    }

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
        let Checkpoint { folder, state } = checkpoint(args, &run_dir)?;
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
