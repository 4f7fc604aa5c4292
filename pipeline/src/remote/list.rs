//! From a specification to the objects it names.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{stream, StreamExt};
use object_store::list::PaginatedListOptions;
use url::Url;

use super::cache::Cache;
use super::failure::Failure;
use super::keys::{path_of, unmask};
use super::object::RemoteObject;
use super::runtime::Runtime;
use super::store::Store;
use super::version::{ObjectAddress, Version};
use super::RemoteOptions;
use crate::error::PipelineError;
use crate::shard_spec::{stands_beside_shards, DisplayUrl, INDEX_ENDING, SHARD_ENDINGS};
use crate::stop::Stop;

/// Shards asked for at a time.
const PARALLEL_QUESTIONS: usize = 32;

/// More than any real data set has; a prefix with more is not one of shards.
const MAX_LISTED: usize = 1_000_000;

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
            let shown = DisplayUrl::of(pattern);
            let target = Target::parse(pattern).map_err(|hint| PipelineError::NoShards {
                spec: DisplayUrl::of(spec),
                hint,
            })?;
            let store = self
                .store(&target)
                .map_err(|error| io_error(shown.as_ref(), error))?;
            let one = |address| RemoteObject::new(store.clone(), address, pattern.clone(), None);
            match target.key {
                Key::One(address) => objects.push(Arc::new(one(address))),
                Key::Many(listing) => {
                    // Without a match, the wildcards may be characters of a key.
                    let literal = match (&listing.pattern, path_of(&listing.key)) {
                        (Some(_), Ok(path)) if listing.may_be_a_key() => {
                            Some(ObjectAddress::Key(path))
                        }
                        _ => None,
                    };
                    let listed = list(spec, &store, listing, &self.options.stop);
                    match (listed, literal) {
                        (Err(error @ PipelineError::NoShards { .. }), Some(address)) => {
                            let object = Arc::new(one(address));
                            self.ask(spec, std::slice::from_ref(&object))
                                .map_err(|_| error)?;
                            objects.push(object);
                        }
                        (listed, _) => objects.extend(listed?),
                    }
                }
            }
        }
        self.ask(spec, &objects)?;
        Ok(objects)
    }

    /// Asks for the versions of objects that no listing told.
    fn ask(&self, spec: &str, objects: &[Arc<RemoteObject>]) -> Result<(), PipelineError> {
        let Some(first) = objects.first() else {
            return Ok(());
        };
        let asked = objects.to_vec();
        let all = async move {
            let questions = asked.into_iter().map(|object| async move {
                let answer = object.resolve().await;
                answer.map_err(|failure| (object.name.clone(), failure))
            });
            let mut answers = stream::iter(questions).buffered(PARALLEL_QUESTIONS);
            while let Some(answer) = answers.next().await {
                answer?;
            }
            Ok::<(), (String, Failure)>(())
        };
        let runtime = first.store.runtime.clone();
        let answered = runtime
            .wait(&self.options.stop, all)
            .map_err(|error| io_error(DisplayUrl::of(spec).as_ref(), error))?;
        answered.map_err(|(name, failure)| explain(spec, &name, failure))
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

fn explain(spec: &str, name: &str, failure: Failure) -> PipelineError {
    match failure {
        Failure::Final { error, .. } if error.kind() == ErrorKind::NotFound => {
            PipelineError::NoShards {
                spec: DisplayUrl::of(spec),
                hint: error.to_string(),
            }
        }
        failure => io_error(name, failure.into_error()),
    }
}

/// A parsed specification without braces.
struct Target {
    scheme: String,
    authority: String,
    key: Key,
}

enum Key {
    One(ObjectAddress),
    Many(Listing),
}

#[derive(Debug)]
struct Listing {
    /// As it was written.
    key: String,
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
        let shown = DisplayUrl::of(spec);
        let (scheme, rest) = spec.split_once("://").ok_or("it has no scheme")?;
        let web = WEB.contains(&scheme);
        if !web && !CLOUDS.contains(&scheme) {
            return Err(format!(
                "the scheme {scheme}:// is unknown; use s3, gs, az, abfs, http, https, file, or a plain path"
            ));
        }
        if DisplayUrl::hides_user(spec) {
            return Err(format!(
                "a URL with a user or password is not used: it would be stored and logged; {}",
                match web {
                    true => "put a bearer token in QF_HTTP_BEARER_TOKEN, or use a signed URL",
                    false => super::failure::credentials_hint(spec),
                }
            ));
        }
        let (authority, key) = rest.split_once('/').ok_or_else(|| {
            format!(
                "{shown} is a whole bucket or server; name its shards, e.g. {shown}/shards-*.tar"
            )
        })?;
        if authority.is_empty() {
            return Err(format!(
                "{shown} names no bucket or server; write {scheme}://NAME/..."
            ));
        }
        let target = |key| Target {
            scheme: scheme.into(),
            authority: authority.into(),
            key,
        };
        if web {
            let path = key.split('?').next().unwrap_or_default();
            let has_query = path.len() < key.len();
            if path.contains('*') || ((path.is_empty() || path.ends_with('/')) && !has_query) {
                return Err(format!(
                    "{scheme}:// has no listing; name every shard, e.g. with {{000..012}}"
                ));
            }
            let url =
                Url::parse(spec).map_err(|error| format!("the URL does not parse: {error}"))?;
            return Ok(target(Key::One(ObjectAddress::Page(url))));
        }
        if key.contains('?') && DisplayUrl::hides_query(spec) {
            return Err(format!(
                "{scheme}:// takes no query; use the https:// form of a signed URL, or credentials: {}",
                super::failure::credentials_hint(spec)
            ));
        }
        let wildcard = key.find(['*', '?', '[']);
        if wildcard.is_none() && !key.is_empty() && !key.ends_with('/') {
            return Ok(target(Key::One(ObjectAddress::Key(path_of(key)?))));
        }
        let pattern = wildcard.map(|_| glob::Pattern::new(key));
        let (prefix, pattern) = match (wildcard, pattern) {
            (Some(at), Some(Ok(pattern))) => (&key[..at], Some(pattern)),
            // A bracket that closes nothing: a character of the key.
            (_, Some(Err(_))) if !key.contains(['*', '?']) => {
                return Ok(target(Key::One(ObjectAddress::Key(path_of(key)?))));
            }
            (_, Some(Err(error))) => return Err(format!("the pattern does not parse: {error}")),
            _ => (key, None),
        };
        let rest = &key[prefix.len()..];
        Ok(target(Key::Many(Listing {
            key: key.to_string(),
            prefix: prefix.to_string(),
            one_level: pattern.is_some() && !rest.contains('/') && !rest.contains("**"),
            pattern,
        })))
    }
}

impl Listing {
    /// Whether the wildcards can be characters of a key that somebody chose.
    fn may_be_a_key(&self) -> bool {
        !self.key.contains('*')
    }

    fn admits(&self, key: &str) -> bool {
        // A * stays within a folder, as in a shell.
        let options = glob::MatchOptions {
            require_literal_separator: true,
            ..Default::default()
        };
        // A prefix stands for shards; wildcards find other names too.
        !stands_beside_shards(key)
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
    stop: &Stop,
) -> Result<Vec<Arc<RemoteObject>>, PipelineError> {
    let no_shards = |hint: String| PipelineError::NoShards {
        spec: DisplayUrl::of(spec),
        hint,
    };
    let below = format!("{}{}", store.root, listing.prefix);
    let pages = {
        let (store, below) = (store.clone(), below.clone());
        async move { pages(&store, &below, &listing).await }
    };
    let listed = store
        .runtime
        .wait(stop, pages)
        .map_err(|error| io_error(&below, error))?;
    let Listed {
        mut found,
        mut indexes,
        unnamable,
        seen,
    } = listed.map_err(|failure| explain(spec, &below, failure))?;
    if let Some(key) = unnamable.first() {
        log::warn!(
            "{below}: left out {} objects whose keys no request can name, the first `{}`; copy them \
             to other keys",
            unnamable.len(),
            key.escape_debug()
        );
    }
    if found.is_empty() {
        return Err(no_shards(match seen {
            0 => format!("nothing is below {below}"),
            1 => format!("{below} has 1 object, but none that matches"),
            _ => format!("{below} has {seen} objects, but none that matches"),
        }));
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    let object = |(key, version): (String, Version)| {
        let path =
            path_of(&key).map_err(|hint| no_shards(format!("{}{key}: {hint}", store.root)))?;
        let url = format!("{}{key}", store.root);
        let index = indexes.remove(&format!("{key}{INDEX_ENDING}"));
        let object = RemoteObject::new(store.clone(), ObjectAddress::Key(path), url, Some(version));
        Ok(Arc::new(object.with_index(index)))
    };
    found.into_iter().map(object).collect()
}

/// What a listing brought.
#[derive(Default)]
struct Listed {
    /// The keys of all matches.
    found: Vec<(String, Version)>,
    /// Index files, by their keys.
    indexes: HashMap<String, Version>,
    /// Matches that cannot be asked for.
    unnamable: Vec<String>,
    /// How many objects were looked at.
    seen: usize,
}

async fn pages(store: &Store, below: &str, listing: &Listing) -> Result<Listed, Failure> {
    let mut listed = Listed::default();
    let mut page_token = None;
    loop {
        let prefix = Some(listing.prefix.as_str()).filter(|prefix| !prefix.is_empty());
        let request = || {
            let options = PaginatedListOptions {
                delimiter: listing.one_level.then_some("/".into()),
                page_token: page_token.clone(),
                ..PaginatedListOptions::default()
            };
            store.list(below, prefix, options)
        };
        let page = store.retry(below, store.at_start(), request).await?;
        listed.seen += page.result.objects.len();
        for meta in page.result.objects {
            let version = Version::of(&meta);
            match unmask(&meta.location) {
                Ok(key) if listing.admits(&key) => listed.found.push((key, version)),
                Ok(key) if key.ends_with(INDEX_ENDING) => {
                    listed.indexes.insert(key, version);
                }
                Err(key) if listing.admits(&key) => listed.unnamable.push(key),
                _ => {}
            }
        }
        let most = listed.found.len().max(listed.indexes.len());
        if most.max(listed.unnamable.len()) > MAX_LISTED {
            let message = format!("{below}: more than {MAX_LISTED} shards");
            return Err(Failure::last(ErrorKind::InvalidInput, message));
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
            let found = match target.key {
                Key::One(ObjectAddress::Key(found)) => found.to_string(),
                Key::One(ObjectAddress::Page(found)) => {
                    found[url::Position::BeforePath..].to_string()
                }
                Key::Many(_) => panic!("{spec}"),
            };
            assert_eq!(
                (target.authority.as_str(), found.as_str()),
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
        one("s3://b/a//b.tar", "b", "a//b.tar");
        one("s3://b/x[.tar", "b", "x[.tar");
        for path in [
            "/a%20b.tar",
            "/a//b[x].tar",
            "/x.tar?sig=a%2Fb&n=1",
            "/?id=7",
        ] {
            one(&format!("http://[::1]:80{path}"), "[::1]:80", path);
        }
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
            ("s3://b/a/../b.tar", "cannot be read"),
            ("s3://b//b.tar", "begins with a slash"),
            ("http://u:hunter2@h/x.tar", "QF_HTTP_BEARER_TOKEN"),
            ("s3://key:hunter2@b/x.tar", "AWS_ACCESS_KEY_ID"),
            ("az://c/x.tar?sig=hunter2", "https://"),
            ("https://h/x-*.tar", "no listing"),
            ("https://h/", "no listing"),
            ("s3://b/*[", "does not parse"),
        ] {
            let message = Target::parse(spec).err().unwrap();
            assert!(message.contains(hint), "{spec}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
    }
}
