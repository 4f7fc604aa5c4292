//! Writers that know how far they are, and what they wrote.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::atomic_file::AtomicFile;
use crate::index::MemberPlace;
use crate::shard::group::split_key;
use crate::shard::zstd_frames::SeekableWriter;

/// The file of a shard: its length and checksum are taken on the way.
#[derive(Debug)]
pub(super) struct ChecksumWriter<W> {
    inner: W,
    sha256: Sha256,
    bytes: Arc<AtomicU64>,
}

impl<W: Write> ChecksumWriter<W> {
    pub(super) fn new(inner: W) -> Self {
        ChecksumWriter {
            inner,
            sha256: Sha256::new(),
            bytes: Arc::default(),
        }
    }

    /// The number of bytes written, wherever the writer goes.
    pub(super) fn position(&self) -> Arc<AtomicU64> {
        self.bytes.clone()
    }

    /// The writer below, length and SHA-256 of what went through.
    pub(super) fn finish(self) -> (W, u64, [u8; 32]) {
        let bytes = self.bytes.load(Ordering::Relaxed);
        (self.inner, bytes, self.sha256.finalize().into())
    }
}

impl<W: Write> Write for ChecksumWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.sha256.update(&bytes[..count]);
        self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Where the tar stream goes.
pub(super) trait TarOutput: Write {
    /// Uncompressed bytes so far.
    fn content_bytes(&self) -> u64;

    /// Told after each sample.
    fn end_sample(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> TarOutput for ChecksumWriter<W> {
    fn content_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl<W: Write> TarOutput for SeekableWriter<W> {
    fn content_bytes(&self) -> u64 {
        SeekableWriter::content_bytes(self)
    }

    fn end_sample(&mut self) -> io::Result<()> {
        SeekableWriter::end_sample(self)
    }
}

/// A gzip encoder that counts what goes in.
#[derive(Debug)]
pub(super) struct GzipWriter<W: Write> {
    encoder: flate2::write::GzEncoder<W>,
    content_bytes: u64,
}

impl<W: Write> GzipWriter<W> {
    pub(super) fn new(inner: W, level: u32) -> Self {
        // The default header: no name, no time.
        let encoder = flate2::GzBuilder::new().write(inner, flate2::Compression::new(level));
        GzipWriter {
            encoder,
            content_bytes: 0,
        }
    }

    pub(super) fn finish(self) -> io::Result<W> {
        self.encoder.finish()
    }
}

impl<W: Write> Write for GzipWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.encoder.write(bytes)?;
        self.content_bytes = self.content_bytes.saturating_add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.encoder.flush()
    }
}

impl<W: Write> TarOutput for GzipWriter<W> {
    fn content_bytes(&self) -> u64 {
        self.content_bytes
    }
}

/// Size of a tar block in bytes: headers are one block, contents whole blocks.
pub(super) const TAR_BLOCK_BYTES: u64 = 512;

/// The file of a shard, under its temporary name.
pub(super) type ShardFile = ChecksumWriter<AtomicFile>;

/// Appends a file with a header of its name and length alone; returns where it lies.
pub(super) fn append_member<W: TarOutput>(
    tar: &mut tar::Builder<W>,
    name: &str,
    content: &[u8],
) -> io::Result<MemberPlace> {
    // `append_data` adds a GNU long-name member where the name does not fit a ustar header.
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let size_bytes = content.len() as u64;
    header.set_size(size_bytes);
    tar.append_data(&mut header, name, content)?;
    let padded = size_bytes.next_multiple_of(TAR_BLOCK_BYTES);
    Ok(MemberPlace {
        name: split_key(name).map_or_else(String::new, |(_, extension)| extension),
        offset_bytes: tar.get_ref().content_bytes() - padded,
        size_bytes,
    })
}
