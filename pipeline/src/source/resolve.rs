//! From specifications to shards.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::{braces, ShardLocation};
use crate::error::PipelineError;
use crate::remote::{is_remote, RemoteOptions, Resolver};
use crate::shard_spec::{split_list, stands_beside_shards, DisplayUrl};

/// [`resolve_shards_with`] default options: without credentials or a cache.
///
/// # Errors
/// As [`resolve_shards_with`].
pub fn resolve_shards<S: AsRef<str>>(specs: &[S]) -> Result<Vec<ShardLocation>, PipelineError> {
    resolve_shards_with(specs, &RemoteOptions::default())
}

/// Resolves specifications to shards, in the order given.
///
/// A specification is a file, a glob (`photos-*.tar`, matches in sorted order), or either with
/// braces as in bash (`photos-{000..012}.tar`, `{a,b}-*.tar`, `{0..20..2}`; every element must match
/// something). Several may be joined by `::`. What exists under exactly the name that was given is
/// that file, whatever its brackets and braces could mean.
///
/// It may be a URL of the kinds that [`crate::remote`] lists. Globs work there too, except over
/// http, and one that ends in `/` stands for all shards below it (`.tar`, `.tar.gz`, `.tar.zst`,
/// `.arrow`), in sorted order. Where `?`, `[x]` and braces match nothing, they are characters of a key.
///
/// # Errors
/// [`PipelineError::NoShards`] when a specification matches nothing, a file is missing, a folder is
/// named, or a scheme is unknown; [`PipelineError::Config`] when braces stand for too much, a shard is
/// named twice, or a specification was saved without its secrets; [`PipelineError::Io`] when a store
/// cannot be reached or wants credentials.
pub fn resolve_shards_with<S: AsRef<str>>(
    specs: &[S],
    remote: &RemoteOptions,
) -> Result<Vec<ShardLocation>, PipelineError> {
    let mut shards = Vec::new();
    let mut seen = HashSet::new();
    let mut resolver = Resolver::new(remote);
    let specs = specs.iter().flat_map(|spec| split_list(spec.as_ref()));
    for spec in specs {
        for shard in resolve_one(spec, &mut resolver)? {
            if !seen.insert(shard.identity()) {
                return Err(named_twice(spec, &shard.name));
            }
            shards.push(shard);
        }
    }
    if shards.is_empty() {
        return Err(PipelineError::NoShards {
            spec: DisplayUrl::of(""),
            hint: "give at least one shard file, glob or {000..012} range".into(),
        });
    }
    Ok(shards)
}

fn resolve_one(spec: &str, resolver: &mut Resolver) -> Result<Vec<ShardLocation>, PipelineError> {
    if DisplayUrl::is_incomplete(spec) {
        return Err(PipelineError::Config {
            setting: "shards",
            message: format!(
                "`{spec}` was saved without what is secret in it, a query or a password; give the \
                 shards again"
            ),
        });
    }
    let local;
    let spec = match spec.strip_prefix("file://") {
        Some(_) => {
            local = path_of_url(spec)?;
            &local
        }
        None => spec,
    };
    if is_remote(spec) {
        let patterns = braces::expand(spec)?;
        let literal = [spec.to_string()];
        let objects = match resolver.resolve(spec, &patterns) {
            // Without a match, braces may be characters of a key.
            Err(error @ PipelineError::NoShards { .. }) if patterns != literal => {
                resolver.resolve(spec, &literal).map_err(|_| error)?
            }
            objects => objects?,
        };
        return Ok(objects.into_iter().map(ShardLocation::remote).collect());
    }
    // A file of exactly this name wins over any reading of its braces or stars.
    let patterns = match Path::new(spec).is_file() {
        true => vec![spec.to_string()],
        false => braces::expand(spec)?,
    };
    let mut shards = Vec::new();
    for pattern in patterns {
        let paths = match_pattern(spec, &pattern)?;
        shards.extend(paths.into_iter().map(ShardLocation::local));
    }
    Ok(shards)
}

fn named_twice(spec: &str, shard: &str) -> PipelineError {
    PipelineError::Config {
        setting: "shards",
        message: format!(
            "{shard} is named more than once (by `{}`); every sample would be seen twice an epoch",
            DisplayUrl::of(spec)
        ),
    }
}

/// The path of a `file://` URL. Braces and wildcards stay what they are, percent signs are read.
fn path_of_url(spec: &str) -> Result<String, PipelineError> {
    let no_shards = |hint: &str| PipelineError::NoShards {
        spec: DisplayUrl::of(spec),
        hint: hint.to_string(),
    };
    let url = url::Url::parse(&spec.replace('?', "%3F").replace('#', "%23"))
        .map_err(|error| no_shards(&format!("the URL does not parse: {error}")))?;
    let path = url.to_file_path().map_err(|()| {
        no_shards("a file URL has three slashes and no host: file:///folder/x.tar")
    })?;
    path.into_os_string()
        .into_string()
        .map_err(|_| no_shards("the path is not UTF-8"))
}

fn match_pattern(spec: &str, pattern: &str) -> Result<Vec<PathBuf>, PipelineError> {
    let no_shards = |hint: String| PipelineError::NoShards {
        spec: DisplayUrl::of(spec),
        hint,
    };
    let path = Path::new(pattern);
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    if path.is_dir() {
        return Err(no_shards(format!(
            "{pattern} is a folder; name its shards, e.g. '{}/*.tar'",
            pattern.trim_end_matches('/')
        )));
    }
    if !pattern.contains(['*', '?', '[']) {
        return Err(no_shards(format!("{pattern} does not exist")));
    }
    let matches = glob::glob(pattern)
        .map_err(|error| no_shards(format!("the pattern does not parse: {error}")))?;
    let mut files = Vec::new();
    for entry in matches {
        let path = entry.map_err(|error| PipelineError::Io {
            path: error.path().to_path_buf(),
            source: error.into(),
        })?;
        if path.is_file() && !stands_beside_shards(&path.to_string_lossy()) {
            files.push(path);
        }
    }
    if files.is_empty() {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        return Err(no_shards(match folder {
            Some(folder) if !folder.to_string_lossy().contains('*') && !folder.exists() => {
                format!("the folder {} does not exist", folder.display())
            }
            _ => "check the pattern, and quote it if the shell should not expand it".into(),
        }));
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(shards: &[ShardLocation]) -> Vec<String> {
        let names = shards.iter().map(|shard| shard.base_name().to_string());
        names.collect()
    }

    #[test]
    fn files_globs_and_ranges() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "a-000.tar",
            "a-001.tar",
            "a-002.tar",
            "b{x}.tar",
            "b-000.tar",
            "a-000.tar.qfidx",
        ] {
            std::fs::write(dir.path().join(name), b"x").unwrap();
        }
        let spec = |tail: &str| format!("{}/{tail}", dir.path().display());
        let resolve = |tails: &[&str]| {
            resolve_shards(&tails.iter().map(|tail| spec(tail)).collect::<Vec<_>>())
        };
        assert_eq!(
            names(&resolve(&["a-*.tar"]).unwrap()),
            ["a-000.tar", "a-001.tar", "a-002.tar"]
        );
        assert_eq!(
            names(&resolve(&["a-*"]).unwrap()),
            ["a-000.tar", "a-001.tar", "a-002.tar"]
        );
        assert_eq!(
            names(&resolve(&["b-000.tar", "a-{001..002}.tar"]).unwrap()),
            ["b-000.tar", "a-001.tar", "a-002.tar"]
        );
        assert_eq!(names(&resolve(&["b{x}.tar"]).unwrap()), ["b{x}.tar"]);
        assert_eq!(
            names(&resolve(&["a-{0..0..1}0{0..2}.tar"]).unwrap()),
            ["a-000.tar", "a-001.tar", "a-002.tar"]
        );
        let list = format!("{}::{}", spec("b-000.tar"), spec("a-{001..002}.tar"));
        assert_eq!(
            names(&resolve_shards(&[list]).unwrap()),
            ["b-000.tar", "a-001.tar", "a-002.tar"]
        );
        assert_eq!(
            names(&resolve(&["{a,b}-000.tar"]).unwrap()),
            ["a-000.tar", "b-000.tar"]
        );
        assert_eq!(names(&resolve(&["a-000*"]).unwrap()), ["a-000.tar"]);
        let url = format!("file://{}", spec("{a,b}-00?.tar"));
        assert_eq!(resolve_shards(&[url]).unwrap().len(), 4);
        let host = resolve_shards(&["file://host/x.tar"]).unwrap_err();
        assert!(host.to_string().contains("three slashes"), "{host}");
        let message = |tails: &[&str]| resolve(tails).unwrap_err().to_string();
        assert!(message(&["a-{000..003}.tar"]).contains("a-003.tar does not exist"));
        assert!(message(&["c-*.tar"]).contains("no shard matches"));
        assert!(message(&["nowhere/c-*.tar"]).contains("does not exist"));
        assert!(message(&["a-*.tar", "a-001.tar"]).contains("more than once"));
        assert!(resolve_shards(&[dir.path().to_string_lossy()])
            .unwrap_err()
            .to_string()
            .contains("is a folder"));
        assert!(resolve_shards::<&str>(&[]).is_err());
        let saved = DisplayUrl::of("https://h/x.tar?sig=1").to_string();
        assert!(resolve_shards(&[saved])
            .unwrap_err()
            .to_string()
            .contains("give the shards again"));
    }

    #[test]
    fn lists_are_split_between_addresses() {
        let check = |list: &str, elements: &[&str]| assert_eq!(split_list(list), elements);
        check("a.tar", &["a.tar"]);
        check("a.tar::b-{0..3}.tar::c", &["a.tar", "b-{0..3}.tar", "c"]);
        check(
            "http://[::1]:80/a.tar::http://[fe80::2]/b.tar",
            &["http://[::1]:80/a.tar", "http://[fe80::2]/b.tar"],
        );
    }
}
