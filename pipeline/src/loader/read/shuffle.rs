//! A shuffle in memory and on disk: samples permuted within blocks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::recycle::BytePool;
use super::shards::{payload_bytes, Arrival};
use super::shuffle_budget::ShuffleBudget;
use super::spill::{Spill, Spilled};
use crate::error::{PipelineError, SampleError, ShardError};
use crate::loader::meters::stats::Meters;
use crate::loader::plan::position::{FromSet, Item};
use crate::order::{Blocks, OrderSpec};
use crate::sample::EncodedSample;

/// Permutes samples within blocks. While one block is handed out the next one fills at the same
/// pace, so about one block is held.
pub(super) struct BlockShuffle {
    pub(super) bytes: Arc<BytePool>,
    pub(super) meters: Arc<Meters>,
    pub(super) max_bytes: usize,
    /// Tells readers what is left of it.
    pub(super) budget: Arc<ShuffleBudget>,
    /// Bytes of samples that are held in memory.
    pub(super) in_memory: usize,
    /// Samples that are held.
    pub(super) held: u64,
    /// The first is handed out once it is whole, the last one fills.
    pub(super) blocks: VecDeque<Block>,
}

pub(super) struct Block {
    epoch: u64,
    number: u64,
    len: u64,
    entries: Vec<Option<Entry>>,
    spill: Spill,
    /// Shards that ended early while it was filled.
    bad: VecDeque<ShardError>,
    /// Positions handed out before the run was resumed.
    pub(super) passed: usize,
    /// Set when it is whole.
    order: Option<std::vec::IntoIter<u32>>,
    ends_epoch: bool,
}

enum Entry {
    Memory(Result<EncodedSample, SampleError>),
    Disk(Spilled),
}

impl Entry {
    fn bytes_in_memory(&self) -> usize {
        match self {
            Entry::Memory(sample) => payload_bytes(sample),
            Entry::Disk(spilled) => spilled.kept_bytes(),
        }
    }
}

impl Block {
    pub(super) fn new(spec: &OrderSpec, epoch: u64, number: u64) -> Block {
        Block {
            epoch,
            number,
            len: Blocks::new(spec, epoch).len_of(number),
            entries: Vec::new(),
            spill: Spill::default(),
            bad: VecDeque::new(),
            passed: 0,
            order: None,
            ends_epoch: false,
        }
    }
}

impl BlockShuffle {
    pub(super) fn front_is_whole(&self) -> bool {
        self.blocks
            .front()
            .is_some_and(|block| block.order.is_some())
    }

    pub(super) fn wants_more(&self, spec: &OrderSpec) -> bool {
        !self.front_is_whole() || self.held < spec.block_samples
    }

    pub(super) fn push(&mut self, arrival: Arrival, spec: &OrderSpec) -> Result<(), PipelineError> {
        let Some(block) = self.blocks.back_mut() else {
            return Err(PipelineError::Thread(
                "a shuffle without a block; this is a bug".into(),
            ));
        };
        let ends_epoch = match arrival {
            Arrival::Sample(sample, shard) => {
                let bytes = payload_bytes(&sample);
                let entry = match sample {
                    Ok(sample) if sample.is_left() || self.in_memory + bytes > self.max_bytes => {
                        let spilled = block.spill.put(sample, shard, &self.bytes)?;
                        self.in_memory += spilled.kept_bytes();
                        Entry::Disk(spilled)
                    }
                    sample => {
                        self.in_memory += bytes;
                        Entry::Memory(sample)
                    }
                };
                block.entries.push(Some(entry));
                self.held += 1;
                false
            }
            Arrival::BadShard(error) => {
                block.bad.push_back(error);
                return Ok(());
            }
            Arrival::EndOfEpoch => true,
        };
        if ends_epoch || block.entries.len() as u64 == block.len {
            block.ends_epoch = ends_epoch;
            let blocks = Blocks::new(spec, block.epoch);
            let mut order = blocks
                .permutation(block.number, block.entries.len())
                .into_iter();
            if block.passed > 0 {
                block.bad.clear();
                for place in order.by_ref().take(block.passed) {
                    let entry = block.entries.get_mut(place as usize).and_then(Option::take);
                    self.in_memory -= entry.as_ref().map_or(0, Entry::bytes_in_memory);
                    self.held -= 1;
                }
            }
            block.order = Some(order);
            let next = match ends_epoch {
                true => Block::new(spec, block.epoch + 1, 0),
                false => Block::new(spec, block.epoch, block.number + 1),
            };
            self.blocks.push_back(next);
        }
        Ok(())
    }

    /// Records a sample that was read when its turn came.
    fn record(&self, sample: &Result<EncodedSample, SampleError>, start: Instant) {
        let Ok(sample) = sample else { return };
        let (took, bytes) = (start.elapsed(), sample.payload_bytes() as u64);
        let meter = &self.meters.read;
        meter.add_busy(took);
        meter.add_bytes(bytes);
        meter.trace_read(&sample.id.shard, bytes, start, took);
    }

    /// What the first block has next; `None` if it is not whole. What is not `wanted` is not read.
    pub(super) fn pop(&mut self, wanted: bool) -> Result<Option<FromSet>, PipelineError> {
        loop {
            let Some(block) = self.blocks.front_mut() else {
                return Ok(None);
            };
            let Some(order) = &mut block.order else {
                return Ok(None);
            };
            if let Some(error) = block.bad.pop_front() {
                return Ok(Some(FromSet::BadShard(error)));
            }
            if let Some(place) = order.next() {
                let entry = block.entries.get_mut(place as usize).and_then(Option::take);
                self.held -= 1;
                self.in_memory -= entry.as_ref().map_or(0, Entry::bytes_in_memory);
                let sample = match entry {
                    Some(Entry::Memory(sample)) => sample,
                    Some(Entry::Disk(_)) if !wanted => return Ok(Some(FromSet::Position(None))),
                    Some(Entry::Disk(spilled)) => {
                        let start = Instant::now();
                        let sample = block.spill.take(spilled, &self.bytes)?;
                        self.record(&sample, start);
                        sample
                    }
                    None => {
                        return Err(PipelineError::Thread(
                            "a place was taken twice; this is a bug".into(),
                        ))
                    }
                };
                return Ok(Some(FromSet::Position(Some(Item::Read(sample)))));
            }
            let ends_epoch = block.ends_epoch;
            self.blocks.pop_front();
            if ends_epoch {
                return Ok(Some(FromSet::EndOfEpoch));
            }
        }
    }
}
