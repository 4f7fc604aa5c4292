//! What a run has written so far, so that it can go on where it was killed: a line that says what it
//! makes, then one for each shard that is whole. Of a folder it stands in the file that locks the prefix
//! ([`super::lock`]); of a store it is an object beside the shards.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::lock::{PrefixLock, RunRecord};
use super::output::Output;

/// A shard that is whole, and what was counted while it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WholeShard {
    pub(super) number: u64,
    /// The first row of the input that is behind it.
    pub(super) rows_end: u64,
    pub(super) samples: u64,
    pub(super) captions: u64,
    pub(super) file_bytes: u64,
    /// 1 if its index stands beside it.
    pub(super) indexes: u64,
    pub(super) renamed_keys: u64,
    /// Rows that became no sample, by cause.
    pub(super) skipped: BTreeMap<String, u64>,
}

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

    /// Writes down that a shard is whole.
    pub(super) fn add(&mut self, output: &Output, shard: WholeShard) -> anyhow::Result<()> {
        match (&mut self.place, output.store()) {
            (Place::Folder(lock), _) => lock.add(&shard)?,
            (Place::Store, Some(store)) => {
                let mut whole = self.whole.clone();
                whole.push(shard.clone());
                store.put(&object_name(output), lines(&self.record, &whole)?)?;
            }
            (Place::Store, None) => {}
        }
        self.whole.push(shard);
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

/// A line of the journal.
pub(super) fn line(shard: &WholeShard) -> serde_json::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(shard)?;
    line.push(b'\n');
    Ok(line)
}

/// The whole journal.
pub(super) fn lines(record: &RunRecord, whole: &[WholeShard]) -> serde_json::Result<Vec<u8>> {
    let mut lines = serde_json::to_vec(record)?;
    lines.push(b'\n');
    for shard in whole {
        lines.extend(line(shard)?);
    }
    Ok(lines)
}

/// The record, and the shards up to the first line that was not written to its end.
pub(super) fn parse(text: &[u8]) -> Option<(RunRecord, Vec<WholeShard>)> {
    let mut lines = text.split_inclusive(|&byte| byte == b'\n');
    let record = serde_json::from_slice(lines.next()?).ok()?;
    let whole = lines.map_while(|line| {
        let is_whole = line.ends_with(b"\n");
        is_whole.then(|| serde_json::from_slice::<WholeShard>(line).ok())?
    });
    let in_order = whole.enumerate().map_while(|(at, shard)| {
        let is_next = shard.number == at as u64;
        is_next.then_some(shard)
    });
    Some((record, in_order.collect()))
}

#[cfg(test)]
mod tests {
    use super::super::lock::Settings;
    use super::*;

    #[test]
    fn a_line_that_was_cut_off_is_no_shard() {
        let record = RunRecord::new(Settings::new(), false);
        let whole: Vec<_> = (0..3)
            .map(|number| WholeShard {
                number,
                rows_end: 10 * (number + 1),
                skipped: BTreeMap::from([("no_caption".to_owned(), 2)]),
                ..WholeShard::default()
            })
            .collect();
        let text = lines(&record, &whole).unwrap();
        let ends: Vec<_> = text
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b'\n')
            .map(|(at, _)| at + 1)
            .collect();
        for len in 0..=text.len() {
            let found = parse(&text[..len]);
            let complete = ends.iter().filter(|end| **end <= len).count();
            match found {
                Some((found, shards)) => {
                    assert_eq!(found, record);
                    assert_eq!(shards, whole[..complete.saturating_sub(1)]);
                }
                None => assert_eq!(complete, 0),
            }
        }
        // One that is missing ends what can be gone on from.
        let gap = lines(&record, &[whole[0].clone(), whole[2].clone()]).unwrap();
        assert_eq!(parse(&gap).unwrap().1, whole[..1]);
    }
}
