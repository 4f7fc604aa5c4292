//! metrics.jsonl: one JSON object per line, continued across resumptions.
//!
//! `"kind"` says what a line is: `"train"` a logged step ([`StepRecord`]), `"validation"` figures on
//! held-out data ([`ValidationRecord`]), `"skipped"` a step whose update was left out
//! ([`SkippedRecord`]). Every line has the `"step"` it belongs to, the `"time"` it was written (Unix
//! time, seconds) and the `"schema"` of these names, [`METRICS_SCHEMA`].

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use qf_pipeline::atomic_file::{open_in_place, AtomicFile};
use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::eval::RecallPair;

/// Version of the names in metrics.jsonl. Version 1, of earlier programs, is not in their lines; 2 has
/// `schema`, `time`, `temperature`, `samples_bad` and `memory_bytes`. A name may come without a new
/// version; one that goes or changes its meaning makes one.
pub const METRICS_SCHEMA: u32 = 2;

/// A record as it stands in metrics.jsonl.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsLine<R = MetricsRecord> {
    /// Version of the names; 1 where the line has none.
    #[serde(default = "first_schema")]
    pub schema: u32,
    /// When it was written: Unix time, seconds. `None` in lines of version 1.
    #[serde(default)]
    pub time: Option<f64>,
    /// What it says.
    #[serde(flatten)]
    pub record: R,
}

impl<'a> MetricsLine<&'a MetricsRecord> {
    /// A record as it is written now.
    pub fn now(record: &'a MetricsRecord) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        MetricsLine {
            schema: METRICS_SCHEMA,
            time: now.ok().map(|since| since.as_secs_f64()),
            record,
        }
    }
}

fn first_schema() -> u32 {
    1
}

/// A line of metrics.jsonl.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum MetricsRecord {
    /// A logged step.
    Train(StepRecord),
    /// Figures on held-out data.
    Validation(ValidationRecord),
    /// A step whose update was left out.
    Skipped(SkippedRecord),
}

/// A step that changed no weight, because a loss or gradient was not finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SkippedRecord {
    /// Number of the step, from 1.
    pub step: u64,
    /// Epoch of its batch, from 0.
    pub epoch: u64,
    /// The first tensor that held NaN or an infinity, in order of computation.
    pub first_tensor: String,
    /// The samples of the batch.
    pub samples: Vec<String>,
    /// Where the batch was saved.
    pub batch: Option<PathBuf>,
}

impl fmt::Display for SkippedRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "step {}: update skipped, {} is not finite on the batch [{}]",
            self.step,
            self.first_tensor,
            self.samples.join(", ")
        )?;
        match &self.batch {
            Some(path) => write!(f, ", saved in {}", path.display()),
            None => Ok(()),
        }
    }
}

/// One step, as logged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Number of the step, from 1.
    pub step: u64,
    /// Epoch of its batch, from 0.
    pub epoch: u64,
    /// Sum of the three losses; mean over the ranks, as are the three. (The reference shows those of
    /// rank 0 and averages over ranks at the end of an epoch.)
    pub loss: f64,
    /// Contrastive loss.
    pub loss_itc: f64,
    /// Matching loss.
    pub loss_itm: f64,
    /// Language-model loss.
    pub loss_lm: f64,
    /// Norm of all gradients together, before clipping.
    #[serde(default)]
    pub grad_norm: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// What similarities are divided by, after the step.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// Images per second over the last steps, of all ranks together.
    pub images_per_s: f64,
    /// Share of the time since the run started (or resumed) that was spent waiting for data.
    pub data_wait_share: f64,
    /// Samples read so far.
    pub samples_read: u64,
    /// Samples skipped so far.
    pub samples_skipped: u64,
    /// Those of them that are bad: a filter left out the others.
    #[serde(default)]
    pub samples_bad: u64,
    /// All skipped so far by reason, such as `broken_image`; reasons of none are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub skipped_by_reason: BTreeMap<String, u64>,
    /// On a GPU, bytes that its tensors hold; else the resident memory of the process. Of rank 0.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
}

/// Appends records to a file.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
    /// Step of the last validation that it held when it was opened.
    last_validation: Option<u64>,
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
        #[derive(Deserialize)]
        struct Belongs {
            step: u64,
            #[serde(default)]
            kind: String,
        }
        let mut last_validation = None;
        if path.exists() {
            let mut kept = AtomicFile::create(path)?;
            for line in BufReader::new(File::open(path).map_err(error)?).lines() {
                let line = line.map_err(error)?;
                // Any kind, and those of earlier programs, which had no `kind`.
                let record = serde_json::from_str::<Belongs>(&line);
                let Ok(record) = record else {
                    continue;
                };
                if record.step <= step {
                    writeln!(kept, "{line}").map_err(error)?;
                    if record.kind == "validation" {
                        last_validation = Some(record.step);
                    }
                }
            }
            kept.commit()?;
        }
        let mut options = OpenOptions::new();
        let file = open_in_place(path, options.create(true).append(true)).map_err(error)?;
        Ok(MetricsFile {
            path: path.to_owned(),
            file,
            last_validation,
        })
    }

    /// Whether the last validation that it held when it was opened is of `step`.
    pub(super) fn is_validated(&self, step: u64) -> bool {
        self.last_validation == Some(step)
    }

    /// Appends a line.
    ///
    /// # Errors
    /// [`ModelError::Io`] naming the file.
    pub fn append(&mut self, record: &MetricsRecord) -> Result<(), ModelError> {
        let error = |source| ModelError::Io {
            path: self.path.clone(),
            source,
        };
        let mut line = serde_json::to_string(&MetricsLine::now(record))
            .map_err(|e| error(std::io::Error::other(e)))?;
        line.push('\n');
        // One write per line, so that a reader (or a crash) never sees half of one.
        self.file.write_all(line.as_bytes()).map_err(error)
    }

    /// A handle of the file of its own, for syncing it to disk.
    ///
    /// # Errors
    /// [`ModelError::Io`] naming the file.
    pub(super) fn handle(&self) -> Result<File, ModelError> {
        self.file.try_clone().map_err(|source| ModelError::Io {
            path: self.path.clone(),
            source,
        })
    }
}

/// One validation, as logged. Losses are `None` where no batch had two images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidationRecord {
    /// Steps done.
    pub step: u64,
    /// Sum of the three losses, mean over the batches weighted by their images: without dropout, on
    /// the first caption of each image, with negatives drawn alike at every validation.
    pub loss: Option<f64>,
    /// Contrastive loss.
    pub loss_itc: Option<f64>,
    /// Matching loss.
    pub loss_itm: Option<f64>,
    /// Language-model loss.
    pub loss_lm: Option<f64>,
    /// Images used.
    pub images: usize,
    /// Their captions.
    pub captions: usize,
    /// Samples that could not be used.
    pub skipped: u64,
    /// Candidates that were re-ranked per query.
    pub rerank: usize,
    /// Recall by contrastive score.
    pub itc: RecallPair,
    /// Recall after re-ranking by the matching head.
    pub itm: Option<RecallPair>,
    /// Time it took.
    pub secs: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_after_the_checkpoint_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let record = |step| {
            MetricsRecord::Train(StepRecord {
                step,
                epoch: 0,
                loss: 1.5,
                loss_itc: 0.5,
                loss_itm: 0.5,
                loss_lm: 0.5,
                grad_norm: 2.0,
                lr: 1e-4,
                images_per_s: 10.0,
                data_wait_share: 0.0,
                samples_read: 16 * step,
                samples_skipped: 0,
                temperature: Some(0.07),
                samples_bad: 0,
                skipped_by_reason: BTreeMap::new(),
                memory_bytes: None,
            })
        };
        let skipped = |step| {
            MetricsRecord::Skipped(SkippedRecord {
                step,
                epoch: 0,
                first_tensor: "loss".into(),
                samples: vec!["a.tar#1@0".into()],
                batch: None,
            })
        };
        // Without a kind, as earlier programs wrote it.
        std::fs::write(&path, "{\"step\": 1, \"loss\": 1.5}\n").unwrap();
        let mut metrics = MetricsFile::open(&path, 1).unwrap();
        for step in 2..=5 {
            metrics.append(&record(step)).unwrap();
            metrics.append(&skipped(step)).unwrap();
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
            .map(|line| {
                let value: serde_json::Value = serde_json::from_str(line).unwrap();
                value["step"].as_u64().unwrap()
            })
            .collect();
        assert_eq!(steps, [1, 2, 2, 3, 3, 4]);
        let last = text.lines().last().unwrap();
        let last: MetricsLine = serde_json::from_str(last).unwrap();
        assert_eq!((last.schema, &last.record), (METRICS_SCHEMA, &record(4)));
        assert!(last.time.unwrap() > 1.7e9, "Unix time");
        // A line of version 1 is read as one.
        let old = r#"{"kind": "skipped", "step": 1, "epoch": 0, "first_tensor": "loss", "samples": [],
                      "batch": null}"#;
        let old: MetricsLine = serde_json::from_str(old).unwrap();
        assert_eq!((old.schema, old.time), (1, None));
    }
}
