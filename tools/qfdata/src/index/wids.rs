//! The index that `wids` reads (of Python's webdataset): a JSON file that lists the shards of a data set with their
//! samples, as its `widsindex create` writes it.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context};
use qf_pipeline::atomic_file::AtomicFile;
use qf_pipeline::shard::entries::{Entry, ShardEntries};
use qf_pipeline::shard::read::ReadOptions;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::write::ShardFormat;
use serde_json::json;

/// Samples of a shard as `wids` counts them: files that follow each other with one name up to the first dot
/// of the base name.
///
/// # Errors
/// A shard that is compressed, Arrow, remote or damaged; a file whose name has no dot, over which `wids` stumbles.
pub(super) fn samples(
    shard: &ShardLocation,
    options: &ReadOptions,
    stop: &Stop,
) -> anyhow::Result<u32> {
    let name = &shard.name;
    if shard.path().is_none() {
        bail!("shard {name}: an index can be made of local shards only");
    }
    let entries = ShardEntries::open(shard, options, stop)?;
    if entries.format() != ShardFormat::Tar {
        let format = entries.format();
        bail!(
            "shard {name} is {format}, and wids reads plain tar; `qfdata convert --format tar` writes it"
        );
    }
    let (mut samples, mut last, mut nameless) = (0u32, None, None);
    let mut visit = |entry: Entry| {
        if let Entry::File(file) = entry {
            let path = file.path();
            let base_at = path.rfind('/').map_or(0, |slash| slash + 1);
            match path[base_at..].find('.') {
                Some(dot) => {
                    let key = &path[..base_at + dot];
                    if last.as_deref() != Some(key) {
                        samples += 1;
                        last = Some(key.to_owned());
                    }
                }
                None => nameless = Some(path.to_owned()),
            }
        }
        nameless.is_none()
    };
    entries.read(0, &|_| false, &mut visit)?;
    match nameless {
        Some(file) => {
            bail!("shard {name}: file `{file}` has no ending, which wids does not read; `qfdata convert` leaves it out")
        }
        None => Ok(samples),
    }
}

/// Writes the index. Shards below its folder are named relative to it, so that both can move.
///
/// # Errors
/// That it cannot be written.
pub(super) fn write(
    target: &Path,
    shards: &[ShardLocation],
    samples: &[u32],
) -> anyhow::Result<()> {
    let folder = match target
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        Some(folder) => folder.to_owned(),
        None => PathBuf::from("."),
    };
    let folder = std::fs::canonicalize(&folder)
        .with_context(|| format!("--wids: no folder {}", folder.display()))?;
    let mut list = Vec::with_capacity(shards.len());
    for (shard, samples) in shards.iter().zip(samples) {
        let path = shard.path().context("a shard has a path")?;
        let whole = std::fs::canonicalize(path)?;
        let url = whole.strip_prefix(&folder).unwrap_or(&whole);
        let Some(url) = url.to_str() else {
            bail!("shard {}: its path is not UTF-8; rename it", shard.name);
        };
        let bytes = std::fs::metadata(path)?.len();
        list.push(json!({"url": url, "nsamples": samples, "filesize": bytes}));
    }
    let index = json!({"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": list});
    let mut file = AtomicFile::create(target)?;
    serde_json::to_writer_pretty(&mut file, &index)
        .map_err(std::io::Error::from)
        .and_then(|()| file.write_all(b"\n"))
        .with_context(|| format!("cannot write {}", target.display()))?;
    Ok(file.commit()?)
}
