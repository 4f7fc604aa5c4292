//! What a step of several ranks adds to one of a single process.

use std::cell::{Cell, RefCell};

use qf_pipeline::loader::{Counters, LoaderState, TakenReports};
use qf_pipeline::SkipReason;
use tch::{Device, Tensor};

use crate::blip2::Blip2Qformer;
use crate::collective::{unreached, Gradients, ProcessGroup, Ranks, Reducer, Reduction};
use crate::error::ModelError;

/// Where the data of all ranks stands, from this one's `own` state: what each of them skipped, and the
/// counters of all together.
///
/// # Errors
/// [`ModelError`] when a rank cannot be reached, or stands after another batch.
pub fn loader_state(own: &LoaderState, ranks: &dyn Ranks) -> Result<LoaderState, ModelError> {
    if ranks.world_size() == 1 {
        return Ok(own.clone());
    }
    let unreadable = |error: serde_json::Error| ModelError::Input {
        what: "state of a rank's loader",
        message: error.to_string(),
    };
    let own = serde_json::to_vec(own).map_err(unreadable)?;
    let all = ranks.gather_bytes(&own)?;
    let states = all.iter().map(|state| serde_json::from_slice(state));
    let states: Vec<LoaderState> = states.collect::<Result<_, _>>().map_err(unreadable)?;
    Ok(LoaderState::merge(&states)?)
}

/// Leaves where this rank's data stand, for rank 0 to find should this rank be lost.
pub(super) fn leave_state(own: &LoaderState, ranks: &dyn Ranks) -> Result<(), ModelError> {
    let json = serde_json::to_vec(own).map_err(|error| ModelError::Input {
        what: "state of this rank's loader",
        message: error.to_string(),
    })?;
    ranks.leave_word(&json)
}

/// Where the data of all ranks stand, by what each left; `None` unless all did after the batch of `own`.
pub(super) fn left_states(own: &LoaderState, ranks: &dyn Ranks) -> Option<LoaderState> {
    let words = ranks.last_words()?;
    let states = words.iter().map(|word| serde_json::from_slice(word).ok());
    let states: Vec<LoaderState> = states.collect::<Option<_>>()?;
    let are_of_one_batch = states.iter().all(|state| state.batches == own.batches);
    match are_of_one_batch {
        true => LoaderState::merge(&states).ok(),
        false => None,
    }
}

/// What all ranks left out.
pub(super) fn gather_reports(
    own: &TakenReports,
    ranks: &dyn Ranks,
) -> Result<Vec<TakenReports>, ModelError> {
    if ranks.world_size() == 1 {
        return Ok(vec![own.clone()]);
    }
    let unreadable = |error: serde_json::Error| ModelError::Input {
        what: "a rank's list of bad samples",
        message: error.to_string(),
    };
    let own = serde_json::to_vec(own).map_err(unreadable)?;
    let all = ranks.gather_bytes(&own)?;
    let all = all.iter().map(|taken| serde_json::from_slice(taken));
    all.collect::<Result<_, _>>().map_err(unreadable)
}

/// Samples read and skipped, by reason, of all ranks together. All of them call it.
pub(super) fn sum_counters(own: &Counters, ranks: &dyn Ranks) -> Result<Counters, ModelError> {
    if ranks.world_size() == 1 {
        return Ok(own.clone());
    }
    let skipped = |reason| own.skipped.get(&reason).copied().unwrap_or(0);
    let counts = [own.read].into_iter().chain(SkipReason::ALL.map(skipped));
    let counts: Vec<i64> = counts.map(|count| count as i64).collect();
    let mut sum = Tensor::f_from_slice(&counts)?;
    ranks.all_reduce(&mut sum, Reduction::Sum)?;
    let mut sum = (Vec::<i64>::try_from(&sum)?.into_iter()).map(i64::unsigned_abs);
    let read = sum.next().unwrap_or(0);
    let skipped = SkipReason::ALL.into_iter().zip(sum);
    Ok(Counters {
        read,
        skipped: skipped.filter(|(_, count)| *count > 0).collect(),
        ..Counters::default()
    })
}

/// The seed of a rank: other dropout and negatives on each, those of a single process on rank 0.
pub(super) fn rank_seed(seed: u64, rank: i64) -> u64 {
    seed.wrapping_add((rank.unsigned_abs()).wrapping_mul(0xd1b5_4a32_d192_ed03))
}

/// What a rank knows before a step; and, once they agreed, what all know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreed {
    /// A rank was asked to stop.
    pub(super) stops: bool,
    /// A rank has failed: 0 none, else the worst of them.
    pub(super) failure: i64,
    /// A rank has left out samples.
    pub(super) has_skips: bool,
    /// Batches that every rank has.
    pub(super) batches: usize,
    /// Columns of the texts of each batch: those of the longest text of any rank.
    pub(super) columns: Vec<i64>,
}

/// Agrees with the other ranks on a step of `expected` batches.
pub(super) fn agree(ranks: &dyn Ranks, own: Agreed, expected: usize) -> Result<Agreed, ModelError> {
    let missing = expected.saturating_sub(own.batches);
    let mut values = vec![
        i64::from(own.stops),
        own.failure,
        i64::from(own.has_skips),
        missing as i64,
    ];
    let head = values.len();
    values.extend(own.columns);
    values.resize(head + expected, 0);
    let all = ranks.max(&values)?;
    let (head, columns) = all.split_at(head);
    let batches = expected.saturating_sub(usize::try_from(head[3]).unwrap_or(0));
    Ok(Agreed {
        stops: head[0] > 0,
        failure: head[1],
        has_skips: head[2] > 0,
        batches,
        columns: columns.iter().take(batches).copied().collect(),
    })
}

/// Makes gradients of one rank the mean over all, as `DistributedDataParallel` does.
pub(super) enum GradientMean<'a> {
    /// One process: its gradients are the mean.
    Single,
    /// While the backward pass runs.
    Overlapped(Overlapped<'a>),
    /// After the backward pass, where it is made of several.
    After(&'a dyn Ranks),
}

impl<'a> GradientMean<'a> {
    pub(super) fn new(
        ranks: &'a dyn Ranks,
        model: &Blip2Qformer,
    ) -> Result<GradientMean<'a>, ModelError> {
        let Some(group) = ranks.process_group() else {
            return Ok(GradientMean::Single);
        };
        let tower = model.config().vision.vit();
        // A tower that computes its activations twice has a backward pass of its own, of which the
        // first one's graph knows nothing.
        if tower.is_some_and(|tower| tower.trainable && tower.checkpoint_activations) {
            return Ok(GradientMean::After(ranks));
        }
        Ok(GradientMean::Overlapped(Overlapped {
            ranks,
            group,
            reducer: RefCell::new(group.reducer(&trained(model), Gradients::OfAll)?),
            is_first: Cell::new(true),
        }))
    }

    /// Before the last backward pass of a step, from `loss`.
    pub(super) fn prepare(&self, model: &Blip2Qformer, loss: &Tensor) -> Result<(), ModelError> {
        match self {
            GradientMean::Overlapped(overlapped) => overlapped.prepare(model, loss),
            _ => Ok(()),
        }
    }

    /// After it.
    pub(super) fn finish(&self, model: &Blip2Qformer) -> Result<(), ModelError> {
        match self {
            GradientMean::Single => Ok(()),
            GradientMean::Overlapped(overlapped) => overlapped.reducer.borrow().check(),
            GradientMean::After(ranks) => match ranks.process_group() {
                Some(group) => group.average_gradients(&trained(model)),
                None => Ok(()),
            },
        }
    }
}

fn trained(model: &Blip2Qformer) -> Vec<&Tensor> {
    let params = model.params().trainable();
    params.map(|param| &param.tensor).collect()
}

/// A reducer, and whether it fits the losses.
pub(super) struct Overlapped<'a> {
    ranks: &'a dyn Ranks,
    group: &'a ProcessGroup,
    reducer: RefCell<Reducer<'a>>,
    is_first: Cell<bool>,
}

impl Overlapped<'_> {
    /// Prepares for the backward pass from `loss`. Which parameters it reaches depends on the model
    /// alone, so the first one tells: the ranks agree on whether there are some that it does not.
    fn prepare(&self, model: &Blip2Qformer, loss: &Tensor) -> Result<(), ModelError> {
        if self.is_first.replace(false) {
            let params = trained(model);
            let own = unreached(&params, loss)? as i64;
            let most = self.ranks.max(&[own])?.first().copied().unwrap_or(0);
            if most > 0 {
                log::info!(
                    "{most} of {} trained parameters get no gradient: they are looked for in each step",
                    params.len()
                );
                let other = self.group.reducer(&params, Gradients::OfSome)?;
                self.reducer.replace(other);
            }
        }
        self.reducer.borrow().prepare(loss)
    }
}

/// The other ranks in a step.
pub(super) struct Peers<'a> {
    pub(super) ranks: &'a dyn Ranks,
    pub(super) mean: GradientMean<'a>,
    /// Columns of the texts of each batch of the next step, as agreed; none for those of its longest.
    pub(super) columns: Vec<i64>,
}

impl Peers<'static> {
    /// None.
    #[cfg(test)]
    pub(super) const SINGLE: Peers<'static> = Peers {
        ranks: &crate::SingleProcess,
        mean: GradientMean::Single,
        columns: Vec::new(),
    };
}

/// The mean of a tensor over all ranks.
pub(super) fn mean(tensor: &Tensor, ranks: &dyn Ranks) -> Result<Tensor, ModelError> {
    if ranks.world_size() == 1 {
        return Ok(tensor.shallow_clone());
    }
    let mut sum = tensor
        .f_detach()?
        .f_to_device(Device::Cpu)?
        .f_detach_copy()?;
    ranks.all_reduce(&mut sum, Reduction::Sum)?;
    Ok(sum.f_divide_scalar(ranks.world_size() as f64)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SingleProcess;

    #[test]
    fn rank_0_draws_what_a_single_process_draws() {
        assert_eq!(rank_seed(42, 0), 42);
        let seeds: Vec<u64> = (0..8).map(|rank| rank_seed(u64::MAX, rank)).collect();
        let distinct: std::collections::HashSet<&u64> = seeds.iter().collect();
        assert_eq!(distinct.len(), 8);
    }

    #[test]
    fn agreement_with_oneself() {
        let own = Agreed {
            stops: true,
            failure: 2,
            has_skips: true,
            batches: 2,
            columns: vec![7, 5],
        };
        assert_eq!(agree(&SingleProcess, own.clone(), 3).unwrap(), own);
        let none = Agreed::default();
        assert_eq!(agree(&SingleProcess, none.clone(), 2).unwrap(), none);
    }
}
