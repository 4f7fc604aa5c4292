//! A zip whose entries are read in any order.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use flate2::read::DeflateDecoder;
use flate2::CrcReader;
use zip::{CompressionMethod, ZipArchive};

use crate::interrupt::Interrupt;

/// A zip whose entries are read in any order, by several threads.
#[derive(Debug)]
pub(super) struct ZipFile {
    path: PathBuf,
    file: File,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    /// Where its data begins.
    start: u64,
    stored_bytes: u64,
    size_bytes: u64,
    is_deflated: bool,
    crc32: u32,
}

impl ZipFile {
    /// Opens a zip; names entries that cannot be read, and why.
    ///
    /// # Errors
    /// What is wrong with the zip.
    pub(super) fn open(
        path: &Path,
        interrupt: &Interrupt,
    ) -> anyhow::Result<(ZipFile, Vec<(String, &'static str)>)> {
        let file = File::open(path)?;
        let mut archive = ZipArchive::new(file.try_clone()?).context("it is no sound zip")?;
        let mut entries = Vec::new();
        let mut unreadable = Vec::new();
        for index in 0..archive.len() {
            interrupt.check()?;
            let entry = archive.by_index_raw(index)?;
            if !entry.is_file() {
                continue;
            }
            let name = entry.name().map(|name| name.into_owned());
            let name = name.unwrap_or_else(|_| format!("entry {index}"));
            let is_deflated = entry.compression() == CompressionMethod::Deflated;
            let problem = if entry.encrypted() {
                Some("it is encrypted; unpack the zip")
            } else if !is_deflated && entry.compression() != CompressionMethod::Stored {
                Some("it is compressed by another method than deflate; unpack the zip")
            } else {
                None
            };
            match (entry.data_start(), problem) {
                (Some(start), None) => entries.push(Entry {
                    name,
                    start,
                    stored_bytes: entry.compressed_size(),
                    size_bytes: entry.size(),
                    is_deflated,
                    crc32: entry.crc32(),
                }),
                (_, problem) => {
                    let what = format!("{}: {name}", path.display());
                    let message = problem.unwrap_or("it has no data");
                    unreadable.push((what, message));
                }
            }
        }
        let path = path.to_owned();
        Ok((
            ZipFile {
                path,
                file,
                entries,
            },
            unreadable,
        ))
    }

    /// Names of the entries, in the order of the zip.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// As messages name an entry.
    pub(super) fn name(&self, entry: usize) -> String {
        let name = self.entries.get(entry).map_or("", |entry| &entry.name);
        format!("{}: {name}", self.path.display())
    }

    /// An entry whole, its checksum compared; `None` if it is over `max_bytes`.
    pub(super) fn read(&self, entry: usize, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        let no_entry = || io::Error::other("no such entry");
        let entry = self.entries.get(entry).ok_or_else(no_entry)?;
        if entry.size_bytes > max_bytes {
            return Ok(None);
        }
        let stored = Part {
            file: &self.file,
            at: entry.start,
            left: entry.stored_bytes,
        };
        let data: Box<dyn Read + '_> = match entry.is_deflated {
            true => Box::new(DeflateDecoder::new(io::BufReader::new(stored))),
            false => Box::new(stored),
        };
        let mut content = Vec::with_capacity(usize::try_from(entry.size_bytes).unwrap_or(0));
        let mut data = CrcReader::new(data.take(entry.size_bytes + 1));
        data.read_to_end(&mut content)?;
        if content.len() as u64 != entry.size_bytes || data.crc().sum() != entry.crc32 {
            return Err(io::Error::other(
                "its data does not have the checksum that the zip names; it is damaged",
            ));
        }
        Ok(Some(content))
    }
}

/// Some bytes of a file.
struct Part<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(out.len());
        let count = self.file.read_at(&mut out[..most], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
