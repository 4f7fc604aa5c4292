//! The model and its optimiser, as a run starts or goes on with them.

use qf_model::checkpoint::{self, BestCheckpoint, Checkpoint, TrainState};
use qf_model::device::default_precision;
use qf_model::run_dir::RunDir;
use qf_model::train::{check_random_state, LossScaler, TrainConfig, Trainer};
use qf_model::{AdamW, Blip2Qformer, Precision, Ranks};
use tch::{Device, Tensor};

use super::plan::Plan;
use super::start::FirstRank;
use crate::weights::Origin;

/// Loads weights, moments and loss scale: on rank 0 from the checkpoint or the weights to start from, on
/// the others from rank 0. Returns where the weights come from, and settles the run's precision.
pub(super) fn load_trainer(
    plan: &mut Plan,
    device: Device,
    state: Option<&TrainState>,
    first: Option<&FirstRank>,
    ranks: &dyn Ranks,
) -> anyhow::Result<(Trainer, Vec<Origin>)> {
    let config = &mut plan.config;
    let newest = first.and_then(|first| first.newest.as_ref());
    if let Some(Checkpoint { state, .. }) = newest {
        check_random_state(state, config)?;
    }
    let load = |model: &mut Blip2Qformer| -> anyhow::Result<_> {
        let Some(first) = first else {
            // They come from the first rank, in `share_weights`.
            model.params_mut().skip_start_values();
            return Ok(Vec::new());
        };
        let origins = first.weights.load(model)?;
        if let Some(Checkpoint { folder, .. }) = newest {
            checkpoint::load_model(folder, model)?;
        }
        Ok(origins)
    };
    let (mut model, origins) = Blip2Qformer::loaded(&config.model, device, config.seed, load)?;
    model.params_mut().freeze(&config.freeze)?;
    share_weights(&model, ranks)?;
    // Only now: averages start from the weights.
    let mut optimizer = AdamW::for_rank(model.params(), &config.optimizer, ranks)?;
    if state.is_some() {
        let folder = newest.map(|checkpoint| checkpoint.folder.as_path());
        checkpoint::load_optimizer_on_ranks(folder, &mut optimizer, ranks)?;
    }
    log::debug!("{} bytes of optimiser state", optimizer.state_bytes());
    let precision = config.precision.unwrap_or(default_precision(device));
    // The run keeps it, wherever it is resumed.
    config.precision = Some(precision);
    model.set_precision(precision)?;
    let gives_tower = first.is_none_or(|first| first.weights.give_tower());
    warn_of_random_tower(config, state.is_some() || gives_tower);
    let scaler = match precision {
        Precision::F16 => Some(LossScaler::new(state.and_then(|s| s.scaler), device)?),
        _ => None,
    };
    let best = match ranks.is_first() {
        true => best_so_far(state, &plan.run_dir)?,
        false => None,
    };
    let trainer = Trainer {
        model,
        optimizer,
        scaler,
        step: state.map_or(0, |state| state.step),
        best,
    };
    Ok((trainer, origins))
}

fn warn_of_random_tower(config: &TrainConfig, has_tower: bool) {
    let is_frozen = config.model.vision.vit().is_some_and(|vit| !vit.trainable);
    if is_frozen && !has_tower {
        log::warn!(
            "the vision tower is frozen and starts from random numbers, so its features are noise; \
             give --vision-weights, or set model.vision.trainable=true"
        );
    }
}

/// The best checkpoint, unless it was removed by hand or is damaged: the next validation finds another.
fn best_so_far(
    state: Option<&TrainState>,
    run_dir: &RunDir,
) -> anyhow::Result<Option<BestCheckpoint>> {
    let best = state.and_then(|state| state.best.clone());
    Ok(match best {
        Some(best) if checkpoint::is_whole(&run_dir.checkpoints(), best.step)? => Some(best),
        _ => None,
    })
}

/// Weights of rank 0, on every rank: the others need no checkpoint of their own.
fn share_weights(model: &Blip2Qformer, ranks: &dyn Ranks) -> anyhow::Result<()> {
    let params = model.params().named_parameters().iter();
    let tensors: Vec<&Tensor> = params.map(|param| &param.tensor).collect();
    Ok(ranks.broadcast(&tensors)?)
}
