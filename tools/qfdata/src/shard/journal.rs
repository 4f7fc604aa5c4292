//! What a run has written so far, so that it can go on where it was killed: a line that says what it
//! makes, then one for each shard that is whole. Of a folder it stands in the file that locks the prefix
//! ([`super::lock`]); of a store it is an object beside the shards.

use super::lock::PrefixLock;
use super::output::Output;
use super::record::{lines, parse, RunRecord, WholeShard};

/// The journal of a run.
pub(super) struct Journal {
    record: RunRecord,
    whole: Vec<WholeShard>,
    place: Place,
    has_begun: bool,
}

/// Where it stands.
enum Place {
    Folder(PrefixLock),
    Store,
}

/// What was found of an earlier run.
pub(super) struct Earlier {
    pub(super) record: RunRecord,
    pub(super) whole: Vec<WholeShard>,
}

impl Journal {
    /// Takes the right to write under a prefix, and reads what an earlier run wrote down.
    ///
    /// # Errors
    /// That another run has it; that it cannot be read.
    pub(super) fn open(
        output: &Output,
        record: RunRecord,
    ) -> anyhow::Result<(Journal, Option<Earlier>)> {
        let (place, earlier) = match output.store() {
            None => {
                let lock = PrefixLock::take(output.folder(), output.name(), output.extension())?;
                let earlier = lock.unfinished().cloned();
                (Place::Folder(lock), earlier)
            }
            Some(store) => {
                let text = store.get(&object_name(output))?;
                (Place::Store, text.and_then(|text| parse(&text)))
            }
        };
        let journal = Journal {
            record,
            whole: Vec::new(),
            place,
            has_begun: false,
        };
        let earlier = earlier.map(|(record, whole)| Earlier { record, whole });
        Ok((journal, earlier))
    }

    /// What this run makes.
    pub(super) fn record_mut(&mut self) -> &mut RunRecord {
        &mut self.record
    }

    pub(super) fn record(&self) -> &RunRecord {
        &self.record
    }

    /// Goes on behind these shards.
    pub(super) fn go_on(&mut self, whole: Vec<WholeShard>) {
        self.whole = whole;
    }

    /// Shards that are whole, in order.
    pub(super) fn whole(&self) -> &[WholeShard] {
        &self.whole
    }

    /// Writes down, before the first shard, what is made. Once only.
    pub(super) fn begin(&mut self, output: &Output) -> anyhow::Result<()> {
        if std::mem::replace(&mut self.has_begun, true) {
            return Ok(());
        }
        match (&mut self.place, output.store()) {
            (Place::Folder(lock), _) => lock.begin(&self.record, &self.whole),
            (Place::Store, Some(store)) => {
                store.put(&object_name(output), lines(&self.record, &self.whole)?)
            }
            (Place::Store, None) => Ok(()),
        }
    }

    /// Writes down that shards are whole which were closed together.
    pub(super) fn add(&mut self, output: &Output, shards: Vec<WholeShard>) -> anyhow::Result<()> {
        match (&mut self.place, output.store()) {
            (Place::Folder(lock), _) => lock.add(&shards)?,
            (Place::Store, Some(store)) => {
                let mut whole = self.whole.clone();
                whole.extend(shards.iter().cloned());
                store.put(&object_name(output), lines(&self.record, &whole)?)?;
            }
            (Place::Store, None) => {}
        }
        self.whole.extend(shards);
        Ok(())
    }

    /// All shards are complete.
    pub(super) fn finish(self, output: &Output) -> anyhow::Result<()> {
        match self.place {
            Place::Folder(lock) => lock.finish(),
            Place::Store => output.remove_file(&object_name(output), false),
        }
    }

    /// Nothing is left of what was begun.
    pub(super) fn take_back(&mut self) {
        if let Place::Folder(lock) = &mut self.place {
            lock.take_back();
        }
    }
}

fn object_name(output: &Output) -> String {
    format!("{}.{}.run", output.name(), output.extension())
}
