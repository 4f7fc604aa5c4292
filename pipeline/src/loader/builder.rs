//! How a loader is made.

use std::sync::Arc;

use super::Loader;
use crate::batch::{HostAllocator, PlainAllocator};
use crate::config::{CaptionChoice, LoaderConfig};
use crate::error::PipelineError;
use crate::loader::meters::stats::Meters;
use crate::loader::plan::sets::NeedsCaptions;
use crate::loader::run::listing::Listing;
use crate::loader::run::open::{OpenRun, Start};
use crate::loader::run::samples::Samples;
use crate::loader::run::skips::SkipReports;
use crate::resume::LoaderState;
use crate::resume::World;
use crate::source::DataSet;
use crate::source::ShardLocation;
use crate::stop::Stop;
use crate::text::CaptionTokenizer;
use crate::trace::Trace;

/// Settings and data of a run, to be read as batches, as samples or as a list of keys.
///
/// All three follow one order, and a state of one continues another.
#[must_use = "nothing is read before `batches`, `samples` or `listing`"]
pub struct LoaderBuilder {
    config: LoaderConfig,
    sets: Vec<DataSet>,
    world: World,
    first_epoch: u64,
    resume: Option<LoaderState>,
    allocator: Arc<dyn HostAllocator>,
    trace: Option<Trace>,
    skips: Option<SkipReports>,
    keeps_captions: bool,
    stop: Stop,
}

impl Loader {
    /// A loader to be, with these settings.
    pub fn builder(config: LoaderConfig) -> LoaderBuilder {
        LoaderBuilder::new(config)
    }
}

impl LoaderBuilder {
    fn new(config: LoaderConfig) -> LoaderBuilder {
        LoaderBuilder {
            config,
            sets: Vec::new(),
            world: World::SINGLE,
            first_epoch: 0,
            resume: None,
            allocator: Arc::new(PlainAllocator),
            trace: None,
            skips: None,
            keeps_captions: false,
            stop: Stop::default(),
        }
    }

    /// The shards of the only data set.
    pub fn shards(self, shards: Vec<ShardLocation>) -> Self {
        self.data_set(DataSet::only(shards))
    }

    /// One more data set of a mixture.
    pub fn data_set(mut self, set: DataSet) -> Self {
        self.sets.push(set);
        self
    }

    /// This process among those that share the data; one alone unless told. The configuration's
    /// `batch_size` is that of each rank.
    pub fn world(mut self, world: World) -> Self {
        self.world = world;
        self
    }

    /// Begins with this epoch, unless a state says where to go on. Default 0.
    pub fn first_epoch(mut self, epoch: u64) -> Self {
        self.first_epoch = epoch;
        self
    }

    /// Continues after the batch that a state was saved with.
    pub fn resume(mut self, state: impl Into<Option<LoaderState>>) -> Self {
        self.resume = state.into();
        self
    }

    /// Where pixels are put: ordinary memory unless told.
    pub fn allocator(mut self, allocator: Arc<dyn HostAllocator>) -> Self {
        self.allocator = allocator;
        self
    }

    /// Records what the loader's threads do: `open`, `read` and `decompress` with the shard; `decode`,
    /// `augment`, `tokenise` and `collate` of each sample, with shard, key and bytes of those that take
    /// more than 4 times the mean; `hand over batch`; waits on a queue, or for a sample, of 0.1 ms and
    /// more; and how full the three queues are.
    pub fn trace(mut self, trace: impl Into<Option<Trace>>) -> Self {
        self.trace = trace.into();
        self
    }

    /// Names bad samples to the consumer, by [`Loader::skip_reports`], instead of in the log.
    pub fn report_skips(mut self) -> Self {
        self.skips = Some(SkipReports::default());
        self
    }

    /// Gives each batch all captions of its samples as stored, [`Batch::stored_captions`](crate::Batch),
    /// beside those in use: to be shown.
    pub fn keep_captions(mut self) -> Self {
        self.keeps_captions = true;
        self
    }

    /// Ends all reads, those that wait for a server included, once the outer flag of `stop` is set; what
    /// waits for them gets an error. Dropping what is made here sets no flag of others.
    pub fn stop(mut self, stop: &Stop) -> Self {
        self.stop = stop.another();
        self
    }

    /// Starts reading, decoding and collating on threads of its own.
    ///
    /// # Errors
    /// [`PipelineError::Config`] for settings that cannot work, [`PipelineError::State`] for a state
    /// of other data or settings, [`PipelineError::Io`] for a shard that is gone,
    /// [`PipelineError::Index`] for an index that does not fit its shard,
    /// [`PipelineError::Thread`] when threads cannot be started.
    pub fn batches(self, tokenizer: Arc<CaptionTokenizer>) -> Result<Loader, PipelineError> {
        let allocator = self.allocator.clone();
        let captions = match self.config.captions {
            CaptionChoice::Ignore => NeedsCaptions::No,
            CaptionChoice::Draw | CaptionChoice::All => NeedsCaptions::Yes,
        };
        Loader::start(self.open(captions)?, tokenizer, allocator)
    }

    /// Starts reading, on threads of its own; samples come out as they lie in the shards.
    ///
    /// # Errors
    /// As [`LoaderBuilder::batches`].
    pub fn samples(self) -> Result<Samples, PipelineError> {
        Samples::start(self.open(NeedsCaptions::No)?)
    }

    /// Lists what this rank will see, without decoding; of indexed shards without reading them.
    ///
    /// # Errors
    /// As [`LoaderBuilder::batches`].
    pub fn listing(self) -> Result<Listing, PipelineError> {
        Listing::start(self.open(NeedsCaptions::No)?)
    }

    fn open(self, captions: NeedsCaptions) -> Result<OpenRun, PipelineError> {
        let start = match self.resume {
            Some(state) => Start::Resume(Box::new(state)),
            None => Start::Epoch(self.first_epoch),
        };
        let meters = Meters::new(self.trace);
        let run = OpenRun::open(
            self.config,
            self.sets,
            self.world,
            start,
            captions,
            meters,
            self.stop,
        )?;
        Ok(OpenRun {
            skips: self.skips,
            keeps_captions: self.keeps_captions,
            ..run
        })
    }
}
