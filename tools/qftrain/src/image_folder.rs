//! `qftrain photos/`: a folder where shards are wanted. Shards that it holds are taken; images that it holds are
//! packed into shards in the user's cache by `qfdata shard`, once for each state of the folder.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

use anyhow::{bail, Context};
use qf_pipeline::decode::is_image_extension;
use qf_pipeline::hex::hex;
use sha2::{Digest, Sha256};

use qf_cli::output::remark;

/// Endings of shards, as `qfdata shard` and WebDataset name them.
const SHARD_ENDINGS: [&str; 4] = [".tar", ".tar.gz", ".tar.zst", ".arrow"];

/// Files below a folder that are looked at, at most, to tell which state it is in.
const MAX_FILES: usize = 10_000_000;

/// What a folder holds.
#[derive(Debug, PartialEq, Eq)]
enum Holds {
    /// Shards, as patterns.
    Shards(Vec<String>),
    /// Images, in it or below it.
    Images,
    Neither,
}

/// The shards that `spec` stands for: itself, unless it is a folder of this machine.
pub(crate) fn shards_of(spec: &str) -> anyhow::Result<Vec<String>> {
    let folder = Path::new(spec);
    if spec.contains("://") || !folder.is_dir() {
        return Ok(vec![spec.to_owned()]);
    }
    let files = Files::below(folder)?;
    match files.holds(folder) {
        Holds::Shards(patterns) => Ok(patterns),
        Holds::Images => packed(folder, &files),
        Holds::Neither => bail!(
            "{} holds neither shards (.tar, .tar.gz, .tar.zst, .arrow) nor images; name a folder with \
             NAME.jpg beside NAME.txt, or shards: 'shards/photos-*.tar'",
            folder.display()
        ),
    }
}

/// Files of a folder and those below it, in order of their paths.
struct Files(Vec<(PathBuf, u64, u128)>);

impl Files {
    fn below(folder: &Path) -> anyhow::Result<Files> {
        let mut files = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            let cannot = || format!("cannot list the folder {}", folder.display());
            for entry in fs::read_dir(&folder).with_context(cannot)? {
                let path = entry.with_context(cannot)?.path();
                let Ok(metadata) = fs::metadata(&path) else {
                    // A link that leads nowhere is none of the images.
                    continue;
                };
                if metadata.is_dir() {
                    // A link to a folder could lead back.
                    if !path.is_symlink() {
                        folders.push(path);
                    }
                    continue;
                }
                let modified = metadata.modified().ok();
                let since = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                files.push((
                    path,
                    metadata.len(),
                    since.map_or(0, |since| since.as_nanos()),
                ));
                if files.len() > MAX_FILES {
                    bail!(
                        "{} holds more than {MAX_FILES} files; pack them by `qfdata shard` first",
                        folder.display()
                    );
                }
            }
        }
        files.sort();
        Ok(Files(files))
    }

    fn holds(&self, folder: &Path) -> Holds {
        let names = self
            .0
            .iter()
            .filter(|(path, ..)| path.parent() == Some(folder));
        let names: Vec<String> = names
            .filter_map(|(path, ..)| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect();
        let endings = SHARD_ENDINGS
            .iter()
            .filter(|ending| names.iter().any(|name| name.ends_with(**ending)));
        let pattern = |ending: &&str| {
            folder
                .join(format!("*{ending}"))
                .to_string_lossy()
                .into_owned()
        };
        let patterns: Vec<String> = endings.map(pattern).collect();
        if !patterns.is_empty() {
            return Holds::Shards(patterns);
        }
        let is_image = |path: &Path| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            extension.is_some_and(is_image_extension)
        };
        match self.0.iter().any(|(path, ..)| is_image(path)) {
            true => Holds::Images,
            false => Holds::Neither,
        }
    }

    /// Names, lengths and times of change of all files, as a digest.
    fn state(&self) -> String {
        let mut digest = Sha256::new();
        for (path, length, modified) in &self.0 {
            digest.update(path.as_os_str().as_encoded_bytes());
            digest.update([0]);
            digest.update(length.to_le_bytes());
            digest.update(modified.to_le_bytes());
        }
        hex(&digest.finalize()[..8])
    }
}

/// Packs the images of `folder` into the cache, unless that was done in this state; returns the shards.
fn packed(folder: &Path, files: &Files) -> anyhow::Result<Vec<String>> {
    let absolute = fs::canonicalize(folder)
        .with_context(|| format!("cannot find the folder {}", folder.display()))?;
    let name = absolute
        .file_name()
        .map_or("images".into(), |name| name.to_string_lossy());
    // Patterns have characters of their own.
    let name = name.replace(
        |c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c),
        "_",
    );
    let cache = cache_folder()?.join(format!("{name}-{}", files.state()));
    fs::create_dir_all(&cache)
        .with_context(|| format!("cannot create the folder {}", cache.display()))?;
    // Of several ranks one packs and the others wait.
    let lock = File::create(cache.join(".lock")).context("the cache of shards")?;
    lock.lock().context("cannot lock the cache of shards")?;
    let (prefix, done) = (cache.join("shards"), cache.join("complete"));
    let shards = vec![cache.join("shards-*.tar").to_string_lossy().into_owned()];
    if done.exists() {
        remark(format_args!(
            "{}: packed before, in {}",
            folder.display(),
            cache.display()
        ));
        return Ok(shards);
    }
    remark(format_args!(
        "{} is a folder of images: packing it into {} first (`qfdata shard {}` does that to a place of your choice)",
        folder.display(),
        cache.display(),
        folder.display()
    ));
    let status = Command::new(qfdata()?)
        .arg("shard")
        .arg(&absolute)
        .arg("--out")
        .arg(&prefix)
        .args(["--format", "tar"])
        // Its results are remarks here.
        .stdout(std::io::stderr())
        .status()
        .context("cannot start qfdata, which packs shards")?;
    // 3: some inputs could not be used, each of which it named.
    if !status.success() && status.code() != Some(3) {
        bail!(
            "`qfdata shard` could not pack {}; see its message above",
            folder.display()
        );
    }
    let mut file = File::create(&done).context("the cache of shards")?;
    writeln!(file, "{}", absolute.display()).context("the cache of shards")?;
    Ok(shards)
}

/// `~/.cache/qformer/shards`, or as the environment has it.
#[allow(clippy::disallowed_methods)] // The environment belongs to the tools.
fn cache_folder() -> anyhow::Result<PathBuf> {
    let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = given("QF_CACHE").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(given("XDG_CACHE_HOME")?).join("qformer")));
    let cache = cache.or_else(|| Some(PathBuf::from(given("HOME")?).join(".cache/qformer")));
    let Some(cache) = cache else {
        bail!("HOME is not set; set QF_CACHE to a folder for shards");
    };
    Ok(std::path::absolute(cache)?.join("shards"))
}

/// `qfdata`: beside this program, where `make install` puts it, or on the `PATH`.
fn qfdata() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let folder = own.parent().unwrap_or(Path::new("."));
    let beside = [folder.join("qfdata"), folder.join("../../bin/qfdata")];
    Ok((beside.into_iter().find(|path| path.exists())).unwrap_or_else(|| "qfdata".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_told_by_what_they_hold() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let holds = || Files::below(path).unwrap().holds(path);
        assert_eq!(holds(), Holds::Neither);
        fs::write(path.join("notes.txt"), "").unwrap();
        assert_eq!(holds(), Holds::Neither);
        let message = shards_of(path.to_str().unwrap()).unwrap_err().to_string();
        assert!(message.contains("neither shards"), "{message}");
        fs::create_dir(path.join("2024")).unwrap();
        fs::write(path.join("2024/A.JPG"), "").unwrap();
        assert_eq!(holds(), Holds::Images);
        // Shards go first: a folder of shards may have a preview.png in it.
        fs::write(path.join("x-000000.tar.zst"), "").unwrap();
        let pattern = path.join("*.tar.zst").to_str().unwrap().to_owned();
        assert_eq!(holds(), Holds::Shards(vec![pattern]));
        for spec in ["s3://bucket/folder/", "shards/*.tar", "no/such/folder"] {
            assert_eq!(shards_of(spec).unwrap(), [spec]);
        }
    }

    #[test]
    fn a_changed_folder_has_another_state() {
        let folder = tempfile::tempdir().unwrap();
        let state = || Files::below(folder.path()).unwrap().state();
        let mut states = vec![state()];
        fs::write(folder.path().join("a.jpg"), "1").unwrap();
        states.push(state());
        assert_eq!(states.last(), Some(&state()));
        fs::write(folder.path().join("a.txt"), "words").unwrap();
        states.push(state());
        fs::write(folder.path().join("a.txt"), "more words").unwrap();
        states.push(state());
        states.sort();
        states.dedup();
        assert_eq!(states.len(), 4);
    }
}
