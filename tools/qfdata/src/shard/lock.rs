//! One run at a time to a prefix, and what a run that was killed leaves behind.
//!
//! A run locks the hidden file `.PREFIX.FORMAT.run` beside its shards before it looks at them, and
//! writes there who it is and what it makes before it writes the first, and a line for each that is
//! whole. The lock (`flock`) ends with the process, however that ends; the file is removed when all
//! shards are complete. So a file that nobody has locked tells of a run that did not finish, what it was
//! to make, and how far it came.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use qf_pipeline::atomic_file::{open_in_place, NewFolders};

use super::record::{self, RunRecord, WholeShard};

/// More than any record with its lines; what is longer is none.
const MAX_RECORD_BYTES: u64 = 1 << 30;

/// The right to write shards of a prefix. Dropped, it is given back; what it wrote into the file stays
/// if shards are there that it began.
pub(super) struct PrefixLock {
    file: File,
    path: PathBuf,
    /// Those that were made for it; dropped after the file is removed.
    folders: Option<NewFolders>,
    /// Of a run before this one that did not finish.
    unfinished: Option<(RunRecord, Vec<WholeShard>)>,
    has_begun: bool,
    is_over: bool,
}

impl PrefixLock {
    /// Locks the prefix of shards `FOLDER/NAME-NNNNNN.FORMAT`. Makes the folder where it is missing.
    ///
    /// # Errors
    /// That another run has it, naming that one; or that the file cannot be made.
    pub(super) fn take(folder: &Path, name: &str, format: &str) -> anyhow::Result<Self> {
        let path = folder.join(format!(".{name}.{format}.run"));
        let in_folder = || format!("cannot write {}", path.display());
        let folders = NewFolders::create(folder).with_context(in_folder)?;
        loop {
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create(true).truncate(false);
            let mut file = open_in_place(&path, options).with_context(in_folder)?;
            let is_locked = match file.try_lock() {
                Ok(()) => true,
                Err(TryLockError::WouldBlock) => {
                    let holder = read_record(&mut file);
                    let who = holder.map_or("another process".to_owned(), |(run, _)| run.who());
                    bail!(
                        "{who} is writing shards {}-*.{format}; wait until it has finished, or \
                         choose another --out",
                        folder.join(name).display()
                    );
                }
                Err(TryLockError::Error(error)) => {
                    log::warn!(
                        "{} cannot be locked ({error}); see to it that no other run writes there",
                        path.display()
                    );
                    false
                }
            };
            // The run before may have removed the file after it was opened here.
            let is_current = match (file.metadata(), fs::metadata(&path)) {
                (Ok(opened), Ok(named)) => {
                    (opened.dev(), opened.ino()) == (named.dev(), named.ino())
                }
                _ => false,
            };
            if !is_current {
                continue;
            }
            let unfinished = read_record(&mut file);
            if let Some((run, _)) = unfinished
                .as_ref()
                .filter(|(run, _)| !is_locked && run.is_alive())
            {
                bail!("{} is writing there; wait until it has finished", run.who());
            }
            return Ok(PrefixLock {
                file,
                path,
                folders: Some(folders),
                unfinished,
                has_begun: false,
                is_over: false,
            });
        }
    }

    /// The run before this one, if it did not finish, and the shards that it wrote whole.
    pub(super) fn unfinished(&self) -> Option<&(RunRecord, Vec<WholeShard>)> {
        self.unfinished.as_ref()
    }

    /// Writes down, and on disk, what is about to be written, and what is there already.
    pub(super) fn begin(&mut self, record: &RunRecord, whole: &[WholeShard]) -> anyhow::Result<()> {
        let mut lines = record::lines(record, whole)?;
        let len = lines.len() as u64;
        // Over what an earlier run wrote, so that a kill in between leaves a record; the empty line ends it
        // before what is left of the earlier one.
        lines.push(b'\n');
        let written = (|| {
            self.file.rewind()?;
            self.file.write_all(&lines)?;
            self.file.set_len(len)?;
            self.file.sync_all()
        })();
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.has_begun = true;
        Ok(())
    }

    /// Writes down, and on disk, that shards are whole which were closed together.
    pub(super) fn add(&mut self, shards: &[WholeShard]) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        for shard in shards {
            lines.extend(record::line(shard)?);
        }
        let written = (|| {
            self.file.seek(SeekFrom::End(0))?;
            self.file.write_all(&lines)?;
            self.file.sync_all()
        })();
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// All shards are complete.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        // From here on the name may be that of another run's file.
        self.is_over = true;
        if let Some(folders) = self.folders.take() {
            folders.keep();
        }
        fs::remove_file(&self.path)
            .with_context(|| format!("cannot remove {}", self.path.display()))
    }

    /// Nothing is left of what was begun.
    pub(super) fn take_back(&mut self) {
        self.has_begun = false;
        self.unfinished = None;
    }
}

impl Drop for PrefixLock {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if self.has_begun || self.unfinished.is_some() {
            if let Some(folders) = self.folders.take() {
                folders.keep();
            }
            return;
        }
        // What fails here is left as it is, and harms nobody.
        let _ = fs::remove_file(&self.path);
    }
}

/// `None` for a file that a run was killed over before it began, or that is none of ours.
fn read_record(file: &mut File) -> Option<(RunRecord, Vec<WholeShard>)> {
    let mut text = Vec::new();
    file.rewind().ok()?;
    file.take(MAX_RECORD_BYTES).read_to_end(&mut text).ok()?;
    record::parse(&text)
}

#[cfg(test)]
mod tests {
    use super::super::record::Settings;
    use super::*;

    fn settings(input: &str) -> Settings {
        Settings::from([("INPUT".to_owned(), input.to_owned())])
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        entries.map(|e| name(e).into_string().unwrap()).collect()
    }

    #[test]
    fn one_at_a_time_and_no_traces() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a/b");
        let mut lock = PrefixLock::take(&folder, "s", "tar").unwrap();
        assert!(lock.unfinished().is_none());
        let other = PrefixLock::take(&folder, "s", "tar").err().unwrap();
        assert!(other.to_string().contains("another process"), "{other}");
        PrefixLock::take(&folder, "s", "arrow").unwrap();
        PrefixLock::take(&folder, "t", "tar").unwrap();
        lock.begin(&RunRecord::new(settings("x"), false), &[])
            .unwrap();
        let other = PrefixLock::take(&folder, "s", "tar").err().unwrap();
        let pid = format!("process {} on ", std::process::id());
        assert!(other.to_string().contains(&pid), "{other}");
        lock.finish().unwrap();
        assert!(names(&folder).is_empty());
        // A run that fails before it begins leaves nothing, its folders included.
        drop(PrefixLock::take(&root.path().join("c/d"), "s", "tar").unwrap());
        assert_eq!(names(root.path()), ["a"]);
    }

    #[test]
    fn an_unfinished_run_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let record = RunRecord::new(settings("x"), true);
        let mut lock = PrefixLock::take(folder.path(), "s", "tar").unwrap();
        lock.begin(&record, &[]).unwrap();
        let whole = WholeShard {
            rows_end: 12,
            ..WholeShard::default()
        };
        lock.add(std::slice::from_ref(&whole)).unwrap();
        drop(lock);
        for _ in 0..2 {
            // Also by one that fails before it begins.
            let lock = PrefixLock::take(folder.path(), "s", "tar").unwrap();
            assert_eq!(
                lock.unfinished(),
                Some(&(record.clone(), vec![whole.clone()]))
            );
        }
        let same = RunRecord::new(settings("x"), false);
        assert_eq!(same.difference(&record), None);
        let other = RunRecord::new(settings("y"), false);
        let expected = ("INPUT".to_owned(), "y".to_owned(), "x".to_owned());
        assert_eq!(other.difference(&record), Some(expected));
        let mut lock = PrefixLock::take(folder.path(), "s", "tar").unwrap();
        lock.take_back();
        drop(lock);
        assert!(names(folder.path()).is_empty());
        // A killed run's file before it began.
        fs::write(folder.path().join(".s.tar.run"), b"{").unwrap();
        let lock = PrefixLock::take(folder.path(), "s", "tar").unwrap();
        assert!(lock.unfinished().is_none());
    }
}
