//! Samples as they lie in the shards, in the order of a run.

use super::open::OpenRun;
use super::sequence::Sequencer;
use super::tracker::Tracker;
use crate::error::PipelineError;
use crate::loader::plan::position::Event;
use crate::resume::LoaderState;
use crate::sample::EncodedSample;
use crate::stop::Stop;

/// Iterates over samples: images compressed, captions raw, and whatever members were asked for.
///
/// Bad samples are counted and passed over, or end it, as the configuration says. The state after a
/// sample continues with the next.
pub struct Samples {
    sequencer: Sequencer,
    tracker: Tracker,
    stop: Stop,
    is_over: bool,
}

impl Samples {
    pub(in crate::loader) fn start(run: OpenRun) -> Result<Samples, PipelineError> {
        Ok(Samples {
            sequencer: run.sequencer()?,
            tracker: run.tracker(),
            stop: run.stop,
            is_over: false,
        })
    }

    /// The next sample; `None` when all epochs are over.
    ///
    /// # Errors
    /// The [`PipelineError`] that ended reading, once; `None` after that.
    pub fn next_sample(&mut self) -> Result<Option<EncodedSample>, PipelineError> {
        if self.is_over {
            return Ok(None);
        }
        let next = self.advance();
        self.is_over = !matches!(next, Ok(Some(_)));
        next
    }

    fn advance(&mut self) -> Result<Option<EncodedSample>, PipelineError> {
        loop {
            match self.sequencer.next()? {
                Event::Position(id, Ok(sample)) => {
                    self.tracker.sample(id);
                    return Ok(Some(sample));
                }
                Event::Position(id, Err(error)) => self.tracker.bad_sample(id, error)?,
                Event::BadShard(set, error, counts) => {
                    self.tracker.bad_shard(set, error, counts)?;
                }
                Event::Dropped(set, places) => self.tracker.dropped(set, places),
                Event::EndOfEpoch(..) => {}
                Event::LastRow(_) => return Ok(None),
            }
        }
    }

    /// The state after the last sample that was handed out.
    pub fn state(&self) -> LoaderState {
        self.tracker.state()
    }
}

impl Iterator for Samples {
    type Item = Result<EncodedSample, PipelineError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_sample().transpose()
    }
}

impl Drop for Samples {
    fn drop(&mut self) {
        self.stop.set();
    }
}
