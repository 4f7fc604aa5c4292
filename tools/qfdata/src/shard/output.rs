//! Names of the shards and of what stands beside them, and the place they go to: a folder, or an object
//! store behind a folder for what is being written.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{bail, Context};
use qf_pipeline::atomic_file::{self, AtomicFile};
use qf_pipeline::index::INDEX_ENDING;
use qf_pipeline::source::{scheme, DisplayUrl};
use qf_pipeline::write::ShardFormat;

use super::metadata::METADATA_ENDING;
use super::store::Store;

/// What the index of DALI has for the ending of a shard.
const DALI_ENDING: &str = ".idx";

/// Digits of a shard's number; more shards than that get longer numbers.
const NUMBER_DIGITS: usize = 6;

/// Where shards go.
#[derive(Clone)]
pub(super) struct Output {
    /// Of the shards, or of those on their way to the store.
    folder: PathBuf,
    name: String,
    extension: &'static str,
    store: Option<Arc<Store>>,
    /// Removed at the end.
    _staging: Option<Arc<tempfile::TempDir>>,
}

impl Output {
    /// `prefix`: a path or the URL of a store, and the start of the names.
    pub(super) fn new(prefix: &str, format: ShardFormat) -> anyhow::Result<Self> {
        let is_remote = scheme(prefix).is_some();
        let shown = DisplayUrl::of(prefix);
        let (folder, name) = match prefix.rsplit_once('/') {
            Some((folder, name)) if !folder.is_empty() => (folder, name),
            Some((_, name)) => ("/", name),
            None => ("", prefix),
        };
        if matches!(name, "" | "." | "..") || (is_remote && folder.ends_with('/')) {
            bail!(
                "--out {shown} names a folder; add the start of the shards' names, e.g. {}/photos",
                shown.to_string().trim_end_matches('/')
            );
        }
        let (store, staging) = match is_remote {
            true => {
                let staging = tempfile::Builder::new().prefix("qfdata-").tempdir();
                let staging = staging.context("no folder for shards on their way to the store")?;
                (
                    Some(Arc::new(Store::open(folder)?)),
                    Some(Arc::new(staging)),
                )
            }
            false => (None, None),
        };
        Ok(Self {
            folder: match &staging {
                Some(staging) => staging.path().to_owned(),
                None => PathBuf::from(folder),
            },
            name: name.to_owned(),
            extension: format.extension(),
            store,
            _staging: staging,
        })
    }

    /// The same place, under another start of the names.
    pub(super) fn under(&self, infix: &str) -> Self {
        Self {
            name: format!("{}-{infix}", self.name),
            ..self.clone()
        }
    }

    /// Where the shards go: those to train on, and those that are held out, if some are.
    pub(super) fn sides(&self, holds_out: bool) -> Vec<Self> {
        match holds_out {
            true => vec![self.under("train"), self.under("val")],
            false => vec![self.clone()],
        }
    }

    /// Where files are written: the folder of the shards, or of those on their way.
    pub(super) fn folder(&self) -> &Path {
        match self.folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => &self.folder,
        }
    }

    /// The store that shards go to, if they do.
    pub(super) fn store(&self) -> Option<&Store> {
        self.store.as_deref()
    }

    /// The start of the names.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The format's name.
    pub(super) fn extension(&self) -> &'static str {
        self.extension
    }

    fn shard_name(&self, number: u64) -> String {
        let Self {
            name, extension, ..
        } = self;
        format!("{name}-{number:0NUMBER_DIGITS$}.{extension}")
    }

    /// The file of a shard, while it is written.
    pub(super) fn shard(&self, number: u64) -> PathBuf {
        self.folder.join(self.shard_name(number))
    }

    /// As messages and the summary name a shard.
    pub(super) fn shown(&self, number: u64) -> String {
        self.shown_name(&self.shard_name(number))
    }

    fn shown_name(&self, name: &str) -> String {
        match &self.store {
            Some(store) => store.shown(name),
            None => self.folder.join(name).display().to_string(),
        }
    }

    /// The metadata of a shard.
    pub(super) fn metadata(&self, number: u64) -> PathBuf {
        let name = self.shard_name(number);
        self.folder.join(format!("{name}{METADATA_ENDING}"))
    }

    /// The name of the statistics of all shards.
    pub(super) fn stats_name(&self) -> String {
        format!("{}.{}_stats.json", self.name, self.extension)
    }

    /// As `--shards` of the other commands takes it.
    pub(super) fn pattern(&self, shards: u64) -> String {
        let Self {
            name, extension, ..
        } = self;
        let numbers = match shards {
            0 | 1 => format!("{:0NUMBER_DIGITS$}", 0),
            _ => format!("{{{:0NUMBER_DIGITS$}..{:0NUMBER_DIGITS$}}}", 0, shards - 1),
        };
        self.shown_name(&format!("{name}-{numbers}.{extension}"))
    }

    /// The number of a shard, by its file's name.
    fn number_of(&self, name: &str) -> Option<u64> {
        let digits = name
            .strip_prefix(self.name.as_str())?
            .strip_prefix('-')?
            .strip_suffix(self.extension)?
            .strip_suffix('.')?;
        let is_number = digits.len() >= NUMBER_DIGITS && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|_| is_number)
    }

    /// Numbers of the shards that are there, in order.
    pub(super) fn existing(&self) -> anyhow::Result<Vec<u64>> {
        let names = match &self.store {
            Some(store) => store.list(&format!("{}-", self.name))?,
            None => {
                let folder = self.folder();
                match fs::read_dir(folder) {
                    Ok(entries) => entries
                        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                        .collect::<std::io::Result<Vec<_>>>(),
                    Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
                    Err(error) => Err(error),
                }
                .with_context(|| format!("--out: cannot list {}", folder.display()))?
            }
        };
        let mut numbers: Vec<_> = names
            .iter()
            .filter_map(|name| self.number_of(name))
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// The length of a shard that is there, with its metadata.
    pub(super) fn whole_bytes(&self, number: u64) -> Option<u64> {
        self.whole_bytes_of(&self.shard_name(number))
    }

    /// The same of a shard by its file's name.
    pub(super) fn whole_bytes_of(&self, name: &str) -> Option<u64> {
        let metadata = format!("{name}{METADATA_ENDING}");
        match &self.store {
            Some(store) => {
                store.size(&metadata)?;
                store.size(name)
            }
            None => {
                fs::metadata(self.folder.join(metadata)).ok()?;
                Some(fs::metadata(self.folder.join(name)).ok()?.len())
            }
        }
    }

    /// The metadata of a whole shard as a local file.
    pub(super) fn fetch_metadata(&self, number: u64) -> anyhow::Result<PathBuf> {
        let path = self.metadata(number);
        if let Some(store) = &self.store {
            let name = format!("{}{METADATA_ENDING}", self.shard_name(number));
            let content = store.get(&name)?;
            let content = content.with_context(|| format!("{name} has vanished"))?;
            fs::write(&path, content)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(path)
    }

    /// A shard is written, with what stands beside it: on to the store with it, the shard last.
    pub(super) fn deliver(&self, number: u64, has_index: bool) -> anyhow::Result<()> {
        let Some(store) = &self.store else {
            return Ok(());
        };
        let name = self.shard_name(number);
        let beside = [Some(METADATA_ENDING), has_index.then_some(INDEX_ENDING)];
        for ending in beside.into_iter().flatten().chain([""]) {
            let name = format!("{name}{ending}");
            let path = self.folder.join(&name);
            store.put_file(&name, &path)?;
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Writes a small file beside the shards, whole or not at all.
    pub(super) fn put(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        match &self.store {
            Some(store) => store.put(name, content.to_vec()),
            None => {
                use std::io::Write;
                let mut file = AtomicFile::create(self.folder.join(name))?;
                file.write_all(content)
                    .with_context(|| format!("cannot write {name}"))?;
                Ok(file.commit()?)
            }
        }
    }

    /// A small file beside the shards, if it is there.
    pub(super) fn get(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        match &self.store {
            Some(store) => store.get(name),
            None => match fs::read(self.folder.join(name)) {
                Ok(content) => Ok(Some(content)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error)
                    .with_context(|| format!("cannot read {}", self.folder.join(name).display())),
            },
        }
    }

    /// Removes a shard of an earlier run; what stands beside it first, which is none without it.
    pub(super) fn remove(&self, number: u64) -> anyhow::Result<()> {
        let name = self.shard_name(number);
        for ending in [INDEX_ENDING, METADATA_ENDING, ""] {
            self.remove_file(&format!("{name}{ending}"), ending.is_empty())?;
        }
        if self.store.is_none() {
            self.remove_file(
                &format!("{}-{number:0NUMBER_DIGITS$}{DALI_ENDING}", self.name),
                false,
            )?;
        }
        Ok(())
    }

    /// Removes a file beside the shards; that it is missing is an error where it must be there.
    pub(super) fn remove_file(&self, name: &str, must_be: bool) -> anyhow::Result<()> {
        match &self.store {
            Some(store) => store.remove(name),
            None => match fs::remove_file(self.folder.join(name)) {
                Err(error) if error.kind() == ErrorKind::NotFound && !must_be => Ok(()),
                result => result.with_context(|| {
                    format!("cannot remove stale {}", self.folder.join(name).display())
                }),
            },
        }
    }

    /// Removes temporary files that killed runs left under this prefix.
    pub(super) fn remove_leftovers(&self) -> anyhow::Result<()> {
        let is_ours = |target: &str| {
            let beside = target
                .strip_suffix(INDEX_ENDING)
                .or(target.strip_suffix(METADATA_ENDING));
            let of_dali = target.strip_suffix(DALI_ENDING);
            let of_dali = of_dali.map(|stem| format!("{stem}.{}", self.extension));
            let shard = of_dali.as_deref().or(beside).unwrap_or(target);
            self.number_of(shard).is_some() || target == self.stats_name()
        };
        let folder = self.folder();
        let removed = atomic_file::remove_leftovers(folder, &is_ours)
            .with_context(|| format!("--out: cannot clean up {}", folder.display()))?;
        if removed > 0 {
            log::info!("{removed} temporary files of killed runs removed");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let output = Output::new("a/b/photos", ShardFormat::TarZst).unwrap();
        assert_eq!(output.shard(7).to_str(), Some("a/b/photos-000007.tar.zst"));
        assert_eq!(
            output.metadata(7).to_str(),
            Some("a/b/photos-000007.tar.zst.parquet")
        );
        assert_eq!(output.stats_name(), "photos.tar.zst_stats.json");
        assert_eq!(output.pattern(3), "a/b/photos-{000000..000002}.tar.zst");
        assert_eq!(output.number_of("photos-000012.tar.zst"), Some(12));
        assert_eq!(output.number_of("photos-1234567.tar.zst"), Some(1_234_567));
        for other in [
            "photos-00012.tar.zst",
            "photos-000012.tar",
            "photos-000012.tar.zst.parquet",
            "photo-000012.tar.zst",
        ] {
            assert_eq!(output.number_of(other), None, "{other}");
        }
        assert_eq!(
            Output::new("photos", ShardFormat::Tar).unwrap().folder(),
            Path::new(".")
        );
        for folder in ["a/", "a/..", ".", "/"] {
            let error = Output::new(folder, ShardFormat::Tar).err().unwrap();
            assert!(error.to_string().contains("names a folder"), "{error}");
        }
    }
}
