//! The data sets of a run: their shards, and what is known of them at the start.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, ScopedJoinHandle};

use crate::captions::CaptionLines;
use crate::config::{LoaderConfig, Verify};
use crate::error::{PipelineError, ShardError};
use crate::index::{Found, ShardIndex};
use crate::resume::SetKey;
use crate::source::{DataSet, ShardLocation};
use crate::stop::Stop;
use crate::survey::Survey;

/// A data set whose shards were found.
pub(crate) struct OpenSet {
    pub(crate) key: SetKey,
    pub(crate) weight: f64,
    pub(crate) shards: Vec<ShardLocation>,
    /// Bytes of each shard at the start of the run; none where its server does not say.
    pub(crate) sizes: Vec<Option<u64>>,
    /// Number of its first shard among those of all sets.
    pub(crate) first_shard: u32,
    pub(crate) contents: Contents,
    /// What a look at its first samples showed.
    pub(crate) note: Option<String>,
}

/// What the texts of each shard hold.
pub(crate) struct LinesOfShards(Vec<(u32, CaptionLines)>);

impl LinesOfShards {
    pub(crate) fn new(sets: &[Arc<OpenSet>]) -> LinesOfShards {
        let lines = |set: &Arc<OpenSet>| (set.first_shard, set.key.caption_lines);
        LinesOfShards(sets.iter().map(lines).collect())
    }

    /// Of the shard of this number among those of all sets.
    pub(crate) fn of_shard(&self, shard: u32) -> CaptionLines {
        let sets = self.0.iter().rev();
        let found = sets.into_iter().find(|(first, _)| *first <= shard);
        found.map_or(CaptionLines::Each, |(_, lines)| *lines)
    }
}

/// How a data set's samples are reached.
pub(crate) enum Contents {
    /// Each by itself.
    Indexed(Vec<Arc<ShardIndex>>),
    /// Shard by shard; why, as a sentence on the first shard that cannot be read otherwise.
    Stream(String),
}

impl OpenSet {
    pub(crate) fn open(
        set: DataSet,
        first_shard: u32,
        verify: Verify,
        stop: &Stop,
    ) -> Result<OpenSet, PipelineError> {
        let sizes = set.shards.iter().map(|shard| {
            shard.size(stop).map_err(|source| PipelineError::Io {
                path: shard.name.as_ref().into(),
                source,
            })
        });
        let sizes: Vec<Option<u64>> = sizes.collect::<Result<_, _>>()?;
        let contents = contents(&set.shards, verify, stop)?;
        Ok(OpenSet {
            key: SetKey::new(&set, &sizes),
            weight: set.weight,
            shards: set.shards,
            sizes,
            first_shard,
            contents,
            note: None,
        })
    }

    /// Goes on with what was decided of its texts when `saved`.
    ///
    /// # Errors
    /// [`PipelineError::State`] where the settings say otherwise.
    pub(crate) fn keep_lines(
        &mut self,
        saved: Option<&SetKey>,
        config: &LoaderConfig,
        captions: NeedsCaptions,
    ) -> Result<(), PipelineError> {
        let saved = saved.map_or(CaptionLines::Each, |set| set.caption_lines);
        self.key.caption_lines = saved;
        match config.caption_lines {
            Some(now) if now != saved && captions == NeedsCaptions::Yes => {
                Err(PipelineError::State(format!(
                    "it was saved with caption_lines = \"{}\" for {}, and is \"{}\" now; resume \
                     with the same setting, or start a new run",
                    saved.name(),
                    self.title(),
                    now.name()
                )))
            }
            _ => Ok(()),
        }
    }

    /// Looks at its first samples for where captions are, and decides what its texts hold, unless that
    /// was decided.
    pub(crate) fn survey(&mut self, config: &LoaderConfig, stop: &Stop) {
        let survey = Survey::of(&self.shards, config, stop);
        let lines = config.caption_lines.unwrap_or(survey.caption_lines());
        self.key.caption_lines = lines;
        if let Some(warning) = survey.warning(config.image_column.as_deref()) {
            log::warn!("{}: {warning}", self.title());
        }
        let described = survey.describe(lines, "data.caption_lines =");
        self.note = Some(format!("{}: {described}", self.title()));
    }

    /// Looks whether a file is still the one that the run began with. (A remote shard is asked for
    /// by its version.)
    pub(crate) fn check_size(&self, shard: u32, stop: &Stop) -> Result<(), ShardError> {
        let (Some(location), Some(&Some(before))) = (
            self.shards.get(shard as usize),
            self.sizes.get(shard as usize),
        ) else {
            return Ok(());
        };
        if location.path().is_none() {
            return Ok(());
        }
        let message = match location.size(stop) {
            Ok(Some(now)) if now != before => format!(
                "has {now} bytes now and had {before} when the run began: it was replaced; put it \
                 back, or start a new run"
            ),
            Ok(_) => return Ok(()),
            Err(error) => format!(
                "was there when the run began, with {before} bytes, and cannot be opened now \
                 ({error}); put it back"
            ),
        };
        Err(ShardError {
            shard: location.name.to_string(),
            offset_bytes: 0,
            message,
        })
    }

    /// What messages call it.
    pub(crate) fn title(&self) -> String {
        match self.key.name.as_str() {
            "" => "the shards".into(),
            name => format!("data set `{name}`"),
        }
    }
}

/// Headers of remote indices asked for at a time.
const PARALLEL_OPENS: usize = 32;

fn contents(
    shards: &[ShardLocation],
    verify: Verify,
    stop: &Stop,
) -> Result<Contents, PipelineError> {
    let open = |shard: &ShardLocation| {
        ShardIndex::find_verified(shard, verify, stop).map_err(PipelineError::Index)
    };
    let mut indices: Vec<Arc<ShardIndex>> = Vec::with_capacity(shards.len());
    for part in shards.chunks(PARALLEL_OPENS) {
        let is_remote = part.iter().any(|shard| shard.path().is_none());
        let opened: Vec<_> = match is_remote {
            true => std::thread::scope(|scope| {
                let start = |shard| Builder::new().spawn_scoped(scope, move || open(shard));
                let threads: Vec<_> = part.iter().map(start).collect();
                let died = || PipelineError::Thread("an index reader died; this is a bug".into());
                let none =
                    |error| PipelineError::Thread(format!("cannot start an index reader: {error}"));
                let join = |thread: io::Result<ScopedJoinHandle<'_, _>>| {
                    let joined = thread.map_err(none)?.join();
                    joined.unwrap_or_else(|_| Err(died()))
                };
                threads.into_iter().map(join).collect()
            }),
            false => part.iter().map(open).collect(),
        };
        for (shard, index) in part.iter().zip(opened) {
            let index = match index? {
                Found::Index(index) => index,
                Found::Absent => {
                    return Ok(Contents::Stream(format!("{} has no index", shard.name)))
                }
                Found::Unusable(why) => {
                    let name = &shard.name;
                    log::warn!("{why}; reading the set without indices, as if {name} had none");
                    return Ok(Contents::Stream(format!("{name} has no index")));
                }
                Found::Outdated(version) => {
                    let why = format!(
                        "the index of {} is of version {version} of its format, which is not used \
                         any more (`qfdata index` writes it anew)",
                        shard.name
                    );
                    log::warn!("{why}");
                    return Ok(Contents::Stream(why));
                }
            };
            if index.access().is_none() {
                return Ok(Contents::Stream(format!(
                    "{} can only be read from its beginning",
                    shard.name
                )));
            }
            indices.push(Arc::new(index));
        }
    }
    warn_of_missing_checksums(shards, &indices, verify);
    Ok(Contents::Indexed(indices))
}

/// Says that samples are not compared with checksums, where they were to be and there are none.
fn warn_of_missing_checksums(
    shards: &[ShardLocation],
    indices: &[Arc<ShardIndex>],
    verify: Verify,
) {
    let bare = |(_, index): &(&ShardLocation, &Arc<ShardIndex>)| !index.has_checksums();
    let mut bare = shards.iter().zip(indices).filter(bare);
    if let (Verify::Samples, Some((first, _))) = (verify, bare.next()) {
        log::warn!(
            "{} of {} indices hold no checksums, {}'s for one, so samples of these shards are not \
             compared when they are read; `qfdata index` adds them, data.verify = \"index\" says \
             that none are wanted",
            1 + bare.count(),
            indices.len(),
            first.name
        );
    }
}

/// Whether a run reads captions; an order has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NeedsCaptions {
    Yes,
    No,
}
