//! skipped.jsonl: every bad sample of a run once, one JSON object per line.
//!
//! A line holds the `step` after which the sample was passed over, and where it is, as
//! [`SkippedSample`]; `"sample": null` stands for the rest of a shard that cannot be read. Where more
//! were bad at once than are kept in memory, a line `{"step": …, "unnamed": N}` counts them.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use qf_pipeline::atomic_file::{open_in_place, AtomicFile};
use qf_pipeline::loader::{NamedOnce, SkippedSample, TakenReports};
use qf_pipeline::printable::Printable;
use qf_pipeline::warnings::Warnings as LimitedWarnings;
use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// Longer lines no run writes.
const MAX_LINE: u64 = 1 << 20;

/// Appends to a file, and warns of what is new in it.
pub(super) struct SkipLog {
    path: PathBuf,
    /// None before the first line.
    file: Option<File>,
    named: NamedOnce,
    warnings: Warnings,
    /// Sums up what comes by the thousand.
    limited: LimitedWarnings,
}

/// What is worth a line in the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Warnings {
    pub(super) of_samples: bool,
    pub(super) of_shards: bool,
}

#[derive(Serialize, Deserialize)]
struct Line<T> {
    step: u64,
    #[serde(flatten)]
    what: T,
}

#[derive(Serialize)]
struct Unnamed {
    unnamed: u64,
}

impl SkipLog {
    /// Continues the file of a run after `step`: what it passed over later, it will pass over again.
    ///
    /// # Errors
    /// [`ModelError::Io`] naming the file.
    pub(super) fn open(path: &Path, step: u64, warnings: Warnings) -> Result<Self, ModelError> {
        let mut log = SkipLog {
            path: path.to_owned(),
            file: None,
            named: NamedOnce::new(0),
            warnings,
            limited: LimitedWarnings::default(),
        };
        if path.exists() {
            log.keep_until(step)?;
        }
        Ok(log)
    }

    fn keep_until(&mut self, step: u64) -> Result<(), ModelError> {
        let error = |source| ModelError::Io {
            path: self.path.clone(),
            source,
        };
        #[derive(Deserialize)]
        struct Belongs {
            step: u64,
        }
        let mut kept = AtomicFile::create(&self.path)?;
        let mut reader = BufReader::new(File::open(&self.path).map_err(error)?);
        let mut line = Vec::new();
        loop {
            line.clear();
            let mut bounded = std::io::Read::take(&mut reader, MAX_LINE);
            if bounded.read_until(b'\n', &mut line).map_err(error)? == 0 {
                break;
            }
            // The last line may be torn.
            let belongs = serde_json::from_slice::<Belongs>(&line);
            if !belongs.is_ok_and(|line| line.step <= step) {
                continue;
            }
            kept.write_all(&line).map_err(error)?;
            if let Ok(Line { what, .. }) = serde_json::from_slice::<Line<SkippedSample>>(&line) {
                self.named.is_new(&what.shard, what.sample, what.epoch);
            }
        }
        Ok(kept.commit()?)
    }

    /// Names those of `taken` that are new, as passed over after `step`.
    ///
    /// # Errors
    /// [`ModelError::Io`] naming the file.
    pub(super) fn append(&mut self, step: u64, taken: &TakenReports) -> Result<(), ModelError> {
        let mut lines = String::new();
        for report in &taken.named {
            if !(self.named).is_new(&report.shard, report.sample, report.epoch) {
                continue;
            }
            self.warn(report);
            lines += &self.line(&Line { step, what: report })?;
        }
        if taken.unnamed > 0 {
            log::warn!(
                "{} more bad samples have no line in {}: too many at once",
                taken.unnamed,
                self.path.display()
            );
            let unnamed = taken.unnamed;
            let what = Unnamed { unnamed };
            lines += &self.line(&Line { step, what })?;
        }
        if lines.is_empty() {
            return Ok(());
        }
        let error = |source| ModelError::Io {
            path: self.path.clone(),
            source,
        };
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let mut options = OpenOptions::new();
                let opened = open_in_place(&self.path, options.create(true).append(true));
                none.insert(opened.map_err(error)?)
            }
        };
        file.write_all(lines.as_bytes()).map_err(error)
    }

    fn line(&self, line: &impl Serialize) -> Result<String, ModelError> {
        let json = serde_json::to_string(line).map_err(|source| ModelError::Io {
            path: self.path.clone(),
            source: source.into(),
        })?;
        Ok(json + "\n")
    }

    fn warn(&mut self, report: &SkippedSample) {
        let (shard, key) = (Printable(&report.shard), Printable(&report.key));
        let (message, offset_bytes) = (Printable(&report.message), report.offset_bytes);
        match report.sample {
            Some(_) if self.warnings.of_samples => self.limited.warn(
                report.reason.name(),
                format_args!("skipped sample {shard}#{key}@{offset_bytes}: {message}"),
            ),
            None if self.warnings.of_shards => self.limited.warn(
                "bad_shard",
                format_args!(
                    "shard {shard} at byte {offset_bytes}: {message}; going on without the rest of it"
                ),
            ),
            _ => {}
        }
    }

    /// A handle of the file of its own, for syncing it to disk, if there is one.
    ///
    /// # Errors
    /// [`ModelError::Io`] naming the file.
    pub(super) fn handle(&self) -> Result<Option<File>, ModelError> {
        let handle = self.file.as_ref().map(File::try_clone).transpose();
        handle.map_err(|source| ModelError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use qf_pipeline::SkipReason;

    fn report(shard: &str, sample: Option<u32>, epoch: u64) -> SkippedSample {
        SkippedSample {
            set: "web".into(),
            epoch,
            reason: SkipReason::BrokenImage,
            shard: shard.into(),
            sample,
            key: "k".into(),
            offset_bytes: 512,
            message: "broken \u{1b}[31m".into(),
        }
    }

    fn taken(named: &[SkippedSample]) -> TakenReports {
        TakenReports {
            named: named.to_vec(),
            unnamed: 0,
        }
    }

    const QUIET: Warnings = Warnings {
        of_samples: false,
        of_shards: false,
    };

    #[test]
    fn each_sample_has_one_line_however_often_the_run_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("skipped.jsonl");
        let mut log = SkipLog::open(&path, 0, QUIET).unwrap();
        log.append(1, &taken(&[])).unwrap();
        assert!(log.handle().unwrap().is_none() && !path.exists());
        let [a, b, rest] = [Some(1), Some(2), None].map(|sample| report("x.tar", sample, 0));
        log.append(1, &taken(&[a.clone(), a.clone()])).unwrap();
        log.append(2, &taken(std::slice::from_ref(&rest))).unwrap();
        log.append(4, &taken(std::slice::from_ref(&b))).unwrap();
        let mut unnamed = taken(&[report("x.tar", Some(1), 7)]);
        unnamed.unnamed = 3;
        log.append(4, &unnamed).unwrap();
        assert!(log.handle().unwrap().is_some());
        drop(log);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"step\": 5, \"sha").unwrap();

        // Killed, and continued from step 3: what came later comes again.
        let mut log = SkipLog::open(&path, 3, QUIET).unwrap();
        log.append(4, &taken(&[b.clone(), a, rest])).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<Line<SkippedSample>> = (text.lines())
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let seen: Vec<_> = lines.iter().map(|l| (l.step, l.what.sample)).collect();
        assert_eq!(seen, [(1, Some(1)), (2, None), (4, Some(2))]);
        assert_eq!(lines[2].what, b);
        assert!(!text.contains('\u{1b}'), "control bytes are escaped");
    }
}
