//! `qfdata extract`: the files of shards in a folder, and never outside it.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use anyhow::{bail, Context};
use clap::Args;
use qf_cli::output::say;
use qf_pipeline::atomic_file::AtomicFile;
use qf_pipeline::words::counted;
use qf_pipeline::SampleError;
use serde::Serialize;

use crate::copy::{refuse_same_stems, stem};
use crate::data::ListedShards;
use crate::files::{for_each_file, Content, FileVisitor, Selection, StoredFile};
use crate::hash128::hash128;
use crate::interrupt::Interrupt;
use crate::unreadable::Unreadable;

/// Write the files of shards into a folder.
///
/// Paths stay below the folder: one that is absolute, has `..` in it or leads through a link is left out and
/// named, and so is one that is there already. Files only: links and devices of an archive are not made.
#[derive(Args)]
pub(crate) struct ExtractArgs {
    #[command(flatten)]
    shards: ListedShards,

    /// Folder to write into; made if it is missing
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,

    /// Files whose path or name matches, e.g. '*.jpg'; may be given several times [default: all]
    #[arg(long, value_name = "PATTERN")]
    member: Vec<String>,

    /// A folder for each shard, so that equal keys of two shards do not meet
    #[arg(long)]
    by_shard: bool,

    /// Replace files that are there
    #[arg(long)]
    overwrite: bool,

    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,

    /// Print no summary
    #[arg(long, short)]
    quiet: bool,
}

/// What is printed with `--json`.
#[derive(Default, Serialize)]
struct Summary {
    shards: usize,
    files: u64,
    bytes: u64,
    left_out: u64,
}

pub(crate) fn run(args: &ExtractArgs) -> anyhow::Result<()> {
    let selection = Selection::new(&args.member)?;
    let shards = args.shards.resolve()?;
    let interrupt = Interrupt::install()?;
    let options = args.shards.config().read_options();
    if args.by_shard {
        refuse_same_stems(&shards, "extract them into folders of their own")?;
    }
    fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    let mut extraction = Extraction {
        args,
        root: args.out.clone(),
        limit: options.max_sample_bytes,
        written: HashSet::new(),
        unreadable: Unreadable::default(),
        summary: Summary {
            shards: shards.len(),
            ..Summary::default()
        },
    };
    for shard in &shards {
        if args.by_shard {
            extraction.root = args.out.join(folder_of(shard.base_name())?);
        }
        let reading = (&options, &interrupt.stop());
        let read = for_each_file(shard, reading, &selection, true, &mut extraction)?;
        interrupt.check()?;
        match read {
            Ok(notes) => extraction
                .unreadable
                .note(shard, &notes.unwrap_or_default()),
            Err(error) => extraction.unreadable.shard(&error),
        }
    }
    let Summary { files, .. } = extraction.summary;
    if args.json {
        let summary = serde_json::to_string(&extraction.summary)?;
        say(format_args!("{summary}"))?;
    } else if !args.quiet {
        let files = counted(files, "file", "files");
        say(format_args!("{files} in {}", args.out.display()))?;
    }
    extraction.unreadable.finish(shards.len())?;
    if files == 0 {
        bail!("no file of the shards was asked for; `qfdata ls` lists them");
    }
    Ok(())
}

/// The folder of a shard: its name without the endings of shards.
fn folder_of(name: &str) -> anyhow::Result<&str> {
    match stem(name) {
        "" | "." | ".." => {
            bail!("shard {name} has no name to make a folder of; leave out --by-shard")
        }
        stem => Ok(stem),
    }
}

struct Extraction<'a> {
    args: &'a ExtractArgs,
    root: PathBuf,
    limit: u64,
    /// Hashes of the paths that this run wrote, with `--overwrite`: replacing one of them would lose a file of
    /// a shard.
    written: HashSet<[u64; 2]>,
    unreadable: Unreadable,
    summary: Summary,
}

impl Extraction<'_> {
    fn leave_out(&mut self, path: &str, why: &str) {
        self.summary.left_out += 1;
        self.unreadable.file(&format!("{path} is left out: {why}"));
    }

    /// # Errors
    /// Why this file cannot be written, and outside of it, why none can.
    fn write(&mut self, path: &str, bytes: &[u8]) -> anyhow::Result<Result<(), String>> {
        let relative = match below(path) {
            Ok(relative) => relative,
            Err(why) => return Ok(Err(why.to_string())),
        };
        if let Some(link) = link_on_the_way(&self.root, &relative) {
            let why = format!(
                "{} is a link and may lead out of the folder",
                link.display()
            );
            return Ok(Err(why));
        }
        let target = self.root.join(&relative);
        if self.written.contains(&hash128(&target)) {
            return Ok(Err(TWICE.to_string()));
        }
        match fs::symlink_metadata(&target) {
            Ok(data) if data.is_dir() => return Ok(Err("there is a folder of this name".into())),
            Ok(_) if !self.args.overwrite => {
                return Ok(Err(format!(
                    "it is there already; --overwrite replaces what was there before, or {TWICE}"
                )))
            }
            _ => {}
        }
        // A file of its own under that name: a link that is there is replaced, not followed.
        let written = AtomicFile::create(&target).and_then(|mut file| {
            let io_error = |source| qf_pipeline::PipelineError::Io {
                path: target.clone(),
                source,
            };
            file.write_all(bytes).map_err(io_error)?;
            file.commit_unsynced()
        });
        if let Err(error) = written {
            // A name that the file system cannot hold costs one file, a full disk all.
            return match is_of_the_name(&error) {
                true => Ok(Err(error.to_string())),
                false => Err(error.into()),
            };
        }
        if self.args.overwrite {
            self.written.insert(hash128(&target));
        }
        Ok(Ok(()))
    }
}

/// Why a file is not written a second time.
const TWICE: &str =
    "another file of the shards has this path; --by-shard makes a folder for each shard";

fn is_of_the_name(error: &qf_pipeline::PipelineError) -> bool {
    let qf_pipeline::PipelineError::Io { source, .. } = error else {
        return false;
    };
    matches!(
        source.kind(),
        io::ErrorKind::InvalidFilename
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::AlreadyExists
    )
}

impl FileVisitor for Extraction<'_> {
    fn file(&mut self, file: &StoredFile<'_>) -> anyhow::Result<bool> {
        let bytes = match file.content {
            Content::Bytes(bytes) => bytes,
            Content::PassedOver => return Ok(true),
            Content::TooLarge => {
                let limit = self.limit;
                let why = format!(
                    "{} bytes are beyond max_sample_bytes of {limit}",
                    file.size_bytes
                );
                self.leave_out(file.path, &why);
                return Ok(true);
            }
        };
        match self.write(file.path, bytes)? {
            Ok(()) => {
                self.summary.files += 1;
                self.summary.bytes += bytes.len() as u64;
            }
            Err(why) => self.leave_out(file.path, &why),
        }
        Ok(true)
    }

    fn bad_row(&mut self, error: &SampleError) -> anyhow::Result<bool> {
        self.summary.left_out += 1;
        self.unreadable.file(&error.to_string());
        Ok(true)
    }
}

/// The path as one below a folder.
///
/// # Errors
/// Why it is none.
fn below(path: &str) -> Result<PathBuf, &'static str> {
    let mut relative = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(part) => relative.push(part),
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return Err("its path is absolute"),
            Component::ParentDir => return Err("its path leads out of the folder (`..`)"),
        }
    }
    if path.contains('\0') {
        return Err("its path has a zero byte");
    }
    if relative.as_os_str().is_empty() || path.ends_with('/') {
        return Err("its path names no file");
    }
    Ok(relative)
}

/// The first folder on the way to a file that is a link.
fn link_on_the_way(root: &Path, relative: &Path) -> Option<PathBuf> {
    let mut at = root.to_owned();
    let folders = relative.parent()?.components();
    folders
        .map(|part| {
            at.push(part);
            at.clone()
        })
        .find(|folder| fs::symlink_metadata(folder).is_ok_and(|data| data.is_symlink()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_folder() {
        for (path, expected) in [
            ("a.jpg", "a.jpg"),
            ("./a/b.jpg", "a/b.jpg"),
            ("a//b.jpg", "a/b.jpg"),
            ("a/./b", "a/b"),
            ("..a/b..", "..a/b.."),
            ("\\x2e\\x2e/a", "\\x2e\\x2e/a"),
        ] {
            assert_eq!(below(path), Ok(PathBuf::from(expected)), "{path}");
        }
        for path in [
            "", ".", "./", "/", "/a", "//a", "..", "../a", "a/../b", "a/..", "a/", "a\0b",
        ] {
            assert!(below(path).is_err(), "{path:?}");
        }
        assert_eq!(folder_of("a-000.tar.gz").unwrap(), "a-000");
        assert_eq!(folder_of("a.b.arrow").unwrap(), "a.b");
        assert!(folder_of("...tar").is_err() && folder_of(".tar").is_err());
    }
}
