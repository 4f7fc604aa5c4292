//! Where a run stands in its data: saved with a checkpoint, it continues with the next batch, on
//! as many ranks as divide the global batch.

use crate::hex::hex;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::counters::Counters;
use super::slots::{BatchSlots, SlotRun};
use super::world::World;
use crate::captions::CaptionLines;
use crate::config::LoaderConfig;
use crate::error::PipelineError;
use crate::order::ShuffleMode;
use crate::source::DataSet;

/// Version of the state's meaning; raised whenever the same state would give another order.
const STATE_VERSION: u32 = 2;

/// Larger counts than this no run reaches.
const MAX_COUNT: u64 = 1 << 48;

/// The loader's position after some batch, and everything the order depends on.
///
/// Serialised, it carries a checksum of itself (`sha256`), which is compared when it is read; one that
/// has none is of an older version of this program. As JSON some 1 KiB on one rank, and 300 bytes for each further data set; with `W` ranks that skipped different numbers of bad samples up
/// to 40 bytes a rank more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, remote = "Self")]
pub struct LoaderState {
    /// Version of this layout.
    pub version: u32,
    /// Batches handed out since the run began, on each rank; samples handed out by themselves make
    /// none.
    pub batches: u64,
    /// A row of the run, counted from 0, before which every slot is used up.
    pub row: u64,
    /// Rows of epochs that one rank finished alone and that gave it no batch: partial ones, and what
    /// bad samples took. Several ranks that go on from there do not make up for them.
    pub rows_without_batch: u64,
    /// Rows of the whole run, once a rank has seen all its epochs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_row: Option<u64>,
    /// Where each data set stands at the beginning of that row.
    pub sets: Vec<SetPosition>,
    /// How many rows from that one on are used up, for all slots in turn.
    #[serde(rename = "lanes")]
    pub slots: Vec<SlotRun>,
    /// The counters so far: this rank's, or of all ranks after [`LoaderState::merge`].
    pub counters: Counters,
    /// The same by data set, if there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set_counters: Vec<Counters>,
    /// What the order was drawn from.
    pub order: OrderKey,
}

/// Name of the checksum's field.
const CHECKSUM_FIELD: &str = "sha256";

impl LoaderState {
    /// SHA-256 of the state as compact JSON, in hexadecimal digits.
    fn checksum(&self) -> Result<String, serde_json::Error> {
        let mut json = Vec::new();
        // The derived function, without the checksum.
        LoaderState::serialize(self, &mut serde_json::Serializer::new(&mut json))?;
        Ok(hex(&Sha256::digest(&json)))
    }
}

impl Serialize for LoaderState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Sealed<'a> {
            #[serde(flatten, serialize_with = "fields")]
            state: &'a LoaderState,
            sha256: String,
        }
        fn fields<S: Serializer>(state: &&LoaderState, serializer: S) -> Result<S::Ok, S::Error> {
            LoaderState::serialize(state, serializer)
        }
        let sealed = Sealed {
            sha256: self.checksum().map_err(serde::ser::Error::custom)?,
            state: self,
        };
        sealed.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for LoaderState {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let mut fields = serde_json::Map::deserialize(deserializer)?;
        // First, since another version may have other fields.
        let version = fields.get("version").and_then(serde_json::Value::as_u64);
        if let Some(version) = version.filter(|version| *version != u64::from(STATE_VERSION)) {
            return Err(D::Error::custom(other_version(version)));
        }
        let saved = fields.remove(CHECKSUM_FIELD);
        let state = LoaderState::deserialize(serde_json::Value::Object(fields));
        let state = state.map_err(D::Error::custom)?;
        let computed = state.checksum().map_err(D::Error::custom)?;
        match saved {
            Some(saved) if saved.as_str() != Some(&computed) => Err(D::Error::custom(
                "its checksum does not match: it was edited or damaged",
            )),
            _ => Ok(state),
        }
    }
}

fn other_version(version: u64) -> String {
    format!(
        "it is of version {version}, this program reads version {STATE_VERSION}; go on with the program \
         that saved it, or start a new run"
    )
}

/// Where a data set stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetPosition {
    /// Epoch of its next sample, from 0.
    pub epoch: u64,
    /// Samples of that epoch before it.
    pub position: u64,
    /// Positions of the mixture it has had in all.
    pub taken: u64,
}

/// Everything that fixes the order of samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrderKey {
    /// Data sets, in order.
    pub sets: Vec<SetKey>,
    /// Seed of the order.
    pub seed: u64,
    /// Shuffle mode.
    pub shuffle: ShuffleMode,
    /// Samples of a block, with `shuffle = "buffer"`.
    pub shuffle_buffer_samples: u64,
    /// Images per batch of all ranks together.
    pub global_batch: u64,
    /// Whether a partial last batch of an epoch is dropped.
    pub drop_last: bool,
}

/// What tells one data set from another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetKey {
    /// Its name; empty for the only one.
    pub name: String,
    /// Its weight in the mixture, as text so that it compares exactly.
    pub weight: String,
    /// Number of shards.
    pub num_shards: u64,
    /// SHA-256 over the shards' base names and sizes, in order.
    pub shards_sha256: String,
    /// What its texts hold. Not written where that is a caption a line, as it was before there was a
    /// choice, and where captions were never asked for.
    #[serde(default, skip_serializing_if = "is_each")]
    pub caption_lines: CaptionLines,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_each(lines: &CaptionLines) -> bool {
    *lines == CaptionLines::Each
}

impl SetKey {
    /// The key of a data set whose shards have these sizes in bytes, where they are known.
    pub(crate) fn new(set: &DataSet, sizes: &[Option<u64>]) -> SetKey {
        let mut hasher = Sha256::new();
        for (shard, size) in set.shards.iter().zip(sizes) {
            let name = shard.base_name();
            hasher.update((name.len() as u64).to_le_bytes());
            hasher.update(name.as_bytes());
            hasher.update(size.unwrap_or(u64::MAX).to_le_bytes());
        }
        let digest = hasher.finalize();
        SetKey {
            name: set.name.clone(),
            weight: set.weight.to_string(),
            num_shards: set.shards.len() as u64,
            shards_sha256: hex(&digest),
            caption_lines: CaptionLines::Each,
        }
    }
}

impl OrderKey {
    /// The key of a configuration on these data sets.
    pub fn new(config: &LoaderConfig, sets: Vec<SetKey>, world: World) -> Self {
        OrderKey {
            sets,
            seed: config.seed,
            shuffle: config.shuffle,
            shuffle_buffer_samples: config.shuffle_buffer_samples as u64,
            global_batch: config.batch_size as u64 * u64::from(world.size()),
            drop_last: config.drop_last,
        }
    }

    /// Names the first difference, as `(setting, saved, now)`.
    fn difference(&self, now: &OrderKey) -> Option<(String, String, String)> {
        let row = |what: &str, saved: String, now: String| (what.to_string(), saved, now);
        let mut rows = vec![row(
            "number of data sets",
            self.sets.len().to_string(),
            now.sets.len().to_string(),
        )];
        for (saved, now) in self.sets.iter().zip(&now.sets) {
            let of = match saved.name.as_str() {
                "" => String::new(),
                name => format!(" of data set `{name}`"),
            };
            rows.push(row("data set", saved.name.clone(), now.name.clone()));
            rows.push((
                format!("number of shards{of}"),
                saved.num_shards.to_string(),
                now.num_shards.to_string(),
            ));
            rows.push((
                format!("shard names and sizes{of} (sha256)"),
                saved.shards_sha256.clone(),
                now.shards_sha256.clone(),
            ));
            rows.push((
                format!("weight{of}"),
                saved.weight.clone(),
                now.weight.clone(),
            ));
        }
        rows.extend([
            row("seed", self.seed.to_string(), now.seed.to_string()),
            row(
                "shuffle",
                self.shuffle.name().into(),
                now.shuffle.name().into(),
            ),
            row(
                "shuffle_buffer_samples",
                self.shuffle_buffer_samples.to_string(),
                now.shuffle_buffer_samples.to_string(),
            ),
            row(
                "global batch (batch_size × ranks)",
                self.global_batch.to_string(),
                now.global_batch.to_string(),
            ),
            row(
                "drop_last",
                self.drop_last.to_string(),
                now.drop_last.to_string(),
            ),
        ]);
        rows.into_iter()
            .find(|(_, saved, current)| saved != current)
    }
}

impl LoaderState {
    /// The start of a run, as a rule with epoch 0.
    pub fn start(order: OrderKey, epoch: u64) -> Self {
        let sets = order.sets.len();
        LoaderState {
            version: STATE_VERSION,
            batches: 0,
            row: 0,
            rows_without_batch: 0,
            last_row: None,
            sets: vec![
                SetPosition {
                    epoch,
                    ..SetPosition::default()
                };
                sets
            ],
            slots: Vec::new(),
            counters: Counters::default(),
            set_counters: match sets {
                0 | 1 => Vec::new(),
                _ => vec![Counters::default(); sets],
            },
            order,
        }
    }

    /// Checks that continuing from this state gives the order it was saved from.
    ///
    /// # Errors
    /// [`PipelineError::State`] naming what differs, with both values.
    pub fn check(&self, now: &OrderKey) -> Result<(), PipelineError> {
        if self.version != STATE_VERSION {
            return Err(PipelineError::State(other_version(self.version.into())));
        }
        if let Some((what, saved, current)) = self.order.difference(now) {
            return Err(PipelineError::State(format!(
                "it was saved with another {what} ({saved}) than the present one ({current}); \
                 resume with the same data and settings, or start a new run"
            )));
        }
        let counted = self.set_counters.len();
        let slots_fit = self.slots.is_empty()
            || BatchSlots::total(&self.slots) == Some(self.order.global_batch);
        let counts = (self.slots.iter().map(|run| run.rows))
            .chain([self.row, self.rows_without_batch, self.batches])
            .chain(self.last_row)
            .chain(
                std::iter::once(&self.counters)
                    .chain(&self.set_counters)
                    .flat_map(Counters::all),
            )
            .chain(
                self.sets
                    .iter()
                    .flat_map(|set| [set.epoch, set.position, set.taken]),
            );
        if self.sets.len() != self.order.sets.len()
            || !slots_fit
            || !(counted == 0 || counted == self.sets.len())
            || counts.max() > Some(MAX_COUNT)
            || !self.counters.balance()
        {
            return Err(PipelineError::State(
                "it does not fit together: impossible counts, counters that do not reconcile, or another \
                 number of data sets or slots than its own order says; it was edited or damaged"
                    .into(),
            ));
        }
        Ok(())
    }

    /// What this rank goes on with: the counters of the run are the first rank's.
    pub(crate) fn of_rank(mut self, world: World) -> LoaderState {
        if !world.is_first() {
            self.counters = Counters::default();
            self.set_counters.fill(Counters::default());
        }
        self
    }

    /// Whether anything of the run is used up.
    pub(crate) fn is_under_way(&self) -> bool {
        self.batches > 0 || self.row > 0 || !self.slots.is_empty()
    }

    /// Epoch of the only or first data set, from 0.
    pub fn epoch(&self) -> u64 {
        self.sets.first().map_or(0, |set| set.epoch)
    }

    /// The state of all ranks together, from those that each rank saved after the same batch, in
    /// the order of ranks. Any world size that divides the global batch can go on from it.
    ///
    /// A rank knows what it skipped itself and supposes that others skipped as much. So the state of
    /// one rank stands for all as long as no sample was bad, and this makes it exact.
    ///
    /// # Errors
    /// [`PipelineError::State`] when the states are of different runs or batches, or their number
    /// does not divide the global batch.
    pub fn merge(states: &[LoaderState]) -> Result<LoaderState, PipelineError> {
        let refuse = |message: String| Err(PipelineError::State(message));
        let Some(first) = states.iter().min_by_key(|state| state.row) else {
            return refuse("there is none to merge".into());
        };
        for (rank, state) in states.iter().enumerate() {
            state.check(&first.order)?;
            if state.batches != first.batches {
                return refuse(format!(
                    "rank {rank} saved it after batch {}, another after batch {}",
                    state.batches, first.batches
                ));
            }
        }
        let global_batch = first.order.global_batch;
        let ranks = states.len() as u64;
        if global_batch % ranks != 0 {
            return refuse(format!(
                "{ranks} ranks cannot have shared a global batch of {global_batch}"
            ));
        }
        let mut merged = first.clone();
        merged.last_row = states.iter().filter_map(|state| state.last_row).max();
        merged.slots = BatchSlots::merge(
            states.iter().map(|state| (state.row, &state.slots[..])),
            global_batch / ranks,
        );
        for state in states.iter().filter(|state| !std::ptr::eq(*state, first)) {
            merged.counters.add(&state.counters);
            for (sum, more) in merged.set_counters.iter_mut().zip(&state.set_counters) {
                sum.add(more);
            }
        }
        Ok(merged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> LoaderState {
        let set = SetKey {
            name: "a".into(),
            weight: "0.7".into(),
            num_shards: 3,
            shards_sha256: "5f".repeat(32),
            caption_lines: CaptionLines::One,
        };
        let config = LoaderConfig::default();
        let order = OrderKey::new(&config, vec![set.clone(), set], World::default());
        LoaderState {
            batches: 1 << 40,
            row: 7,
            last_row: Some(9),
            slots: vec![SlotRun { slots: 16, rows: 1 }],
            ..LoaderState::start(order, 2)
        }
    }

    #[test]
    fn states_come_back_and_no_changed_character_passes() {
        let state = state();
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<LoaderState>(&text).unwrap(), state);
        let pretty = serde_json::to_string_pretty(&state).unwrap();
        assert_eq!(serde_json::from_str::<LoaderState>(&pretty).unwrap(), state);
        for at in 0..text.len() {
            for bit in 0..7 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let read = serde_json::from_slice::<LoaderState>(&bytes);
                // White space for another, or an exponent's letter, says the same.
                assert!(read.is_err() || read.unwrap() == state, "bit {bit} of {at}");
            }
        }
        let changed = text.replace("\"row\":7", "\"row\":8");
        let error = serde_json::from_str::<LoaderState>(&changed).unwrap_err();
        assert!(error.to_string().contains("edited or damaged"), "{error}");
        let Ok(serde_json::Value::Object(mut fields)) = serde_json::from_str(&changed) else {
            panic!("an object");
        };
        // Whatever else another version may have.
        let mut newer = fields.clone();
        newer.insert("version".into(), 3.into());
        newer.insert("more".into(), "fields".into());
        let error = serde_json::from_value::<LoaderState>(newer.into()).unwrap_err();
        let expected = "of version 3, this program reads version 2";
        assert!(error.to_string().contains(expected), "{error}");
        // As older versions wrote it, without a checksum.
        fields.remove("sha256").unwrap();
        let older: LoaderState = serde_json::from_value(fields.into()).unwrap();
        assert_eq!(older, LoaderState { row: 8, ..state });
    }
}
