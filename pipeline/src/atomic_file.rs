//! A file that appears under its final name complete and on disk, or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tempfile::{Builder, NamedTempFile};

use crate::error::PipelineError;

/// Ending of temporary files.
const TEMPORARY_ENDING: &str = ".tmp";

/// Bytes gathered before each write call.
const BUFFER_BYTES: usize = 256 * 1024;

/// Writes to a hidden temporary file (`.NAME.XXXXXX.tmp`) beside the target; [`commit`] makes it
/// the target. Dropped without a commit, it removes the temporary file and the folders that it
/// created, and leaves the target as it was. Only a killed process can leave a temporary file, and
/// no pattern such as `*.tar` finds it; the file is locked as long as its process lives, so that
/// [`remove_leftovers`] knows which are dead.
///
/// ```
/// use std::io::Write;
/// # let dir = tempfile::tempdir()?;
/// # let target = dir.path().join("vocab.txt");
/// let mut file = qf_pipeline::atomic_file::AtomicFile::create(&target)?;
/// file.write_all(b"[PAD]\n")?;
/// assert!(!target.exists());
/// file.commit()?;
/// assert_eq!(std::fs::read(&target)?, b"[PAD]\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [`commit`]: AtomicFile::commit
#[derive(Debug)]
pub struct AtomicFile {
    writer: BufWriter<Temporary>,
    target: PathBuf,
    /// Dropped after the temporary file.
    folders: NewFolders,
}

impl AtomicFile {
    /// Opens the temporary file. Folders above the target are created where they are missing.
    ///
    /// # Errors
    /// [`PipelineError::Io`] naming the target.
    pub fn create(target: impl Into<PathBuf>) -> Result<Self, PipelineError> {
        let target = target.into();
        match open_beside(&target) {
            Ok((temporary, folders)) => Ok(Self {
                writer: BufWriter::with_capacity(BUFFER_BYTES, Temporary(temporary)),
                target,
                folders,
            }),
            Err(source) => Err(PipelineError::Io {
                path: target,
                source,
            }),
        }
    }

    /// The name the file will have.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Flushes, syncs the file, renames it to the target (replacing what is there) and syncs the
    /// folder, so that the new name survives a power cut.
    ///
    /// # Errors
    /// [`PipelineError::Io`] naming the target; the temporary file is then gone.
    pub fn commit(self) -> Result<(), PipelineError> {
        self.publish(true)
    }

    /// Like [`commit`](Self::commit) without the two syncs: still never a partial file while the
    /// machine stays up. For many small files that are cheap to make again.
    ///
    /// # Errors
    /// [`PipelineError::Io`] naming the target; the temporary file is then gone.
    pub fn commit_unsynced(self) -> Result<(), PipelineError> {
        self.publish(false)
    }

    fn publish(self, sync: bool) -> Result<(), PipelineError> {
        let Self {
            writer,
            target,
            folders,
        } = self;
        let published = (|| {
            let temporary = writer.into_inner().map_err(|error| error.into_error())?.0;
            if sync {
                temporary.as_file().sync_all()?;
            }
            temporary.persist(&target).map_err(|error| error.error)?;
            if sync {
                File::open(folder_of(&target))?.sync_all()?;
            }
            folders.keep();
            Ok(())
        })();
        published.map_err(|source| PipelineError::Io {
            path: target,
            source,
        })
    }
}

/// Opens a file that is written where it stands: a lock, or lines that are appended. A symbolic link under its
/// name is refused: what it points to is not the program's.
///
/// # Errors
/// What the system says, and that it is a symbolic link.
pub fn open_in_place(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let opened = options.custom_flags(libc::O_NOFOLLOW).open(path);
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is a symbolic link, which is not followed; remove it",
        ),
        _ => error,
    })
}

/// Removes temporary files that killed processes left in a folder, of those targets (by file name) for
/// which `is_ours`. Returns how many. Files that a living process writes stay; so do all where the file
/// system has no locks.
///
/// # Errors
/// If the folder cannot be listed or a dead file not be removed. A folder that is missing is no error.
pub fn remove_leftovers(folder: &Path, is_ours: &dyn Fn(&str) -> bool) -> io::Result<usize> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut removed = 0;
    for entry in entries {
        let name = entry?.file_name();
        let target = name.to_str().and_then(target_of);
        if !target.is_some_and(is_ours) {
            continue;
        }
        let path = folder.join(&name);
        // Opened for writing: some file systems lock no other way. What cannot be opened stays.
        let file = open_in_place(&path, OpenOptions::new().write(true));
        if file.is_ok_and(|file| file.try_lock().is_ok()) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => removed += 1,
            }
        }
    }
    Ok(removed)
}

/// The target of a temporary file, by its name: `NAME` of `.NAME.XXXXXX.tmp`.
fn target_of(temporary: &str) -> Option<&str> {
    let (target, random) = temporary
        .strip_prefix('.')?
        .strip_suffix(TEMPORARY_ENDING)?
        .rsplit_once('.')?;
    let is_random = random.len() == 6 && random.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_random.then_some(target)
}

impl io::Seek for AtomicFile {
    fn seek(&mut self, place: io::SeekFrom) -> io::Result<u64> {
        self.writer.seek(place)
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// Folders that were created for what is to go into them. Dropped without [`keep`](Self::keep), those
/// that are still empty are removed: what failed leaves nothing behind.
#[derive(Debug)]
#[must_use = "dropping it removes the folders that are empty"]
pub struct NewFolders(Vec<PathBuf>);

impl NewFolders {
    /// Creates `folder` and those above it that are missing.
    ///
    /// # Errors
    /// That of the first folder which cannot be created; those above it are then gone again.
    pub fn create(folder: &Path) -> io::Result<NewFolders> {
        let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
        let missing = folder.ancestors().take_while(is_missing);
        let created = NewFolders(missing.map(Path::to_owned).collect());
        fs::create_dir_all(folder)?;
        Ok(created)
    }

    /// Whether the folder was not there before.
    pub fn is_new(&self) -> bool {
        !self.0.is_empty()
    }

    /// Leaves them where they are.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for NewFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            match fs::remove_dir(folder) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // One that somebody has put something into stays.
                Err(_) => return,
            }
        }
    }
}

/// Its errors are the system's alone: the name of the temporary file means nothing to a user.
#[derive(Debug)]
struct Temporary(NamedTempFile);

impl Write for Temporary {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.as_file_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.as_file_mut().flush()
    }
}

impl io::Seek for Temporary {
    fn seek(&mut self, place: io::SeekFrom) -> io::Result<u64> {
        self.0.as_file_mut().seek(place)
    }
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn open_beside(target: &Path) -> io::Result<(NamedTempFile, NewFolders)> {
    let Some(name) = target.file_name() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the name of a file",
        ));
    };
    if target.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            "there is a folder of this name; choose another name",
        ));
    }
    let folder = folder_of(target);
    let folders = NewFolders::create(folder)?;
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let mut builder = Builder::new();
    builder
        .prefix(&prefix)
        .suffix(TEMPORARY_ENDING)
        .rand_bytes(6);
    // The permissions of an ordinary new file (the umask applies), not a temporary file's 0600.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let temporary = builder.tempfile_in(folder)?;
    // Where there are no locks, nobody takes it for dead.
    let _ = temporary.as_file().try_lock();
    Ok((temporary, folders))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_commit_publishes_and_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a/b/file.bin");
        for content in [&b"first"[..], b"second, longer"] {
            let mut file = AtomicFile::create(&target).unwrap();
            assert_eq!(file.target(), target);
            file.write_all(content).unwrap();
            file.flush().unwrap();
            assert_ne!(fs::read(&target).unwrap_or_default(), content);
            file.commit().unwrap();
            assert_eq!(fs::read(&target).unwrap(), content);
        }
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(b"third").unwrap();
        file.commit_unsynced().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"third");
        assert_eq!(names(target.parent().unwrap()), ["file.bin"]);
    }

    #[test]
    fn a_drop_leaves_everything_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("file.bin");
        fs::write(&target, b"old").unwrap();
        let mut file = AtomicFile::create(&target).unwrap();
        file.write_all(&vec![7; 3 * BUFFER_BYTES]).unwrap();
        assert_eq!(names(folder.path()).len(), 2);
        drop(file);
        assert_eq!(names(folder.path()), ["file.bin"]);
        assert_eq!(fs::read(&target).unwrap(), b"old");
    }

    #[test]
    fn folders_made_for_nothing_are_removed_again() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("a/b/c/file.bin");
        drop(AtomicFile::create(&target).unwrap());
        assert!(names(folder.path()).is_empty());
        let first = AtomicFile::create(&target).unwrap();
        let second = AtomicFile::create(folder.path().join("a/b/other.bin")).unwrap();
        drop(first);
        assert_eq!(names(folder.path()), ["a"]);
        second.commit().unwrap();
        assert_eq!(names(&folder.path().join("a/b")), ["other.bin"]);
        // A folder that was there before stays, be it empty.
        fs::create_dir(folder.path().join("before")).unwrap();
        drop(AtomicFile::create(folder.path().join("before/file")).unwrap());
        assert!(folder.path().join("before").is_dir());
        // Where a file is in the way, what was created up to there goes.
        fs::write(folder.path().join("plain"), b"").unwrap();
        assert!(NewFolders::create(&folder.path().join("plain/x")).is_err());
        let created = NewFolders::create(&folder.path().join("new/er")).unwrap();
        assert!(created.is_new());
        created.keep();
        assert!(folder.path().join("new/er").is_dir());
        assert!(!NewFolders::create(&folder.path().join("new/er"))
            .unwrap()
            .is_new());
    }

    #[test]
    #[cfg(unix)]
    fn permissions_are_those_of_an_ordinary_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        let ordinary = folder.path().join("ordinary");
        fs::write(&ordinary, b"").unwrap();
        let target = folder.path().join("atomic");
        AtomicFile::create(&target).unwrap().commit().unwrap();
        assert_eq!(mode(&target), mode(&ordinary));
    }

    #[test]
    fn leftovers_of_the_dead_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("s-000000.tar");
        let mut living = AtomicFile::create(&target).unwrap();
        living.write_all(b"whole").unwrap();
        for name in [
            ".s-000001.tar.AbC123.tmp",
            ".s-000001.tar.qfidx.zzzzzz.tmp",
            ".other.tar.AbC123.tmp",
            ".s-000001.tar.AbC.tmp",
            "s-000001.tar.AbC123.tmp",
            ".s-000001.tar.AbC123",
        ] {
            fs::write(folder.path().join(name), b"half").unwrap();
        }
        let is_ours = |target: &str| target.starts_with("s-");
        assert_eq!(remove_leftovers(folder.path(), &is_ours).unwrap(), 2);
        assert_eq!(remove_leftovers(folder.path(), &is_ours).unwrap(), 0);
        living.commit().unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"whole");
        let left = [
            ".other.tar.AbC123.tmp",
            ".s-000001.tar.AbC.tmp",
            ".s-000001.tar.AbC123",
            "s-000000.tar",
            "s-000001.tar.AbC123.tmp",
        ];
        assert_eq!(names(folder.path()), left);
        let missing = folder.path().join("missing");
        assert_eq!(remove_leftovers(&missing, &is_ours).unwrap(), 0);
    }

    #[test]
    fn errors_name_the_target() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("plain"), b"").unwrap();
        for target in [folder.path().join("plain/file"), folder.path().into()] {
            let message = AtomicFile::create(&target).unwrap_err().to_string();
            assert!(
                message.contains(&target.display().to_string()),
                "{message:?}"
            );
        }
        assert_eq!(names(folder.path()), ["plain"]);
    }
}
