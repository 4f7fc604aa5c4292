//! Starts a run: opens data sets, checks the state, and puts the order together.

use std::sync::Arc;

use super::sequence::Sequencer;
use super::skips::SkipReports;
use super::tracker::{Policy, Tracker};
use crate::config::LoaderConfig;
use crate::error::PipelineError;
use crate::loader::meters::stats::Meters;
use crate::loader::plan::indexed::IndexedSource;
use crate::loader::plan::mix::{MixOptions, Mixer};
use crate::loader::plan::position::Source;
use crate::loader::plan::sets::{Contents, NeedsCaptions, OpenSet};
use crate::loader::read::fetch::Fetcher;
use crate::loader::read::reading::Reading;
use crate::loader::read::recycle::BytePool;
use crate::loader::read::shard_file::ShardFiles;
use crate::loader::read::stream::StreamSource;
use crate::order::{OrderSpec, ShuffleMode};
use crate::resume::BatchSlots;
use crate::resume::World;
use crate::resume::{LoaderState, OrderKey};
use crate::shard::read::ReadOptions;
use crate::source::DataSet;
use crate::stop::Stop;

/// Threads that read when none are asked for: local files, and remote ones, where a thread mostly
/// waits for its answer.
const LOCAL_IO_THREADS: usize = 2;
const REMOTE_IO_THREADS: usize = 8;

/// Where a run begins.
pub(crate) enum Start {
    Epoch(u64),
    Resume(Box<LoaderState>),
}

/// No run gets that far.
const MAX_EPOCH: u64 = 1 << 48;

/// A run whose data sets are open and whose state fits them.
pub(crate) struct OpenRun {
    pub(crate) config: Arc<LoaderConfig>,
    pub(crate) captions: NeedsCaptions,
    pub(crate) sets: Vec<Arc<OpenSet>>,
    pub(crate) world: World,
    pub(crate) state: LoaderState,
    pub(crate) stop: Stop,
    pub(crate) meters: Arc<Meters>,
    /// Where bad samples are named, if not in the log.
    pub(crate) skips: Option<SkipReports>,
    /// Whether batches have all captions as stored.
    pub(crate) keeps_captions: bool,
    pub(crate) bytes: Arc<BytePool>,
    pub(crate) shard_files: ShardFiles,
    pub(crate) io_threads: usize,
    /// Whether any shard comes over the network.
    pub(crate) is_remote: bool,
}

impl OpenRun {
    pub(crate) fn open(
        config: LoaderConfig,
        data: Vec<DataSet>,
        world: World,
        start: Start,
        captions: NeedsCaptions,
        meters: Meters,
        stop: Stop,
    ) -> Result<OpenRun, PipelineError> {
        config.validate()?;
        check_sets(&data, &config)?;
        let mut sets = Vec::new();
        let mut weights_and_keys = Vec::new();
        let mut first_shard = 0;
        for set in data {
            let mut open = OpenSet::open(set, first_shard, config.verify, &stop)?;
            match (captions, &start) {
                (_, Start::Resume(state)) => {
                    open.keep_lines(state.order.sets.get(sets.len()), &config, captions)?;
                }
                (NeedsCaptions::Yes, Start::Epoch(_)) => open.survey(&config, &stop),
                (NeedsCaptions::No, Start::Epoch(_)) => {}
            }
            first_shard += open.shards.len() as u32;
            if let (ShuffleMode::Full, Contents::Stream(why)) = (config.shuffle, &open.contents) {
                return Err(PipelineError::Config {
                    setting: "shuffle",
                    message: format!(
                        "`full` reads samples in any order, and {why}; write indices with \
                         `qfdata index` (for .tar.gz, and .tar.zst of one frame: shard again), or \
                         use `buffer`"
                    ),
                });
            }
            weights_and_keys.push(open.key.clone());
            sets.push(Arc::new(open));
        }
        let order = OrderKey::new(&config, weights_and_keys, world);
        let state = match start {
            Start::Resume(state) => {
                state.check(&order)?;
                state.of_rank(world)
            }
            Start::Epoch(epoch) => {
                if epoch > MAX_EPOCH || (config.epochs != 0 && epoch >= config.epochs) {
                    return Err(PipelineError::Config {
                        setting: "epochs",
                        message: format!(
                            "{} epochs end before epoch {epoch}, counted from 0",
                            config.epochs
                        ),
                    });
                }
                LoaderState::start(order, epoch)
            }
        };
        let is_remote = sets
            .iter()
            .flat_map(|set| &set.shards)
            .any(|shard| shard.path().is_none());
        let io_threads = match config.io_threads {
            0 if is_remote => REMOTE_IO_THREADS,
            0 => LOCAL_IO_THREADS,
            threads => threads,
        };
        Ok(OpenRun {
            config: Arc::new(config),
            captions,
            sets,
            world,
            state,
            stop,
            meters: Arc::new(meters),
            skips: None,
            keeps_captions: false,
            bytes: Arc::default(),
            shard_files: ShardFiles::default(),
            io_threads,
            is_remote,
        })
    }

    /// Whether the run ends with its last epoch; if not, after as many batches as it has rows.
    pub(crate) fn ends_with_epochs(&self) -> bool {
        self.world.size() == 1 || !self.config.drop_last
    }

    /// Whether a batch never spans epochs: what is left of one goes, or is a batch of its own. With
    /// several ranks only positions are left over, and what a rank lacks it takes from the next epoch.
    pub(crate) fn epochs_end_batches(&self) -> bool {
        self.sets.len() == 1 && self.ends_with_epochs()
    }

    fn slots(&self) -> BatchSlots {
        BatchSlots::new(
            self.state.row,
            &self.state.slots,
            self.config.batch_size,
            self.world,
        )
    }

    pub(crate) fn tracker(&self) -> Tracker {
        let policy = Policy::new(&self.config, self.skips.clone());
        Tracker::new(self.state.clone(), self.slots(), policy)
    }

    /// The order, with the samples of sets without an index.
    pub(crate) fn mixer(&self) -> Result<Mixer, PipelineError> {
        let mut sources: Vec<(String, Box<dyn Source>)> = Vec::new();
        for (number, (set, at)) in self.sets.iter().zip(&self.state.sets).enumerate() {
            let spec = OrderSpec {
                seed: self.config.seed,
                set: number as u32,
                shuffle: self.config.shuffle,
                block_samples: (self.config.shuffle_buffer_samples as u64).max(1),
            };
            let source: Box<dyn Source> = match &set.contents {
                Contents::Indexed(indices) => {
                    let source = IndexedSource::start(set, indices, spec, at.epoch, at.position)?;
                    Box::new(source)
                }
                Contents::Stream(why) => {
                    log::info!("{why}: {} are read in order", set.title());
                    let reading = self.reading();
                    let source =
                        StreamSource::start(set.clone(), spec, reading, at.epoch, at.position)?;
                    Box::new(source)
                }
            };
            sources.push((set.title(), source));
        }
        let weights: Vec<f64> = self.sets.iter().map(|set| set.weight).collect();
        let taken: Vec<u64> = self.state.sets.iter().map(|at| at.taken).collect();
        let options = MixOptions {
            slots: self.slots(),
            drop_last: !self.epochs_end_batches(),
            needs_whole_row: self.config.drop_last,
            epochs: self.config.epochs,
            last_row: self.state.last_row,
            is_first_rank: self.world.is_first(),
            ends_with_epochs: self.ends_with_epochs(),
        };
        Ok(Mixer::new(
            sources,
            &weights,
            self.state.row,
            &taken,
            options,
        ))
    }

    /// The order, with all samples.
    pub(crate) fn sequencer(&self) -> Result<Sequencer, PipelineError> {
        let mixer = self.mixer()?;
        let has_index = |set: &Arc<OpenSet>| matches!(set.contents, Contents::Indexed(_));
        let fetcher = match self.sets.iter().any(has_index) {
            true => Some(Fetcher::start(self.sets.clone(), self.reading())?),
            false => None,
        };
        let max_read_bytes = self.reading().read_ahead_bytes;
        Ok(Sequencer::new(mixer, fetcher, max_read_bytes))
    }

    /// Whether all remote shards can be kept on this machine at once: a full shuffle comes back to
    /// each again and again.
    fn fits_cache(&self) -> bool {
        let shards = self
            .sets
            .iter()
            .flat_map(|set| set.shards.iter().zip(&set.sizes));
        // One of unknown length is not kept.
        let remote = shards
            .filter_map(|(shard, size)| Some((shard.cache_bytes()?, size.unwrap_or(u64::MAX))));
        let (bounds, sizes): (Vec<u64>, Vec<u64>) = remote.unzip();
        let all = sizes
            .iter()
            .fold(0u64, |sum, size| sum.saturating_add(*size));
        bounds.iter().all(|bound| all <= *bound)
    }

    /// What each reader of samples may use: those of a mixture share.
    fn reading(&self) -> Reading {
        let is_stream = |set: &&Arc<OpenSet>| matches!(set.contents, Contents::Stream(_));
        let streams = self.sets.iter().filter(is_stream).count();
        // All indexed sets have one reader together.
        let readers = streams + usize::from(streams < self.sets.len());
        Reading {
            options: Arc::new(ReadOptions {
                needs_captions: self.captions == NeedsCaptions::Yes,
                ..self.config.read_options()
            }),
            meters: self.meters.clone(),
            bytes: self.bytes.clone(),
            shard_files: self.shard_files.clone(),
            stop: self.stop.clone(),
            io_threads: self.io_threads,
            prefetches: self.config.shuffle != ShuffleMode::Full || self.fits_cache(),
            read_ahead_bytes: self.config.read_ahead_bytes / readers,
            shuffle_bytes: match self.config.shuffle {
                ShuffleMode::Buffer | ShuffleMode::Full => {
                    self.config.shuffle_buffer_bytes / readers
                }
                ShuffleMode::None | ShuffleMode::Shards => 0,
            },
            epochs: match self.ends_with_epochs() {
                true => self.config.epochs,
                false => 0,
            },
        }
    }
}

fn check_sets(data: &[DataSet], config: &LoaderConfig) -> Result<(), PipelineError> {
    let refuse = |setting, message: String| Err(PipelineError::Config { setting, message });
    if data.is_empty() {
        return refuse("shards", "there is no data set".into());
    }
    for set in data {
        if set.shards.is_empty() {
            return refuse("shards", format!("data set `{}` has no shards", set.name));
        }
        if !(set.weight > 0.0 && set.weight.is_finite()) {
            return refuse(
                "weight",
                format!(
                    "{} of data set `{}`: must be a number above 0",
                    set.weight, set.name
                ),
            );
        }
    }
    let shards: usize = data.iter().map(|set| set.shards.len()).sum();
    if u32::try_from(shards).is_err() {
        return refuse("shards", format!("{shards} shards; at most {}", u32::MAX));
    }
    if data.len() > 1 {
        let mut names: Vec<&str> = data.iter().map(|set| set.name.as_str()).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return refuse("name", format!("two data sets are named `{}`", pair[0]));
        }
        if config.epochs != 0 {
            return refuse(
                "epochs",
                "data sets of a mixture end at different times, so a mixture has no epochs; use 0, \
                 and a number of steps"
                    .into(),
            );
        }
        if !config.drop_last {
            return refuse("drop_last", "a mixture has no last batch; use true".into());
        }
    }
    Ok(())
}
