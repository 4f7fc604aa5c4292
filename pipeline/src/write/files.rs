//! Writes files into tar shards as they come: for copies of shards, whatever their samples hold.

use std::io;
use std::path::{Path, PathBuf};

use tar::Builder;

use super::content::{append_member, ChecksumWriter, GzipWriter, ShardFile, TarStream};
use super::options::ShardOptions;
use super::target::{io_error, remove_index, unwritable};
use crate::atomic_file::AtomicFile;
use crate::error::PipelineError;
use crate::index::build_index;
use crate::shard::read::ReadOptions;
use crate::shard::shard_format::ShardFormat;
use crate::shard::zstd_frames::SeekableWriter;
use crate::source::ShardLocation;
use crate::stop::Stop;

/// Writes one tar shard, file by file. Dropped before [`finish`](FileWriter::finish), it leaves nothing.
#[derive(Debug)]
pub struct FileWriter {
    target: PathBuf,
    body: Body,
    files: u64,
    index: bool,
}

enum Body {
    Tar(Builder<TarStream<ShardFile>>),
    TarGz(Builder<TarStream<GzipWriter<ShardFile>>>),
    TarZst(Builder<TarStream<SeekableWriter<ShardFile>>>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Body::Tar(_) => "Tar",
            Body::TarGz(_) => "TarGz",
            Body::TarZst(_) => "TarZst",
        })
    }
}

/// A shard of files that is complete and under its final name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenFiles {
    /// The file.
    pub path: PathBuf,
    /// Files in it.
    pub files: u64,
    /// Size of the shard in bytes.
    pub file_bytes: u64,
}

impl FileWriter {
    /// Opens a shard that will be named `target`.
    ///
    /// # Errors
    /// [`PipelineError::Io`] naming the target; [`PipelineError::Unwritable`] for Arrow, which holds rows.
    pub fn create(
        target: impl Into<PathBuf>,
        options: &ShardOptions,
    ) -> Result<FileWriter, PipelineError> {
        let target = target.into();
        if options.format == ShardFormat::Arrow {
            let message = "an Arrow shard holds rows, not files".to_string();
            return Err(unwritable(&target, "", message));
        }
        let file = ChecksumWriter::new(AtomicFile::create(&target)?);
        let body = match options.format {
            ShardFormat::TarGz => {
                let level = u32::try_from(options.level.clamp(0, 9)).unwrap_or(1);
                Body::TarGz(Builder::new(TarStream::new(GzipWriter::new(file, level))))
            }
            ShardFormat::TarZst => {
                let frames = SeekableWriter::new(file, options.level.clamp(1, 22));
                let frames = frames.map_err(io_error(&target))?;
                Body::TarZst(Builder::new(TarStream::new(frames)))
            }
            ShardFormat::Tar | ShardFormat::Arrow => Body::Tar(Builder::new(TarStream::new(file))),
        };
        Ok(FileWriter {
            target,
            body,
            files: 0,
            index: options.index,
        })
    }

    /// Appends a file.
    ///
    /// # Errors
    /// [`PipelineError::Unwritable`] for a path that is empty, absolute or has `..` in it, after which the
    /// shard goes on without the file; [`PipelineError::Io`] when the disk says no.
    pub fn append(&mut self, path: &str, content: &[u8]) -> Result<(), PipelineError> {
        let parts = path.split('/');
        let is_unsafe = path.starts_with('/')
            || path.contains('\0')
            || path.is_empty()
            || parts.clone().any(|part| part == "..");
        if is_unsafe {
            let message = "its path is empty, absolute, or leads out of a folder".to_string();
            return Err(unwritable(&self.target, path, message));
        }
        let written = match &mut self.body {
            Body::Tar(tar) => append_member(tar, path, content),
            Body::TarGz(tar) => append_member(tar, path, content),
            Body::TarZst(tar) => append_member(tar, path, content),
        };
        written.map_err(io_error(&self.target))?;
        self.files += 1;
        Ok(())
    }

    /// Says that a sample is complete: frames of zstd are cut there.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when the disk says no.
    pub fn end_sample(&mut self) -> Result<(), PipelineError> {
        let ended = match &mut self.body {
            Body::Tar(tar) => tar.get_mut().end_sample(),
            Body::TarGz(tar) => tar.get_mut().end_sample(),
            Body::TarZst(tar) => tar.get_mut().end_sample(),
        };
        ended.map_err(io_error(&self.target))
    }

    /// Bytes of the uncompressed stream so far.
    pub fn content_bytes(&self) -> u64 {
        match &self.body {
            Body::Tar(tar) => tar.get_ref().written().bytes(),
            Body::TarGz(tar) => tar.get_ref().written().bytes(),
            Body::TarZst(tar) => tar.get_ref().written().bytes(),
        }
    }

    /// Writes the end of the shard, gives it its name, and writes its index, for which it reads the shard
    /// once more.
    ///
    /// # Errors
    /// [`PipelineError::Io`] naming the shard or its index.
    pub fn finish(self) -> Result<WrittenFiles, PipelineError> {
        let FileWriter {
            target,
            body,
            files,
            index,
        } = self;
        let file: io::Result<ShardFile> = match body {
            Body::Tar(tar) => tar.into_inner().map(TarStream::into_inner),
            Body::TarGz(tar) => tar
                .into_inner()
                .and_then(|stream| stream.into_inner().finish()),
            Body::TarZst(tar) => tar
                .into_inner()
                .and_then(|stream| stream.into_inner().finish())
                .map(|(file, _)| file),
        };
        let (file, file_bytes, _) = file.map_err(io_error(&target))?.finish();
        let location = ShardLocation::local(&target);
        remove_index(&location)?;
        file.commit()?;
        if index {
            write_index(&location, &target)?;
        }
        Ok(WrittenFiles {
            path: target,
            files,
            file_bytes,
        })
    }
}

fn write_index(location: &ShardLocation, target: &Path) -> Result<(), PipelineError> {
    let options = ReadOptions {
        needs_captions: false,
        ..ReadOptions::default()
    };
    let index = build_index(location, &options, &Stop::default(), &|_| {});
    let index = index.map_err(|error| io_error(target)(io::Error::other(error.to_string())))?;
    index.write_beside(location).map(|_| ())
}
