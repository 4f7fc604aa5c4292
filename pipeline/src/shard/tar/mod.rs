//! Members of a tar stream, read with every length checked before it is believed.
//!
//! V7, ustar, GNU and pax archives: long names, base-256 numbers, pax records local and global, sparse
//! files of every kind. An archive ends with a block of zeros. What follows it is looked at: another
//! archive, as `cat a.tar b.tar` makes, is read on, as `tar --ignore-zeros` does; anything else is
//! passed over, and noted.

mod extension;
mod header;
mod sparse;

use std::io::{self, Read, Seek, SeekFrom};

use super::forward::ends_early;
use super::note::ShardNote;
use super::zstd_frames::WindowTooLarge;
use crate::error::ShardError;
use extension::Extension;
use header::{is_zero, Block, Header, Kind, BLOCK_BYTES};
use sparse::{HeaderMap, SparseMap};

pub(crate) use header::has_checksum;

/// Longest name accepted from a GNU extension header, in bytes.
const MAX_NAME_BYTES: u64 = 1 << 20;

/// Longest pax header, in bytes: it holds a file's extended attributes.
const MAX_PAX_BYTES: u64 = 16 << 20;

/// One regular file of a tar stream.
#[derive(Debug)]
pub(crate) struct TarMember {
    /// Path as stored; bytes that are not UTF-8 are written `\xNN`.
    pub(crate) path: String,
    /// Whether all of the stored path is UTF-8.
    pub(crate) is_utf8: bool,
    /// Offset of its first header (extension headers included) in the uncompressed stream.
    pub(crate) offset_bytes: u64,
    /// Offset of its data in the uncompressed stream.
    pub(crate) data_offset_bytes: u64,
    /// Length of its data there.
    pub(crate) stored_bytes: u64,
    /// Length of the file: of a sparse one, its holes included; else that of its data.
    pub(crate) size_bytes: u64,
    /// Whether it has holes, so that the data are not the file.
    pub(crate) is_sparse: bool,
    /// What it holds.
    pub(crate) content: MemberContent,
}

impl TarMember {
    /// Where its data ends in the uncompressed stream, padding included.
    pub(crate) fn end_bytes(&self) -> u64 {
        padded_end(self.data_offset_bytes, self.stored_bytes)
    }
}

fn padded_end(data_offset: u64, size: u64) -> u64 {
    let padded = size.checked_next_multiple_of(BLOCK_BYTES as u64);
    data_offset.saturating_add(padded.unwrap_or(u64::MAX))
}

/// What was kept of a member's data.
#[derive(Debug)]
pub(crate) enum MemberContent {
    /// All of it.
    Bytes(Vec<u8>),
    /// Nothing: it stays where it is, to be read later.
    Left,
    /// Nothing: the caller did not want it.
    PassedOver,
    /// Nothing: it is longer than the limit; the declared size is given.
    TooLarge(u64),
}

/// Which members to load.
pub(crate) type Wanted<'a> = &'a dyn Fn(&str) -> bool;

/// Whether a wanted member stays where it is: its data begin at an offset of the uncompressed stream and
/// have a length.
pub(crate) type Leaves<'a> = &'a dyn Fn(u64, u64) -> Leave;

/// Makes the vector that a member's data is read into: this many bytes, whatever they are.
pub(crate) type NewBytes<'a> = &'a dyn Fn(usize) -> Vec<u8>;

/// How a tar stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TarEnd {
    /// With its last byte, or where nothing follows that is of an archive.
    Whole {
        /// Whether the end-of-archive marker was there; without it whole members may be missing.
        has_marker: bool,
        /// What else is odd.
        notes: Vec<ShardNote>,
    },
    /// The visitor asked for no more.
    Stopped,
}

/// Calls `visit` for each regular file of the stream, in order, until it returns `false`.
///
/// Directories, links and special files are passed over. `wanted` decides by path whether a member's
/// data is loaded, `leaves` whether that happens later; a member longer than `max_bytes` is not. The
/// reader is asked to seek forward from where it stands, and for nothing else.
///
/// # Errors
/// A [`ShardError`] at the first header or data that cannot be read; all members before it have
/// been visited.
pub(crate) fn for_each_member<R: Read + Seek>(
    shard: &str,
    reader: R,
    max_bytes: u64,
    wanted: Wanted<'_>,
    leaves: Leaves<'_>,
    new_bytes: NewBytes<'_>,
    visit: &mut dyn FnMut(TarMember) -> bool,
) -> Result<TarEnd, ShardError> {
    let mut archive = Archive::new(shard, reader);
    let mut global = Extension::default();
    while let Some((header, block, extension)) = archive.next_file(&mut global)? {
        let found = archive.locate(&header, &block, extension)?;
        let content = if !wanted(&found.path) {
            MemberContent::PassedOver
        } else if found.size_bytes() > max_bytes {
            MemberContent::TooLarge(found.size_bytes())
        } else {
            match &found.sparse {
                Some(map) => MemberContent::Bytes(archive.read_sparse(map, new_bytes)?),
                None => archive.read(&found, leaves, new_bytes)?,
            }
        };
        if !visit(found.into_member(content)) {
            return Ok(TarEnd::Stopped);
        }
    }
    Ok(TarEnd::Whole {
        has_marker: archive.is_ended,
        notes: archive.notes,
    })
}

/// A file that was found, before it is read.
struct Found {
    path: String,
    is_utf8: bool,
    offset_bytes: u64,
    data_offset_bytes: u64,
    stored_bytes: u64,
    sparse: Option<SparseMap>,
}

impl Found {
    fn size_bytes(&self) -> u64 {
        let map = self.sparse.as_ref();
        map.map_or(self.stored_bytes, |map| map.file_bytes)
    }

    fn into_member(self, content: MemberContent) -> TarMember {
        TarMember {
            size_bytes: self.size_bytes(),
            path: self.path,
            is_utf8: self.is_utf8,
            offset_bytes: self.offset_bytes,
            data_offset_bytes: self.data_offset_bytes,
            stored_bytes: self.stored_bytes,
            is_sparse: self.sparse.is_some(),
            content,
        }
    }
}

/// A tar stream, and how far it was read.
struct Archive<'a, R> {
    shard: &'a str,
    reader: R,
    position: u64,
    /// Where the header of the present member begins.
    header_offset: u64,
    /// Where the next header is.
    next_offset: u64,
    /// Whether a block of zeros was the last that was read.
    is_ended: bool,
    notes: Vec<ShardNote>,
}

impl<'a, R: Read + Seek> Archive<'a, R> {
    fn new(shard: &'a str, reader: R) -> Self {
        Archive {
            shard,
            reader,
            position: 0,
            header_offset: 0,
            next_offset: 0,
            is_ended: false,
            notes: Vec::new(),
        }
    }

    /// The next regular file's header, itself and as it was stored, and what extension headers say of
    /// it; `None` at the end of the archive.
    fn next_file(
        &mut self,
        global: &mut Extension,
    ) -> Result<Option<(Header, Block, Extension)>, ShardError> {
        let mut extension = Extension::default();
        while let Some((header, block)) = self.next_header()? {
            let size = header.size_bytes;
            match header.kind {
                Kind::LongName => {
                    let name = self.read_extension(size, MAX_NAME_BYTES)?;
                    extension.path = Some(header::text(&name).to_vec());
                    extension.offset_bytes.get_or_insert(self.header_offset);
                }
                Kind::Pax => {
                    let records = self.read_extension(size, MAX_PAX_BYTES)?;
                    let read = extension.read_pax(&records);
                    read.map_err(|what| self.error(what))?;
                    extension.offset_bytes.get_or_insert(self.header_offset);
                }
                Kind::GlobalPax => {
                    let records = self.read_extension(size, MAX_PAX_BYTES)?;
                    let read = global.read_pax(&records);
                    read.map_err(|what| self.error(what))?;
                }
                Kind::Continued => return Err(self.error(
                    "a file that begins in another volume; join the volumes of the archive, or \
                         pack it anew without --multi-volume"
                        .into(),
                )),
                Kind::LongLink => {}
                // What was said of these matters to nobody, but for how long they are.
                Kind::NoData => extension = Extension::default(),
                Kind::Other => {
                    let size = std::mem::take(&mut extension).size_bytes.unwrap_or(size);
                    self.next_offset = padded_end(self.position, size);
                }
                Kind::File | Kind::Sparse => {
                    return Ok(Some((header, block, extension.or(global))));
                }
            }
        }
        match extension.offset_bytes {
            Some(offset) => Err(error_at(
                self.shard,
                offset,
                "truncated: an extension header without the member it describes; fetch the shard \
                 again"
                    .into(),
            )),
            None => Ok(None),
        }
    }

    /// The next header; `None` where the stream ends, or nothing follows that is of an archive.
    fn next_header(&mut self) -> Result<Option<(Header, Block)>, ShardError> {
        self.skip_to_next()?;
        loop {
            let offset = self.position;
            let mut block = [0; BLOCK_BYTES];
            let filled = self.fill(&mut block)?;
            if filled == 0 {
                return Ok(None);
            }
            if is_zero(&block) {
                // Also a part of a block behind the end.
                self.is_ended |= filled == BLOCK_BYTES;
                if self.is_ended {
                    continue;
                }
            }
            let parsed = match filled == BLOCK_BYTES {
                true => Header::parse(&block),
                false => Err("failed to read entire block".into()),
            };
            return match (parsed, self.is_ended) {
                (Ok(header), was_ended) => {
                    if was_ended {
                        self.note_once(ShardNote::Concatenated { offset });
                    }
                    self.is_ended = false;
                    self.header_offset = offset;
                    self.next_offset = padded_end(self.position, header.size_bytes);
                    Ok(Some((header, block)))
                }
                (Err(_), true) => {
                    self.notes.push(ShardNote::NoArchive { offset });
                    Ok(None)
                }
                (Err(what), false) => Err(match (offset, filled == BLOCK_BYTES) {
                    (0, _) => error_at(self.shard, 0, format!("not a tar archive ({what})")),
                    (_, true) => {
                        let message = format!("damaged ({what}); fetch the shard again");
                        error_at(self.shard, offset, message)
                    }
                    (_, false) => {
                        let message = format!("truncated ({what}); fetch the shard again");
                        error_at(self.shard, offset, message)
                    }
                }),
            };
        }
    }

    /// Of any number of archives behind each other one is said.
    fn note_once(&mut self, note: ShardNote) {
        let is_new = |known: &ShardNote| !matches!(known, ShardNote::Concatenated { .. });
        if self.notes.iter().all(is_new) {
            self.notes.push(note);
        }
    }

    /// Where a file lies, holes and lengths in extension headers considered.
    fn locate(
        &mut self,
        header: &Header,
        block: &Block,
        extension: Extension,
    ) -> Result<Found, ShardError> {
        let mut stored_bytes = extension.size_bytes.unwrap_or(header.size_bytes);
        self.next_offset = padded_end(self.position, stored_bytes);
        let mut path = extension.path;
        let bad_map = |what: &str| format!("a sparse member that {what}; pack it anew");
        let sparse = match (header.kind, extension.sparse) {
            (Kind::Sparse, _) => {
                let mut map = HeaderMap::of_header(block);
                while map.as_ref().is_ok_and(|map| map.is_continued) {
                    let more = self.block()?;
                    map = map.and_then(|mut map| map.take_block(&more).map(|()| map));
                }
                self.next_offset = padded_end(self.position, stored_bytes);
                Some(map.and_then(|map| map.finish(stored_bytes)))
            }
            (_, Some(mut map)) => {
                path = map.path.take().or(path);
                if map.is_in_data() {
                    let read = map.read_from_data(stored_bytes, &mut || {
                        self.block().map_err(MapError::Shard)
                    });
                    let (map, map_bytes) = match read {
                        Ok(read) => read,
                        Err(MapError::Shard(error)) => return Err(error),
                        Err(MapError::Map(what)) => return Err(self.error(bad_map(what))),
                    };
                    stored_bytes -= map_bytes.min(stored_bytes);
                    Some(Ok(map))
                } else {
                    Some(map.finish(stored_bytes))
                }
            }
            _ => None,
        };
        let sparse = sparse.transpose();
        let path = path.as_deref().unwrap_or(&header.path);
        Ok(Found {
            path: display_path(path),
            is_utf8: std::str::from_utf8(path).is_ok(),
            offset_bytes: extension.offset_bytes.unwrap_or(self.header_offset),
            data_offset_bytes: self.position,
            stored_bytes,
            sparse: sparse.map_err(|what| self.error(bad_map(what)))?,
        })
    }

    /// The data of a file that is stored as it is, or the decision to leave them.
    fn read(
        &mut self,
        found: &Found,
        leaves: Leaves<'_>,
        new_bytes: NewBytes<'_>,
    ) -> Result<MemberContent, ShardError> {
        let size = found.stored_bytes;
        Ok(match leaves(found.data_offset_bytes, size) {
            Leave::Now => MemberContent::Left,
            Leave::IfUnreadable => {
                let read = self.read_exactly(size, new_bytes);
                read.map_or(MemberContent::Left, MemberContent::Bytes)
            }
            Leave::Never => MemberContent::Bytes(self.read_exactly(size, new_bytes)?),
        })
    }

    /// A file with its holes; its length was found to be within the caller's limit.
    fn read_sparse(
        &mut self,
        map: &SparseMap,
        new_bytes: NewBytes<'_>,
    ) -> Result<Vec<u8>, ShardError> {
        let mut file = Vec::new();
        for piece in &map.pieces {
            let data = self.read_exactly(piece.bytes, &|len| vec![0; len])?;
            let hole_end = usize::try_from(piece.offset).unwrap_or(usize::MAX);
            file.resize(hole_end, 0);
            file.extend_from_slice(&data);
        }
        let end = usize::try_from(map.file_bytes).unwrap_or(usize::MAX);
        file.resize(end, 0);
        // In the caller's memory, as every other.
        let mut bytes = new_bytes(file.len());
        bytes.copy_from_slice(&file);
        Ok(bytes)
    }

    fn read_extension(&mut self, size: u64, max_bytes: u64) -> Result<Vec<u8>, ShardError> {
        if size > max_bytes {
            let message = format!("an extension header of {size} bytes (at most {max_bytes})");
            return Err(self.error(message));
        }
        self.read_exactly(size, &|len| vec![0; len])
    }

    /// Passes over what is left of a member.
    fn skip_to_next(&mut self) -> Result<(), ShardError> {
        let left = self.next_offset.saturating_sub(self.position);
        let skipped = match i64::try_from(left) {
            Ok(0) => return Ok(()),
            Ok(left) => self.reader.seek(SeekFrom::Current(left)).map(|_| ()),
            Err(_) => Err(ends_early()),
        };
        match skipped {
            Ok(()) => {
                self.position = self.next_offset;
                Ok(())
            }
            // The end it declares lies beyond the stream: say where it begins.
            Err(error) => Err(shard_error(self.shard, self.header_offset, &error)),
        }
    }

    /// A block of the present member.
    fn block(&mut self) -> Result<Block, ShardError> {
        let mut block = [0; BLOCK_BYTES];
        if self.fill(&mut block)? < BLOCK_BYTES {
            return Err(shard_error(self.shard, self.header_offset, &ends_early()));
        }
        Ok(block)
    }

    /// Reads until `buffer` is full or the stream ends.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, ShardError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => {
                    filled += count;
                    self.position += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(shard_error(self.shard, self.position, &error)),
            }
        }
        Ok(filled)
    }

    /// Reads `size` bytes, growing with what is really there.
    fn read_exactly(&mut self, size: u64, new_bytes: NewBytes<'_>) -> Result<Vec<u8>, ShardError> {
        // No more than that is believed at once.
        const FIRST_BYTES: u64 = 1 << 20;
        let mut data = new_bytes(size.min(FIRST_BYTES) as usize);
        let mut filled = 0;
        while (filled as u64) < size {
            if filled == data.len() {
                let larger = size.min(2 * filled as u64) as usize;
                data.resize(larger, 0);
            }
            let wanted = &mut data[filled..];
            match self.reader.read(wanted) {
                Ok(0) => break,
                Ok(count) => {
                    filled += count;
                    self.position += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(shard_error(self.shard, self.header_offset, &error)),
            }
        }
        data.truncate(filled);
        if (filled as u64) < size {
            return Err(self.error(format!(
                "truncated: a member declares {size} bytes and {filled} are there; fetch the shard \
                 again"
            )));
        }
        Ok(data)
    }

    /// Something about the present member.
    fn error(&self, message: String) -> ShardError {
        error_at(self.shard, self.header_offset, message)
    }
}

/// Why the map in front of a sparse file's data could not be read.
enum MapError {
    Map(&'static str),
    Shard(ShardError),
}

impl From<&'static str> for MapError {
    fn from(what: &'static str) -> MapError {
        MapError::Map(what)
    }
}

fn display_path(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(path) => path.to_string(),
        Err(_) => bytes
            .utf8_chunks()
            .flat_map(|chunk| {
                let escaped = chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}"));
                std::iter::once(chunk.valid().to_string()).chain(escaped)
            })
            .collect(),
    }
}

fn error_at(shard: &str, offset_bytes: u64, message: String) -> ShardError {
    ShardError {
        shard: shard.to_string(),
        offset_bytes,
        message,
    }
}

/// Words an I/O error of the tar or decompression layer.
pub(crate) fn shard_error(shard: &str, offset_bytes: u64, error: &io::Error) -> ShardError {
    let text = error.to_string();
    let is_sound = error
        .get_ref()
        .is_some_and(|source| source.is::<WindowTooLarge>());
    let is_truncated = error.kind() == io::ErrorKind::UnexpectedEof
        || text.contains("unexpected EOF")
        || text.contains("incomplete frame");
    let message = if is_sound {
        text
    } else if is_truncated {
        format!("truncated ({text}); fetch the shard again")
    } else {
        format!("damaged ({text}); fetch the shard again")
    };
    error_at(shard, offset_bytes, message)
}

/// When a member stays in its shard, to be read later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It is read now, or the shard ends with an error.
    Never,
    /// Only if it cannot be read now: so that it makes no difference which is tried.
    IfUnreadable,
    /// It is passed over.
    Now,
}

#[cfg(test)]
mod tests {
    use super::super::forward::Seekable;
    use super::*;

    /// A disk with a bad place, that can be passed over.
    struct Disk(io::Cursor<Vec<u8>>, std::ops::Range<u64>);

    impl Read for Disk {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Disk(bytes, bad) = self;
            let at = bytes.position();
            let end = at + buffer.len() as u64;
            if at < bad.end && end > bad.start {
                return Err(io::Error::other("a bad place"));
            }
            bytes.read(buffer)
        }
    }

    impl Seek for Disk {
        fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
            self.0.seek(to)
        }
    }

    fn read(leave: Leave) -> (Vec<(String, bool)>, Result<TarEnd, String>) {
        let mut builder = tar::Builder::new(Vec::new());
        for name in ["a.jpg", "b.jpg", "c.jpg"] {
            let mut header = tar::Header::new_ustar();
            header.set_size(10_000);
            header.set_cksum();
            builder
                .append_data(&mut header, name, io::repeat(7).take(10_000))
                .unwrap();
        }
        let bytes = builder.into_inner().unwrap();
        let (len, bad) = (
            bytes.len() as u64,
            10_752 + 1024 + 4000..10_752 + 1024 + 5000,
        );
        let disk = Seekable::new(Disk(io::Cursor::new(bytes), bad), len, 1024);
        let mut seen = Vec::new();
        let end = for_each_member(
            "s",
            disk,
            1 << 20,
            &|_| true,
            &|_, _| leave,
            &|len| vec![0; len],
            &mut |member| {
                let is_left = matches!(member.content, MemberContent::Left);
                assert_eq!(
                    (member.size_bytes, member.offset_bytes % 10_752),
                    (10_000, 0)
                );
                seen.push((member.path, is_left));
                true
            },
        );
        (seen, end.map_err(|error| error.to_string()))
    }

    #[test]
    fn a_bad_place_costs_a_member_that_may_be_left() {
        let whole = || TarEnd::Whole {
            has_marker: true,
            notes: Vec::new(),
        };
        let all = |left: [bool; 3]| -> Vec<_> {
            let names = ["a.jpg", "b.jpg", "c.jpg"].map(String::from);
            names.into_iter().zip(left).collect()
        };
        assert_eq!(
            read(Leave::IfUnreadable),
            (all([false, true, false]), Ok(whole()))
        );
        assert_eq!(read(Leave::Now), (all([true; 3]), Ok(whole())));
        let (seen, end) = read(Leave::Never);
        assert_eq!(seen, all([false; 3])[..1]);
        let message = end.unwrap_err();
        assert!(
            message.contains("a bad place") && message.contains("10752"),
            "{message}"
        );
    }

    /// What no number of bytes can be beyond is beyond the end.
    #[test]
    fn a_member_longer_than_anything() {
        let mut header = tar::Header::new_gnu();
        header.set_path("a.jpg").unwrap();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(u64::MAX - 5000);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(2048, 0);
        let file = Seekable::new(io::Cursor::new(bytes.clone()), 2048, 512);
        let stream = super::super::forward::Stream::new(&bytes[..]);
        let end = |reader: &mut dyn super::super::forward::ReadSeek| {
            let (wanted, never) = (|_: &str| false, |_, _| Leave::Never);
            let end = for_each_member("s", reader, 9, &wanted, &never, &|_| vec![], &mut |_| true);
            end.unwrap_err().to_string()
        };
        let (mut file, mut stream) = (file, stream);
        let messages = [end(&mut file), end(&mut stream)];
        assert!(messages[0].contains("truncated"), "{messages:?}");
        assert_eq!(messages[0], messages[1]);
    }
}
