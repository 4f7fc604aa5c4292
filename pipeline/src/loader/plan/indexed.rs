//! A data set whose shards have indices: any position of its order is known without reading.

use std::sync::Arc;

use super::position::{FromSet, Item, Source};
use super::sets::OpenSet;
use crate::error::PipelineError;
use crate::index::ShardIndex;
use crate::order::{EpochOrder, OrderSpec};

pub(crate) struct IndexedSource {
    counts: Vec<u32>,
    spec: OrderSpec,
    order: EpochOrder,
    epoch: u64,
    position: u64,
}

impl IndexedSource {
    /// Stands at a position at once.
    ///
    /// # Errors
    /// [`PipelineError::State`] for a position beyond the end of the epoch.
    pub(crate) fn start(
        set: &OpenSet,
        indices: &[Arc<ShardIndex>],
        spec: OrderSpec,
        epoch: u64,
        position: u64,
    ) -> Result<IndexedSource, PipelineError> {
        let counts: Vec<u32> = indices.iter().map(|index| index.len()).collect();
        let order = EpochOrder::new(&counts, &spec, epoch);
        if position > order.len() {
            return Err(PipelineError::State(format!(
                "it stands at sample {position} of epoch {epoch}, and {} hold {} by their indices; \
                 resume with the data it was saved with",
                set.title(),
                order.len()
            )));
        }
        Ok(IndexedSource {
            counts,
            spec,
            order,
            epoch,
            position,
        })
    }
}

impl Source for IndexedSource {
    fn next(&mut self, wanted: bool) -> Result<FromSet, PipelineError> {
        if self.position == self.order.len() {
            self.epoch += 1;
            self.position = 0;
            self.order = EpochOrder::new(&self.counts, &self.spec, self.epoch);
            return Ok(FromSet::EndOfEpoch);
        }
        let place = self.position;
        self.position += 1;
        if !wanted {
            return Ok(FromSet::Position(None));
        }
        Ok(match self.order.at(place) {
            Some((shard, sample)) => FromSet::Position(Some(Item::Unread { shard, sample })),
            None => FromSet::EndOfEpoch, // Not reached: `position` is below the length.
        })
    }

    fn position(&self) -> (u64, u64) {
        (self.epoch, self.position)
    }
}
