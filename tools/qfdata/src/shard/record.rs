//! What a run says of itself, and of the shards that it wrote whole: the lines of its journal.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What decides the bytes of the shards, by name of the option.
pub(super) type Settings = BTreeMap<String, String>;

/// What a run says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunRecord {
    pid: u32,
    host: String,
    /// Seconds since 1970.
    started: u64,
    settings: Settings,
    /// What the input was.
    found: Settings,
    /// Whether it was to replace what was there before.
    pub(super) overwrite: bool,
}

impl RunRecord {
    pub(super) fn new(settings: Settings, overwrite: bool) -> Self {
        RunRecord {
            pid: std::process::id(),
            host: host(),
            started: since_1970().as_secs(),
            settings,
            found: Settings::new(),
            overwrite,
        }
    }

    /// Adds what is known only once the input was looked at.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.found.insert(name.to_owned(), value.to_owned());
    }

    /// What decides the bytes of the shards.
    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether the input of another run was not this one's.
    pub(super) fn difference_of_input(&self, other: &RunRecord) -> bool {
        self.found != other.found
    }

    /// The first setting in which another run differs: its name, here, and there.
    pub(super) fn difference(&self, other: &RunRecord) -> Option<(String, String, String)> {
        let mut names: Vec<_> = self.settings.keys().chain(other.settings.keys()).collect();
        names.sort();
        let value = |settings: &Settings, name: &str| match settings.get(name) {
            Some(value) => value.clone(),
            None => "not given".to_owned(),
        };
        let pairs = names.into_iter().map(|name| {
            let (here, there) = (value(&self.settings, name), value(&other.settings, name));
            (name.clone(), here, there)
        });
        pairs.into_iter().find(|(_, here, there)| here != there)
    }

    /// `process 4711 on HOST, started 12 s ago`.
    pub(super) fn who(&self) -> String {
        let ago = since_1970().as_secs().saturating_sub(self.started);
        format!("process {} on {}, started {ago} s ago", self.pid, self.host)
    }

    /// Whether its process runs on this machine, as far as can be told.
    pub(super) fn is_alive(&self) -> bool {
        self.host == host() && Path::new(&format!("/proc/{}", self.pid)).exists()
    }
}

fn since_1970() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "this machine".to_owned(),
        name => name.to_owned(),
    }
}

/// A shard that is whole, and what was counted while it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WholeShard {
    pub(super) number: u64,
    /// Whether it is one of those that are held out, which have numbers of their own.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) held_out: bool,
    /// Whether the next line belongs to it: shards of both sides are closed together.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) has_more: bool,
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

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(value: &bool) -> bool {
    !value
}

/// Shards up to the last of those that were closed together, for what comes behind them is written again.
pub(super) fn closed_together(mut whole: Vec<WholeShard>) -> Vec<WholeShard> {
    while whole.last().is_some_and(|shard| shard.has_more) {
        whole.pop();
    }
    whole
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
    let mut next = [0; 2];
    let in_order = whole.map_while(|shard| {
        let next = &mut next[usize::from(shard.held_out)];
        let is_next = shard.number == *next;
        *next += 1;
        is_next.then_some(shard)
    });
    Some((record, closed_together(in_order.collect())))
}

#[cfg(test)]
mod tests {
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
        // Of two that were closed together both are there, or none counts.
        let both = [
            WholeShard {
                has_more: true,
                ..whole[1].clone()
            },
            WholeShard {
                held_out: true,
                ..whole[0].clone()
            },
        ];
        let pair = [&whole[..1], &both].concat();
        let text = lines(&record, &pair).unwrap();
        assert_eq!(parse(&text).unwrap().1, pair);
        assert_eq!(parse(&text[..text.len() - 1]).unwrap().1, whole[..1]);
        // One that is missing ends what can be gone on from.
        let gap = lines(&record, &[whole[0].clone(), whole[2].clone()]).unwrap();
        assert_eq!(parse(&gap).unwrap().1, whole[..1]);
    }
}
