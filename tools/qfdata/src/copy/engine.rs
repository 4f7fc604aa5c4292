//! From the files of a shard to the samples of a target.

use std::cell::RefCell;

use qf_pipeline::shard::arrow::OtherColumns;
use qf_pipeline::shard::entries::{Entry, ShardEntries};
use qf_pipeline::shard::group::split_key;
use qf_pipeline::shard::read::ReadOptions;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::write::ShardFormat;
use qf_pipeline::{EncodedSample, ShardError};

use super::sink::Sink;
use super::unit::{Unit, UnitContent, UnitFile};

/// What to copy.
pub(crate) struct CopyOptions<'a> {
    pub(crate) read: ReadOptions,
    /// Whether the sample at this position of its shard is kept.
    pub(crate) keeps: &'a dyn Fn(u32) -> bool,
    /// Whether a sample that cannot be copied is counted and named; else it ends the copy.
    pub(crate) passes_over_bad: bool,
}

/// What became of a shard.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    pub(crate) samples: u64,
    pub(crate) left_out_samples: u64,
    pub(crate) left_out_files: u64,
    /// Where reading ended, if that is not the end.
    pub(crate) error: Option<ShardError>,
}

/// Copies the samples of a shard, those kept, in stored order.
///
/// # Errors
/// Those of the target. What is wrong with the shard is in the result.
pub(crate) fn copy_shard(
    shard: &ShardLocation,
    options: &CopyOptions<'_>,
    stop: &Stop,
    sink: &mut Sink<'_>,
) -> anyhow::Result<Copied> {
    let read = ReadOptions {
        all_members: true,
        needs_captions: false,
        other_columns: OtherColumns::All,
        ..options.read.clone()
    };
    let entries = match ShardEntries::open(shard, &read, stop) {
        Ok(entries) => entries,
        Err(error) => {
            return Ok(Copied {
                error: Some(error),
                ..Copied::default()
            })
        }
    };
    let mut copying = Copying {
        shard,
        options,
        format: entries.format(),
        sink,
        copied: Copied::default(),
        pending: Vec::new(),
        pending_bytes: 0,
        is_too_large: false,
        key: None,
        next_sample: 0,
    };
    let failure = RefCell::new(None);
    let mut visit = |entry: Entry| match copying.entry(entry) {
        Ok(()) => true,
        Err(error) => {
            failure.replace(Some(error));
            false
        }
    };
    let ended = entries.read(0, &|_| true, &mut visit);
    if let Some(error) = failure.into_inner() {
        return Err(error);
    }
    match ended {
        Ok(_) => copying.flush()?,
        // The last sample may lack members.
        Err(error) => {
            copying.copied.left_out_samples += u64::from(copying.key.is_some());
            copying.copied.error = Some(error);
        }
    }
    Ok(copying.copied)
}

struct Copying<'a, 'b> {
    shard: &'a ShardLocation,
    options: &'a CopyOptions<'a>,
    /// That of the shard that is read.
    format: ShardFormat,
    sink: &'a mut Sink<'b>,
    copied: Copied,
    /// Files of the present sample.
    pending: Vec<UnitFile>,
    pending_bytes: u64,
    is_too_large: bool,
    key: Option<String>,
    /// Position of the sample that begins next.
    next_sample: u32,
}

impl Copying<'_, '_> {
    fn entry(&mut self, entry: Entry) -> anyhow::Result<()> {
        let file = match entry {
            Entry::File(file) => file,
            Entry::Row(row) => return self.row(row),
        };
        let key = split_key(file.path()).map(|(key, _)| key);
        if key.is_some() && key != self.key.as_deref() {
            self.flush()?;
            self.key = key.map(str::to_owned);
            self.next_sample += 1;
        }
        self.pending_bytes = self.pending_bytes.saturating_add(file.size_bytes());
        if file.is_too_large() || self.pending_bytes > self.options.read.max_sample_bytes {
            self.is_too_large = true;
            self.pending.clear();
        }
        if !self.is_too_large {
            self.pending.push(UnitFile {
                has_key: key.is_some(),
                path: file.path().to_string(),
                bytes: file.bytes().unwrap_or_default().to_vec(),
            });
        }
        match self.key {
            Some(_) => Ok(()),
            None => self.flush(),
        }
    }

    fn row(&mut self, row: Result<EncodedSample, qf_pipeline::SampleError>) -> anyhow::Result<()> {
        let position = self.next_sample;
        self.next_sample += 1;
        match row {
            Err(error) => self.bad(error.to_string()),
            Ok(_) if !(self.options.keeps)(position) => {
                self.copied.left_out_samples += 1;
                Ok(())
            }
            Ok(row) => self.hand_over(Unit {
                key: Some(row.id.key.clone()),
                content: UnitContent::Row(Box::new(row)),
            }),
        }
    }

    /// Hands the present sample to the target.
    fn flush(&mut self) -> anyhow::Result<()> {
        let key = self.key.take();
        let mut files = std::mem::take(&mut self.pending);
        let is_too_large = std::mem::take(&mut self.is_too_large);
        self.pending_bytes = 0;
        if is_too_large {
            let name = key.unwrap_or_else(|| "(a file without a key)".to_string());
            let limit = self.options.read.max_sample_bytes;
            return self.bad(format!(
                "sample {}#{name} has more than {limit} bytes; take it out with tar",
                self.shard.name
            ));
        }
        let is_kept = key.is_none() || (self.options.keeps)(self.next_sample.saturating_sub(1));
        if !is_kept {
            self.copied.left_out_samples += 1;
            files.retain(|file| !file.has_key);
        }
        if files.is_empty() {
            return Ok(());
        }
        self.hand_over(Unit {
            key: key.filter(|_| is_kept),
            content: UnitContent::Files(files),
        })
    }

    fn hand_over(&mut self, unit: Unit) -> anyhow::Result<()> {
        let is_sample = unit.key.is_some();
        match self.sink.take(self.shard, self.format, unit)? {
            Ok(left_out_files) => {
                self.copied.samples += u64::from(is_sample);
                self.copied.left_out_files += left_out_files;
                Ok(())
            }
            Err(why) if is_sample => self.bad(why),
            Err(why) => {
                log::warn!("{why}");
                self.copied.left_out_files += 1;
                Ok(())
            }
        }
    }

    /// A sample that cannot be copied.
    fn bad(&mut self, what: String) -> anyhow::Result<()> {
        self.copied.left_out_samples += 1;
        match self.options.passes_over_bad {
            true => log::info!("{what}"),
            false => qf_cli::output::remark(format_args!("left out: {what}")),
        }
        Ok(())
    }
}
