//! Where an object is, and which of those that were ever there.

use object_store::path::Path;
use object_store::ObjectMeta;
use url::Url;

/// Where an object is in its store.
#[derive(Clone)]
pub(super) enum ObjectAddress {
    /// Under a key of a bucket or container.
    Key(Path),
    /// At a URL of a web server, query included.
    Page(Url),
}

/// Which of the objects that were ever at this address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Version {
    /// In bytes, where the server knows it.
    pub(super) size: Option<u64>,
    /// Without quotes: listings of some stores lack them.
    pub(super) e_tag: Option<String>,
    /// As the server says it; of a store seconds since 1970: listings know milliseconds too, answers
    /// do not.
    pub(super) last_modified: Option<String>,
}

impl Version {
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        let e_tag = meta
            .e_tag
            .as_deref()
            .map(|tag| tag.trim_matches('"').to_string());
        let seconds = meta.last_modified.timestamp();
        Version {
            size: Some(meta.size),
            e_tag: e_tag.filter(|tag| !tag.is_empty()),
            last_modified: (seconds != 0).then(|| seconds.to_string()),
        }
    }

    /// Whether an answer that claims to be of version `now` can be of this one. An ETag makes times
    /// unimportant.
    pub(super) fn admits(&self, now: &Version) -> bool {
        fn agree<T: PartialEq>(then: &Option<T>, now: &Option<T>) -> bool {
            then.is_none() || now.is_none() || then == now
        }
        agree(&self.size, &now.size)
            && match (&self.e_tag, &now.e_tag) {
                (Some(then), Some(now)) => then == now,
                _ => agree(&self.last_modified, &now.last_modified),
            }
    }

    /// What tells versions apart, for people and for the names in the cache.
    pub(super) fn describe(&self) -> String {
        let size = match self.size {
            Some(size) => format!("{size} bytes"),
            None => "unknown length".to_string(),
        };
        match (&self.e_tag, &self.last_modified) {
            (Some(tag), _) => format!("ETag {tag}, {size}"),
            (None, Some(time)) => format!("{size} of time {time}"),
            (None, None) => size,
        }
    }

    /// The ETag for an `If-Match`: weak ones never match there.
    pub(super) fn strong_tag(&self) -> Option<String> {
        let tag = self.e_tag.as_ref().filter(|tag| !tag.starts_with("W/"))?;
        Some(format!("\"{tag}\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let version = |size: u64, tag: &str, time: &str| Version {
            size: (size > 0).then_some(size),
            e_tag: (!tag.is_empty()).then(|| tag.to_string()),
            last_modified: (!time.is_empty()).then(|| time.to_string()),
        };
        let check = |a: &Version, b: &Version, same| assert_eq!(a.admits(b), same, "{a:?} {b:?}");
        check(&version(5, "a", "1"), &version(5, "a", "90"), true);
        check(&version(5, "a", "1"), &version(5, "b", "1"), false);
        check(&version(5, "a", "1"), &version(6, "a", "1"), false);
        check(&version(5, "", "7"), &version(5, "", "7"), true);
        check(&version(5, "", "7"), &version(5, "", "9"), false);
        check(&version(5, "a", "7"), &version(5, "", ""), true);
        check(&version(5, "a", "7"), &version(0, "a", ""), true);
        check(&version(0, "a", "7"), &version(5, "b", ""), false);
        assert_eq!(version(5, "a", "1").strong_tag().unwrap(), "\"a\"");
        assert_eq!(version(5, "W/\"a", "1").strong_tag(), None);
    }
}
