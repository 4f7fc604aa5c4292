//! Whole shards in a folder of this machine; the promises are in the documentation of the parent.
//!
//! Files of a shard, whose names begin with a hash of its URL and version:
//!
//! | ending | content | locked by |
//! |---|---|---|
//! | `.part` | what has come so far, already of its final length | the one who writes it, alone |
//! | `.json` | URL, version, length and SHA-256; its time of change is that of the last opening | |
//! | `.shard` | the shard | everyone who reads it, shared; who removes it, alone |
//!
//! `.part` files are made, and files removed to make room, under the lock of the file `lock`. A damaged
//! shard is removed by whoever finds it; at worst that costs another process a fetch.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::version::Version;
use super::CacheOptions;
use crate::atomic_file::open_in_place;
use crate::hex::hex;
use crate::stop::Stop;

/// Longest wait for another process to tidy the folder; it takes milliseconds.
const LOCK_WAIT: Duration = Duration::from_secs(5);
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// Files this process has checked or written: path, inode, time of change.
static VERIFIED: LazyLock<Mutex<HashSet<FileId>>> = LazyLock::new(Mutex::default);

type FileId = (PathBuf, u64, i64, i64);

fn verified() -> MutexGuard<'static, HashSet<FileId>> {
    VERIFIED.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
pub(super) struct Cache {
    dir: PathBuf,
    max_bytes: u64,
}

/// What a shard is kept under.
pub(super) struct CacheKey<'a> {
    /// As it was written: not to be shown.
    pub(super) url: &'a str,
    /// As it may be shown.
    pub(super) name: &'a str,
    pub(super) version: &'a Version,
}

/// How a shard is to be read.
pub(super) enum Admission {
    /// From this file.
    Hit(CachedFile),
    /// From the store, and into the cache.
    Fetch(Box<Entry>),
    /// From the store.
    Pass,
}

#[derive(Serialize, Deserialize)]
struct Notes {
    url: String,
    version: String,
    bytes: u64,
    sha256: String,
}

impl Cache {
    pub(super) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    pub(super) fn new(options: &CacheOptions) -> io::Result<Cache> {
        fs::create_dir_all(&options.dir)?;
        Ok(Cache {
            dir: options.dir.clone(),
            max_bytes: options.max_bytes,
        })
    }

    fn paths(&self, key: &CacheKey<'_>) -> Option<Paths> {
        let version = key.version;
        // Neither ETag nor time: a changed shard of the same length would go unnoticed.
        if version.e_tag.is_none() && version.last_modified.is_none() {
            return None;
        }
        // Of unknown length: how much room it needs is not known either.
        version.size?;
        let hash = Sha256::digest(format!("{}\0{}", key.url, version.describe()));
        let name = hex(&hash[..16]);
        let path = |ending| self.dir.join(format!("{name}.{ending}"));
        Some(Paths {
            shard: path("shard"),
            part: path("part"),
            notes: path("json"),
        })
    }

    /// The shard, if it is there, complete and as it was written.
    ///
    /// # Errors
    /// Once `stop` is set.
    pub(super) fn find(&self, key: &CacheKey<'_>, stop: &Stop) -> io::Result<Option<CachedFile>> {
        let Some(paths) = self.paths(key) else {
            return Ok(None);
        };
        match self.open(&paths, key.version, stop) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                stop.check()?;
                log::warn!(
                    "cache {}: {error}; reading {} without it",
                    self.dir.display(),
                    key.name
                );
                Ok(None)
            }
        }
    }

    fn open(
        &self,
        paths: &Paths,
        version: &Version,
        stop: &Stop,
    ) -> io::Result<Option<CachedFile>> {
        let file = File::open(&paths.shard)?;
        match file.try_lock_shared() {
            Ok(()) => {}
            // It is being removed, or looked at for that.
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let meta = file.metadata()?;
        if meta.nlink() == 0 {
            return Ok(None);
        }
        let id = file_id(&paths.shard, &meta);
        if !verified().contains(&id) {
            if !intact(&file, meta.len(), version, &paths.notes, stop)? {
                log::warn!(
                    "cache: {} is damaged; fetching it again",
                    paths.shard.display()
                );
                file.unlock()?;
                // Left to the last of those that have it open.
                if file.try_lock().is_ok() {
                    paths.remove();
                }
                return Ok(None);
            }
            verified().insert(id);
        }
        // Only the order of removal hangs on it.
        if let Ok(notes) = File::options().write(true).open(&paths.notes) {
            let _ = notes.set_modified(SystemTime::now());
        }
        let mut cached = CachedFile {
            file,
            left: meta.len(),
            stop: stop.clone(),
        };
        cached.file.rewind()?;
        Ok(Some(cached))
    }

    /// Decides how to read a shard of this version.
    ///
    /// # Errors
    /// Once `stop` is set.
    pub(super) fn admit(&self, key: &CacheKey<'_>, stop: &Stop) -> io::Result<Admission> {
        if let Some(file) = self.find(key, stop)? {
            return Ok(Admission::Hit(file));
        }
        let Some(paths) = self.paths(key) else {
            log::debug!(
                "{}: without length, or ETag and time of change; not cached",
                key.name
            );
            return Ok(Admission::Pass);
        };
        match self.begin(key, paths, stop) {
            Ok(Some(entry)) => Ok(Admission::Fetch(Box::new(entry))),
            // Another may have finished it meanwhile.
            Ok(None) => Ok(match self.find(key, stop)? {
                Some(file) => Admission::Hit(file),
                None => Admission::Pass,
            }),
            Err(error) => {
                stop.check()?;
                log::warn!(
                    "cache {}: {error}; reading {} without it",
                    self.dir.display(),
                    key.name
                );
                Ok(Admission::Pass)
            }
        }
    }

    /// Makes room and the file to write to, unless somebody else did or there is no room.
    fn begin(&self, key: &CacheKey<'_>, paths: Paths, stop: &Stop) -> io::Result<Option<Entry>> {
        let Some(bytes) = key.version.size.filter(|size| *size <= self.max_bytes) else {
            return Ok(None);
        };
        let Some(_folder) = self.lock_folder(stop)? else {
            return Ok(None);
        };
        let used = self.tidy()?;
        if paths.shard.exists() || paths.part.exists() || !self.make_room(used, bytes)? {
            return Ok(None);
        }
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&paths.part)?;
        let entry = Entry {
            paths,
            file,
            hash: Sha256::new(),
            written: 0,
            bytes,
            name: key.name.to_string(),
            version: key.version.clone(),
        };
        entry.file.try_lock()?;
        entry.file.set_len(bytes)?;
        Ok(Some(entry))
    }

    /// Locks the folder for as long as the file is open; none if another has it for too long.
    fn lock_folder(&self, stop: &Stop) -> io::Result<Option<File>> {
        let path = self.dir.join("lock");
        let mut options = File::options();
        let file = open_in_place(&path, options.write(true).create(true).truncate(false))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::Error(error)) => return Err(error),
                Err(TryLockError::WouldBlock) if start.elapsed() > LOCK_WAIT => return Ok(None),
                Err(TryLockError::WouldBlock) => {}
            }
            stop.check()?;
            std::thread::sleep(LOCK_INTERVAL);
        }
    }

    /// Removes what killed processes left. Returns the length of all that stays.
    fn tidy(&self) -> io::Result<u64> {
        let mut used = 0u64;
        for path in self.files()? {
            let left_over = match ending(&path) {
                // Whoever writes it has it locked.
                "part" => File::open(&path).is_ok_and(|file| file.try_lock().is_ok()),
                "json" => {
                    !path.with_extension("shard").exists() && !path.with_extension("part").exists()
                }
                _ => false,
            };
            if left_over {
                remove(&path);
            } else if let Ok(meta) = fs::metadata(&path) {
                used = used.saturating_add(meta.len());
            }
        }
        Ok(used)
    }

    /// Removes the shards opened longest ago until there is room for `wanted` more bytes.
    fn make_room(&self, mut used: u64, wanted: u64) -> io::Result<bool> {
        let fits = |used: u64| used.saturating_add(wanted) <= self.max_bytes;
        if fits(used) {
            return Ok(true);
        }
        let mut shards = Vec::new();
        for path in self.files()? {
            if ending(&path) == "shard" {
                let opened =
                    fs::metadata(path.with_extension("json")).and_then(|meta| meta.modified());
                shards.push((opened.unwrap_or(SystemTime::UNIX_EPOCH), path));
            }
        }
        shards.sort();
        for (_, path) in shards {
            let Ok(file) = File::open(&path) else {
                continue;
            };
            if file.try_lock().is_ok() {
                let notes = path.with_extension("json");
                let length = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
                let freed = length(&path) + length(&notes);
                remove(&path);
                remove(&notes);
                used = used.saturating_sub(freed);
                if fits(used) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.dir)?;
        entries.map(|entry| Ok(entry?.path())).collect()
    }
}

pub(super) struct Paths {
    shard: PathBuf,
    pub(super) part: PathBuf,
    pub(super) notes: PathBuf,
}

impl Paths {
    fn remove(&self) {
        remove(&self.shard);
        remove(&self.notes);
    }
}

pub(super) fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            log::warn!("cache: {} cannot be removed: {error}", path.display());
        }
        _ => {}
    }
}

fn ending(path: &Path) -> &str {
    path.extension()
        .and_then(|ending| ending.to_str())
        .unwrap_or_default()
}

fn file_id(path: &Path, meta: &fs::Metadata) -> FileId {
    (
        path.to_path_buf(),
        meta.ino(),
        meta.mtime(),
        meta.mtime_nsec(),
    )
}

/// Whether the file has the length and the hash that were noted as it was written.
fn intact(
    mut file: &File,
    bytes: u64,
    version: &Version,
    notes: &Path,
    stop: &Stop,
) -> io::Result<bool> {
    let Ok(notes) = serde_json::from_slice::<Notes>(&fs::read(notes).unwrap_or_default()) else {
        return Ok(false);
    };
    if Some(bytes) != version.size || bytes != notes.bytes {
        return Ok(false);
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        stop.check()?;
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize()) == notes.sha256),
            count => hash.update(&buffer[..count]),
        }
    }
}

/// A shard of the cache, or a range of it. It is not removed while this is there.
pub(super) struct CachedFile {
    file: File,
    left: u64,
    stop: Stop,
}

impl CachedFile {
    /// The bytes of `range`, which lies within the file.
    pub(super) fn range(mut self, range: Range<u64>) -> io::Result<Self> {
        self.file.seek(SeekFrom::Start(range.start))?;
        self.left = range.end.saturating_sub(range.start);
        Ok(self)
    }
}

impl Read for CachedFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.stop.check()?;
        let wanted = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(out.len());
        let count = self.file.read(&mut out[..wanted])?;
        self.left -= count as u64;
        Ok(count)
    }
}

/// A shard on its way into the cache. Dropped unfinished, it leaves nothing.
pub(super) struct Entry {
    pub(super) paths: Paths,
    /// Locked.
    file: File,
    hash: Sha256,
    pub(super) written: u64,
    /// Length of the shard.
    pub(super) bytes: u64,
    /// The URL as it may be shown.
    name: String,
    version: Version,
}

impl Entry {
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Gives the shard its name.
    pub(super) fn publish(&mut self) -> io::Result<()> {
        let notes = Notes {
            url: self.name.clone(),
            version: self.version.describe(),
            bytes: self.written,
            sha256: hex(&std::mem::take(&mut self.hash).finalize()),
        };
        // Means nothing until the shard has its name.
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(true);
        let mut file = open_in_place(&self.paths.notes, options)?;
        file.write_all(&serde_json::to_vec(&notes)?)?;
        let meta = self.file.metadata()?;
        verified().insert(file_id(&self.paths.shard, &meta));
        fs::rename(&self.paths.part, &self.paths.shard)
    }
}
