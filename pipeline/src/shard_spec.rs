//! Specifications and URLs that may hold secrets, and what may be shown of them.
//!
//! A password in a URL's authority and a signature in its query open the data to whoever reads them
//! in a log, an error or a saved configuration. [`DisplayUrl`] is what may be shown; [`ShardSpec`] is
//! what a user gave, which shows itself that way and gives its text to [`ShardSpec::expose`] alone.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What is shown instead of a query.
const QUERY: &str = "?<redacted>";
/// What is shown instead of a user and a password.
const USER: &str = "<redacted>@";

/// A text with the secrets of its URLs taken out: user and password, and the query.
///
/// Text that is no URL stays as it is, so any message can be passed through. In the URL of a bucket a
/// `?` is a wildcard unless a `NAME=VALUE` follows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DisplayUrl(String);

impl DisplayUrl {
    /// Takes the secrets out of all URLs in `text`.
    pub fn of(text: &str) -> DisplayUrl {
        let mut shown = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find("://") {
            let scheme_start = rest[..at]
                .rfind(|c: char| !c.is_ascii_alphanumeric())
                .map_or(0, |before| {
                    before + rest[before..].chars().next().map_or(1, char::len_utf8)
                });
            let is_web = matches!(
                rest[scheme_start..at].to_ascii_lowercase().as_str(),
                "http" | "https"
            );
            shown.push_str(&rest[..at + 3]);
            rest = &rest[at + 3..];
            if let Some(host) = behind_user(rest, is_web) {
                shown.push_str(USER);
                rest = &rest[host..];
            }
            let url = &rest[..end_of_url(rest)];
            match url.split_once('?') {
                Some((path, query)) if is_web || query.contains('=') => {
                    shown.push_str(path);
                    shown.push_str(QUERY);
                }
                _ => shown.push_str(url),
            }
            rest = &rest[url.len()..];
        }
        shown.push_str(rest);
        DisplayUrl(shown)
    }

    /// Whether a user or a password is taken out of `text`.
    pub(crate) fn hides_user(text: &str) -> bool {
        DisplayUrl::of(text).0.contains(USER)
    }

    /// Whether a query is taken out of `text`.
    pub(crate) fn hides_query(text: &str) -> bool {
        DisplayUrl::of(text).0.contains(QUERY)
    }

    /// What was shown of a URL, without what stands for its query.
    pub(crate) fn without_query(shown: &str) -> &str {
        shown.strip_suffix(QUERY).unwrap_or(shown)
    }

    /// Whether something was taken out of a text that was once shown: it cannot be used any more.
    pub fn is_incomplete(shown: &str) -> bool {
        shown.contains(QUERY) || shown.contains(USER)
    }
}

/// A URL ends with white space, a quote, or where the next one of a `::` list begins.
fn end_of_url(rest: &str) -> usize {
    let stop = |c: char| c.is_whitespace() || matches!(c, '\'' | '"' | '`' | '<' | '>');
    let end = rest.find(stop).unwrap_or(rest.len());
    let authority = rest[..end].find(['/', '?']).unwrap_or(end);
    rest[authority..end]
        .find("::")
        .map_or(end, |at| authority + at)
}

/// Where the host begins, if a user or a password is in front of it.
fn behind_user(rest: &str, is_web: bool) -> Option<usize> {
    let word = &rest[..rest.find(char::is_whitespace).unwrap_or(rest.len())];
    let authority = &word[..word.find(['/', '?', '#']).unwrap_or(word.len())];
    if let Some(at) = authority.rfind('@') {
        // The container of an Azure URL is written there too.
        return (is_web || authority[..at].contains(':')).then_some(at + 1);
    }
    // A password with a slash in it, by mistake: what would be the port is no number.
    let (host, port) = authority.rsplit_once(':')?;
    let is_port = port.bytes().all(|byte| byte.is_ascii_digit()) || host.starts_with('[');
    word.rfind('@').filter(|_| !is_port).map(|at| at + 1)
}

impl fmt::Display for DisplayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for DisplayUrl {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Shards as a user names them: see [`resolve_shards`](crate::source::resolve_shards).
///
/// Everything but [`ShardSpec::expose`] gives the text without its secrets, what is serialised
/// included: a configuration that is read back then lacks them, which resolving it says.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct ShardSpec(String);

impl ShardSpec {
    /// The text as it was given, secrets included.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The elements of a `::` list, secrets included.
    pub fn elements(&self) -> Vec<&str> {
        split_list(&self.0)
    }
}

impl<T: Into<String>> From<T> for ShardSpec {
    fn from(text: T) -> Self {
        ShardSpec(text.into())
    }
}

impl fmt::Display for ShardSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        DisplayUrl::of(&self.0).fmt(f)
    }
}

impl fmt::Debug for ShardSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(DisplayUrl::of(&self.0).as_ref(), f)
    }
}

impl Serialize for ShardSpec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(DisplayUrl::of(&self.0).as_ref())
    }
}

/// The elements of a list that is joined by `::`; a file of that name is one.
pub(crate) fn split_list(spec: &str) -> Vec<&str> {
    if !spec.contains("::") || Path::new(spec).is_file() {
        return vec![spec];
    }
    let mut elements = Vec::new();
    let (mut start, mut from) = (0, 0);
    while let Some(at) = spec[from..].find("::").map(|at| from + at) {
        // An IPv6 address has colons too, in brackets after the scheme.
        let open = spec[start..at]
            .find("://[")
            .map(|scheme| start + scheme + 4);
        if let Some(close) = open.and_then(|open| Some(open + spec[open..].find(']')?)) {
            if at < close {
                from = close;
                continue;
            }
        }
        elements.push(&spec[start..at]);
        (start, from) = (at + 2, at + 2);
    }
    elements.push(&spec[start..]);
    elements
}

/// Ending of a sidecar's name, after the name of its shard.
pub const INDEX_ENDING: &str = ".qfidx";

/// What the name of a shard may end in.
pub(crate) const SHARD_ENDINGS: [&str; 4] = [".tar", ".tar.gz", ".tar.zst", ".arrow"];

/// Whether a file of this name is an index, metadata or statistics of shards: no shard, however wide the
/// pattern.
pub(crate) fn stands_beside_shards(name: &str) -> bool {
    let of_shard = name
        .strip_suffix(".parquet")
        .or(name.strip_suffix("_stats.json"));
    name.ends_with(INDEX_ENDING)
        || of_shard.is_some_and(|shard| SHARD_ENDINGS.iter().any(|ending| shard.ends_with(ending)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_and_nothing_else() {
        let check = |text: &str, shown: &str| assert_eq!(DisplayUrl::of(text).as_ref(), shown);
        for plain in [
            "",
            "photos-{000..012}.tar",
            "what? no url",
            "s3://b/x-00?.tar",
            "s3://b/x-{0..3}.tar",
            "http://h:80/x.tar",
            "http://[::1]:80/x.tar::http://[::1]:80/y.tar",
            "abfs://container@account.dfs.core.windows.net/x.tar",
        ] {
            check(plain, plain);
        }
        check("http://u:hunter2@h/x.tar", "http://<redacted>@h/x.tar");
        check("http://u:p@ss@h/x.tar", "http://<redacted>@h/x.tar");
        check("http://u:it's@h/x.tar", "http://<redacted>@h/x.tar");
        check("http://u:sla/sh@h/x.tar", "http://<redacted>@h/x.tar");
        check("http://h:80/a@b.tar", "http://h:80/a@b.tar");
        check("s3://key:secret@b/x", "s3://<redacted>@b/x");
        check("https://token@h", "https://<redacted>@h");
        check(
            "https://h/x.tar?X-Amz-Signature=a&b=c",
            "https://h/x.tar?<redacted>",
        );
        check("az://c/x.tar?sv=1&sig=2", "az://c/x.tar?<redacted>");
        check("HTTPS://h?sig=2#f", "HTTPS://h?<redacted>");
        check(
            "`https://h/x?s=1`: cannot, see (http://a:b@c/d) now",
            "`https://h/x?<redacted>`: cannot, see (http://<redacted>@c/d) now",
        );
        check(
            "https://h/x?s=1::https://h/y?s=2",
            "https://h/x?<redacted>::https://h/y?<redacted>",
        );
        check("web:0.3=https://ä:ü@h/x", "web:0.3=https://<redacted>@h/x");
        assert!(DisplayUrl::is_incomplete(
            DisplayUrl::of("https://h/x?s=1").as_ref()
        ));
        assert!(!DisplayUrl::is_incomplete("https://h/x?s=1"));
    }

    #[test]
    fn a_specification_shows_no_secret_unless_asked() {
        let spec = ShardSpec::from("https://h/x.tar?sig=secret");
        assert_eq!(spec.expose(), "https://h/x.tar?sig=secret");
        let json = serde_json::to_string(&spec).unwrap();
        for shown in [spec.to_string(), format!("{spec:?}"), json.clone()] {
            assert!(!shown.contains("secret"), "{shown}");
        }
        let back: ShardSpec = serde_json::from_str(&json).unwrap();
        assert!(DisplayUrl::is_incomplete(back.expose()));
    }
}
