//! Writers that know how far they are, and what they wrote.

use std::io::{self, Write};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::atomic_file::AtomicFile;
use crate::index::MemberPlace;
use crate::shard::group::split_key;
use crate::shard::written::Written;
use crate::shard::zstd_frames::SeekableWriter;

/// The file of a shard: its length and checksum are taken on the way.
#[derive(Debug)]
pub(super) struct ChecksumWriter<W> {
    inner: W,
    sha256: Sha256,
    written: Arc<Written>,
}

impl<W: Write> ChecksumWriter<W> {
    pub(super) fn new(inner: W) -> Self {
        ChecksumWriter {
            inner,
            sha256: Sha256::new(),
            written: Arc::default(),
        }
    }

    /// What is written, wherever the writer goes.
    pub(super) fn written(&self) -> Arc<Written> {
        self.written.clone()
    }

    /// The writer below, length and SHA-256 of what went through.
    pub(super) fn finish(self) -> (W, u64, [u8; 32]) {
        let bytes = self.written.bytes();
        (self.inner, bytes, self.sha256.finalize().into())
    }
}

impl<W: Write> Write for ChecksumWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.sha256.update(&bytes[..count]);
        self.written.note(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The tar stream, before it is compressed.
#[derive(Debug)]
pub(super) struct TarStream<W> {
    inner: W,
    written: Written,
}

impl<W: TarOutput> TarStream<W> {
    pub(super) fn new(inner: W) -> Self {
        TarStream {
            inner,
            written: Written::default(),
        }
    }

    /// What of it was written.
    pub(super) fn written(&self) -> &Written {
        &self.written
    }

    /// Told after each sample.
    pub(super) fn end_sample(&mut self) -> io::Result<()> {
        self.inner.end_sample()
    }

    pub(super) fn into_inner(self) -> W {
        self.inner
    }
}

impl<W: Write> Write for TarStream<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.written.note(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Where the tar stream goes.
pub(super) trait TarOutput: Write {
    /// Told after each sample.
    fn end_sample(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> TarOutput for ChecksumWriter<W> {}

impl<W: Write> TarOutput for SeekableWriter<W> {
    fn end_sample(&mut self) -> io::Result<()> {
        SeekableWriter::end_sample(self)
    }
}

/// A gzip encoder.
#[derive(Debug)]
pub(super) struct GzipWriter<W: Write>(flate2::write::GzEncoder<W>);

impl<W: Write> GzipWriter<W> {
    pub(super) fn new(inner: W, level: u32) -> Self {
        // The default header: no name, no time.
        GzipWriter(flate2::GzBuilder::new().write(inner, flate2::Compression::new(level)))
    }

    pub(super) fn finish(self) -> io::Result<W> {
        self.0.finish()
    }
}

impl<W: Write> Write for GzipWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write> TarOutput for GzipWriter<W> {}

/// Size of a tar block in bytes: headers are one block, contents whole blocks.
pub(super) const TAR_BLOCK_BYTES: u64 = 512;

/// The file of a shard, under its temporary name.
pub(super) type ShardFile = ChecksumWriter<AtomicFile>;

/// Appends a file with a header of its name and length alone; returns where it lies.
pub(super) fn append_member<W: TarOutput>(
    tar: &mut tar::Builder<TarStream<W>>,
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
        offset_bytes: tar.get_ref().written().bytes() - padded,
        size_bytes,
    })
}
