//! Paths of this machine, where an option takes nothing else.

use std::ffi::OsString;
use std::path::PathBuf;

/// The scheme of a URL: `s3` of `s3://bucket/key`.
pub fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let mut letters = scheme.chars();
    let is_scheme = letters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic())
        && letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    is_scheme.then_some(scheme)
}

/// What a user gave as a path on this machine.
///
/// # Errors
/// That it is empty. A message that says what to give instead of a URL, which as a path would be a folder `s3:`.
pub fn local_path(given: OsString) -> Result<PathBuf, String> {
    let text = given.to_string_lossy();
    if text.is_empty() {
        return Err("the path is empty; is a variable of the shell not set?".to_string());
    }
    match scheme(&text) {
        None => Ok(PathBuf::from(given)),
        Some(scheme) if scheme.eq_ignore_ascii_case("file") => {
            Err("give the path itself, without file://".to_string())
        }
        Some(scheme) => Err(format!(
            "{scheme}:// is not served here, where a path on this machine belongs; work on a local \
             copy (a path that really begins so can be given as ./{scheme}://...)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_no_paths() {
        for url in [
            "s3://b/k",
            "gs://b",
            "az://c/k",
            "https://h/p?q",
            "FILE:///x",
            "hf://o/n",
            "git+ssh://h",
        ] {
            assert!(local_path(url.into()).is_err(), "{url}");
        }
        for path in [
            "a", "/a/b", "./s3://b", "s3:/b", "a b://c", "://x", "C:\\x", "1x://y",
        ] {
            assert_eq!(local_path(path.into()).unwrap(), PathBuf::from(path));
        }
        assert!(local_path("".into()).unwrap_err().contains("empty"));
        assert!(local_path("s3://b".into()).unwrap_err().contains("s3://"));
        assert!(local_path("file:///b".into())
            .unwrap_err()
            .contains("without file://"));
    }
}
