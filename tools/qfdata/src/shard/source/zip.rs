//! A zip of images with captions in entries of the same stem.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use flate2::read::DeflateDecoder;
use flate2::CrcReader;
use zip::{CompressionMethod, ZipArchive};

use super::super::row::{ImageRef, Name, Row, Skip, SkipCause, TextFile};
use super::super::work::is_image_extension;
use super::folder::{natural_key, unique_keys};
use super::{files, Fingerprint, List};
use crate::interrupt::Interrupt;

/// A zip whose entries are read in any order, by several threads.
#[derive(Debug)]
pub(in super::super) struct ZipFile {
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
    fn open(path: &Path, interrupt: &Interrupt) -> anyhow::Result<(ZipFile, Vec<Skip>)> {
        let file = File::open(path)?;
        let mut archive = ZipArchive::new(file.try_clone()?).context("it is no sound zip")?;
        let mut entries = Vec::new();
        let mut skips = Vec::new();
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
                    skips.push(Skip::new(what, SkipCause::Unreadable, message));
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
            skips,
        ))
    }

    /// As messages name an entry.
    pub(in super::super) fn name(&self, entry: usize) -> String {
        let name = self.entries.get(entry).map_or("", |entry| &entry.name);
        format!("{}: {name}", self.path.display())
    }

    /// An entry whole, its checksum compared; `None` if it is over `max_bytes`.
    pub(in super::super) fn read(
        &self,
        entry: usize,
        max_bytes: u64,
    ) -> io::Result<Option<Vec<u8>>> {
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

/// All images of a zip, sorted by name.
///
/// # Errors
/// What is wrong with the zip.
pub(super) fn list(path: &Path, interrupt: &Interrupt) -> anyhow::Result<List> {
    let (zip, skips) = ZipFile::open(path, interrupt)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let zip = Arc::new(zip);
    let mut list = List::default();
    let mut images = Vec::new();
    let mut captions: HashMap<PathBuf, [Option<usize>; 2]> = HashMap::new();
    for (index, entry) in zip.entries.iter().enumerate() {
        let name = Path::new(&entry.name);
        let is_hidden = entry.name.split('/').any(|part| part.starts_with('.'));
        let ending = super::super::load::ending_of(name);
        let of_stem = match ending.as_str() {
            _ if is_hidden || entry.name.starts_with("__MACOSX/") => continue,
            "txt" => 0,
            "json" => 1,
            ending if is_image_extension(ending) => {
                images.push(index);
                continue;
            }
            _ => {
                list.other_files += 1;
                continue;
            }
        };
        captions.entry(name.with_extension("")).or_default()[of_stem] = Some(index);
    }
    images.sort_by(|&a, &b| zip.entries[a].name.cmp(&zip.entries[b].name));
    let mut keyed = Vec::new();
    for index in images {
        let image = Path::new(&zip.entries[index].name);
        let [text, json] = captions
            .remove(&image.with_extension(""))
            .unwrap_or_default();
        let file = |entry: Option<usize>| entry.map(|entry| TextFile::Zip(zip.clone(), entry));
        match natural_key(image) {
            Ok(key) => keyed.push((key, index, files(file(text), file(json)))),
            Err(message) => {
                let skip = Skip::new(zip.name(index), SkipCause::BadName, message);
                list.rows.push(Err(skip));
            }
        }
    }
    list.captions_without_image = captions.len() as u64;
    let keys = unique_keys(keyed.iter().map(|(key, ..)| key.as_str()).collect());
    for ((natural, index, captions), key) in keyed.into_iter().zip(keys) {
        list.renamed_keys += u64::from(key != natural);
        list.rows.push(Ok(Row {
            name: Name {
                key,
                origin: zip.name(index),
                url: None,
            },
            image: ImageRef::Zip(zip.clone(), index),
            captions,
            json: None,
            members: Vec::new(),
        }));
    }
    list.rows.extend(skips.into_iter().map(Err));
    let mut fingerprint = Fingerprint::new();
    fingerprint.path(&path.display().to_string(), path);
    list.fingerprint = fingerprint.finish();
    Ok(list)
}
