//! Writes files into tar shards as they come: for copies of shards, whatever their samples hold.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use tar::Builder;

use super::content::{append_member, finish, ChecksumWriter, Compressor, TarStream};
use super::options::ShardOptions;
use super::target::{io_error, remove_index, unwritable};
use crate::atomic_file::AtomicFile;
use crate::error::PipelineError;
use crate::index::{build_index, Checksums};
use crate::shard::read::ReadOptions;
use crate::shard::shard_format::ShardFormat;
use crate::source::ShardLocation;
use crate::stop::Stop;

/// Writes one tar shard, file by file. Dropped before [`finish`](FileWriter::finish), it leaves nothing.
pub struct FileWriter {
    target: PathBuf,
    tar: Builder<TarStream>,
    files: u64,
    index: bool,
}

impl fmt::Debug for FileWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileWriter")
            .field("target", &self.target)
            .field("files", &self.files)
            .finish_non_exhaustive()
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
        let compressor = Compressor::new(file, options).map_err(io_error(&target))?;
        Ok(FileWriter {
            target,
            tar: Builder::new(TarStream::new(compressor)),
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
        let written = append_member(&mut self.tar, path, content);
        written.map_err(io_error(&self.target))?;
        self.files += 1;
        Ok(())
    }

    /// Says that a sample is complete: frames of zstd are cut there.
    ///
    /// # Errors
    /// [`PipelineError::Io`] when the disk says no.
    pub fn end_sample(&mut self) -> Result<(), PipelineError> {
        let ended = self.tar.get_mut().end_sample();
        ended.map_err(io_error(&self.target))
    }

    /// Bytes of the uncompressed stream so far.
    pub fn content_bytes(&self) -> u64 {
        self.tar.get_ref().written().bytes()
    }

    /// Writes the end of the shard, gives it its name, and writes its index, for which it reads the shard
    /// once more.
    ///
    /// # Errors
    /// [`PipelineError::Io`] naming the shard or its index.
    pub fn finish(self) -> Result<WrittenFiles, PipelineError> {
        let FileWriter {
            target,
            tar,
            files,
            index,
        } = self;
        let (file, _) = finish(tar).map_err(io_error(&target))?;
        let (file, file_bytes, _) = file.finish();
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
    let index = build_index(
        location,
        &options,
        Checksums::Taken,
        &Stop::default(),
        &|_| {},
    );
    let index = index.map_err(|error| io_error(target)(io::Error::other(error.to_string())))?;
    index.write_beside(location).map(|_| ())
}
