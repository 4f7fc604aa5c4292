//! What a page shows of a run, from the files in its folder. Memory does not grow with the run.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{bail, Context};
use qf_model::run_dir::RunDir;
use qf_model::train::{MetricsLine, MetricsRecord, RunProfile, StepRecord, ValidationRecord};
use qf_pipeline::loader::SkippedSample;
use qftrain::run_config::no_such_folder;
use qftrain::settings::flatten;
use serde::Deserialize;

use crate::gallery::Gallery;

/// Longer lines no run writes.
const MAX_LINE: u64 = 1 << 20;

/// Points of a curve, at most twice as many.
const MAX_POINTS: usize = 1000;

/// Bad samples that are named of each reason.
const NAMED: usize = 5;

/// A run.
pub(super) struct RunData {
    /// The last part of its folder's path.
    pub(super) name: String,
    pub(super) path: String,
    /// Settings by their names in the configuration file.
    pub(super) settings: BTreeMap<String, String>,
    /// Means over equally many logged steps.
    pub(super) points: Vec<Point>,
    pub(super) validations: Vec<ValidationRecord>,
    pub(super) last: Option<StepRecord>,
    /// The first updates that were left out: step and first tensor.
    pub(super) left_out: Vec<(u64, String)>,
    pub(super) skips: BTreeMap<String, Skips>,
    /// Samples in skipped.jsonl beyond those that have a line.
    pub(super) unnamed: u64,
    pub(super) profile: Option<RunProfile>,
    pub(super) gallery: Option<Gallery>,
}

/// Some logged steps, averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Point {
    /// The last of them.
    pub(super) step: u64,
    /// Hours since the first record, without the time between resumptions; `None` in old files.
    pub(super) hours: Option<f64>,
    pub(super) loss: f64,
    pub(super) loss_itc: f64,
    pub(super) loss_itm: f64,
    pub(super) loss_lm: f64,
    pub(super) grad_norm: f64,
    pub(super) lr: f64,
    pub(super) temperature: Option<f64>,
    pub(super) images_per_s: f64,
    pub(super) data_wait: f64,
    pub(super) memory_gb: Option<f64>,
}

/// Samples that were skipped for one reason.
#[derive(Debug, Default)]
pub(super) struct Skips {
    pub(super) count: u64,
    /// The first of them: where, and what is wrong.
    pub(super) named: Vec<(String, String)>,
}

impl RunData {
    /// Reads a run's folder.
    ///
    /// # Errors
    /// That it holds no run, or that a file of it cannot be read, by name.
    pub(super) fn read(run_dir: &RunDir) -> anyhow::Result<RunData> {
        let path = run_dir.path();
        if !path.is_dir() {
            bail!("{}", no_such_folder(run_dir));
        }
        if !run_dir.config().exists() && !run_dir.metrics().exists() {
            bail!(
                "{} holds no run (no config.toml and no metrics.jsonl); give the folder that --run-dir \
                 named",
                path.display()
            );
        }
        let name = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let name = name
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        let mut data = RunData {
            name: name.unwrap_or_else(|| path.display().to_string()),
            path: path.display().to_string(),
            settings: settings(&run_dir.config())?,
            points: Vec::new(),
            validations: Vec::new(),
            last: None,
            left_out: Vec::new(),
            skips: BTreeMap::new(),
            unnamed: 0,
            profile: profile(&run_dir.profile())?,
            gallery: Gallery::read(&run_dir.gallery())?,
        };
        data.read_metrics(&run_dir.metrics())?;
        data.read_skips(&run_dir.skipped())?;
        Ok(data)
    }

    fn read_metrics(&mut self, path: &Path) -> anyhow::Result<()> {
        let mut curve = Curve::default();
        let mut clock = Clock::default();
        each_line(path, |line| {
            // A torn last line, or one of a kind that is not known here, is no reason to show nothing.
            let Ok(line) = serde_json::from_slice::<MetricsLine>(line) else {
                return;
            };
            let hours = line.time.map(|time| clock.hours(time));
            match line.record {
                MetricsRecord::Train(record) => {
                    curve.add(&point(&record, hours));
                    self.last = Some(record);
                }
                MetricsRecord::Validation(record) => self.validations.push(record),
                MetricsRecord::Skipped(record) if self.left_out.len() < MAX_POINTS => {
                    self.left_out.push((record.step, record.first_tensor));
                }
                MetricsRecord::Skipped(_) => {}
            }
        })?;
        self.points = curve.finish();
        Ok(())
    }

    fn read_skips(&mut self, path: &Path) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Unnamed {
            unnamed: u64,
        }
        each_line(path, |line| {
            if let Ok(sample) = serde_json::from_slice::<SkippedSample>(line) {
                let skips = self
                    .skips
                    .entry(sample.reason.name().to_string())
                    .or_default();
                skips.count += 1;
                if skips.named.len() < NAMED {
                    let place = match sample.sample {
                        Some(_) => {
                            format!("{}#{}@{}", sample.shard, sample.key, sample.offset_bytes)
                        }
                        None => format!(
                            "{}@{}, and the rest of it",
                            sample.shard, sample.offset_bytes
                        ),
                    };
                    skips.named.push((place, sample.message));
                }
            } else if let Ok(Unnamed { unnamed }) = serde_json::from_slice(line) {
                self.unnamed += unnamed;
            }
        })
    }
}

/// Calls `see` with each line of a file that is there; over-long ones are passed over.
fn each_line(path: &Path, mut see: impl FnMut(&[u8])) -> anyhow::Result<()> {
    let error = || format!("cannot read {}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(cause).with_context(error),
    };
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    let mut is_rest = false;
    loop {
        line.clear();
        let mut bounded = Read::take(&mut reader, MAX_LINE);
        if bounded.read_until(b'\n', &mut line).with_context(error)? == 0 {
            return Ok(());
        }
        let is_whole = line.ends_with(b"\n") || (line.len() as u64) < MAX_LINE;
        if is_whole && !is_rest {
            see(&line);
        }
        is_rest = !is_whole;
    }
}

fn settings(path: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut settings = BTreeMap::new();
    if path.exists() {
        let text = fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        let value: toml::Value = toml::from_str(&text)
            .with_context(|| format!("{}: not a configuration", path.display()))?;
        flatten("", &value, &mut settings);
    }
    Ok(settings)
}

/// The profile of a run; `None` where there is none yet, or one of another version.
fn profile(path: &Path) -> anyhow::Result<Option<RunProfile>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_to_string(path);
    let text = text.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(serde_json::from_str(&text).ok())
}

fn point(record: &StepRecord, hours: Option<f64>) -> Point {
    Point {
        step: record.step,
        hours,
        loss: record.loss,
        loss_itc: record.loss_itc,
        loss_itm: record.loss_itm,
        loss_lm: record.loss_lm,
        grad_norm: record.grad_norm,
        lr: record.lr,
        temperature: record.temperature,
        images_per_s: record.images_per_s,
        data_wait: 100.0 * record.data_wait_share,
        memory_gb: record.memory_bytes.map(|bytes| bytes as f64 / 1e9),
    }
}

/// Turns Unix times into hours of training: a pause is no part of them.
#[derive(Debug, Default)]
struct Clock {
    last: Option<f64>,
    secs: f64,
}

impl Clock {
    /// A longer time between two records is a pause.
    const PAUSE: f64 = 3600.0;

    fn hours(&mut self, time: f64) -> f64 {
        let since = time - self.last.replace(time).unwrap_or(time);
        if (0.0..Clock::PAUSE).contains(&since) {
            self.secs += since;
        }
        self.secs / 3600.0
    }
}

/// Points, of which two become one wherever there are too many.
#[derive(Debug, Default)]
struct Curve {
    points: Vec<Point>,
    /// Records in each point.
    stride: usize,
    /// The records of the point that is not whole yet.
    pending: Vec<Point>,
}

impl Curve {
    fn add(&mut self, point: &Point) {
        let stride = self.stride.max(1);
        self.pending.push(*point);
        if self.pending.len() < stride {
            return;
        }
        self.points.push(mean(&self.pending));
        self.pending.clear();
        if self.points.len() >= 2 * MAX_POINTS {
            self.points = self.points.chunks(2).map(mean).collect();
            self.stride = 2 * stride;
        }
    }

    fn finish(mut self) -> Vec<Point> {
        if !self.pending.is_empty() {
            self.points.push(mean(&self.pending));
        }
        self.points
    }
}

fn mean(points: &[Point]) -> Point {
    let count = points.len() as f64;
    let mean = |of: fn(&Point) -> f64| points.iter().map(of).sum::<f64>() / count;
    let some = |of: fn(&Point) -> Option<f64>| {
        let values: Option<Vec<f64>> = points.iter().map(of).collect();
        values.map(|values| values.iter().sum::<f64>() / count)
    };
    let last = points.last().copied().unwrap_or_default();
    Point {
        step: last.step,
        hours: last.hours,
        loss: mean(|p| p.loss),
        loss_itc: mean(|p| p.loss_itc),
        loss_itm: mean(|p| p.loss_itm),
        loss_lm: mean(|p| p.loss_lm),
        grad_norm: mean(|p| p.grad_norm),
        lr: mean(|p| p.lr),
        temperature: some(|p| p.temperature),
        images_per_s: mean(|p| p.images_per_s),
        data_wait: mean(|p| p.data_wait),
        memory_gb: some(|p| p.memory_gb),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_run_keeps_its_shape_in_few_points() {
        let mut curve = Curve::default();
        for step in 1..=100_000u64 {
            curve.add(&Point {
                step,
                loss: step as f64,
                temperature: Some(0.5),
                ..Point::default()
            });
        }
        let points = curve.finish();
        assert!(points.len() >= MAX_POINTS && points.len() <= 2 * MAX_POINTS);
        assert_eq!(points.last().unwrap().step, 100_000);
        assert!(points
            .windows(2)
            .all(|two| two[0].step < two[1].step && two[0].loss < two[1].loss));
        // A point is the mean of its steps: of a straight line, half a stride behind its last.
        let stride = (points[1].step - points[0].step) as f64;
        assert!((points[0].step as f64 - points[0].loss - (stride - 1.0) / 2.0).abs() < 1e-6);
        assert_eq!(points[0].temperature, Some(0.5));
    }

    #[test]
    fn pauses_are_no_training_time() {
        let mut clock = Clock::default();
        let hours: Vec<f64> = [1000.0, 2800.0, 90_000.0, 91_800.0]
            .map(|time| clock.hours(time))
            .to_vec();
        assert_eq!(hours, [0.0, 0.5, 0.5, 1.0]);
    }

    #[test]
    fn torn_and_unknown_lines_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(folder.path());
        let error = RunData::read(&run_dir).err().unwrap().to_string();
        assert!(error.contains("holds no run"), "{error}");
        let long = "x".repeat(3 << 20);
        let line = |step: u64| {
            format!(
                r#"{{"schema":2,"time":1e9,"kind":"train","step":{step},"epoch":0,"loss":3,"loss_itc":1,"loss_itm":1,"loss_lm":1,"lr":0.1,"images_per_s":5,"data_wait_share":0,"samples_read":4,"samples_skipped":0}}"#
            )
        };
        let text = format!(
            "{}\n{{\"kind\":\"later\",\"step\":1}}\n{long}\n{}\n{{\"kind\":\"tra",
            line(1),
            line(2)
        );
        fs::write(run_dir.metrics(), text).unwrap();
        let skipped = r#"{"step":1,"epoch":0,"reason":"broken_image","shard":"a.tar","sample":3,"key":"k","offset_bytes":512,"message":"m"}"#;
        fs::write(
            run_dir.skipped(),
            format!("{skipped}\n{{\"step\":2,\"unnamed\":7}}\n"),
        )
        .unwrap();
        let data = RunData::read(&run_dir).unwrap();
        let steps: Vec<u64> = data.points.iter().map(|point| point.step).collect();
        assert_eq!((steps, data.unnamed), (vec![1, 2], 7));
        let skips = &data.skips["broken_image"];
        assert_eq!((skips.count, &*skips.named[0].0), (1, "a.tar#k@512"));
    }
}
