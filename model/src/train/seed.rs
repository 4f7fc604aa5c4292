//! Seeds of steps.

use qf_config::run::TrainConfig;

use crate::checkpoint::TrainState;
use crate::error::ModelError;

/// Checks that a run under `config` draws the random numbers that the run which wrote `state` would
/// have drawn next.
///
/// # Errors
/// [`ModelError::Config`] for another seed, or a checkpoint of a program that seeds steps otherwise.
pub fn check_random_state(state: &TrainState, config: &TrainConfig) -> Result<(), ModelError> {
    let Some(random) = state.random else {
        return Ok(());
    };
    let problem = if random.seed != config.seed {
        format!(
            "{} differs from the {} that the checkpoint was trained with",
            config.seed, random.seed
        )
    } else if random.next_step_seed != step_seed(config.seed, state.step) {
        format!(
            "the checkpoint was written by {}, which derives each step's seed otherwise",
            state.program
        )
    } else {
        return Ok(());
    };
    Err(ModelError::Config {
        setting: "seed",
        message: problem,
    })
}

/// The seed of a step's dropout and negatives: SplitMix64 of both numbers.
pub(super) fn step_seed(seed: u64, step: u64) -> i64 {
    let mut mixed = seed ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) as i64
}
