//! Makes the index of a shard, from one pass over it or while it is written.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::rc::Rc;

use sha2::{Digest, Sha256};

use super::fingerprint::Fingerprint;
use super::format::{
    key_hash, name_crc, Access, Checksum, Header, IndexEntry, MemberPlace, Record,
};
use super::sums::StreamSums;
use crate::atomic_file::AtomicFile;
use crate::error::{PipelineError, ShardError};
use crate::sample::SampleId;
use crate::shard::arrow::{ArrowReadOptions, ArrowShardReader};
use crate::shard::decompress::{compression_of, decompressor, Compression};
use crate::shard::forward::{Seekable, Stream};
use crate::shard::group::{split_key, Grouper, SampleLimits};
use crate::shard::note::ShardNote;
use crate::shard::piece::{StoredBatch, StoredPiece};
use crate::shard::read::{
    content_of, not_a_shard, peek, Content, Leave, ReadOptions, Tail, READ_BUFFER_BYTES,
};
use crate::shard::stream_end::Leftover;
use crate::shard::tar::{for_each_member, shard_error, TarEnd, TarMember};
use crate::shard::zstd_frames::FrameReader;
use crate::shard_spec::INDEX_ENDING;
use crate::source::ShardLocation;
use crate::stop::Stop;

/// Uncompressed bytes of a zstd frame that may have to be thrown away before a sample; a shard where
/// it is more is streamed. 16 MiB take about 20 ms.
const MAX_SKIP_BYTES: u64 = 16 << 20;

/// The bytes of a sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedIndex {
    bytes: Vec<u8>,
    samples: u32,
    access: Option<Access>,
    notes: Vec<ShardNote>,
}

impl EncodedIndex {
    /// The sidecar's content.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of samples in the shard.
    pub fn samples(&self) -> u32 {
        self.samples
    }

    /// How single samples are reached.
    pub fn access(&self) -> Option<Access> {
        self.access
    }

    /// What is odd about the shard.
    pub fn notes(&self) -> &[ShardNote] {
        &self.notes
    }

    /// Writes the sidecar of a local shard, replacing what is there, and returns its path.
    ///
    /// # Errors
    /// [`PipelineError::Io`] naming the sidecar; for a remote shard, too.
    pub fn write_beside(&self, shard: &ShardLocation) -> Result<PathBuf, PipelineError> {
        let sidecar = shard.sidecar(INDEX_ENDING);
        let io_error = |path: PathBuf| move |source| PipelineError::Io { path, source };
        let Some(path) = sidecar.path() else {
            let error = io::Error::new(
                io::ErrorKind::Unsupported,
                "an index can be written beside local shards only",
            );
            return Err(io_error(PathBuf::from(&*sidecar.name))(error));
        };
        let mut file = AtomicFile::create(path)?;
        file.write_all(&self.bytes)
            .map_err(io_error(path.to_owned()))?;
        file.commit()?;
        Ok(path.to_owned())
    }
}

/// How the samples of a shard are stored.
pub(crate) enum Layout {
    /// In a way that can only be streamed.
    Sequential,
    /// As they are.
    Tar,
    /// In these frames, in order.
    ZstdFrames(Vec<StoredPiece>),
    /// As the rows of these batches, in order.
    ArrowBatches(Vec<StoredBatch>),
}

/// What tells the shard of an index from any other.
pub(crate) struct ShardIdentity {
    bytes: u64,
    sha256: Option<Checksum>,
    fingerprint: Fingerprint,
}

impl ShardIdentity {
    /// That of a shard whose length and checksum are known. Reads some of it.
    ///
    /// # Errors
    /// Those of opening and reading, and where the shard has become shorter.
    pub(crate) fn new(
        shard: &ShardLocation,
        bytes: u64,
        sha256: Option<Checksum>,
        stop: &Stop,
    ) -> io::Result<ShardIdentity> {
        Ok(ShardIdentity {
            bytes,
            sha256,
            fingerprint: Fingerprint::of(shard, bytes, stop)?,
        })
    }
}

/// Collects the samples of a shard, in order.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder {
    records: Vec<Record>,
    names: Vec<u8>,
}

impl IndexBuilder {
    /// Appends a sample. `content` is where it lies in the uncompressed stream, and the CRC-32C of its
    /// bytes there; of an Arrow row, the offset of its batch as an empty range, and any number.
    ///
    /// # Errors
    /// If the shard has more samples than an index can number.
    pub(crate) fn add(
        &mut self,
        key: String,
        is_repeated_key: bool,
        (content, content_crc32c): (Range<u64>, u32),
        members: Vec<MemberPlace>,
    ) -> Result<(), String> {
        if self.records.len() >= u32::MAX as usize {
            return Err(format!("has more than {} samples", u32::MAX));
        }
        let name_offset = self.names.len();
        let key_hash = key_hash(&key);
        let entry = IndexEntry { key, members };
        entry.write(content.start, &mut self.names);
        let name_bytes = u32::try_from(self.names.len() - name_offset)
            .map_err(|_| "has a sample whose names exceed 4 GiB".to_owned())?;
        self.records.push(Record {
            stored: 0..0,
            content_offset: content.start,
            content_bytes: content.end.saturating_sub(content.start),
            skip: 0,
            name_offset: name_offset as u64,
            name_bytes,
            is_repeated_key,
            key_hash,
            name_crc: name_crc(&self.names[name_offset..]),
            content_crc32c,
        });
        Ok(())
    }

    /// The sidecar.
    pub(crate) fn finish(mut self, layout: &Layout, shard: ShardIdentity) -> EncodedIndex {
        let mut prologue_bytes = 0;
        let access = match layout {
            Layout::Sequential => None,
            Layout::Tar => {
                for record in &mut self.records {
                    let end = record.content_offset.saturating_add(record.content_bytes);
                    record.stored = record.content_offset..end;
                }
                Some(Access::Tar)
            }
            Layout::ZstdFrames(frames) => place_in_frames(&mut self.records, frames),
            Layout::ArrowBatches(batches) => {
                place_in_batches(&mut self.records, batches);
                prologue_bytes = batches.first().map_or(0, |batch| batch.stored.start);
                Some(Access::ArrowBatches)
            }
        };
        let samples = u32::try_from(self.records.len()).unwrap_or(u32::MAX); // `add` sees to it
        let mut tables = Vec::new();
        for (sample, record) in (0..).zip(&self.records) {
            record.write(sample, &mut tables);
        }
        let names_bytes = self.names.len() as u64;
        tables.append(&mut self.names);
        let header = Header {
            access,
            samples,
            shard_bytes: shard.bytes,
            has_checksums: shard.sha256.is_some(),
            shard_sha256: shard.sha256.unwrap_or_default(),
            prologue_bytes,
            names_bytes,
            tables_sha256: Sha256::digest(&tables).into(),
            fingerprint: shard.fingerprint,
        };
        let mut bytes = header.to_bytes();
        bytes.append(&mut tables);
        EncodedIndex {
            bytes,
            samples,
            access,
            notes: Vec::new(),
        }
    }
}

/// Finds the frames of each sample; all stay without a place if one lies too deep in its frame.
fn place_in_frames(records: &mut [Record], frames: &[StoredPiece]) -> Option<Access> {
    let mut starts = Vec::with_capacity(frames.len());
    let mut content_end: u64 = 0;
    for frame in frames {
        starts.push(content_end);
        content_end = content_end.saturating_add(frame.content);
    }
    let frame_of = |offset: u64| {
        starts
            .partition_point(|&start| start <= offset)
            .checked_sub(1)
    };
    let mut places = Vec::with_capacity(records.len());
    for record in &*records {
        let last_byte = record
            .content_offset
            .saturating_add(record.content_bytes.saturating_sub(1));
        let (first, last) = (frame_of(record.content_offset)?, frame_of(last_byte)?);
        let skip = record.content_offset - starts.get(first)?;
        if skip > MAX_SKIP_BYTES {
            return None;
        }
        let stored = frames.get(first)?.stored.start..frames.get(last)?.stored.end;
        places.push((stored, skip));
    }
    for (record, (stored, skip)) in records.iter_mut().zip(places) {
        record.stored = stored;
        record.skip = skip;
    }
    Some(Access::ZstdFrames)
}

fn place_in_batches(records: &mut [Record], batches: &[StoredBatch]) {
    let rows = batches
        .iter()
        .flat_map(|batch| (0..batch.rows).map(move |row| (batch, row)));
    for (record, (batch, row)) in records.iter_mut().zip(rows) {
        record.stored = batch.stored.clone();
        record.content_offset = batch.stored.start;
        record.content_crc32c = batch.crc32c;
        record.skip = row;
    }
}

/// Whether an index holds checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// Of the shard and of every sample: all of it is read.
    Taken,
    /// None. Of a local tar that is not compressed only headers are read; others are read as before.
    LeftOut,
}

/// Indexes a shard of any format by one pass over it; its checksum is taken in the same pass, unless `checksums`
/// are left out.
///
/// `options` name the columns of an Arrow shard; nothing else of them matters. `progress` is told
/// now and then how many bytes of the file were read.
///
/// Memory: the index itself, about 100 bytes a sample, and a record batch of an Arrow shard.
///
/// # Errors
/// [`ShardError`] where reading cannot go on: only a shard that is sound to its end has an index.
pub fn build_index(
    shard: &ShardLocation,
    options: &ReadOptions,
    checksums: Checksums,
    stop: &Stop,
    progress: &dyn Fn(u64),
) -> Result<EncodedIndex, ShardError> {
    if checksums == Checksums::LeftOut {
        if let Some(index) = index_headers(shard, stop)? {
            return Ok(index);
        }
    }
    let takes_sums = checksums == Checksums::Taken;
    let io_error = |error| unreadable(shard, &error);
    let before = state_of(shard);
    let raw = Rc::new(RefCell::new(Checksummed {
        file: shard.open(stop).map_err(io_error)?,
        sha256: takes_sums.then(Sha256::new),
        bytes: 0,
        progress,
    }));
    let (magic, reader) = peek(Shared(raw.clone()), 4).map_err(io_error)?;
    let damaged = |error: io::Error| shard_error(&shard.name, 0, &error);
    let reading = (options, takes_sums);
    let mut builder = IndexBuilder::default();
    let mut tail = Tail {
        compression: compression_of(&magic),
        leftover: Leftover::default(),
        notes: Vec::new(),
    };
    let layout = match tail.compression {
        Compression::None => {
            let content = index_content(shard, reader, reading, &mut builder, &mut tail)?;
            match content {
                Indexed::Tar => Layout::Tar,
                Indexed::Arrow(Some(batches)) => Layout::ArrowBatches(batches),
                Indexed::Arrow(None) => Layout::Sequential,
            }
        }
        Compression::Gzip => {
            let reader = BufReader::with_capacity(READ_BUFFER_BYTES, reader);
            let limits = options.decompress_limits();
            let reader = decompressor(tail.compression, reader, limits, &tail.leftover);
            let reader = reader.map_err(io_error)?;
            index_content(shard, reader, reading, &mut builder, &mut tail)?;
            Layout::Sequential
        }
        Compression::Zstd => {
            let reader = BufReader::with_capacity(READ_BUFFER_BYTES, reader);
            let mut frames = FrameReader::new(reader, options.max_zstd_window_log)
                .map_err(io_error)?
                .with_leftover(tail.leftover.clone())
                .noting_frames();
            match index_content(shard, &mut frames, reading, &mut builder, &mut tail)? {
                Indexed::Tar => Layout::ZstdFrames(frames.into_frames()),
                Indexed::Arrow(_) => Layout::Sequential,
            }
        }
    };
    // What follows the samples belongs to the file as well.
    io::copy(&mut Shared(raw.clone()), &mut io::sink()).map_err(damaged)?;
    let raw = raw.borrow();
    let sha256 = raw.sha256.clone().map(|sum| sum.finalize().into());
    let identity = ShardIdentity::new(shard, raw.bytes, sha256, stop).map_err(io_error)?;
    refuse_changed(shard, before)?;
    let mut index = builder.finish(&layout, identity);
    index.notes = tail.notes;
    Ok(index)
}

fn at_start(shard: &ShardLocation, message: String) -> ShardError {
    ShardError {
        shard: shard.name.to_string(),
        offset_bytes: 0,
        message,
    }
}

fn unreadable(shard: &ShardLocation, error: &io::Error) -> ShardError {
    at_start(shard, format!("cannot be read ({error})"))
}

/// An error if a shard is no longer what it was `before` it was indexed.
fn refuse_changed(shard: &ShardLocation, before: Option<FileState>) -> Result<(), ShardError> {
    if state_of(shard) == before {
        return Ok(());
    }
    let message = "has changed while it was indexed; do so again when it is complete";
    Err(at_start(shard, message.into()))
}

/// Indexes a local tar that is not compressed by its headers, without checksums; `None` if it is no such shard.
fn index_headers(shard: &ShardLocation, stop: &Stop) -> Result<Option<EncodedIndex>, ShardError> {
    let io_error = |error| unreadable(shard, &error);
    let Some(path) = shard.path() else {
        return Ok(None);
    };
    let before = state_of(shard);
    let mut file = File::open(path).map_err(io_error)?;
    let metadata = file.metadata().map_err(io_error)?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let mut magic = Vec::with_capacity(512);
    let read = (&mut file).take(512).read_to_end(&mut magic);
    read.and_then(|_| file.rewind()).map_err(io_error)?;
    if compression_of(&magic) != Compression::None || content_of(&magic) != Content::Tar {
        return Ok(None);
    }
    let mut reader = Seekable::new(
        Stoppable { file, stop },
        metadata.len(),
        HEADER_BUFFER_BYTES,
    );
    let mut builder = IndexBuilder::default();
    let mut tail = Tail {
        compression: Compression::None,
        leftover: Leftover::default(),
        notes: Vec::new(),
    };
    let end = index_tar(shard, &mut reader, None, &mut builder);
    let end = end.map_err(|error| tail.explain(error))?;
    tail.finish(&shard.name, end, &mut reader)?;
    let identity = ShardIdentity::new(shard, metadata.len(), None, stop).map_err(io_error)?;
    refuse_changed(shard, before)?;
    let mut index = builder.finish(&Layout::Tar, identity);
    index.notes = tail.notes;
    Ok(Some(index))
}

/// A header, those before it, and short members behind it are read at once.
const HEADER_BUFFER_BYTES: usize = 4 << 10;

/// A file that is read no more once `stop` is set.
struct Stoppable<'a> {
    file: File,
    stop: &'a Stop,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stop.check()?;
        self.file.read(buffer)
    }
}

impl Seek for Stoppable<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// Inode, length, and time of the last change in seconds and nanoseconds.
type FileState = (u64, u64, i64, i64);

/// What changes when a local shard is written or replaced; `None` of another.
fn state_of(shard: &ShardLocation) -> Option<FileState> {
    let metadata = std::fs::metadata(shard.path()?).ok()?;
    Some((
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    ))
}

enum Indexed {
    Tar,
    /// Its batches, if they can be read one by one.
    Arrow(Option<Vec<StoredBatch>>),
}

/// Indexes a stream to its end, behind the last sample.
fn index_content(
    shard: &ShardLocation,
    reader: impl Read,
    (options, takes_sums): (&ReadOptions, bool),
    builder: &mut IndexBuilder,
    tail: &mut Tail,
) -> Result<Indexed, ShardError> {
    let reader = BufReader::with_capacity(READ_BUFFER_BYTES, reader);
    let (magic, mut reader) =
        peek(reader, 512).map_err(|error| shard_error(&shard.name, 0, &error))?;
    match content_of(&magic) {
        Content::Tar => {
            let mut reader = Stream::new(reader);
            let sums = takes_sums.then(StreamSums::default);
            let end = match &sums {
                Some(sums) => index_tar(shard, sums.reader(&mut reader), Some(sums), builder),
                None => index_tar(shard, &mut reader, None, builder),
            };
            let end = end.map_err(|error| tail.explain(error))?;
            tail.finish(&shard.name, end, &mut reader)?;
            Ok(Indexed::Tar)
        }
        Content::Arrow => {
            let batches = index_arrow(shard, &mut reader, (options, takes_sums), builder)?;
            tail.read(&shard.name, &mut reader)?;
            Ok(Indexed::Arrow(batches))
        }
        Content::Unknown => Err(not_a_shard(&shard.name, &magic)),
    }
}

/// The reader's own grouping, with nothing loaded. `sums` are those that `reader` takes, if it takes any.
fn index_tar(
    shard: &ShardLocation,
    reader: impl Read + Seek,
    sums: Option<&StreamSums>,
    builder: &mut IndexBuilder,
) -> Result<TarEnd, ShardError> {
    let mut grouper = Grouper::new(shard.name.clone(), 0, SampleLimits::NONE);
    let mut members = Vec::new();
    let mut end = 0;
    // CRC-32C of the stream before the present sample.
    let mut before = None;
    let problem = Cell::new(None);
    let mut add = |finished, end, before, members| {
        let crc32c = match sums {
            Some(sums) => sums.between(before, end),
            None => Some(0),
        };
        let added = add_group(builder, finished, (end, crc32c), members);
        added.map_err(|what| problem.set(Some(what))).is_ok()
    };
    let mut on_member = |member: TarMember| {
        let Some((_, name)) = split_key(&member.path) else {
            return true;
        };
        let place = MemberPlace {
            name,
            offset_bytes: member.data_offset_bytes,
            size_bytes: member.stored_bytes,
        };
        let (offset, member_end) = (member.offset_bytes, member.end_bytes());
        let mut goes_on = true;
        if let Some(finished) = grouper.push(member) {
            goes_on = add(finished, end, before.take(), std::mem::take(&mut members));
        }
        if members.is_empty() {
            before = sums.and_then(|sums| sums.before(offset));
        }
        members.push(place);
        end = member_end;
        if let Some(sums) = sums {
            sums.note_end(end);
        }
        goes_on
    };
    let new_bytes = |len| vec![0; len];
    let tar_end = for_each_member(
        &shard.name,
        reader,
        u64::MAX,
        &|_| false,
        &|_, _| Leave::Never,
        &new_bytes,
        &mut on_member,
    )?;
    if let (true, Some(finished)) = (!matches!(tar_end, TarEnd::Stopped), grouper.finish()) {
        add(finished, end, before, members);
    }
    match problem.take() {
        None => Ok(tar_end),
        Some(message) => Err(ShardError {
            shard: shard.name.to_string(),
            offset_bytes: end,
            message,
        }),
    }
}

fn add_group(
    builder: &mut IndexBuilder,
    group: Result<crate::EncodedSample, crate::SampleError>,
    (end, crc32c): (u64, Option<u32>),
    members: Vec<MemberPlace>,
) -> Result<(), String> {
    // With nothing loaded, a key that came back is the only complaint there can be.
    let is_repeated_key = group.is_err();
    let SampleId {
        key, offset_bytes, ..
    } = match group {
        Ok(sample) => sample.id,
        Err(error) => *error.id,
    };
    let crc32c = crc32c.ok_or("has a sample with more extension headers than are indexed")?;
    builder.add(key, is_repeated_key, (offset_bytes..end, crc32c), members)
}

fn index_arrow(
    shard: &ShardLocation,
    reader: impl Read,
    (options, checksums): (&ReadOptions, bool),
    builder: &mut IndexBuilder,
) -> Result<Option<Vec<StoredBatch>>, ShardError> {
    let options = ArrowReadOptions {
        checksums,
        ..options.arrow()
    };
    let mut rows = ArrowShardReader::new(shard.name.clone(), 0, reader, &options)?;
    let mut batches: Vec<StoredBatch> = Vec::new();
    while let Some(row) = rows.next_sample() {
        let id = match row? {
            Ok(sample) => sample.id,
            Err(error) => *error.id,
        };
        let start = id.offset_bytes;
        match batches
            .last_mut()
            .filter(|batch| batch.stored.start == start)
        {
            Some(batch) => batch.rows += 1,
            None => batches.push(StoredBatch {
                stored: start..rows.position(),
                rows: 1,
                crc32c: rows.batch_crc32c().unwrap_or_default(),
            }),
        }
        builder
            .add(id.key, false, (start..start, 0), Vec::new())
            .map_err(|message| ShardError {
                shard: shard.name.to_string(),
                offset_bytes: start,
                message,
            })?;
    }
    Ok((!rows.has_late_dictionaries()).then_some(batches))
}

/// A file whose checksum and length are taken on the way.
struct Checksummed<'a, R> {
    file: R,
    sha256: Option<Sha256>,
    bytes: u64,
    progress: &'a dyn Fn(u64),
}

impl<R: Read> Read for Checksummed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(&buffer[..count]);
        }
        self.bytes = self.bytes.saturating_add(count as u64);
        (self.progress)(self.bytes);
        Ok(count)
    }
}

/// A reader that can be taken back from whoever reads through it.
struct Shared<R>(Rc<RefCell<R>>);

impl<R: Read> Read for Shared<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.borrow_mut().read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use super::*;

    /// A shard that is written while it is indexed: longer, of the same length, replaced, gone.
    #[test]
    fn a_file_that_changes_has_another_state() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.tar");
        fs::write(&path, b"one").expect("writes");
        let shard = ShardLocation::local(&path);
        let file = fs::File::options().write(true).open(&path).expect("opens");
        let then = SystemTime::UNIX_EPOCH + Duration::new(1_000_000, 5);
        file.set_modified(then).expect("sets");
        let first = state_of(&shard);
        assert!(first.is_some());
        assert_eq!(state_of(&shard), first);

        // In the same second.
        file.set_modified(then + Duration::from_nanos(100))
            .expect("sets");
        assert_ne!(state_of(&shard), first);
        file.set_modified(then + Duration::from_secs(1))
            .expect("sets");
        assert_ne!(state_of(&shard), first);
        file.set_len(4).expect("grows");
        file.set_modified(then).expect("sets");
        assert_ne!(state_of(&shard), first);

        // As `cp --preserve` and `mv` leave it.
        let other = folder.path().join("b.tar");
        fs::write(&other, b"two").expect("writes");
        let copy = fs::File::options().write(true).open(&other).expect("opens");
        copy.set_modified(then).expect("sets");
        fs::rename(&other, &path).expect("moves");
        assert_ne!(state_of(&shard), first);
        fs::remove_file(&path).expect("removes");
        assert_eq!(state_of(&shard), None);
    }
}
