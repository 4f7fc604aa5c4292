//! Where rows come from. Each kind of input becomes one of three sources: a list that is in memory
//! ([`list::List`]: folders, tables, JSON, zips), Parquet files, or shards, which are read as they pass.

mod columns;
mod detect;
mod folder;
mod json_file;
mod lines;
mod list;
mod parquet;
mod shards;
mod spool;
mod table;
mod tables;
pub(super) mod zip;

use std::ops::Range;

use anyhow::bail;
use clap::ValueEnum;
use qf_pipeline::shard::arrow::CaptionType;
use qf_pipeline::stop::Stop;
use sha2::{Digest, Sha256};

use super::args::InputArgs;
use super::row::{CaptionRef, Input, TextFile};
use crate::interrupt::Interrupt;
pub(super) use list::List;

/// What an input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Kind {
    /// Images with captions in files beside them
    Folder,
    /// Comma-separated table
    Csv,
    /// Tab-separated table
    Tsv,
    /// JSON objects, one a line
    Jsonl,
    /// COCO, Karpathy, LAVIS, LLaVA, or a list of objects
    Json,
    /// Flickr's captions: name#0, tab, caption
    Token,
    /// Paths or URLs, one a line
    List,
    /// Parquet files
    Parquet,
    /// WebDataset (tar) or Arrow shards
    Shards,
    /// Images and captions in a zip
    Zip,
}

/// Receives rows; returns false for no more.
pub(super) type Give<'a> = &'a mut dyn FnMut(Input) -> anyhow::Result<bool>;

/// The rows of an input.
pub(super) enum Source {
    List(List),
    Parquet(parquet::Files),
    Shards(shards::Shards),
    Spool(spool::Spool),
}

impl Source {
    /// Opens the inputs, which are of one kind.
    ///
    /// # Errors
    /// What cannot be read, or is of no known kind.
    pub(super) fn open(
        inputs: &[String],
        args: &InputArgs,
        interrupt: &Interrupt,
    ) -> anyhow::Result<Source> {
        detect::open(inputs, args, interrupt)
    }

    /// The number of rows, where it is known before they are read.
    pub(super) fn rows(&self) -> Option<u64> {
        match self {
            Source::List(list) => Some(list.rows.len() as u64),
            Source::Parquet(files) => Some(files.rows()),
            Source::Shards(_) => None,
            Source::Spool(spool) => Some(spool.rows()),
        }
    }

    /// The number of rows; reads shards to count theirs.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn count(&self, stop: &Stop) -> anyhow::Result<u64> {
        if let Some(rows) = self.rows() {
            return Ok(rows);
        }
        let mut rows = 0;
        self.read(0..u64::MAX, stop, &mut |_| {
            rows += 1;
            stop.check()?;
            Ok(true)
        })?;
        Ok(rows)
    }

    /// Reads rows `range` in order; up to the end where that comes first.
    ///
    /// # Errors
    /// What cannot be read, and errors of `give`.
    pub(super) fn read(
        &self,
        range: Range<u64>,
        stop: &Stop,
        give: Give<'_>,
    ) -> anyhow::Result<()> {
        match self {
            Source::List(list) => list.read(range, give),
            Source::Parquet(files) => files.read(range, give),
            Source::Shards(shards) => shards.read(range, stop, give),
            Source::Spool(spool) => spool.read(range, give),
        }
    }

    /// What the user should know of how the input is read.
    pub(super) fn notes(&self) -> &[String] {
        match self {
            Source::List(list) => &list.notes,
            Source::Parquet(files) => &files.notes,
            Source::Shards(shards) => &shards.notes,
            Source::Spool(spool) => &spool.notes,
        }
    }

    fn add_note(&mut self, note: String) {
        match self {
            Source::List(list) => list.notes.push(note),
            Source::Parquet(files) => files.notes.push(note),
            Source::Shards(shards) => shards.notes.push(note),
            Source::Spool(spool) => spool.notes.push(note),
        }
    }

    /// Changes when the input does: names, sizes and times of its files.
    pub(super) fn fingerprint(&self) -> &str {
        match self {
            Source::List(list) => &list.fingerprint,
            Source::Parquet(files) => &files.fingerprint,
            Source::Shards(shards) => &shards.fingerprint,
            Source::Spool(spool) => &spool.fingerprint,
        }
    }

    /// Whether two rows may have one key.
    pub(super) fn repeats_keys(&self) -> bool {
        match self {
            Source::List(_) | Source::Parquet(_) => false,
            Source::Shards(_) => true,
            Source::Spool(spool) => spool.repeats_keys,
        }
    }

    /// One type for the whole data set. Reads caption files, where there are any.
    pub(super) fn caption_type(&self) -> CaptionType {
        match self {
            Source::List(list) => list.caption_type(),
            Source::Parquet(files) => files.caption_type(),
            Source::Shards(_) => CaptionType::List,
            Source::Spool(spool) => spool.caption_type,
        }
    }

    /// Whether images are downloaded.
    pub(super) fn has_urls(&self) -> bool {
        match self {
            Source::List(list) => list.has_urls(),
            Source::Parquet(files) => files.has_urls(),
            Source::Shards(_) => false,
            Source::Spool(spool) => spool.has_urls,
        }
    }

    /// The same rows in an order drawn from `seed`. What is not a list goes through a temporary file in
    /// `folder`, as large as the input.
    ///
    /// # Errors
    /// Those of reading, and of the temporary file.
    pub(super) fn shuffled(
        self,
        seed: u64,
        folder: &std::path::Path,
        stop: &Stop,
    ) -> anyhow::Result<Source> {
        Ok(match self {
            Source::List(mut list) => {
                super::plan::shuffle(&mut list.rows, seed);
                Source::List(list)
            }
            other => {
                let mut spool = spool::Spool::of(&other, folder, stop)?;
                spool.shuffle(seed);
                Source::Spool(spool)
            }
        })
    }
}

/// What the files of an input were, as one number.
pub(super) struct Fingerprint(Sha256);

impl Fingerprint {
    pub(super) fn new() -> Fingerprint {
        Fingerprint(Sha256::new())
    }

    /// A file: its name, size and time of change.
    pub(super) fn file(&mut self, name: &str, metadata: &std::fs::Metadata) {
        use std::os::unix::fs::MetadataExt;
        let (size, time) = (metadata.len(), (metadata.mtime(), metadata.mtime_nsec()));
        self.text(&format!("{name}\0{size}\0{time:?}\n"));
    }

    /// A file as it stands at `path`; only its name where there is none.
    pub(super) fn path(&mut self, name: &str, path: &std::path::Path) {
        match std::fs::metadata(path) {
            Ok(metadata) => self.file(name, &metadata),
            Err(_) => self.text(name),
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        self.0.update(text.as_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// 32 hexadecimal digits.
    pub(super) fn finish(self) -> String {
        let digest = self.0.finalize();
        digest[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// Refuses options that have no meaning for this kind of input.
fn refuse(options: &[(bool, &str)], is: &str, they_are_for: &str) -> anyhow::Result<()> {
    match options.iter().find(|(given, _)| *given) {
        Some((_, option)) => bail!("{option} is for {they_are_for}, but {is}"),
        None => Ok(()),
    }
}

/// Caption files of an image.
fn files(text: Option<TextFile>, json: Option<TextFile>) -> CaptionRef {
    CaptionRef::Files {
        text,
        json,
        lines: qf_pipeline::captions::CaptionLines::Each,
    }
}
