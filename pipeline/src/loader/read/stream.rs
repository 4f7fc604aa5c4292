//! A data set read shard by shard, for shards without an index.

use std::collections::VecDeque;
use std::sync::Arc;

use super::reading::Reading;
use super::shards::{Arrival, ShardStream};
use super::shuffle::{Block, BlockShuffle};
use super::shuffle_budget::ShuffleBudget;
use crate::error::PipelineError;
use crate::loader::plan::position::{FromSet, Item, Source};
use crate::loader::plan::sets::OpenSet;
use crate::order::{Blocks, OrderSpec, ShuffleMode};

pub(crate) struct StreamSource {
    shards: ShardStream,
    spec: OrderSpec,
    /// With [`ShuffleMode::Buffer`].
    shuffle: Option<BlockShuffle>,
    epoch: u64,
    position: u64,
    /// Samples to pass over until the position that was asked for.
    to_pass: u64,
}

impl StreamSource {
    /// Starts reading at a position; what lies before it in its epoch is read and passed over.
    pub(crate) fn start(
        set: Arc<OpenSet>,
        spec: OrderSpec,
        reading: Reading,
        epoch: u64,
        position: u64,
    ) -> Result<StreamSource, PipelineError> {
        let budget = (spec.shuffle == ShuffleMode::Buffer)
            .then(|| Arc::new(ShuffleBudget::new(reading.shuffle_bytes)));
        let shuffle = budget.clone().map(|budget| BlockShuffle {
            bytes: reading.bytes.clone(),
            meters: reading.meters.clone(),
            max_bytes: reading.shuffle_bytes,
            budget,
            in_memory: 0,
            held: 0,
            blocks: VecDeque::new(),
        });
        let mut source = StreamSource {
            shards: ShardStream::start(set, spec, reading, budget, epoch)?,
            spec,
            shuffle,
            epoch,
            position,
            to_pass: position,
        };
        if let Some(shuffle) = &mut source.shuffle {
            let blocks = Blocks::new(&spec, epoch);
            let (number, start) = blocks.block_of(position);
            // The block that holds the position has to be read whole, those before it passed over.
            source.to_pass = start;
            let mut block = Block::new(&spec, epoch, number);
            block.passed = (position - start) as usize;
            shuffle.blocks.push_back(block);
        }
        Ok(source)
    }

    /// What the shards say next, from the position that was asked for on.
    fn arrival(&mut self) -> Result<Arrival, PipelineError> {
        loop {
            let arrival = self.shards.next()?;
            match arrival {
                Arrival::Sample(..) if self.to_pass > 0 => self.to_pass -= 1,
                Arrival::BadShard(_) if self.to_pass > 0 => {}
                Arrival::EndOfEpoch if self.to_pass > 0 => {
                    return Err(PipelineError::State(format!(
                        "epoch {} ended {} samples before the saved position: the shards hold \
                         fewer samples than when it was saved",
                        self.epoch, self.to_pass
                    )));
                }
                arrival => return Ok(arrival),
            }
        }
    }

    fn end_epoch(&mut self) -> FromSet {
        self.epoch += 1;
        self.position = 0;
        FromSet::EndOfEpoch
    }

    fn next_shuffled(
        &mut self,
        mut shuffle: BlockShuffle,
        wanted: bool,
    ) -> Result<FromSet, PipelineError> {
        let next = loop {
            shuffle.budget.hold(shuffle.in_memory);
            if shuffle.wants_more(&self.spec) && !self.shards.is_over() {
                let arrival = self.arrival()?;
                shuffle.push(arrival, &self.spec)?;
                if !shuffle.front_is_whole() {
                    continue;
                }
            }
            match shuffle.pop(wanted)? {
                Some(next) => break next,
                None if self.shards.is_over() => {
                    return Err(PipelineError::Thread(
                        "samples were asked for after the last epoch; this is a bug".into(),
                    ))
                }
                // The front block is not whole yet.
                None => continue,
            }
        };
        self.shuffle = Some(shuffle);
        Ok(match next {
            FromSet::Position(item) => {
                self.position += 1;
                FromSet::Position(item)
            }
            FromSet::EndOfEpoch => self.end_epoch(),
            bad => bad,
        })
    }
}

impl Source for StreamSource {
    fn next(&mut self, wanted: bool) -> Result<FromSet, PipelineError> {
        if let Some(shuffle) = self.shuffle.take() {
            return self.next_shuffled(shuffle, wanted);
        }
        Ok(match self.arrival()? {
            Arrival::Sample(sample, _) => {
                self.position += 1;
                FromSet::Position(Some(Item::Read(sample)))
            }
            Arrival::BadShard(error) => FromSet::BadShard(error),
            Arrival::EndOfEpoch => self.end_epoch(),
        })
    }

    fn position(&self) -> (u64, u64) {
        (self.epoch, self.position)
    }
}
