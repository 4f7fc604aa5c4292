//! Event files for TensorBoard, which W&B and Trackio read, too.
//!
//! A file is a sequence of records: length (u64), its checksum, the message, its checksum; little-endian
//! (TensorFlow's `record_writer.h`). The checksums are CRC-32C, rotated and shifted, so that the checksum of
//! data that hold checksums is no trivial one.

mod proto;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use qf_model::train::{MetricsRecord, StepRecord, ValidationRecord};

use self::proto::Message;

/// Numbers of fields and of enumerations, as in the .proto files.
mod field {
    pub(super) mod event {
        pub(in super::super) const WALL_TIME: u64 = 1;
        pub(in super::super) const STEP: u64 = 2;
        pub(in super::super) const FILE_VERSION: u64 = 3;
        pub(in super::super) const SUMMARY: u64 = 5;
        pub(in super::super) const SESSION_LOG: u64 = 7;
    }
    pub(super) mod session_log {
        pub(in super::super) const STATUS: u64 = 1;
        pub(in super::super) const START: u64 = 1;
    }
    pub(super) mod summary {
        pub(in super::super) const VALUE: u64 = 1;
    }
    pub(super) mod value {
        pub(in super::super) const TAG: u64 = 1;
        pub(in super::super) const SIMPLE_VALUE: u64 = 2;
        pub(in super::super) const HISTOGRAM: u64 = 5;
        pub(in super::super) const TENSOR: u64 = 8;
        pub(in super::super) const METADATA: u64 = 9;
    }
    pub(super) mod histogram {
        pub(in super::super) const MIN: u64 = 1;
        pub(in super::super) const MAX: u64 = 2;
        pub(in super::super) const NUM: u64 = 3;
        pub(in super::super) const SUM: u64 = 4;
        pub(in super::super) const SUM_SQUARES: u64 = 5;
        pub(in super::super) const BUCKET_LIMIT: u64 = 6;
        pub(in super::super) const BUCKET: u64 = 7;
    }
    pub(super) mod tensor {
        pub(in super::super) const DTYPE: u64 = 1;
        pub(in super::super) const SHAPE: u64 = 2;
        pub(in super::super) const STRING_VAL: u64 = 8;
        pub(in super::super) const DT_STRING: u64 = 7;
        /// Of a shape, and of a dimension in it.
        pub(in super::super) const DIM: u64 = 2;
        pub(in super::super) const SIZE: u64 = 1;
    }
    pub(super) mod metadata {
        pub(in super::super) const PLUGIN_DATA: u64 = 1;
        pub(in super::super) const PLUGIN_NAME: u64 = 1;
        pub(in super::super) const DESCRIPTION: u64 = 3;
        pub(in super::super) const DATA_CLASS: u64 = 4;
        pub(in super::super) const BLOB_SEQUENCE: u64 = 3;
        pub(in super::super) const TENSOR: u64 = 2;
    }
}

/// An image with what is said of it.
pub(crate) struct Picture<'a> {
    pub(crate) tag: String,
    /// A JPEG or PNG.
    pub(crate) encoded: &'a [u8],
    pub(crate) side: usize,
    /// Markdown.
    pub(crate) description: String,
}

/// Values of a tensor, counted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Histogram {
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) sum: f64,
    pub(crate) sum_squares: f64,
    /// Values in equal parts of `min..max`.
    pub(crate) counts: Vec<f64>,
}

/// An event file of a run, for one process; each run of the program adds a file to the folder.
#[derive(Debug)]
pub(crate) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// A new file in `folder` of a run that goes on after `step`. What earlier files have of later steps,
    /// TensorBoard leaves out.
    ///
    /// # Errors
    /// That the folder or the file cannot be made, by name.
    pub(crate) fn create(folder: &Path, step: u64) -> anyhow::Result<EventFile> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let node = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let node: String = node.chars().filter(char::is_ascii_alphanumeric).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default();
        let process = std::process::id();
        // Files are read in the order of their names: by the second, and within it by the nanosecond.
        let name = format!(
            "events.out.tfevents.{:010}.{node}.{process}.{:09}",
            now.as_secs(),
            now.subsec_nanos()
        );
        let path = folder.join(name);
        let file = OpenOptions::new().append(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("cannot create {}", path.display()))?;
        let mut events = EventFile { path, file };
        events.append(|event| event.text(field::event::FILE_VERSION, "brain.Event:2"))?;
        if step > 0 {
            let start = Message::new().int(field::session_log::STATUS, field::session_log::START);
            events.append(|event| {
                event
                    .int(field::event::STEP, step + 1)
                    .message(field::event::SESSION_LOG, start)
            })?;
        }
        Ok(events)
    }

    /// Writes the numbers of a line of metrics.jsonl.
    ///
    /// # Errors
    /// That the file cannot be written, by name.
    pub(crate) fn record(&mut self, record: &MetricsRecord) -> anyhow::Result<()> {
        match record {
            MetricsRecord::Train(record) => self.scalars(record.step, &of_step(record)),
            MetricsRecord::Validation(record) => self.scalars(record.step, &of_validation(record)),
            MetricsRecord::Skipped(_) => Ok(()),
        }
    }

    fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> anyhow::Result<()> {
        let mut summary = Message::new();
        for (tag, value) in scalars {
            let value = Message::new()
                .text(field::value::TAG, tag)
                .float(field::value::SIMPLE_VALUE, *value as f32);
            summary = summary.message(field::summary::VALUE, value);
        }
        self.summary(step, summary)
    }

    /// Writes an image.
    ///
    /// # Errors
    /// That the file cannot be written, by name.
    pub(crate) fn picture(&mut self, step: u64, picture: &Picture<'_>) -> anyhow::Result<()> {
        let side = picture.side.to_string();
        // As tf.summary.image has it: width, height, then the images.
        let strings = [side.as_bytes(), side.as_bytes(), picture.encoded];
        let class = field::metadata::BLOB_SEQUENCE;
        let value = tensor_value(
            &picture.tag,
            "images",
            class,
            &picture.description,
            &strings,
        );
        let summary = Message::new().message(field::summary::VALUE, value);
        self.summary(step, summary)
    }

    /// Writes a text in Markdown.
    ///
    /// # Errors
    /// That the file cannot be written, by name.
    pub(crate) fn text(&mut self, step: u64, tag: &str, text: &str) -> anyhow::Result<()> {
        let class = field::metadata::TENSOR;
        let value = tensor_value(tag, "text", class, "", &[text.as_bytes()]);
        let summary = Message::new().message(field::summary::VALUE, value);
        self.summary(step, summary)
    }

    /// Writes a histogram.
    ///
    /// # Errors
    /// That the file cannot be written, by name.
    pub(crate) fn histogram(
        &mut self,
        step: u64,
        tag: &str,
        histogram: &Histogram,
    ) -> anyhow::Result<()> {
        let Histogram {
            min,
            max,
            sum,
            sum_squares,
            counts,
        } = histogram;
        let width = (max - min) / counts.len().max(1) as f64;
        let limits: Vec<f64> = (1..=counts.len())
            .map(|at| min + width * at as f64)
            .collect();
        let histogram = Message::new()
            .double(field::histogram::MIN, *min)
            .double(field::histogram::MAX, *max)
            .double(field::histogram::NUM, counts.iter().sum())
            .double(field::histogram::SUM, *sum)
            .double(field::histogram::SUM_SQUARES, *sum_squares)
            .doubles(field::histogram::BUCKET_LIMIT, &limits)
            .doubles(field::histogram::BUCKET, counts);
        let value = Message::new()
            .text(field::value::TAG, tag)
            .message(field::value::HISTOGRAM, histogram);
        self.summary(step, Message::new().message(field::summary::VALUE, value))
    }

    fn summary(&mut self, step: u64, summary: Message) -> anyhow::Result<()> {
        self.append(|event| {
            event
                .int(field::event::STEP, step)
                .message(field::event::SUMMARY, summary)
        })
    }

    /// Appends an event of now, in one write: a reader sees whole records, or the beginning of one.
    fn append(&mut self, fill: impl FnOnce(Message) -> Message) -> anyhow::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let time = now.map_or(0.0, |since| since.as_secs_f64());
        let event = fill(Message::new().double(field::event::WALL_TIME, time));
        let record = framed(&event.into_bytes());
        let written = self.file.write_all(&record);
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Strings as a tensor of one dimension, for a plugin.
fn tensor_value(
    tag: &str,
    plugin: &str,
    class: u64,
    description: &str,
    strings: &[&[u8]],
) -> Message {
    use field::{metadata, tensor, value};
    let size = Message::new().int(tensor::SIZE, strings.len() as u64);
    let mut tensor = Message::new()
        .int(tensor::DTYPE, tensor::DT_STRING)
        .message(tensor::SHAPE, Message::new().message(tensor::DIM, size));
    for string in strings {
        tensor = tensor.bytes(tensor::STRING_VAL, string);
    }
    let plugin = Message::new().text(metadata::PLUGIN_NAME, plugin);
    let metadata = Message::new()
        .message(metadata::PLUGIN_DATA, plugin)
        .text(metadata::DESCRIPTION, description)
        .int(metadata::DATA_CLASS, class);
    Message::new()
        .text(value::TAG, tag)
        .message(value::TENSOR, tensor)
        .message(value::METADATA, metadata)
}

fn of_step(record: &StepRecord) -> Vec<(&'static str, f64)> {
    let mut scalars = vec![
        ("train/loss", record.loss),
        ("train/loss_itc", record.loss_itc),
        ("train/loss_itm", record.loss_itm),
        ("train/loss_lm", record.loss_lm),
        ("train/grad_norm", record.grad_norm),
        ("train/lr", record.lr),
        ("speed/images_per_s", record.images_per_s),
        ("speed/data_wait_share", record.data_wait_share),
        ("data/samples_read", record.samples_read as f64),
        ("data/samples_skipped", record.samples_skipped as f64),
    ];
    scalars.extend(record.temperature.map(|value| ("train/temperature", value)));
    let memory = record
        .memory_bytes
        .map(|bytes| ("speed/memory_bytes", bytes as f64));
    scalars.extend(memory);
    scalars
}

fn of_validation(record: &ValidationRecord) -> Vec<(&'static str, f64)> {
    let losses = [
        ("held_out/loss", record.loss),
        ("held_out/loss_itc", record.loss_itc),
        ("held_out/loss_itm", record.loss_itm),
        ("held_out/loss_lm", record.loss_lm),
    ];
    let losses = losses.into_iter();
    let mut scalars: Vec<_> = losses
        .filter_map(|(tag, value)| Some((tag, value?)))
        .collect();
    scalars.extend([
        ("retrieval/itc_tr_r1", record.itc.text.r1),
        ("retrieval/itc_tr_r5", record.itc.text.r5),
        ("retrieval/itc_ir_r1", record.itc.image.r1),
        ("retrieval/itc_ir_r5", record.itc.image.r5),
    ]);
    if let Some(itm) = &record.itm {
        scalars.extend([
            ("retrieval/itm_tr_r1", itm.text.r1),
            ("retrieval/itm_ir_r1", itm.image.r1),
        ]);
    }
    scalars
}

/// A message as a record.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(message.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(message);
    record.extend(masked_crc(message).to_le_bytes());
    record
}

/// CRC-32C, rotated right by 15 bits and shifted.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}
