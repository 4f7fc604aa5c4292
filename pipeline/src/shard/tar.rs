//! Members of a tar stream, read with every length checked before it is believed.

use std::io::{self, Read, Seek, SeekFrom};

use super::forward::ends_early;
use super::read::Leave;
use crate::error::ShardError;

/// Longest member name accepted from a GNU or pax extension header, in bytes.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// One regular file of a tar stream.
#[derive(Debug)]
pub(crate) struct TarMember {
    /// Path as stored; bytes that are not UTF-8 are written `\xNN`.
    pub(crate) path: String,
    /// Offset of its first header (extension headers included) in the uncompressed stream.
    pub(crate) offset_bytes: u64,
    /// Offset of its data in the uncompressed stream.
    pub(crate) data_offset_bytes: u64,
    /// Length of its data.
    pub(crate) size_bytes: u64,
    /// What it holds.
    pub(crate) content: MemberContent,
}

impl TarMember {
    /// Where its data ends in the uncompressed stream, padding included.
    pub(crate) fn end_bytes(&self) -> u64 {
        padded_end(self.data_offset_bytes, self.size_bytes)
    }
}

fn padded_end(data_offset: u64, size: u64) -> u64 {
    data_offset.saturating_add(size.checked_next_multiple_of(512).unwrap_or(u64::MAX))
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
    let tail = TailWatch::new(reader);
    let watch = tail.state();
    let mut archive = tar::Archive::new(tail);
    // Raw entries: the extension headers are ours to bound, the framing is the tar crate's.
    let entries = archive
        .entries_with_seek()
        .map_err(|error| shard_error(shard, 0, &error))?;
    let mut extension = Extension::default();
    let (mut member_offset, mut next_offset) = (0, 0);
    for entry in entries.raw(true) {
        let mut entry = entry.map_err(|error| {
            let offset = next_offset;
            if offset == 0 {
                error_at(shard, offset, format!("not a tar archive ({error})"))
            } else if offset > member_offset && is_beyond(&error) {
                // The end it declares lies beyond the stream: say where it begins.
                shard_error(shard, member_offset, &ends_early())
            } else {
                shard_error(shard, offset, &error)
            }
        })?;
        let header_offset = entry.raw_header_position();
        let size = entry.size();
        member_offset = header_offset;
        let data_offset_bytes = entry.raw_file_position();
        next_offset = padded_end(data_offset_bytes, size);
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() || kind.is_pax_local_extensions() {
            if size > MAX_EXTENSION_BYTES {
                return Err(error_at(
                    shard,
                    header_offset,
                    format!("an extension header of {size} bytes (at most {MAX_EXTENSION_BYTES})"),
                ));
            }
            let data = read_exactly(shard, &mut entry, size, header_offset, &|len| vec![0; len])?;
            extension.offset.get_or_insert(header_offset);
            if kind.is_gnu_longname() {
                let end = data
                    .iter()
                    .position(|&byte| byte == 0)
                    .unwrap_or(data.len());
                extension.path = Some(data[..end].to_vec());
            } else {
                extension
                    .read_pax(&data)
                    .map_err(|what| error_at(shard, header_offset, what))?;
            }
            continue;
        }
        if kind.is_gnu_sparse() {
            return Err(error_at(
                shard,
                header_offset,
                "a sparse member, which WebDataset shards do not have; repack the shard without \
                 --sparse"
                    .into(),
            ));
        }
        let Extension {
            path,
            size: pax_size,
            offset,
        } = std::mem::take(&mut extension);
        if pax_size.is_some_and(|pax_size| pax_size != size) {
            return Err(error_at(
                shard,
                header_offset,
                format!(
                    "a member of {size} bytes by its own header and of {} by its pax header; \
                     repack the shard with members below 8 GiB",
                    pax_size.unwrap_or(size)
                ),
            ));
        }
        if !kind.is_file() && !kind.is_contiguous() {
            continue; // directories, links, devices, global pax headers
        }
        let path = display_path(&path.unwrap_or_else(|| entry.path_bytes().into_owned()));
        let content = if !wanted(&path) {
            MemberContent::PassedOver
        } else if size > max_bytes {
            MemberContent::TooLarge(size)
        } else {
            let leave = leaves(data_offset_bytes, size);
            let mut load = || read_exactly(shard, &mut entry, size, header_offset, new_bytes);
            match leave {
                Leave::Now => MemberContent::Left,
                Leave::IfUnreadable => load().map_or(MemberContent::Left, MemberContent::Bytes),
                Leave::Never => MemberContent::Bytes(load()?),
            }
        };
        let offset_bytes = offset.unwrap_or(header_offset);
        if !visit(TarMember {
            path,
            offset_bytes,
            data_offset_bytes,
            size_bytes: size,
            content,
        }) {
            return Ok(TarEnd::Stopped);
        }
    }
    Ok(if watch.ends_with_zeros() {
        TarEnd::Marker
    } else {
        TarEnd::NoMarker
    })
}

/// Whether what a member declares could not be passed over.
fn is_beyond(error: &io::Error) -> bool {
    let text = error.to_string();
    text.contains("during skip") || text.contains("seek position out of bounds")
}

/// How a tar stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TarEnd {
    /// With the end-of-archive marker.
    Marker,
    /// At a header boundary, but without the marker: whole members may be missing.
    NoMarker,
    /// The visitor asked for no more.
    Stopped,
}

#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    size: Option<u64>,
    offset: Option<u64>,
}

impl Extension {
    fn read_pax(&mut self, data: &[u8]) -> Result<(), String> {
        for record in tar::PaxExtensions::new(data) {
            let record = record.map_err(|error| format!("a damaged pax header ({error})"))?;
            match record.key_bytes() {
                b"path" => self.path = Some(record.value_bytes().to_vec()),
                b"size" => {
                    let size = record.value().ok().and_then(|value| value.parse().ok());
                    self.size = Some(size.ok_or("a pax header whose size is not a number")?);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Reads `size` bytes, growing with what is really there.
fn read_exactly(
    shard: &str,
    reader: &mut impl Read,
    size: u64,
    header_offset: u64,
    new_bytes: NewBytes<'_>,
) -> Result<Vec<u8>, ShardError> {
    // No more than that is believed at once.
    const FIRST_BYTES: u64 = 1 << 20;
    let mut data = new_bytes(size.min(FIRST_BYTES) as usize);
    let mut filled = 0;
    while (filled as u64) < size {
        if filled == data.len() {
            let larger = size.min(2 * filled as u64) as usize;
            data.resize(larger, 0);
        }
        match reader.read(&mut data[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(shard_error(shard, header_offset, &error)),
        }
    }
    data.truncate(filled);
    if (data.len() as u64) < size {
        return Err(error_at(
            shard,
            header_offset,
            format!(
                "truncated: a member declares {size} bytes and {} are there; fetch the shard again",
                data.len()
            ),
        ));
    }
    Ok(data)
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
    let truncated = error.kind() == io::ErrorKind::UnexpectedEof
        || text.contains("unexpected EOF")
        || text.contains("failed to read entire block")
        || text.contains("incomplete frame");
    let message = if truncated {
        format!("truncated ({text}); fetch the shard again")
    } else {
        format!("damaged ({text}); fetch the shard again")
    };
    error_at(shard, offset_bytes, message)
}

/// Remembers whether the last block that went by was all zeros.
struct TailWatch<R> {
    inner: R,
    state: std::rc::Rc<std::cell::Cell<usize>>,
}

impl<R> TailWatch<R> {
    fn new(inner: R) -> Self {
        TailWatch {
            inner,
            state: Default::default(),
        }
    }

    fn state(&self) -> TailState {
        TailState(self.state.clone())
    }
}

struct TailState(std::rc::Rc<std::cell::Cell<usize>>);

impl TailState {
    fn ends_with_zeros(&self) -> bool {
        self.0.get() >= 512
    }
}

impl<R: Seek> Seek for TailWatch<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.state.set(0);
        self.inner.seek(to)
    }
}

impl<R: Read> Read for TailWatch<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        let zeros = buffer[..count]
            .iter()
            .rev()
            .take(512)
            .take_while(|&&byte| byte == 0)
            .count();
        self.state.set(if zeros == count {
            self.state.get() + zeros
        } else {
            zeros
        });
        Ok(count)
    }
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
        let all = |left: [bool; 3]| -> Vec<_> {
            let names = ["a.jpg", "b.jpg", "c.jpg"].map(String::from);
            names.into_iter().zip(left).collect()
        };
        assert_eq!(
            read(Leave::IfUnreadable),
            (all([false, true, false]), Ok(TarEnd::Marker))
        );
        assert_eq!(read(Leave::Now), (all([true; 3]), Ok(TarEnd::Marker)));
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
