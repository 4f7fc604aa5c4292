//! Reads a shard of any format: finds out by content which it is, decompresses, groups.

use std::io::{self, BufReader, Read, Seek};
use std::sync::Arc;

use crate::captions::is_caption_member;
use crate::error::{SampleError, ShardError};
use crate::image_format::{is_image_extension, ForeignFormat};
use crate::sample::EncodedSample;
use crate::shard::arrow::{ArrowReadOptions, ArrowShardReader, OtherColumns};
use crate::shard::decompress::{compression_of, decompressor, Compression, DecompressLimits};
use crate::shard::forward::{Seekable, Stream};
use crate::shard::group::{split_key, Grouper, SampleLimits};
use crate::shard::note::ShardNote;
pub use crate::shard::observe::{LeaveMembers, MemberMemory, NoObserver, ReadObserver, WatchReads};
use crate::shard::stream_end::Leftover;
pub use crate::shard::tar::Leave;
use crate::shard::tar::{for_each_member, has_checksum, shard_error, TarEnd, TarMember};
use crate::shard::verify::Verify;
use crate::shard::zstd_frames::DEFAULT_MAX_WINDOW_LOG;
use crate::source::ShardLocation;
use crate::stop::Stop;

/// Size of the read buffer in front of a shard file, in bytes.
pub(crate) const READ_BUFFER_BYTES: usize = 256 << 10;

/// Of one that is not compressed: what is longer goes from the file to where it belongs, past the
/// buffer.
const PLAIN_BUFFER_BYTES: usize = 8 << 10;

/// What to load and how much of it.
#[derive(Clone, Debug)]
pub struct ReadOptions {
    /// A sample whose members together are longer than this, in bytes, is skipped.
    pub max_sample_bytes: u64,
    /// Tar: a sample of which more members than this are loaded is skipped.
    pub max_sample_members: usize,
    /// A compressed shard that expands to more than this many times its size is an error, from the first
    /// GiB on.
    pub max_decompression_ratio: u64,
    /// Tar: whether all members are loaded.
    pub all_members: bool,
    /// Tar: extensions of members to load beside images and captions; others are passed over.
    pub extra_members: Vec<String>,
    /// Arrow: the image column, found by its name or type where it is `None`.
    pub image_column: Option<String>,
    /// Arrow: the caption column; tar: the extension, beside `json`. Found by name where it is `None`:
    /// [`crate::captions::names`].
    pub caption_column: Option<String>,
    /// Arrow: whether a shard without captions is an error.
    pub needs_captions: bool,
    /// Arrow: which columns beside images and captions go into a member `json`.
    pub other_columns: OtherColumns,
    /// Zstandard: the largest window that a frame may need, as a power of two of bytes; each reader
    /// takes that much memory.
    pub max_zstd_window_log: u32,
    /// What of a shard with an index is compared with it.
    pub verify: Verify,
}

impl Default for ReadOptions {
    fn default() -> Self {
        ReadOptions {
            max_sample_bytes: 128 << 20,
            max_sample_members: DEFAULT_MAX_MEMBERS,
            max_decompression_ratio: DEFAULT_MAX_RATIO,
            all_members: false,
            extra_members: Vec::new(),
            image_column: None,
            caption_column: None,
            needs_captions: true,
            other_columns: OtherColumns::default(),
            max_zstd_window_log: DEFAULT_MAX_WINDOW_LOG,
            verify: Verify::default(),
        }
    }
}

/// Default of [`ReadOptions::max_sample_members`].
pub(crate) const DEFAULT_MAX_MEMBERS: usize = 16_384;

/// Default of [`ReadOptions::max_decompression_ratio`]: what gzip can reach at most.
pub(crate) const DEFAULT_MAX_RATIO: u64 = 1_032;

impl ReadOptions {
    /// What one sample may hold under these options.
    pub(crate) fn sample_limits(&self) -> SampleLimits {
        SampleLimits {
            bytes: self.max_sample_bytes,
            members: self.max_sample_members,
        }
    }

    /// What decompressing may cost under these options.
    pub(crate) fn decompress_limits(&self) -> DecompressLimits {
        DecompressLimits {
            window_log: self.max_zstd_window_log,
            ratio: self.max_decompression_ratio,
        }
    }

    /// How Arrow shards are read under these options.
    pub(crate) fn arrow(&self) -> ArrowReadOptions {
        ArrowReadOptions {
            image_column: self.image_column.clone(),
            caption_column: self.caption_column.clone(),
            needs_captions: self.needs_captions,
            other_columns: self.other_columns.clone(),
            max_member_bytes: self.max_sample_bytes,
            ..ArrowReadOptions::default()
        }
    }

    /// Whether the data of a tar member with this path is loaded.
    pub(crate) fn wants_path(&self, path: &str) -> bool {
        split_key(path).is_some_and(|(_, extension)| self.wants(&extension))
    }

    fn wants(&self, extension: &str) -> bool {
        let is_named = |name: &Option<String>| {
            name.as_ref()
                .is_some_and(|name| name.eq_ignore_ascii_case(extension))
        };
        self.all_members
            || is_image_extension(extension)
            || ForeignFormat::of_extension(extension).is_some()
            || is_caption_member(extension)
            || is_named(&self.caption_column)
            || self.extra_members.iter().any(|name| name == extension)
    }
}

/// Receives the samples of a shard in order; returns `false` to stop reading.
pub type Visit<'a> = &'a mut dyn FnMut(Result<EncodedSample, SampleError>) -> bool;

/// Reads all samples of a shard, in order, and says what is odd about it.
///
/// The format is told by content, not by name: tar, Arrow IPC stream or Arrow IPC file, each plain,
/// gzip- or zstd-compressed. A compressed shard is read to its last byte, behind the last sample, where
/// its checksum is.
///
/// Ends with an error soon after `stop` is set, and without notes once `visit` returns `false`.
///
/// # Errors
/// A [`ShardError`] where reading cannot go on; every sample before it has been visited.
pub fn read_shard(
    location: &ShardLocation,
    shard_index: u32,
    options: &ReadOptions,
    observer: &dyn ReadObserver,
    stop: &Stop,
    visit: Visit<'_>,
) -> Result<Vec<ShardNote>, ShardError> {
    let shard = &location.name;
    let at_start = |message: String| ShardError {
        shard: shard.to_string(),
        offset_bytes: 0,
        message,
    };
    let io_error = |error: io::Error| at_start(format!("cannot be read ({error})"));
    let file = observer.watch_open(&mut || location.open(stop));
    let file = observer.watch_file(file.map_err(io_error)?);
    let leftover = Leftover::default();
    let (compression, reader) = decompress(file, observer, options, &leftover).map_err(io_error)?;
    let (magic, reader) = peek(reader, 512).map_err(|error| shard_error(shard, 0, &error))?;
    let mut tail = Tail {
        compression,
        leftover,
        notes: Vec::new(),
    };
    match content_of(&magic) {
        Content::Tar => {
            let grouper = Grouper::new(shard.clone(), shard_index, options.sample_limits())
                .of_plain_file(compression == Compression::None);
            let seekable_reader = match compression {
                Compression::None => observer.seekable_reader(),
                _ => None,
            };
            let mut reading = TarReading {
                shard,
                options,
                observer,
                tail: &mut tail,
                visit,
            };
            match seekable_reader {
                Some((file, len)) => {
                    let leaves = |offset, len| observer.leaves(offset, len);
                    let reader = Seekable::new(file, len, PLAIN_BUFFER_BYTES);
                    reading.run(grouper, reader, &leaves)?;
                }
                None => reading.run(grouper, Stream::new(reader), &|_, _| Leave::Never)?,
            }
        }
        Content::Arrow => {
            let mut reader = reader;
            let is_read = read_arrow(shard, shard_index, &mut reader, options, observer, visit)?;
            if is_read {
                tail.read(shard, &mut reader)?;
            }
        }
        Content::Unknown => return Err(not_a_shard(shard, &magic)),
    }
    Ok(tail.notes)
}

/// What lies behind the samples of a shard.
pub(crate) struct Tail {
    pub(crate) compression: Compression,
    pub(crate) leftover: Leftover,
    pub(crate) notes: Vec<ShardNote>,
}

impl Tail {
    /// Reads a compressed stream to its end, which compares its last checksum.
    ///
    /// # Errors
    /// That the checksum does not match, or the stream is cut short.
    pub(crate) fn read(&mut self, shard: &str, reader: &mut impl Read) -> Result<(), ShardError> {
        if self.compression == Compression::None {
            return Ok(());
        }
        // Offsets in an archive mean nothing here: it was read to its end.
        io::copy(reader, &mut io::sink()).map_err(|error| shard_error(shard, 0, &error))?;
        let leftover = self.leftover.offset();
        let note = leftover.map(|offset| ShardNote::NotCompressed { offset });
        self.notes.extend(note);
        Ok(())
    }

    /// Goes on from the end of an archive to that of the stream; `false` if nobody wants more.
    ///
    /// # Errors
    /// As [`Tail::read`], and where the compressed data are over before the archive is.
    pub(crate) fn finish(
        &mut self,
        shard: &str,
        end: TarEnd,
        reader: &mut impl Read,
    ) -> Result<bool, ShardError> {
        let TarEnd::Whole { has_marker, notes } = end else {
            return Ok(false);
        };
        self.notes.extend(notes);
        self.read(shard, reader)?;
        if !has_marker {
            self.notes.push(ShardNote::NoEndMarker);
        }
        match (has_marker, self.leftover.offset()) {
            (false, Some(offset)) => Err(self.explain(ShardError {
                shard: shard.to_string(),
                offset_bytes: offset,
                message: String::new(),
            })),
            _ => Ok(true),
        }
    }

    /// The error of an archive that breaks off, given what its compressed data end with.
    pub(crate) fn explain(&self, error: ShardError) -> ShardError {
        let Some(offset) = self.leftover.offset() else {
            return error;
        };
        let message = format!(
            "damaged (from byte {offset} of the file on it is not compressed, and the archive is not \
             over there); fetch the shard again"
        );
        ShardError { message, ..error }
    }
}

/// What to say of content that begins with `magic`.
pub(crate) fn not_a_shard(shard: &str, magic: &[u8]) -> ShardError {
    let message = if magic.is_empty() {
        "is empty (0 bytes); remove it or fetch it again"
    } else {
        "not a shard: neither a tar archive nor Arrow IPC (plain, gzip or zstd)"
    };
    ShardError {
        shard: shard.to_string(),
        offset_bytes: 0,
        message: message.into(),
    }
}

fn decompress(
    reader: Box<dyn Read>,
    observer: &dyn ReadObserver,
    options: &ReadOptions,
    leftover: &Leftover,
) -> io::Result<(Compression, Box<dyn Read>)> {
    let (magic, reader) = peek(reader, 4)?;
    let compression = compression_of(&magic);
    let capacity = match compression {
        Compression::None => PLAIN_BUFFER_BYTES,
        _ => READ_BUFFER_BYTES,
    };
    let reader = BufReader::with_capacity(capacity, reader);
    let limits = options.decompress_limits();
    let reader = decompressor(compression, reader, limits, leftover)?;
    if compression == Compression::None {
        return Ok((compression, reader));
    }
    let reader = observer.watch_decompressor(reader);
    let reader = BufReader::with_capacity(READ_BUFFER_BYTES, reader);
    Ok((compression, Box::new(reader)))
}

/// Up to `count` first bytes, and a reader that still yields them.
pub(crate) fn peek<R: Read>(mut reader: R, count: u64) -> io::Result<(Vec<u8>, Peeked<R>)> {
    let mut head = Vec::new();
    reader.by_ref().take(count).read_to_end(&mut head)?;
    let rest = io::Cursor::new(head.clone()).chain(reader);
    Ok((head, rest))
}

/// A reader whose first bytes were looked at.
pub(crate) type Peeked<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

/// What a shard is, once decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Tar,
    Arrow,
    Unknown,
}

/// Told by the first 512 bytes.
pub(crate) fn content_of(head: &[u8]) -> Content {
    if head.starts_with(b"ARROW1") || head.starts_with(&[0xff; 4]) {
        return Content::Arrow;
    }
    if head.len() == 512 {
        let is_zero_block = head.iter().all(|&byte| byte == 0);
        let is_header = head.try_into().is_ok_and(has_checksum);
        if is_zero_block || is_header {
            return Content::Tar;
        }
    }
    // A stream from before Arrow 0.15 begins with the length of its schema message, which is a
    // flatbuffer: a root offset, then small numbers.
    match head {
        [a, b, c, 0, root, 0, 0, 0, ..]
            if u32::from_le_bytes([*a, *b, *c, 0]) >= 16 && *root >= 8 && root % 4 == 0 =>
        {
            Content::Arrow
        }
        _ => Content::Unknown,
    }
}

struct TarReading<'a> {
    shard: &'a Arc<str>,
    options: &'a ReadOptions,
    observer: &'a dyn ReadObserver,
    tail: &'a mut Tail,
    visit: Visit<'a>,
}

impl TarReading<'_> {
    fn run(
        &mut self,
        mut grouper: Grouper,
        mut reader: impl Read + Seek,
        leaves: &dyn Fn(u64, u64) -> Leave,
    ) -> Result<(), ShardError> {
        let visit = &mut self.visit;
        let mut on_member = |member: TarMember| match grouper.push(member) {
            Some(sample) => visit(sample),
            None => true,
        };
        let end = for_each_member(
            self.shard,
            &mut reader,
            self.options.max_sample_bytes,
            &|path| self.options.wants_path(path),
            leaves,
            &|len| self.observer.new_bytes(len),
            &mut on_member,
        );
        // A sample that a damaged tail interrupts may lack members: it is not handed out as whole.
        let end = end.map_err(|error| self.tail.explain(error))?;
        if self.tail.finish(self.shard, end, &mut reader)? {
            if let Some(sample) = grouper.finish() {
                (self.visit)(sample);
            }
        }
        Ok(())
    }
}

/// Whether all rows were read.
fn read_arrow(
    shard: &Arc<str>,
    shard_index: u32,
    reader: impl Read,
    options: &ReadOptions,
    observer: &dyn ReadObserver,
    visit: Visit<'_>,
) -> Result<bool, ShardError> {
    let mut samples = ArrowShardReader::new(shard.clone(), shard_index, reader, &options.arrow())?;
    observer.chosen_columns(samples.columns());
    while let Some(sample) = samples.next_sample() {
        if !visit(sample?) {
            return Ok(false);
        }
    }
    Ok(true)
}
