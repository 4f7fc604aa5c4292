//! Where copied samples go: one shard, or one after another.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use anyhow::bail;
use qf_pipeline::captions::{raw_captions, CaptionSource};
use qf_pipeline::error::full_message;
use qf_pipeline::shard::group::split_key;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::write::{FileWriter, ShardFormat, ShardOptions, ShardSample, ShardWriter};
use qf_pipeline::{EncodedSample, Member, MemberData, SampleId};

use super::unit::{Unit, UnitContent, UnitFile};
use crate::files::files_of_row;
use crate::hash128::hash128;

/// When the next shard begins.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) max_count: Option<u64>,
    /// Of the uncompressed shard.
    pub(crate) max_bytes: Option<u64>,
}

/// Names the next shard, given the format of what is read, and says in which format it is written.
type NextTarget<'a> = Box<dyn FnMut(ShardFormat) -> anyhow::Result<(PathBuf, ShardFormat)> + 'a>;

/// Writes samples into shards.
pub(crate) struct Sink<'a> {
    next: NextTarget<'a>,
    limits: Limits,
    /// Keys get the name of their shard as a folder.
    by_shard: bool,
    level: Option<i32>,
    index: bool,
    captions: CaptionSource<'a>,
    current: Option<Current>,
    /// Shards that are complete.
    pub(crate) written: Vec<PathBuf>,
    /// Members without a place in Arrow, and columns.
    pub(crate) dropped_members: u64,
}

struct Current {
    writer: Writer,
    samples: u64,
    /// Bytes of an Arrow shard's samples.
    bytes: u64,
    keys: HashSet<[u64; 2]>,
}

enum Writer {
    Files(Box<FileWriter>),
    Rows(Box<ShardWriter>),
}

impl<'a> Sink<'a> {
    /// Shards are named by `next`, one after another.
    pub(crate) fn new(
        next: impl FnMut(ShardFormat) -> anyhow::Result<(PathBuf, ShardFormat)> + 'a,
    ) -> Sink<'a> {
        Sink {
            next: Box::new(next),
            limits: Limits::default(),
            by_shard: false,
            level: None,
            index: true,
            captions: CaptionSource::default(),
            current: None,
            written: Vec::new(),
            dropped_members: 0,
        }
    }

    /// Begins another shard when this one is full.
    pub(crate) fn limits(self, limits: Limits) -> Sink<'a> {
        Sink { limits, ..self }
    }

    /// How shards are written.
    pub(crate) fn written_with(
        self,
        (level, index): (Option<i32>, bool),
        by_shard: bool,
        captions: CaptionSource<'a>,
    ) -> Sink<'a> {
        Sink {
            level,
            index,
            by_shard,
            captions,
            ..self
        }
    }

    /// Writes a sample, or files without one. How many files were left out, or why all of it was.
    ///
    /// # Errors
    /// When the disk says no.
    pub(super) fn take(
        &mut self,
        shard: &ShardLocation,
        format: ShardFormat,
        unit: Unit,
    ) -> anyhow::Result<Result<u64, String>> {
        if unit.key.is_some() && self.is_full() {
            self.finish()?;
        }
        if self.current.is_none() {
            self.open(format)?;
        }
        let Some(current) = &mut self.current else {
            return Ok(Err("no shard is open".to_string()));
        };
        let key = unit.key.as_ref().map(|key| {
            // GNU tar of a folder: `./KEY.jpg`.
            let key = key.strip_prefix("./").unwrap_or(key);
            match self.by_shard {
                true => format!("{}/{key}", stem(shard.base_name())),
                false => key.to_owned(),
            }
        });
        if let Some(key) = &key {
            if !current.keys.insert(hash128(key)) {
                return Ok(Err(format!(
                    "sample {}#{key}: the new shard has this key already; --by-shard puts the name of \
                     its shard before each key",
                    shard.name
                )));
            }
        }
        let taken = match &mut current.writer {
            Writer::Files(writer) => write_files(writer, shard, unit, self.by_shard)?,
            Writer::Rows(writer) => {
                let written = write_row(writer, key.as_deref(), unit, self.captions)?;
                written.map(|(bytes, dropped)| {
                    current.bytes += bytes;
                    self.dropped_members += dropped;
                    0
                })
            }
        };
        if key.is_some() && taken.is_ok() {
            current.samples += 1;
        }
        Ok(taken)
    }

    fn is_full(&self) -> bool {
        let Some(current) = &self.current else {
            return false;
        };
        let bytes = match &current.writer {
            Writer::Files(writer) => writer.content_bytes(),
            Writer::Rows(_) => current.bytes,
        };
        current.samples > 0
            && (self
                .limits
                .max_count
                .is_some_and(|max| current.samples >= max)
                || self.limits.max_bytes.is_some_and(|max| bytes >= max))
    }

    fn open(&mut self, format: ShardFormat) -> anyhow::Result<()> {
        let (target, format) = (self.next)(format)?;
        let defaults = ShardOptions::new(format);
        let options = ShardOptions {
            level: self.level.unwrap_or(defaults.level),
            index: self.index,
            ..defaults
        };
        let writer = match format {
            ShardFormat::Arrow => Writer::Rows(Box::new(ShardWriter::create(target, &options)?)),
            _ => Writer::Files(Box::new(FileWriter::create(target, &options)?)),
        };
        self.current = Some(Current {
            writer,
            samples: 0,
            bytes: 0,
            keys: HashSet::new(),
        });
        Ok(())
    }

    /// Completes the present shard, if there is one.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        let path = match self.current.take().map(|current| current.writer) {
            None => return Ok(()),
            Some(Writer::Files(writer)) => writer.finish()?.path,
            Some(Writer::Rows(writer)) => writer.finish()?.path,
        };
        self.written.push(path);
        Ok(())
    }
}

/// The name of a shard without the endings of shards.
pub(crate) fn stem(name: &str) -> &str {
    let endings = [".gz", ".zst", ".tgz", ".tzst", ".tar", ".arrow"];
    endings.iter().fold(name, |name, ending| {
        name.strip_suffix(ending).unwrap_or(name)
    })
}

/// Refuses two shards of one stem: what is named after it would be theirs together. `advice` says what to do.
pub(crate) fn refuse_same_stems(shards: &[ShardLocation], advice: &str) -> anyhow::Result<()> {
    let mut seen: HashMap<&str, &ShardLocation> = HashMap::new();
    for shard in shards {
        let name = stem(shard.base_name());
        if let Some(other) = seen.insert(name, shard) {
            bail!(
                "{} and {} would both be named {name}; {advice}",
                other.name,
                shard.name
            );
        }
    }
    Ok(())
}

fn write_files(
    writer: &mut FileWriter,
    shard: &ShardLocation,
    unit: Unit,
    by_shard: bool,
) -> anyhow::Result<Result<u64, String>> {
    let files = match unit.content {
        UnitContent::Files(files) => files,
        UnitContent::Row(row) => files_of_row(&row)
            .into_iter()
            .map(|(path, bytes)| UnitFile {
                path,
                has_key: true,
                bytes,
            })
            .collect(),
    };
    let mut left_out = 0;
    let mut first_refusal = None;
    let count = files.len() as u64;
    for file in files {
        let path = match by_shard {
            true => format!("{}/{}", stem(shard.base_name()), file.path),
            false => file.path,
        };
        if let Err(error) = writer.append(&path, &file.bytes) {
            let why = refusal(error)?;
            left_out += 1;
            first_refusal.get_or_insert(why);
        }
    }
    writer.end_sample()?;
    match first_refusal {
        Some(why) if left_out == count => Ok(Err(why)),
        _ => Ok(Ok(left_out)),
    }
}

/// Bytes of the sample, and members that have no place in the row; or why it cannot be written.
fn write_row(
    writer: &mut ShardWriter,
    key: Option<&str>,
    unit: Unit,
    captions: CaptionSource<'_>,
) -> anyhow::Result<Result<(u64, u64), String>> {
    let Some(key) = key else {
        return Ok(Err(
            "a file without a key has no place in an Arrow shard".to_string()
        ));
    };
    let sample = match unit.content {
        UnitContent::Row(row) => *row,
        UnitContent::Files(files) => sample_of(key, files),
    };
    let Some((extension, image)) = sample
        .image(None)
        .and_then(|member| Some((member.name.clone(), member.bytes()?.to_vec())))
    else {
        return Ok(Err(format!("sample {key} has no image")));
    };
    let texts: Vec<String> = match raw_captions(&sample, captions) {
        Ok(texts) => texts.into_iter().map(Into::into).collect(),
        Err((_, why)) => return Ok(Err(format!("sample {key}: {why}"))),
    };
    let is_text = |member: &&Member| qf_pipeline::captions::is_caption_member(&member.name);
    let others = sample.members.len().saturating_sub(2) as u64;
    let dropped = match sample.members.iter().filter(is_text).count() {
        0 => others + 1,
        _ => others,
    };
    let bytes = image.len() as u64 + texts.iter().map(|text| text.len() as u64).sum::<u64>();
    let written = writer.write(&ShardSample {
        key: key.to_string(),
        extension,
        image,
        captions: texts,
        text_member: true,
        json: None,
        members: Vec::new(),
    });
    match written {
        Ok(()) => Ok(Ok((bytes, dropped))),
        Err(error) => Ok(Err(refusal(error)?)),
    }
}

fn sample_of(key: &str, files: Vec<UnitFile>) -> EncodedSample {
    let members = files.into_iter().filter_map(|file| {
        let (_, extension) = split_key(&file.path)?;
        Some(Member::new(extension, MemberData::Bytes(file.bytes)))
    });
    EncodedSample {
        id: SampleId {
            shard: "".into(),
            shard_index: 0,
            sample_index: 0,
            key: key.to_string(),
            offset_bytes: 0,
        },
        members: members.collect(),
    }
}

/// An error of a target, in words: what it cannot hold costs a sample or a file, anything else ends the copy.
fn refusal(error: qf_pipeline::PipelineError) -> anyhow::Result<String> {
    match error {
        qf_pipeline::PipelineError::Unwritable { .. } => Ok(full_message(&error)),
        error => Err(error.into()),
    }
}
