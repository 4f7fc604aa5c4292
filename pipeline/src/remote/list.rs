//! From a specification to the objects it names.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{stream, StreamExt};
use object_store::list::PaginatedListOptions;
use object_store::path::Path;
use url::Url;

use super::cache::Cache;
use super::failure::Failure;
use super::object::{RemoteObject, Version};
use super::runtime::Runtime;
use super::store::Store;
use super::RemoteOptions;
use crate::error::PipelineError;
use crate::index::INDEX_ENDING;

/// Shards asked for at a time.
const PARALLEL_QUESTIONS: usize = 32;

/// More than any real data set has; a prefix with more is not one of shards.
const MAX_LISTED: usize = 1_000_000;

/// What a prefix stands for. Wildcards find other names too.
const SHARD_ENDINGS: [&str; 4] = [".tar", ".tar.gz", ".tar.zst", ".arrow"];

const WEB: [&str; 2] = ["http", "https"];
const CLOUDS: [&str; 8] = ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl"];

/// Whether a specification has a scheme.
pub(crate) fn is_remote(spec: &str) -> bool {
    spec.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric())
    })
}

/// Turns specifications into objects, those of one bucket through one store.
pub(crate) struct Resolver {
    options: Arc<RemoteOptions>,
    shared: Option<(Arc<Runtime>, Option<Arc<Cache>>)>,
    stores: HashMap<String, Arc<Store>>,
}

impl Resolver {
    pub(crate) fn new(options: &RemoteOptions) -> Self {
        Resolver {
            options: Arc::new(options.clone()),
            shared: None,
            stores: HashMap::new(),
        }
    }

    /// The objects that `patterns`, the elements of the braces of `spec`, name, in that order; the
    /// matches of each pattern are sorted.
    pub(crate) fn resolve(
        &mut self,
        spec: &str,
        patterns: &[String],
    ) -> Result<Vec<Arc<RemoteObject>>, PipelineError> {
        let mut objects = Vec::new();
        for pattern in patterns {
            let target = Target::parse(pattern).map_err(|hint| PipelineError::NoShards {
                spec: spec.to_string(),
                hint,
            })?;
            let store = self
                .store(&target)
                .map_err(|error| io_error(pattern, error))?;
            match target.key {
                Key::One(path) => {
                    objects.push(Arc::new(RemoteObject::new(
                        store,
                        path,
                        pattern.clone(),
                        None,
                    )));
                }
                Key::Many(listing) => objects.extend(list(spec, &store, listing)?),
            }
        }
        if let Some(first) = objects.first() {
            let runtime = first.store.runtime.clone();
            let asked = objects.clone();
            let all = async move {
                let questions = asked.into_iter().map(|object| async move {
                    object
                        .resolve()
                        .await
                        .map_err(|failure| (object.url.clone(), failure))
                });
                let mut answers = stream::iter(questions).buffered(PARALLEL_QUESTIONS);
                while let Some(answer) = answers.next().await {
                    answer?;
                }
                Ok::<(), (String, Failure)>(())
            };
            let answered = runtime
                .wait(None, all)
                .map_err(|error| io_error(spec, error))?;
            answered.map_err(|(url, failure)| explain(spec, &url, failure))?;
        }
        Ok(objects)
    }

    fn store(&mut self, target: &Target) -> io::Result<Arc<Store>> {
        let base = format!("{}://{}", target.scheme, target.authority);
        if let Some(store) = self.stores.get(&base) {
            return Ok(store.clone());
        }
        let (runtime, cache) = match &self.shared {
            Some(shared) => shared.clone(),
            None => {
                let cache = self.options.cache.as_ref().map(|options| {
                    let explain = |error: io::Error| {
                        let dir = options.dir.display();
                        io::Error::new(
                            error.kind(),
                            format!("the cache {dir} cannot be used: {error}"),
                        )
                    };
                    Ok::<_, io::Error>(Arc::new(Cache::new(options).map_err(explain)?))
                });
                let shared = (Runtime::shared()?, cache.transpose()?);
                self.shared.insert(shared).clone()
            }
        };
        let options = self.options.clone();
        let store = Store::new(&target.scheme, &target.authority, options, cache, runtime)?;
        Ok(self.stores.entry(base).or_insert(Arc::new(store)).clone())
    }
}

fn io_error(url: &str, source: io::Error) -> PipelineError {
    // The message of a failure begins with the URL, and so does that of the error.
    let text = source.to_string();
    let text = text
        .strip_prefix(url)
        .and_then(|text| text.strip_prefix(": "))
        .unwrap_or(&text);
    let source = io::Error::new(source.kind(), text.to_string());
    PipelineError::Io {
        path: PathBuf::from(url),
        source,
    }
}

fn explain(spec: &str, url: &str, failure: Failure) -> PipelineError {
    match failure {
        Failure::Final(error) if error.kind() == ErrorKind::NotFound => PipelineError::NoShards {
            spec: spec.to_string(),
            hint: error.to_string(),
        },
        Failure::Final(error) => io_error(url, error),
        Failure::Passing { what, .. } => io_error(url, io::Error::other(what)),
        Failure::NoRanges => io_error(url, io::Error::other("the server gives no length")),
    }
}

/// A parsed specification without braces.
#[derive(Debug)]
struct Target {
    scheme: String,
    authority: String,
    key: Key,
}

#[derive(Debug)]
enum Key {
    One(Path),
    Many(Listing),
}

#[derive(Debug)]
struct Listing {
    /// What all keys begin with.
    prefix: String,
    /// What they match; none for all shards.
    pattern: Option<glob::Pattern>,
    /// Whether matches lie in the folder that the prefix ends in, and not below it.
    one_level: bool,
}

impl Target {
    /// # Errors
    /// What is wrong with it, and what to write.
    fn parse(spec: &str) -> Result<Target, String> {
        let (scheme, rest) = spec.split_once("://").ok_or("it has no scheme")?;
        let web = WEB.contains(&scheme);
        if !web && !CLOUDS.contains(&scheme) {
            return Err(format!(
                "the scheme {scheme}:// is unknown; use s3, gs, az, abfs, http, https, file, or a plain path"
            ));
        }
        let (authority, key) = rest.split_once('/').ok_or_else(|| {
            format!("{spec} is a whole bucket or server; name its shards, e.g. {spec}/shards-*.tar")
        })?;
        if authority.is_empty() {
            return Err(format!(
                "{spec} names no bucket or server; write {scheme}://NAME/..."
            ));
        }
        let target = |key| Target {
            scheme: scheme.into(),
            authority: authority.into(),
            key,
        };
        if web {
            if key.contains('?') {
                return Err("a ? in a URL cannot be read; signed URLs and wildcards are not supported over http".into());
            }
            if key.contains(['*', '[']) || key.is_empty() || key.ends_with('/') {
                return Err(format!(
                    "{scheme}:// has no listing; name every shard, e.g. with {{000..012}}"
                ));
            }
            let url =
                Url::parse(spec).map_err(|error| format!("the URL does not parse: {error}"))?;
            let path = Path::from_url_path(url.path()).map_err(|error| error.to_string())?;
            return Ok(target(Key::One(path)));
        }
        let wildcard = key.find(['*', '?', '[']);
        if wildcard.is_none() && !key.is_empty() && !key.ends_with('/') {
            let path =
                Path::parse(key).map_err(|error| format!("the key cannot be used: {error}"))?;
            return Ok(target(Key::One(path)));
        }
        let listing = match wildcard {
            None => Listing {
                prefix: key.to_string(),
                pattern: None,
                one_level: false,
            },
            Some(at) => Listing {
                prefix: key[..at].to_string(),
                pattern: Some(
                    glob::Pattern::new(key)
                        .map_err(|error| format!("the pattern does not parse: {error}"))?,
                ),
                one_level: !key[at..].contains('/') && !key[at..].contains("**"),
            },
        };
        Ok(target(Key::Many(listing)))
    }
}

impl Listing {
    fn admits(&self, key: &str) -> bool {
        // A * stays within a folder, as in a shell.
        let options = glob::MatchOptions {
            require_literal_separator: true,
            ..Default::default()
        };
        !key.ends_with(INDEX_ENDING)
            && match &self.pattern {
                Some(pattern) => pattern.matches_with(key, options),
                None => SHARD_ENDINGS.iter().any(|ending| key.ends_with(ending)),
            }
    }
}

/// The objects that match, sorted.
fn list(
    spec: &str,
    store: &Arc<Store>,
    listing: Listing,
) -> Result<Vec<Arc<RemoteObject>>, PipelineError> {
    let no_shards = |hint: String| PipelineError::NoShards {
        spec: spec.to_string(),
        hint,
    };
    let below = format!("{}{}", store.root, listing.prefix);
    let pages = {
        let (store, below) = (store.clone(), below.clone());
        async move { pages(&store, &below, &listing).await }
    };
    let listed = store
        .runtime
        .wait(None, pages)
        .map_err(|error| io_error(&below, error))?;
    let Listed {
        mut found,
        mut indexes,
        seen,
    } = listed.map_err(|failure| explain(spec, &below, failure))?;
    if found.is_empty() {
        return Err(no_shards(if seen == 0 {
            format!("nothing is below {below}")
        } else {
            format!("{below} has {seen} objects, but none that matches")
        }));
    }
    found.sort_by(|(a, _), (b, _)| a.as_ref().cmp(b.as_ref()));
    let object = |(path, version): (Path, Version)| {
        let url = format!("{}{path}", store.root);
        let index = indexes.remove(&format!("{path}{INDEX_ENDING}"));
        Arc::new(RemoteObject::new(store.clone(), path, url, Some(version)).with_index(index))
    };
    Ok(found.into_iter().map(object).collect())
}

/// What a listing brought.
#[derive(Default)]
struct Listed {
    /// All matches.
    found: Vec<(Path, Version)>,
    /// Index files, by their keys.
    indexes: HashMap<String, Version>,
    /// How many objects were looked at.
    seen: usize,
}

async fn pages(store: &Store, below: &str, listing: &Listing) -> Result<Listed, Failure> {
    let invalid =
        |message: String| Failure::Final(io::Error::new(ErrorKind::InvalidInput, message));
    let Some(lister) = &store.lister else {
        return Err(invalid(format!("{below}: there is no listing")));
    };
    let mut listed = Listed::default();
    let mut page_token = None;
    loop {
        let prefix = Some(listing.prefix.as_str()).filter(|prefix| !prefix.is_empty());
        let request = || {
            lister.list_paginated(
                prefix,
                PaginatedListOptions {
                    delimiter: listing.one_level.then_some("/".into()),
                    page_token: page_token.clone(),
                    ..PaginatedListOptions::default()
                },
            )
        };
        let page = store.retry(below, request).await?;
        listed.seen += page.result.objects.len();
        for meta in page.result.objects {
            let version = Version::of(&meta);
            if listing.admits(meta.location.as_ref()) {
                listed.found.push((meta.location, version));
            } else if meta.location.as_ref().ends_with(INDEX_ENDING) {
                listed.indexes.insert(meta.location.into(), version);
            }
        }
        if listed.found.len().max(listed.indexes.len()) > MAX_LISTED {
            return Err(invalid(format!("{below}: more than {MAX_LISTED} shards")));
        }
        page_token = page.page_token;
        if page_token.is_none() {
            return Ok(listed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications() {
        assert!(is_remote("s3://b/x") && is_remote("ftp://b/x"));
        assert!(!is_remote("a/b.tar") && !is_remote("://x") && !is_remote("a b://x"));
        let one = |spec: &str, authority: &str, path: &str| {
            let target = Target::parse(spec).unwrap();
            let Key::One(found) = target.key else {
                panic!("{spec}")
            };
            assert_eq!(
                (target.authority.as_str(), found.as_ref()),
                (authority, path)
            );
        };
        one("s3://b/p/x.tar", "b", "p/x.tar");
        one("s3://b/a b#c%20.tar", "b", "a b#c%20.tar");
        one(
            "abfs://c@a.dfs.core.windows.net/x.tar",
            "c@a.dfs.core.windows.net",
            "x.tar",
        );
        one("http://[::1]:80/a%20b.tar", "[::1]:80", "a b.tar");
        let many = |spec: &str, prefix: &str, one_level: bool, yes: &[&str], no: &[&str]| {
            let Key::Many(listing) = Target::parse(spec).unwrap().key else {
                panic!("{spec}")
            };
            assert_eq!(
                (listing.prefix.as_str(), listing.one_level),
                (prefix, one_level)
            );
            assert!(yes.iter().all(|key| listing.admits(key)), "{spec}");
            assert!(!no.iter().any(|key| listing.admits(key)), "{spec}");
        };
        many(
            "s3://b/p/x-*.tar",
            "p/x-",
            true,
            &["p/x-1.tar"],
            &["p/x-1/2.tar", "p/x-1.tar.qfidx"],
        );
        many(
            "s3://b/p/x-*",
            "p/x-",
            true,
            &["p/x-1.tar"],
            &["p/x-1.tar.qfidx"],
        );
        many("gs://b/*/x.tar", "", false, &["p/x.tar"], &["p/q/x.tar"]);
        many(
            "az://b/**/x.tar",
            "",
            false,
            &["p/x.tar", "p/q/x.tar"],
            &["p/y.tar"],
        );
        let shards = ["p/a.tar", "p/q/a.tar.gz", "p/a.tar.zst", "p/a.arrow"];
        many(
            "s3://b/p/",
            "p/",
            false,
            &shards,
            &["p/a.txt", "p/a.tar.qfidx"],
        );
        for (spec, hint) in [
            ("ftp://h/x.tar", "unknown"),
            ("s3://b", "whole bucket"),
            ("s3:///x.tar", "no bucket"),
            ("s3://b/a//b.tar", "cannot be used"),
            ("https://h/x-*.tar", "no listing"),
            ("https://h/", "no listing"),
            ("https://h/x.tar?sig=1", "signed URLs"),
            ("s3://b/[", "does not parse"),
        ] {
            let message = Target::parse(spec).unwrap_err();
            assert!(message.contains(hint), "{spec}: {message}");
        }
    }
}
