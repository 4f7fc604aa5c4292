//! Reads single samples of a shard by its index.

use std::io::{self, BufReader, Read};
use std::ops::Range;

use crc32c::crc32c_append;

use super::faults::{damaged_entry, overwrite_advice, shard_error};
use super::format::{key_hash, Access, Record};
use super::shard_index::ShardIndex;
use crate::error::{SampleError, ShardError, SkipReason};
use crate::sample::EncodedSample;
use crate::shard::arrow::{ArrowReadOptions, ArrowShardReader};
use crate::shard::forward::Stream;
use crate::shard::group::Grouper;
use crate::shard::read::{ReadObserver, ReadOptions, READ_BUFFER_BYTES};
use crate::shard::tar::{for_each_member, Leave, TarMember};
use crate::shard::verify::Verify;
use crate::shard::zstd_frames::FrameReader;
use crate::source::ShardLocation;
use crate::stop::Stop;

/// Bytes of a shard that are read and thrown away to save opening it again: what a fast remote store
/// delivers in the time of one request.
const MAX_GAP_BYTES: u64 = 256 << 10;

/// Receives samples with their position in the shard; returns `false` to stop reading.
pub type VisitAt<'a> = &'a mut dyn FnMut(u32, Result<EncodedSample, SampleError>) -> bool;

/// Reads the samples `wanted`, given in rising order of their position in the shard.
///
/// Each is what [`read_shard`](crate::shard::read::read_shard) gives for it, errors included; one whose
/// bytes are not those that were indexed is [`SkipReason::ChecksumMismatch`], unless
/// [`ReadOptions::verify`] says that it does not matter.
/// Samples that lie close are read in one piece, so all of them in order cost one opening of the
/// shard; a zstd frame is decompressed, and a record batch read, at most once in a call. Members that
/// `options` do not ask for are passed over.
///
/// Memory: 64 bytes a wanted sample, one sample or record batch at a time, and buffers of 1 MiB.
///
/// # Errors
/// [`ShardError`] if the shard can only be streamed ([`ShardIndex::access`] is `None`), if shard or
/// index cannot be read or are damaged, or if another sample lies where the index says; every sample
/// before it has been visited.
#[allow(clippy::too_many_arguments)] // those of `read_shard`, and which samples
pub fn read_samples(
    shard: &ShardLocation,
    shard_index: u32,
    index: &ShardIndex,
    wanted: &[u32],
    options: &ReadOptions,
    observer: &dyn ReadObserver,
    stop: &Stop,
    visit: VisitAt<'_>,
) -> Result<(), ShardError> {
    let Some(access) = index.access() else {
        let message = "has no random access; read it from its beginning, or write it as tar, \
                       tar.zst of several frames or plain Arrow";
        return Err(shard_error(shard, message.into()));
    };
    let records = index.records(shard, wanted, stop)?;
    let samples: Vec<_> = wanted.iter().copied().zip(records).collect();
    let runs = runs(shard, &samples, access)?;
    let mut reading = Reading {
        shard,
        shard_index,
        index,
        options,
        observer,
        stop,
        visit,
    };
    match access {
        Access::ArrowBatches => reading.arrow_runs(&runs),
        Access::Tar | Access::ZstdFrames => {
            for run in runs {
                if !reading.tar_run(run, access)? {
                    break;
                }
            }
            Ok(())
        }
    }
}

/// The bytes of a sample, summed as they are read.
struct Content<R> {
    inner: R,
    /// CRC-32C so far, if it is wanted.
    crc32c: Option<u32>,
}

impl<R: Read> Read for Content<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Some(sum) = &mut self.crc32c {
            *sum = crc32c_append(*sum, &buffer[..count]);
        }
        Ok(count)
    }
}

type Located = (u32, Record);

/// Samples that are read in one piece.
type Run<'a> = &'a [Located];

fn run_bytes(run: Run<'_>) -> Range<u64> {
    let start = run.first().map_or(0, |(_, record)| record.stored.start);
    let end = run.last().map_or(0, |(_, record)| record.stored.end);
    start..end
}

/// Cuts the samples where the gap is wide, and checks that they lie one after the other.
fn runs<'a>(
    shard: &ShardLocation,
    samples: &'a [Located],
    access: Access,
) -> Result<Vec<Run<'a>>, ShardError> {
    let follows = |before: &Record, after: &Record| match access {
        Access::Tar | Access::ZstdFrames => {
            after.content_offset >= before.content_offset.saturating_add(before.content_bytes)
                && after.stored.start >= before.stored.start
                && after.stored.end >= before.stored.end
        }
        Access::ArrowBatches => {
            after.stored.start >= before.stored.end
                || (after.stored == before.stored && after.skip > before.skip)
        }
    };
    for pair in samples.windows(2) {
        if !follows(&pair[0].1, &pair[1].1) {
            return Err(damaged_entry(shard, pair[1].0));
        }
    }
    let is_near = |before: &Located, after: &Located| {
        after.1.stored.start <= before.1.stored.end.saturating_add(MAX_GAP_BYTES)
    };
    Ok(samples.chunk_by(is_near).collect())
}

struct Reading<'a> {
    shard: &'a ShardLocation,
    shard_index: u32,
    index: &'a ShardIndex,
    options: &'a ReadOptions,
    observer: &'a dyn ReadObserver,
    stop: &'a Stop,
    visit: VisitAt<'a>,
}

impl Reading<'_> {
    /// Reads one run; `false` if no more is wanted.
    fn tar_run(&mut self, run: Run<'_>, access: Access) -> Result<bool, ShardError> {
        let Some((_, first)) = run.first() else {
            return Ok(true);
        };
        let file = self.open(run_bytes(run))?;
        let (mut reader, mut position): (Box<dyn Read>, u64) = match access {
            Access::ZstdFrames => {
                let frames = FrameReader::new(file, self.options.max_zstd_window_log)
                    .map_err(|error| self.io_error(&error))?;
                let frames = self.observer.watch_decompressor(Box::new(frames));
                let buffered = BufReader::with_capacity(READ_BUFFER_BYTES, frames);
                // `Record::parse` has checked that this is no less than zero.
                (
                    Box::new(buffered),
                    first.content_offset.saturating_sub(first.skip),
                )
            }
            _ => (Box::new(file), first.stored.start),
        };
        for (at, (sample, record)) in run.iter().enumerate() {
            let gap = record.content_offset.saturating_sub(position);
            let passed = io::copy(&mut (&mut reader).take(gap), &mut io::sink());
            let passed = passed.map_err(|error| self.unreadable(*sample, &error.to_string()))?;
            if passed < gap {
                let message = "the shard ends before it";
                return Err(self.unreadable(*sample, message));
            }
            let mut content = Content {
                inner: (&mut reader).take(record.content_bytes),
                crc32c: self.verifies().then_some(0),
            };
            let result = self.tar_sample(*sample, record, &mut content)?;
            let mut rest = io::copy(&mut content, &mut io::sink());
            let crc32c = content.crc32c;
            if at + 1 == run.len() && access == Access::ZstdFrames {
                // To the end of the last frame, where its checksum is.
                rest = rest.and_then(|_| io::copy(&mut reader, &mut io::sink()));
            }
            rest.map_err(|error| self.unreadable(*sample, &error.to_string()))?;
            let result = self.compare(record, crc32c, result);
            position = record.content_offset.saturating_add(record.content_bytes);
            if !(self.visit)(*sample, result) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Groups the members of one sample, as for a shard that holds no other.
    fn tar_sample(
        &self,
        sample: u32,
        record: &Record,
        content: impl Read,
    ) -> Result<Result<EncodedSample, SampleError>, ShardError> {
        let limits = self.options.sample_limits();
        let mut grouper = Grouper::of_sample(
            self.shard.name.clone(),
            self.shard_index,
            limits,
            sample,
            record.is_repeated_key,
        );
        let mut other = None;
        let mut on_member = |mut member: TarMember| {
            member.offset_bytes = member.offset_bytes.saturating_add(record.content_offset);
            other = grouper.push(member);
            other.is_none()
        };
        for_each_member(
            &self.shard.name,
            Stream::new(content),
            limits.bytes,
            &|path| self.options.wants_path(path),
            &|_, _| Leave::Never,
            &|len| self.observer.new_bytes(len),
            &mut on_member,
        )
        .map_err(|error| self.unreadable(sample, &error.message))?;
        match (other, grouper.finish()) {
            (None, Some(result)) => {
                self.check(sample, record, &result)?;
                Ok(result)
            }
            (None, None) => Err(self.unreadable(sample, "no sample begins there")),
            (Some(_), _) => Err(self.unreadable(sample, "two samples lie there")),
        }
    }

    fn arrow_runs(&mut self, runs: &[Run<'_>]) -> Result<(), ShardError> {
        let Some(first_run) = runs.first() else {
            return Ok(());
        };
        // The schema and the dictionaries, and the first run with them if it lies near.
        let prologue = self.index.header.prologue_bytes;
        let first = run_bytes(first_run);
        let is_near = first.start <= prologue.saturating_add(MAX_GAP_BYTES);
        let file = self.open(0..if is_near { first.end } else { prologue })?;
        let name = self.shard.name.clone();
        let options = ArrowReadOptions {
            checksums: self.verifies(),
            ..self.options.arrow()
        };
        let mut rows = ArrowShardReader::new(name, self.shard_index, file, &options)?;
        rows.read_dictionaries(prologue)?;
        for (number, run) in runs.iter().enumerate() {
            let bytes = run_bytes(run);
            if number > 0 || !is_near {
                rows.continue_with(self.open(bytes.clone())?, bytes.start);
            }
            for batch in run.chunk_by(|a, b| a.1.stored == b.1.stored) {
                let Some((sample, record)) = batch.first() else {
                    continue;
                };
                rows.load_batch(record.stored.start)
                    .map_err(|error| self.unreadable(*sample, &error.message))?;
                for (sample, record) in batch {
                    let result = rows.row(record.skip, *sample).ok_or_else(|| {
                        self.unreadable(*sample, "its record batch has fewer rows")
                    })?;
                    self.check(*sample, record, &result)?;
                    let result = self.compare(record, rows.batch_crc32c(), result);
                    if !(self.visit)(*sample, result) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    fn open(&self, range: Range<u64>) -> Result<BufReader<Box<dyn Read>>, ShardError> {
        let length = range.end.saturating_sub(range.start);
        let capacity = length.min(READ_BUFFER_BYTES as u64) as usize;
        let mut open = || self.shard.open_range(range.clone(), self.stop);
        let file = self.observer.watch_open(&mut open);
        let file = self
            .observer
            .watch_file(file.map_err(|error| self.io_error(&error))?);
        Ok(BufReader::with_capacity(capacity, file))
    }

    /// Whether samples are compared with their checksums, where there are some.
    fn verifies(&self) -> bool {
        self.options.verify == Verify::Samples && self.index.has_checksums()
    }

    /// The sample, if its bytes are those that were indexed, or if there is no checksum of what was read.
    fn compare(
        &self,
        record: &Record,
        crc32c: Option<u32>,
        result: Result<EncodedSample, SampleError>,
    ) -> Result<EncodedSample, SampleError> {
        let Some(found) = crc32c.filter(|found| *found != record.content_crc32c) else {
            return result;
        };
        let id = match result {
            Ok(sample) => Box::new(sample.id),
            Err(error) => error.id,
        };
        let message = format!(
            "its bytes are not those that were indexed (CRC-32C {found:08x}, by the index {:08x}): the \
             shard was damaged or changed; fetch it again, or {}",
            record.content_crc32c,
            overwrite_advice(self.shard)
        );
        Err(SampleError {
            id,
            reason: SkipReason::ChecksumMismatch,
            message,
        })
    }

    /// Whether it is the sample that the index means.
    fn check(
        &self,
        sample: u32,
        record: &Record,
        result: &Result<EncodedSample, SampleError>,
    ) -> Result<(), ShardError> {
        let id = match result {
            Ok(sample) => &sample.id,
            Err(error) => &error.id,
        };
        if key_hash(&id.key) == record.key_hash && id.offset_bytes == record.content_offset {
            return Ok(());
        }
        let indexed = self.index.key(self.shard, sample, self.stop)?;
        Err(self.at(
            record,
            format!(
                "by its index sample {sample} has the key `{indexed}`, in the shard it has `{}`: \
                 the index no longer fits the shard; {}",
                id.key,
                overwrite_advice(self.shard)
            ),
        ))
    }

    /// A sample that is not where the index says.
    fn unreadable(&self, sample: u32, why: &str) -> ShardError {
        if self.stop.is_set() {
            return shard_error(self.shard, why.to_owned());
        }
        let named = match self.index.key(self.shard, sample, self.stop) {
            Ok(key) => format!(" (`{key}`)"),
            Err(_) => String::new(),
        };
        shard_error(
            self.shard,
            format!(
                "cannot read sample {sample}{named} where its index says: {why}; {}",
                overwrite_advice(self.shard)
            ),
        )
    }

    fn at(&self, record: &Record, message: String) -> ShardError {
        ShardError {
            offset_bytes: record.content_offset,
            ..shard_error(self.shard, message)
        }
    }

    fn io_error(&self, error: &io::Error) -> ShardError {
        shard_error(self.shard, format!("cannot be read ({error})"))
    }
}
