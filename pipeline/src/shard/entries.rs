//! The files of a shard as they are stored: those of samples, and those that no sample has.
//!
//! [`read_shard`](super::read::read_shard) gives samples, whose members have lower-cased names and which
//! lack what WebDataset's rules pass over. Who lists, copies, extracts or checks a shard wants its files.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::sync::Arc;

use super::arrow::ArrowShardReader;
use super::decompress::{compression_of, decompressor, Compression};
use super::forward::{Seekable, Stream};
use super::group::Grouper;
use super::note::ShardNote;
use super::read::{content_of, not_a_shard, peek, Content, ReadOptions, Tail, READ_BUFFER_BYTES};
use super::shard_format::ShardFormat;
use super::stream_end::Leftover;
use super::tar::{for_each_member, shard_error, Leave, MemberContent, TarEnd, TarMember};
use crate::error::{SampleError, ShardError};
use crate::sample::EncodedSample;
use crate::source::ShardLocation;
use crate::stop::Stop;

/// What a shard holds, in stored order.
#[derive(Debug)]
pub enum Entry {
    /// A file of a tar archive.
    File(FileEntry),
    /// A row of an Arrow shard.
    Row(Result<EncodedSample, SampleError>),
}

/// A regular file of a tar archive.
#[derive(Debug)]
pub struct FileEntry {
    member: TarMember,
}

impl FileEntry {
    /// Its path as stored; bytes that are not UTF-8 are written `\xNN`.
    pub fn path(&self) -> &str {
        &self.member.path
    }

    /// Whether all of the stored path is UTF-8.
    pub fn is_utf8(&self) -> bool {
        self.member.is_utf8
    }

    /// Offset of its first header in the uncompressed stream, in bytes.
    pub fn offset_bytes(&self) -> u64 {
        self.member.offset_bytes
    }

    /// Offset of its data in the uncompressed stream, in bytes.
    pub fn data_offset_bytes(&self) -> u64 {
        self.member.data_offset_bytes
    }

    /// Its length in bytes, holes included.
    pub fn size_bytes(&self) -> u64 {
        self.member.size_bytes
    }

    /// Whether it is stored without its holes.
    pub fn is_sparse(&self) -> bool {
        self.member.is_sparse
    }

    /// Its content; `None` if it was not wanted or is [too large](FileEntry::is_too_large).
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.member.content {
            MemberContent::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// Whether it is longer than [`ReadOptions::max_sample_bytes`], so that it was not read.
    pub fn is_too_large(&self) -> bool {
        matches!(self.member.content, MemberContent::TooLarge(_))
    }
}

/// Makes samples of the files of one archive, by WebDataset's rules.
pub struct SampleGrouper(Grouper);

impl SampleGrouper {
    /// For the files of a shard at this position in the list of shards.
    pub fn new(shard: &ShardLocation, shard_index: u32, options: &ReadOptions) -> SampleGrouper {
        let limits = options.sample_limits();
        SampleGrouper(Grouper::new(shard.name.clone(), shard_index, limits))
    }

    /// Adds a file; returns the sample that it ends, if it begins a new one.
    pub fn push(&mut self, file: FileEntry) -> Option<Result<EncodedSample, SampleError>> {
        self.0.push(file.member)
    }

    /// The last sample of the shard, once it was read to its end.
    pub fn finish(&mut self) -> Option<Result<EncodedSample, SampleError>> {
        self.0.finish()
    }
}

/// A shard whose first bytes were looked at.
struct Opened {
    compression: Compression,
    content: Content,
    leftover: Leftover,
    magic: Vec<u8>,
    reader: Box<dyn Read>,
}

impl Opened {
    fn new(shard: &ShardLocation, options: &ReadOptions, stop: &Stop) -> Result<Self, ShardError> {
        let io_error = |error: io::Error| ShardError {
            shard: shard.name.to_string(),
            offset_bytes: 0,
            message: format!("cannot be read ({error})"),
        };
        let file = shard.open(stop).map_err(io_error)?;
        let (magic, reader) = peek(file, 4).map_err(io_error)?;
        let compression = compression_of(&magic);
        let reader = io::BufReader::with_capacity(READ_BUFFER_BYTES, reader);
        let leftover = Leftover::default();
        let limits = options.decompress_limits();
        let reader = decompressor(compression, reader, limits, &leftover).map_err(io_error)?;
        let (magic, reader) =
            peek(reader, 512).map_err(|error| shard_error(&shard.name, 0, &error))?;
        Ok(Opened {
            compression,
            content: content_of(&magic),
            leftover,
            magic,
            reader: Box::new(reader),
        })
    }
}

/// A shard that was opened: what it is, and then what it holds.
pub struct ShardEntries<'a> {
    shard: &'a ShardLocation,
    options: &'a ReadOptions,
    opened: Opened,
    format: ShardFormat,
}

impl<'a> ShardEntries<'a> {
    /// Opens a shard and looks at its first bytes. Reads end with an error soon after `stop` is set.
    ///
    /// # Errors
    /// A [`ShardError`] for a shard that cannot be opened, is empty, or is of no known kind.
    pub fn open(
        shard: &'a ShardLocation,
        options: &'a ReadOptions,
        stop: &Stop,
    ) -> Result<ShardEntries<'a>, ShardError> {
        let opened = Opened::new(shard, options, stop)?;
        let format = match (opened.content, opened.compression) {
            (Content::Arrow, _) => ShardFormat::Arrow,
            (Content::Tar, Compression::None) => ShardFormat::Tar,
            (Content::Tar, Compression::Gzip) => ShardFormat::TarGz,
            (Content::Tar, Compression::Zstd) => ShardFormat::TarZst,
            (Content::Unknown, _) => return Err(not_a_shard(&shard.name, &opened.magic)),
        };
        Ok(ShardEntries {
            shard,
            options,
            opened,
            format,
        })
    }

    /// Container and compression by content, whatever the name says. Arrow within gzip or zstd is
    /// [`ShardFormat::Arrow`].
    pub fn format(&self) -> ShardFormat {
        self.format
    }

    /// Reads all files or rows in order, and says what is odd about the shard. `shard_index` is its position
    /// in a list of shards.
    ///
    /// `wanted` decides by path whether a file's content is read; what is passed over of a local archive that
    /// is not compressed is not read from the disk. Rows come whole. There are no notes once `visit` returned
    /// `false`.
    ///
    /// # Errors
    /// A [`ShardError`] where reading cannot go on; every file before it has been visited. A file that the
    /// end of a damaged archive follows may lack companions: who groups does not ask for the last sample.
    pub fn read(
        self,
        shard_index: u32,
        wanted: &dyn Fn(&str) -> bool,
        visit: &mut dyn FnMut(Entry) -> bool,
    ) -> Result<Vec<ShardNote>, ShardError> {
        let ShardEntries {
            shard,
            options,
            opened,
            format,
        } = self;
        let mut tail = Tail {
            compression: opened.compression,
            leftover: opened.leftover,
            notes: Vec::new(),
        };
        let name: &Arc<str> = &shard.name;
        let limit = options.max_sample_bytes;
        let plain = match format {
            ShardFormat::Tar => plain_file(shard),
            _ => None,
        };
        match (format, plain) {
            (ShardFormat::Arrow, _) => {
                let mut reader = opened.reader;
                let options = options.arrow();
                let mut rows =
                    ArrowShardReader::new(name.clone(), shard_index, &mut reader, &options)?;
                while let Some(row) = rows.next_sample() {
                    if !visit(Entry::Row(row?)) {
                        return Ok(tail.notes);
                    }
                }
                drop(rows);
                tail.read(name, &mut reader)?;
            }
            (_, Some(reader)) => read_files((name, limit), reader, wanted, &mut tail, visit)?,
            (_, None) => {
                let reader = Stream::new(opened.reader);
                read_files((name, limit), reader, wanted, &mut tail, visit)?;
            }
        }
        Ok(tail.notes)
    }
}

fn plain_file(shard: &ShardLocation) -> Option<Seekable<File>> {
    let file = File::open(shard.path()?).ok()?;
    let len = file.metadata().ok().filter(|data| data.is_file())?.len();
    Some(Seekable::new(file, len, READ_BUFFER_BYTES))
}

fn read_files(
    (shard, max_bytes): (&str, u64),
    mut reader: impl Read + Seek,
    wanted: &dyn Fn(&str) -> bool,
    tail: &mut Tail,
    visit: &mut dyn FnMut(Entry) -> bool,
) -> Result<(), ShardError> {
    let end: Result<TarEnd, ShardError> = for_each_member(
        shard,
        &mut reader,
        max_bytes,
        wanted,
        &|_, _| Leave::Never,
        &|len| vec![0; len],
        &mut |member| visit(Entry::File(FileEntry { member })),
    );
    let end = end.map_err(|error| tail.explain(error))?;
    tail.finish(shard, end, &mut reader).map(|_| ())
}
