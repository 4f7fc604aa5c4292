//! State spread over the ranks: stage 1 of ZeRO (Rajbhandari et al., arXiv 1910.02054), by whole
//! parameters as in torch's `ZeroRedundancyOptimizer`.
//!
//! ```text
//! averaged gradients, all on every rank ──step──▶ own parameters ──share_parameters──▶ all parameters
//!                                                 own moments    ──send_state───────▶ rank 0's checkpoint
//! ```
//!
//! The norm that clips is that of all gradients, and a parameter's step is the one that every rank
//! would have made, so the numbers are those of a run that is not sharded, bit for bit.

use std::collections::HashMap;

use tch::{Device, Tensor};

use super::{AdamW, StatePart};
use crate::collective::{ProcessGroup, Ranks};
use crate::error::ModelError;

impl AdamW {
    /// Whether other ranks keep some of the state.
    pub fn is_sharded(&self) -> bool {
        self.is_sharded
    }

    /// Bytes of moments, averages and step counts on this rank.
    pub fn state_bytes(&self) -> usize {
        let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
        let kept = self.entries.iter().filter_map(|e| e.moments.as_ref());
        kept.map(|m| bytes(&m.step) + m.tensors().map(bytes).sum::<usize>())
            .sum()
    }

    /// After a step of all ranks: every parameter as its owner has moved it, on every rank. Without
    /// sharding all have it already.
    ///
    /// # Errors
    /// [`ModelError::RankLost`] when a rank cannot be reached.
    pub fn share_parameters(&self, ranks: &dyn Ranks) -> Result<(), ModelError> {
        let Some(group) = self.peers(ranks)? else {
            return Ok(());
        };
        let entries = self.entries.iter();
        let owned: Vec<(&Tensor, i64)> = entries.map(|e| (&e.param.tensor, e.owner)).collect();
        group.share(&owned)
    }

    /// For a checkpoint: sends what this rank keeps to rank 0, which takes it in
    /// [`CheckpointWriter::save`](crate::checkpoint::CheckpointWriter::save). Nothing without sharding.
    ///
    /// # Errors
    /// [`ModelError::RankLost`] when rank 0 cannot be reached.
    pub fn send_state(&self, ranks: &dyn Ranks) -> Result<(), ModelError> {
        let Some(group) = self.peers(ranks)? else {
            return Ok(());
        };
        let state = self.state()?;
        let values: Vec<&Tensor> = state.iter().map(|(_, value)| value).collect();
        group.send(&values, 0)
    }

    /// On rank 0: what the others [send](Self::send_state), into those of `buffers` (one for each of
    /// `parts`, contiguous, in host memory) that are theirs.
    ///
    /// # Errors
    /// [`ModelError::RankLost`] when a rank cannot be reached.
    pub(crate) fn receive_state(
        &self,
        parts: &[StatePart],
        buffers: &[(String, Tensor)],
        ranks: &dyn Ranks,
    ) -> Result<(), ModelError> {
        let Some(group) = self.peers(ranks)? else {
            return Ok(());
        };
        let pairs = parts.iter().zip(buffers);
        let theirs = pairs.filter(|(part, _)| part.value.is_none());
        let theirs: Vec<(&Tensor, i64)> = theirs
            .map(|(part, (_, buffer))| (buffer, part.owner))
            .collect();
        group.receive(&theirs)
    }

    /// Takes over a state that rank 0 has read (`state`, and where from), on every rank; each gets what
    /// it keeps.
    ///
    /// # Errors
    /// As [`AdamW::load_state`] on rank 0; [`ModelError::RankLost`] when a rank cannot be reached.
    pub(crate) fn load_shared_state(
        &mut self,
        state: Option<(&HashMap<String, Tensor>, &str)>,
        ranks: &dyn Ranks,
    ) -> Result<(), ModelError> {
        if let Some((state, origin)) = state {
            self.load_state(state, origin)?;
        }
        let Some(group) = self.peers(ranks)? else {
            let kept = self.entries.iter().filter_map(|e| e.moments.as_ref());
            let all = kept.flat_map(|m| std::iter::once(&m.step).chain(m.tensors()));
            return ranks.broadcast(&all.collect::<Vec<_>>());
        };
        let parts = self.state_parts()?;
        let Some((state, _)) = state else {
            let mut own = HashMap::new();
            for part in parts.iter().filter(|part| part.value.is_some()) {
                let buffer = Tensor::f_empty(&part.shape, (part.kind, Device::Cpu))?;
                own.insert(part.name.clone(), buffer);
            }
            let kept = parts.iter().filter_map(|part| own.get(&part.name));
            group.receive(&kept.map(|buffer| (buffer, 0)).collect::<Vec<_>>())?;
            return self.take(&own);
        };
        for rank in 1..ranks.world_size() {
            let mut theirs = Vec::new();
            for part in parts.iter().filter(|part| part.owner == rank) {
                // The file may hold numbers of another width.
                let tensor = state.get(&part.name).map(|t| t.f_to_kind(part.kind));
                theirs.extend(tensor.transpose()?);
            }
            group.send(&theirs.iter().collect::<Vec<_>>(), rank)?;
        }
        Ok(())
    }

    /// The ranks that keep the rest of the state; none if there is no rest.
    fn peers<'a>(&self, ranks: &'a dyn Ranks) -> Result<Option<&'a ProcessGroup>, ModelError> {
        match ranks.process_group() {
            _ if !self.is_sharded => Ok(None),
            Some(group) => Ok(Some(group)),
            None => Err(ModelError::Input {
                what: "optimiser",
                message: "other ranks keep part of its state; pass the ranks that it was made for"
                    .into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective::{Collective, Reduction};
    use crate::params::{Init, ParamStore};
    use crate::AdamWConfig;

    /// Rank 1 of two that cannot reach each other.
    struct Apart;

    impl Collective for Apart {
        fn rank(&self) -> i64 {
            1
        }

        fn world_size(&self) -> i64 {
            2
        }

        fn all_gather(&self, _: &Tensor) -> Result<Tensor, ModelError> {
            unreachable!()
        }

        fn all_gather_with_grad(&self, _: &Tensor) -> Result<Tensor, ModelError> {
            unreachable!()
        }
    }

    impl Ranks for Apart {
        fn all_reduce(&self, _: &mut Tensor, _: Reduction) -> Result<(), ModelError> {
            unreachable!()
        }

        fn broadcast(&self, _: &[&Tensor]) -> Result<(), ModelError> {
            Ok(())
        }

        fn process_group(&self) -> Option<&ProcessGroup> {
            None
        }

        fn leave_word(&self, _: &[u8]) -> Result<(), ModelError> {
            Ok(())
        }

        fn last_words(&self) -> Option<Vec<Vec<u8>>> {
            None
        }
    }

    fn store() -> ParamStore {
        let mut store = ParamStore::new(Device::Cpu, 0);
        for (name, shape) in [("large", &[5, 5][..]), ("middle", &[4, 4]), ("small", &[3])] {
            let value = Init::Constant(1.0);
            let _ = store.declare(name, shape, value, true).unwrap();
        }
        store
    }

    #[test]
    fn a_rank_keeps_and_moves_its_share_alone() {
        let store = store();
        let config = AdamWConfig {
            shard_state: true,
            ema_decay: Some(0.5),
            ..AdamWConfig::default()
        };
        let mut optimizer = AdamW::for_rank(&store, &config, &Apart).unwrap();
        assert!(optimizer.is_sharded());
        // The largest goes to rank 0, the other two to this one: moments, averages, counters.
        assert_eq!(optimizer.state_bytes(), 4 * (3 * (16 + 3) + 2));
        let parts = optimizer.state_parts().unwrap();
        assert_eq!(parts.len(), 3 * 4);
        for part in &parts {
            let owner = i64::from(!part.name.starts_with("large."));
            assert_eq!(part.owner, owner, "{}", part.name);
            assert_eq!(part.value.is_some(), owner == 1, "{}", part.name);
        }
        let names: Vec<String> = optimizer
            .state()
            .unwrap()
            .into_iter()
            .map(|(n, _)| n)
            .collect();
        assert!(names.iter().all(|name| !name.starts_with("large.")) && names.len() == 2 * 4);
        let sum = store
            .trainable()
            .map(|p| p.tensor.square().sum(tch::Kind::Float));
        sum.reduce(|a, b| a + b).unwrap().backward();
        optimizer.step(0.1).unwrap();
        let first = |name| store.get(name).unwrap().tensor.view(-1).double_value(&[0]);
        assert_eq!(first("large"), 1.0, "its owner has not moved it");
        assert!(first("middle") < 0.95 && first("small") < 0.95);
    }

    #[test]
    fn the_rest_of_the_state_needs_the_other_ranks() {
        let config = AdamWConfig {
            shard_state: true,
            ..AdamWConfig::default()
        };
        let mut optimizer = AdamW::for_rank(&store(), &config, &Apart).unwrap();
        for result in [
            optimizer.share_parameters(&Apart),
            optimizer.send_state(&Apart),
            optimizer.receive_state(&[], &[], &Apart),
            optimizer.load_shared_state(None, &Apart),
        ] {
            let message = result.unwrap_err().to_string();
            assert!(
                message.contains("pass the ranks that it was made for"),
                "{message}"
            );
        }
        // Ranks that each keep all have nothing to send.
        let config = AdamWConfig::default();
        let mut whole = AdamW::for_rank(&store(), &config, &Apart).unwrap();
        whole.share_parameters(&Apart).unwrap();
        whole.send_state(&Apart).unwrap();
        whole.load_shared_state(None, &Apart).unwrap();
    }
}
