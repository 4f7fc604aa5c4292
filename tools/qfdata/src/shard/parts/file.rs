//! The plan's file: JSON, written once, read by every part.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, Context};
use qf_pipeline::atomic_file::AtomicFile;
use qf_pipeline::hex::hex;
use qf_pipeline::source::{scheme, DisplayUrl};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::shard::record::Settings;
use crate::shard::store::Store;

/// Of this file. A plan of another version is refused.
const VERSION: u32 = 1;

/// More than the plan of a million parts.
const MAX_PLAN_BYTES: u64 = 256 << 20;

/// A job, cut into parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Plan {
    version: u32,
    /// Tells it from other plans: half of a SHA-256 of all that follows.
    pub(super) id: String,
    /// The version that made it.
    pub(super) qfdata: String,
    /// Relative paths start here.
    folder: PathBuf,
    /// Words of the command line that `qfdata shard` would have had.
    pub(super) arguments: Vec<String>,
    pub(super) input_fingerprint: String,
    /// What decides the bytes of shards, to be read by people.
    settings: Settings,
    pub(super) parts: Vec<PlannedPart>,
}

/// A part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlannedPart {
    pub(super) part: u32,
    /// Of the input.
    pub(super) rows: Range<u64>,
}

impl Plan {
    pub(super) fn new(
        arguments: Vec<String>,
        input_fingerprint: &str,
        settings: Settings,
        rows: Vec<Range<u64>>,
    ) -> anyhow::Result<Plan> {
        let parts = rows.into_iter().zip(0..);
        let parts = parts.map(|(rows, part)| PlannedPart { part, rows });
        let mut plan = Plan {
            version: VERSION,
            id: String::new(),
            qfdata: env!("CARGO_PKG_VERSION").to_owned(),
            folder: std::env::current_dir().context("the working directory")?,
            arguments,
            input_fingerprint: input_fingerprint.to_owned(),
            settings,
            parts: parts.collect(),
        };
        plan.id = plan.digest()?;
        Ok(plan)
    }

    fn digest(&self) -> anyhow::Result<String> {
        let unnamed = Plan {
            id: String::new(),
            ..self.clone()
        };
        let digest = Sha256::digest(serde_json::to_vec(&unnamed)?);
        Ok(hex(&digest[..16]))
    }

    /// Number of rows of all parts.
    pub(super) fn rows(&self) -> u64 {
        self.parts.last().map_or(0, |part| part.rows.end)
    }

    /// Writes it to a path or a store, whole or not at all.
    pub(super) fn write(&self, spec: &str) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        match place(spec)? {
            Place::Store(store, name) => store.put(&name, text),
            Place::File(path) => {
                let what = || format!("cannot write the plan {}", path.display());
                let mut file = AtomicFile::create(&path).with_context(what)?;
                file.write_all(&text).with_context(what)?;
                file.commit().with_context(what)
            }
        }
    }

    /// Reads the plan at a path or in a store.
    ///
    /// # Errors
    /// That there is none, or that it is damaged or of another version.
    pub(super) fn read(spec: &str) -> anyhow::Result<Plan> {
        let shown = DisplayUrl::of(spec);
        let text = match place(spec)? {
            Place::Store(store, name) => {
                let text = store.get(&name)?;
                text.with_context(|| format!("there is no plan {shown}; `qfdata plan` writes one"))?
            }
            Place::File(path) => read_file(&path)?,
        };
        let value: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|error| anyhow!("{shown} is no plan that `qfdata plan` wrote: {error}"))?;
        let version = value.get("version").and_then(serde_json::Value::as_u64);
        if version != Some(u64::from(VERSION)) {
            let found = version.map_or("no version".to_owned(), |found| format!("version {found}"));
            bail!("the plan {shown} has {found}, this qfdata reads version {VERSION}; make it again with `qfdata plan`");
        }
        let plan: Plan = serde_json::from_value(value)
            .map_err(|error| anyhow!("{shown} is no plan that `qfdata plan` wrote: {error}"))?;
        let starts = std::iter::once(0).chain(plan.parts.iter().map(|part| part.rows.end));
        let follow = starts
            .zip(&plan.parts)
            .zip(0..)
            .all(|((start, part), at)| part.rows.start == start && part.part == at);
        if plan.digest()? != plan.id || plan.parts.is_empty() || !follow {
            bail!("the plan {shown} was changed since `qfdata plan` wrote it; make it again");
        }
        Ok(plan)
    }

    /// Relative paths of the job start where the plan was made. A machine without that folder can do
    /// without it where input and target are URLs or absolute paths.
    pub(super) fn enter_folder(&self) -> anyhow::Result<()> {
        if let Err(error) = std::env::set_current_dir(&self.folder) {
            log::info!("{}: {error}", self.folder.display());
            let is_relative = |word: &String| {
                !word.starts_with("--") && scheme(word).is_none() && Path::new(word).is_relative()
            };
            let mut words = self.arguments.iter();
            if let Some(word) = words.find(|word| is_relative(word) && word.contains(['/', '.'])) {
                bail!(
                    "the plan was made in {}, which this machine does not have ({error}), and it has the relative \
                     path {word}; make the plan with absolute paths or URLs",
                    self.folder.display()
                );
            }
        }
        Ok(())
    }
}

enum Place {
    File(PathBuf),
    /// A store's folder, and the name in it.
    Store(Store, String),
}

fn place(spec: &str) -> anyhow::Result<Place> {
    if scheme(spec).is_none_or(|scheme| scheme == "file") {
        let path = Path::new(spec.strip_prefix("file://").unwrap_or(spec));
        return Ok(Place::File(std::path::absolute(path)?));
    }
    match spec.rsplit_once('/') {
        Some((folder, name)) if !name.is_empty() && scheme(folder).is_some() => {
            Ok(Place::Store(Store::open(folder)?, name.to_owned()))
        }
        _ => bail!(
            "the plan {} names no object; add a name, e.g. /plan.json",
            DisplayUrl::of(spec)
        ),
    }
}

fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let what = || {
        format!(
            "cannot read the plan {}; `qfdata plan` writes one",
            path.display()
        )
    };
    let file = std::fs::File::open(path).with_context(what)?;
    let mut text = Vec::new();
    file.take(MAX_PLAN_BYTES)
        .read_to_end(&mut text)
        .with_context(what)?;
    Ok(text)
}

/// What of this process's command line, `qfdata plan ...`, belongs to `qfdata shard`.
pub(super) fn arguments_of_job(
    words: impl Iterator<Item = OsString>,
) -> anyhow::Result<Vec<String>> {
    let mut job = Vec::new();
    let mut words = words.skip(2);
    while let Some(word) = words.next() {
        let word = word.into_string().map_err(|word| {
            anyhow!(
                "{} is not UTF-8, which a plan has to be; rename it",
                Path::new(&word).display()
            )
        })?;
        match word.split_once('=').map_or(word.as_str(), |(name, _)| name) {
            "--parts" | "--plan" => {
                if !word.contains('=') {
                    words.next();
                }
            }
            _ => job.push(word),
        }
    }
    Ok(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_plan_itself_are_left_out() {
        let line = "qfdata plan a.csv --parts 4 --out o/x --plan=p.json --max-count 7";
        let words = arguments_of_job(line.split(' ').map(OsString::from)).unwrap();
        assert_eq!(words, ["a.csv", "--out", "o/x", "--max-count", "7"]);
    }

    #[test]
    fn a_plan_is_read_as_it_was_written_and_refused_when_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plan.json");
        let spec = path.to_str().unwrap();
        let plan = Plan::new(
            vec!["a.csv".to_owned()],
            "f",
            Settings::new(),
            vec![0..3, 3..6],
        )
        .unwrap();
        plan.write(spec).unwrap();
        assert_eq!(Plan::read(spec).unwrap(), plan);
        let text = std::fs::read_to_string(&path).unwrap();
        for (from, to, says) in [
            ("a.csv", "b.csv", "was changed"),
            ("\"version\": 1", "\"version\": 9", "version 9"),
            ("{", "", "no plan"),
        ] {
            std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let error = Plan::read(spec).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        let error = Plan::read(spec).unwrap_err().to_string();
        assert!(error.contains("qfdata plan"), "{error}");
    }
}
