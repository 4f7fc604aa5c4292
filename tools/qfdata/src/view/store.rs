//! What is known of all samples, for pages that are made when they are asked for.
//!
//! Records lie in a temporary file; memory holds 8 bytes for each sample.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::fetch::Place;
use super::page::{severity_of, Shown};
use crate::inspect::codes::{self, Severity};

/// A sample as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) place: Place,
    pub(super) shard: String,
    pub(super) key: String,
    pub(super) offset_bytes: u64,
    /// Width, height, format, bytes.
    pub(super) picture: Option<(u32, u32, String, u64)>,
    pub(super) captions: Vec<(String, Option<usize>)>,
    /// Codes and messages.
    pub(super) problems: Vec<(String, String)>,
}

impl Record {
    pub(super) fn new(place: Place, shown: Shown) -> Record {
        let problems = shown.problems.into_iter();
        Record {
            place,
            shard: shown.shard,
            key: shown.key,
            offset_bytes: shown.offset_bytes,
            picture: shown
                .picture
                .map(|(w, h, format, bytes)| (w, h, format.to_string(), bytes)),
            captions: shown.captions,
            problems: problems
                .map(|(code, message)| (code.id.to_string(), message))
                .collect(),
        }
    }

    /// As a card shows it.
    pub(super) fn shown(&self) -> Shown {
        let format = |name: &str| {
            let known = ["JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"];
            known
                .into_iter()
                .find(|known| *known == name)
                .unwrap_or("image")
        };
        let problems = self
            .problems
            .iter()
            .filter_map(|(id, message)| Some((codes::find(id)?, message.clone())));
        Shown {
            shard: self.shard.clone(),
            key: self.key.clone(),
            offset_bytes: self.offset_bytes,
            picture: self
                .picture
                .as_ref()
                .map(|(w, h, name, bytes)| (*w, *h, format(name), *bytes)),
            captions: self.captions.clone(),
            problems: problems.collect(),
        }
    }
}

/// Which samples are asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    /// Lower case; all of them occur in the key or the captions.
    pub(super) words: Vec<String>,
    /// A code, or a severity.
    pub(super) problem: Option<String>,
    pub(super) min_side: Option<u32>,
    pub(super) max_side: Option<u32>,
    pub(super) format: Option<String>,
}

impl Filter {
    fn has(&self, record: &Record) -> bool {
        let contains = |word: &String| {
            record.key.to_lowercase().contains(word)
                || record
                    .captions
                    .iter()
                    .any(|(caption, _)| caption.to_lowercase().contains(word))
        };
        let is_problem = |problem: &String| {
            let severity = severity_of(problem);
            record.problems.iter().any(|(id, _)| match severity {
                Some(severity) => codes::find(id).map(|code| code.severity) == Some(severity),
                None if problem == "none" => false,
                None => id.eq_ignore_ascii_case(problem),
            })
        };
        let is_clean = || {
            let is_note =
                |id: &str| codes::find(id).is_some_and(|code| code.severity == Severity::Note);
            record.problems.iter().all(|(id, _)| is_note(id))
        };
        let side = record.picture.as_ref().map(|(w, h, ..)| *w.min(h));
        let format = record.picture.as_ref().map(|(_, _, name, _)| name.as_str());
        self.words.iter().all(contains)
            && self
                .problem
                .as_ref()
                .is_none_or(|problem| match problem.as_str() {
                    "none" => is_clean(),
                    _ => is_problem(problem),
                })
            && self
                .min_side
                .is_none_or(|min| side.is_some_and(|side| side >= min))
            && self
                .max_side
                .is_none_or(|max| side.is_some_and(|side| side <= max))
            && self
                .format
                .as_ref()
                .is_none_or(|wanted| format == Some(wanted))
    }
}

/// Samples that a page shows.
pub(super) struct Found {
    pub(super) records: Vec<(u64, Record)>,
    /// Where to go on.
    pub(super) next: Option<u64>,
}

/// All records, in stored order; filled while it is asked.
pub(super) struct Store {
    file: File,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Where each record begins.
    offsets: Vec<u64>,
    end: u64,
    is_whole: bool,
}

impl Store {
    pub(super) fn new() -> anyhow::Result<Store> {
        let file =
            tempfile::tempfile().context("cannot make a temporary file (TMPDIR says where)")?;
        Ok(Store {
            file,
            inner: Mutex::default(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn push(&self, record: &Record) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        let mut inner = self.lock();
        let at = inner.end;
        self.file
            .write_all_at(&line, at)
            .context("cannot write a temporary file")?;
        inner.offsets.push(at);
        inner.end += line.len() as u64;
        Ok(())
    }

    /// No more will come.
    pub(super) fn close(&self) {
        self.lock().is_whole = true;
    }

    /// Samples so far, and whether these are all.
    pub(super) fn len(&self) -> (u64, bool) {
        let inner = self.lock();
        (inner.offsets.len() as u64, inner.is_whole)
    }

    /// The record of this number.
    pub(super) fn get(&self, number: u64) -> anyhow::Result<Option<Record>> {
        let found = self.find(number, 1, &Filter::default())?;
        Ok(found.records.into_iter().next().map(|(_, record)| record))
    }

    /// The first records from a number on that a filter lets through.
    pub(super) fn find(&self, from: u64, count: usize, filter: &Filter) -> anyhow::Result<Found> {
        let (from, start, end) = {
            let inner = self.lock();
            let from = from.min(inner.offsets.len() as u64);
            let at = inner.offsets.get(from as usize);
            (from, at.copied().unwrap_or(inner.end), inner.end)
        };
        let section = Section {
            file: &self.file,
            at: start,
            end,
        };
        let mut found = Found {
            records: Vec::new(),
            next: None,
        };
        for (number, line) in (from..).zip(BufReader::with_capacity(1 << 16, section).lines()) {
            let line = line.context("cannot read a temporary file")?;
            let record: Record = serde_json::from_str(&line)?;
            if !filter.has(&record) {
                continue;
            }
            if found.records.len() == count {
                found.next = Some(number);
                break;
            }
            found.records.push((number, record));
        }
        Ok(found)
    }
}

/// A part of a file that others read, too.
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl io::Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let count = self.file.read_at(&mut buffer[..wanted], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(number: u32, caption: &str, problem: Option<&str>) -> Record {
        Record {
            place: (0, number),
            shard: "s.tar".into(),
            key: format!("{number:03}"),
            offset_bytes: 0,
            picture: Some((100 + number, 80 + number, "JPEG".into(), 9)),
            captions: vec![(caption.into(), None)],
            problems: problem
                .iter()
                .map(|id| (id.to_string(), "m".into()))
                .collect(),
        }
    }

    #[test]
    fn records_are_found_page_by_page() {
        let store = Store::new().unwrap();
        for number in 0..100 {
            let caption = if number % 3 == 0 {
                "A red Dog\nruns"
            } else {
                "a cat"
            };
            let problem = (number == 30)
                .then_some("QF-I02")
                .or((number == 33).then_some("QF-I17"));
            store.push(&record(number, caption, problem)).unwrap();
        }
        assert_eq!(store.len(), (100, false));
        let numbers = |from, filter: &Filter| {
            let found = store.find(from, 5, filter).unwrap();
            let numbers: Vec<u64> = found.records.iter().map(|(number, _)| *number).collect();
            (numbers, found.next)
        };
        let dogs = Filter {
            words: vec!["dog".into(), "red".into()],
            ..Filter::default()
        };
        assert_eq!(numbers(0, &dogs), (vec![0, 3, 6, 9, 12], Some(15)));
        assert_eq!(numbers(90, &dogs), (vec![90, 93, 96, 99], None));
        assert_eq!(numbers(100, &dogs), (vec![], None));
        assert_eq!(numbers(u64::MAX, &dogs), (vec![], None));
        let of = |problem: &str| Filter {
            problem: Some(problem.into()),
            ..Filter::default()
        };
        assert_eq!(numbers(0, &of("error")), (vec![30], None));
        assert_eq!(numbers(0, &of("qf-i17")), (vec![33], None));
        assert_eq!(numbers(28, &of("none")).0, [28, 29, 31, 32, 33]);
        let large = Filter {
            min_side: Some(177),
            ..Filter::default()
        };
        assert_eq!(numbers(0, &large), (vec![97, 98, 99], None));
        assert_eq!(store.get(42).unwrap().unwrap().key, "042");
        assert!(store.get(100).unwrap().is_none());
    }
}
