//! Writers that know how far they are, and what they wrote.

use std::io::{self, Write};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::options::ShardOptions;
use crate::atomic_file::AtomicFile;
use crate::index::{Layout, MemberPlace};
use crate::shard::group::split_key;
use crate::shard::shard_format::ShardFormat;
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

/// What a tar stream goes through on its way into its file.
pub(super) enum Compressor {
    None(ShardFile),
    Gzip(flate2::write::GzEncoder<ShardFile>),
    Zstd(SeekableWriter<ShardFile>),
}

impl Compressor {
    /// As the options say; a format that is no tar is not compressed.
    ///
    /// # Errors
    /// If zstd has no memory.
    pub(super) fn new(file: ShardFile, options: &ShardOptions) -> io::Result<Self> {
        Ok(match options.format {
            ShardFormat::TarGz => {
                let level = u32::try_from(options.level.clamp(0, 9)).unwrap_or(1);
                // The default header: no name, no time.
                let header = flate2::GzBuilder::new();
                Compressor::Gzip(header.write(file, flate2::Compression::new(level)))
            }
            ShardFormat::TarZst => {
                Compressor::Zstd(SeekableWriter::new(file, options.level.clamp(1, 22))?)
            }
            ShardFormat::Tar | ShardFormat::Arrow => Compressor::None(file),
        })
    }

    /// Told after each sample: frames of zstd are cut there.
    fn end_sample(&mut self) -> io::Result<()> {
        match self {
            Compressor::None(_) | Compressor::Gzip(_) => Ok(()),
            Compressor::Zstd(frames) => frames.end_sample(),
        }
    }

    /// Ends the stream; returns its file, and how samples lie in it.
    fn finish(self) -> io::Result<(ShardFile, Layout)> {
        match self {
            Compressor::None(file) => Ok((file, Layout::Tar)),
            Compressor::Gzip(gzip) => Ok((gzip.finish()?, Layout::Sequential)),
            Compressor::Zstd(frames) => {
                let (file, frames) = frames.finish()?;
                Ok((file, Layout::ZstdFrames(frames)))
            }
        }
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Compressor::None(file) => file,
            Compressor::Gzip(gzip) => gzip,
            Compressor::Zstd(frames) => frames,
        }
    }
}

/// The tar stream, before it is compressed.
pub(super) struct TarStream {
    compressor: Compressor,
    written: Written,
}

impl TarStream {
    pub(super) fn new(compressor: Compressor) -> Self {
        TarStream {
            compressor,
            written: Written::default(),
        }
    }

    /// What of it was written.
    pub(super) fn written(&self) -> &Written {
        &self.written
    }

    /// Told after each sample.
    pub(super) fn end_sample(&mut self) -> io::Result<()> {
        self.compressor.end_sample()
    }
}

impl Write for TarStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.compressor.writer().write(bytes)?;
        self.written.note(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.compressor.writer().flush()
    }
}

/// Writes the end of an archive; returns its file, and how samples lie in it.
pub(super) fn finish(tar: tar::Builder<TarStream>) -> io::Result<(ShardFile, Layout)> {
    tar.into_inner()?.compressor.finish()
}

/// Size of a tar block in bytes: headers are one block, contents whole blocks.
pub(super) const TAR_BLOCK_BYTES: u64 = 512;

/// The file of a shard, under its temporary name.
pub(super) type ShardFile = ChecksumWriter<AtomicFile>;

/// Appends a file with a header of its name and length alone; returns where it lies.
pub(super) fn append_member(
    tar: &mut tar::Builder<TarStream>,
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
