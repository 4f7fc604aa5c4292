//! The index that NVIDIA DALI's `fn.readers.webdataset` reads, as its `wds2idx` writes it (format v1.2).
//!
//! ```text
//! v1.2 2
//! jpg 512 153124 000000.jpg txt 154624 240 000000.txt
//! jpg 155648 98301 000001.jpg txt 254464 198 000001.txt
//! ```
//!
//! The first line has the number of samples; then a line for each, with extension, offset of the data, length and
//! name of each of its files, those of one base name that follow each other.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use qf_pipeline::atomic_file::AtomicFile;
use qf_pipeline::shard::entries::{Entry, FileEntry, ShardEntries};
use qf_pipeline::shard::read::ReadOptions;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::write::ShardFormat;

/// Writes the index beside a shard, under the name that `wds2idx` gives it, and returns its path and the number
/// of samples.
///
/// # Errors
/// A shard that is compressed, Arrow, remote or damaged; files that DALI's format cannot hold.
pub(crate) fn write(
    shard: &ShardLocation,
    options: &ReadOptions,
    stop: &Stop,
) -> anyhow::Result<(PathBuf, u64)> {
    let Some(path) = shard.path() else {
        bail!(
            "shard {}: an index can be written beside local shards only",
            shard.name
        );
    };
    let entries = ShardEntries::open(shard, options, stop)?;
    if entries.format() != ShardFormat::Tar {
        let format = entries.format();
        bail!(
            "shard {} is {format}, and DALI reads plain tar; `qfdata convert --format tar` writes it",
            shard.name
        );
    }
    let mut lines = Lines::default();
    let mut refusal = None;
    let mut visit = |entry: Entry| {
        if let Entry::File(file) = entry {
            refusal = lines.add(&file).err();
        }
        refusal.is_none()
    };
    entries.read(0, &|_| false, &mut visit)?;
    if let Some(why) = refusal {
        bail!("shard {}: {why}", shard.name);
    }
    if lines.samples == 0 {
        bail!("shard {} holds no sample", shard.name);
    }
    let target = name(path)?;
    let mut file = AtomicFile::create(&target)?;
    write!(file, "v1.2 {}{}", lines.samples, lines.text)
        .and_then(|()| file.write_all(b"\n"))
        .with_context(|| format!("cannot write {}", target.display()))?;
    file.commit()?;
    Ok((target, lines.samples))
}

/// The name up to its first dot, and `.idx`.
pub(crate) fn name(shard: &Path) -> anyhow::Result<PathBuf> {
    let base = shard
        .file_name()
        .and_then(|name| name.to_str())
        .context("a shard has a name")?;
    let stem = base
        .get(1..)
        .and_then(|rest| rest.find('.'))
        .map_or(base, |dot| &base[..=dot]);
    Ok(shard.with_file_name(format!("{}.idx", stem.trim_end_matches('.'))))
}

#[derive(Default)]
struct Lines {
    text: String,
    samples: u64,
    base: Option<String>,
}

impl Lines {
    /// # Errors
    /// Why DALI could not read the file at the place that is written.
    fn add(&mut self, file: &FileEntry) -> Result<(), String> {
        let path = file.path();
        let name_at = path.rfind('/').map_or(0, |slash| slash + 1);
        let Some(dot) = path[name_at..].find('.').map(|dot| name_at + dot) else {
            return Ok(());
        };
        let (base, extension) = (&path[..dot], &path[dot + 1..]);
        // Hidden files belong to no sample.
        if base.is_empty() || base.ends_with('/') {
            return Ok(());
        }
        if path.contains(char::is_whitespace) || !file.is_utf8() {
            return Err(format!(
                "file `{path}`: DALI's index has no way to write a blank in a name"
            ));
        }
        if file.is_sparse() {
            return Err(format!(
                "file `{path}` is sparse, and DALI reads what is stored"
            ));
        }
        let separator = match self.base.as_deref() == Some(base) {
            true => " ",
            false => {
                self.samples += 1;
                self.base = Some(base.to_string());
                "\n"
            }
        };
        let (offset, size) = (file.data_offset_bytes(), file.size_bytes());
        // Formatting into a string does not fail.
        let _ = write!(self.text, "{separator}{extension} {offset} {size} {path}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_wds2idx() {
        for (shard, index) in [
            ("a/s-000.tar", "a/s-000.idx"),
            ("s.v2.tar", "s.idx"),
            (".s.tar", ".s.idx"),
            ("noending", "noending.idx"),
        ] {
            assert_eq!(name(Path::new(shard)).unwrap(), Path::new(index));
        }
    }
}
