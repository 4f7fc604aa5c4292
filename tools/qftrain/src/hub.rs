//! `hf://org/name[@revision]`: weights from the Hugging Face hub, through its cache.

use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, Context};
use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use qf_cli::output::remark;

/// What marks a place on the hub.
pub(crate) const SCHEME: &str = "hf://";

/// Attempts after a download that broke off, each going on where the last one ended.
const RETRIES: usize = 3;

/// Weights that are looked for, the preferred first; an index names the shards.
const WEIGHTS: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

/// What belongs to the weights, where the repository has it.
const BESIDE: [&str; 3] = ["config.json", "vocab.txt", "tokenizer.json"];

/// Settings that the hub's own tools take from the environment.
struct Environment {
    endpoint: Option<String>,
    token: Option<String>,
    offline: bool,
}

impl Environment {
    #[allow(clippy::disallowed_methods)] // The environment is read in tools, and here alone for the hub.
    fn read() -> Environment {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let is_on = |value: String| !matches!(value.to_lowercase().as_str(), "0" | "false" | "no");
        Environment {
            endpoint: text("HF_ENDPOINT"),
            token: text("HF_TOKEN"),
            offline: text("HF_HUB_OFFLINE").is_some_and(is_on),
        }
    }
}

/// Where the files of one repository come from.
struct Source {
    name: String,
    cache: Cache,
    repo: Repo,
    /// `None` where HF_HUB_OFFLINE is set.
    api: Option<ApiRepo>,
}

/// The folder, in the hub's cache, with the weights of `hf://org/name[@revision]`; downloads what
/// is not there yet.
///
/// HF_HOME names the cache, HF_ENDPOINT another server, HF_TOKEN who asks; with HF_HUB_OFFLINE=1
/// only the cache is looked at.
pub(crate) fn fetch(url: &str) -> anyhow::Result<PathBuf> {
    let (name, revision) = parse(url)?;
    let environment = Environment::read();
    let cache = Cache::from_env();
    let repo = Repo::with_revision(name, RepoType::Model, revision);
    let api = if environment.offline {
        None
    } else {
        let mut builder = ApiBuilder::from_env().with_retries(RETRIES);
        if let Some(endpoint) = environment.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        if let Some(token) = environment.token {
            builder = builder.with_token(Some(token));
        }
        Some(
            builder
                .build()
                .context("the hub's client")?
                .repo(repo.clone()),
        )
    };
    let source = Source {
        name: url.to_owned(),
        cache,
        repo,
        api,
    };
    source.fetch()
}

impl Source {
    fn fetch(&self) -> anyhow::Result<PathBuf> {
        let listed = self.listed()?;
        let has = |file: &str| {
            listed
                .as_ref()
                .is_none_or(|files| files.iter().any(|f| f == file))
        };
        let mut main = None;
        for file in WEIGHTS.into_iter().filter(|file| has(file)) {
            if let Some(path) = self.get(file)? {
                main = Some(path);
                break;
            }
        }
        let Some(main) = main else {
            if self.api.is_none() {
                bail!(
                    "{} is not in the cache {}, and HF_HUB_OFFLINE is set; unset it to download",
                    self.name,
                    self.cache.path().display()
                );
            }
            bail!(
                "{} holds no weights: none of {}",
                self.name,
                WEIGHTS.join(", ")
            );
        };
        if main
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            for shard in shards(&main)? {
                if self.get(&shard)?.is_none() {
                    bail!("{}: {shard} is missing, which its index names", self.name);
                }
            }
        }
        for file in BESIDE.into_iter().filter(|file| has(file)) {
            self.get(file)?;
        }
        let folder = main.parent().unwrap_or(Path::new("."));
        Ok(folder.to_owned())
    }

    /// The repository's files; unknown without the hub.
    fn listed(&self) -> anyhow::Result<Option<Vec<String>>> {
        let Some(api) = &self.api else {
            return Ok(None);
        };
        let info = api.info().map_err(|error| self.explain(error, ""))?;
        Ok(Some(
            info.siblings
                .into_iter()
                .map(|file| file.rfilename)
                .collect(),
        ))
    }

    /// A file in the cache, from the hub if need be; `None` if there is none.
    fn get(&self, file: &str) -> anyhow::Result<Option<PathBuf>> {
        if let Some(path) = self.cache.repo(self.repo.clone()).get(file) {
            return Ok(Some(path));
        }
        let Some(api) = &self.api else {
            return Ok(None);
        };
        remark(format_args!("fetching {}/{file}", self.name));
        let path = api
            .download(file)
            .map_err(|error| self.explain(error, file))?;
        Ok(Some(path))
    }

    fn explain(&self, error: ApiError, file: &str) -> anyhow::Error {
        let text = error.to_string();
        let advice = if text.contains("404") {
            "there is no such model, revision or file"
        } else if text.contains("401") || text.contains("403") {
            "access is refused; set HF_TOKEN to a token that may read it"
        } else {
            "check the network, or HF_ENDPOINT; what is there already is kept for the next try"
        };
        let slash = if file.is_empty() { "" } else { "/" };
        anyhow!("cannot fetch {}{slash}{file}: {text}; {advice}", self.name)
    }
}

/// Name and revision of `hf://org/name[@revision]`.
fn parse(url: &str) -> anyhow::Result<(String, String)> {
    let place = url.strip_prefix(SCHEME).unwrap_or(url);
    let (name, revision) = place.split_once('@').unwrap_or((place, "main"));
    let is_word = |word: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !word.is_empty() && !word.starts_with('.') && word.chars().all(known)
    };
    // A model without an organisation is one of the hub's first, `bert-base-uncased` say.
    let parts: Vec<&str> = name.split('/').collect();
    let revision_is_good = revision.split('/').all(is_word);
    if parts.len() > 2 || !parts.iter().copied().all(is_word) || !revision_is_good {
        bail!("{url}: expected hf://ORG/NAME or hf://ORG/NAME@REVISION");
    }
    Ok((name.to_owned(), revision.to_owned()))
}

/// The shards that an index names, without repetition.
fn shards(index: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read(index).with_context(|| format!("cannot read {}", index.display()))?;
    let json: serde_json::Value =
        serde_json::from_slice(&text).with_context(|| format!("{}", index.display()))?;
    let map = json["weight_map"]
        .as_object()
        .with_context(|| format!("{}: no weight_map", index.display()))?;
    let mut names: Vec<String> = Vec::new();
    for name in map.values().filter_map(|name| name.as_str()) {
        if name.contains('/') || name.starts_with('.') {
            bail!("{}: `{name}` is no name of a shard", index.display());
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_on_the_hub() {
        let check = |url: &str, name: &str, revision: &str| {
            assert_eq!(parse(url).unwrap(), (name.to_owned(), revision.to_owned()));
        };
        check("hf://bert-base-uncased", "bert-base-uncased", "main");
        check(
            "hf://Salesforce/blip2-itm-vit-g",
            "Salesforce/blip2-itm-vit-g",
            "main",
        );
        check("hf://a/b@refs/pr/1", "a/b", "refs/pr/1");
        check("hf://a/b@1234abc", "a/b", "1234abc");
        for bad in [
            "hf://",
            "hf://a/",
            "hf://a/b/c",
            "hf://../b",
            "hf://a/b@",
            "hf://a b/c",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
