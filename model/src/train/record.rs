//! metrics.jsonl: one line per logged step, continued across resumptions.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use qf_pipeline::atomic_file::AtomicFile;
use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// One step, as logged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: u64,
    /// Epoch of its batch, from 0.
    pub epoch: u64,
    /// Sum of the three losses.
    pub loss: f64,
    /// Contrastive loss.
    pub loss_itc: f64,
    /// Matching loss.
    pub loss_itm: f64,
    /// Language-model loss.
    pub loss_lm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Images per second over the last steps.
    pub images_per_s: f64,
    /// Share of the time since the run started (or resumed) that was spent waiting for data.
    pub data_wait_share: f64,
    /// Samples read so far.
    pub samples_read: u64,
    /// Samples skipped so far.
    pub samples_skipped: u64,
}

/// Appends records to a file.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
}

impl MetricsFile {
    /// Opens `path` to continue after `step`: lines of later steps, which a run wrote after its last
    /// checkpoint, and a torn last line are removed.
    ///
    /// # Errors
    /// [`ModelError::Io`] naming the file.
    pub fn open(path: &Path, step: u64) -> Result<Self, ModelError> {
        let error = |source| ModelError::Io {
            path: path.to_owned(),
            source,
        };
        if path.exists() {
            let mut kept = AtomicFile::create(path)?;
            for line in BufReader::new(File::open(path).map_err(error)?).lines() {
                let line = line.map_err(error)?;
                let record = serde_json::from_str::<StepRecord>(&line);
                if record.is_ok_and(|record| record.step <= step) {
                    writeln!(kept, "{line}").map_err(error)?;
                }
            }
            kept.commit()?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(error)?;
        Ok(MetricsFile {
            path: path.to_owned(),
            file,
        })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`ModelError::Io`] naming the file.
    pub fn append(&mut self, record: &StepRecord) -> Result<(), ModelError> {
        let error = |source| ModelError::Io {
            path: self.path.clone(),
            source,
        };
        let mut line =
            serde_json::to_string(record).map_err(|e| error(std::io::Error::other(e)))?;
        line.push('\n');
        // One write per line, so that a reader (or a crash) never sees half of one.
        self.file.write_all(line.as_bytes()).map_err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_after_the_checkpoint_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let record = |step| StepRecord {
            step,
            epoch: 0,
            loss: 1.5,
            loss_itc: 0.5,
            loss_itm: 0.5,
            loss_lm: 0.5,
            lr: 1e-4,
            images_per_s: 10.0,
            data_wait_share: 0.0,
            samples_read: 16 * step,
            samples_skipped: 0,
        };
        let mut metrics = MetricsFile::open(&path, 0).unwrap();
        for step in 1..=5 {
            metrics.append(&record(step)).unwrap();
        }
        drop(metrics);
        std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(b"{\"step\": 6, \"lo"))
            .unwrap();
        MetricsFile::open(&path, 3)
            .unwrap()
            .append(&record(4))
            .unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let steps: Vec<u64> = text
            .lines()
            .map(|line| serde_json::from_str::<StepRecord>(line).unwrap().step)
            .collect();
        assert_eq!(steps, [1, 2, 3, 4]);
    }
}
