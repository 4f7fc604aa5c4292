//! One object: what is known of it, and its bytes.

use std::io::{self, ErrorKind, Read};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta, ObjectStoreExt};

use super::cache::Admission;
use super::failure::Failure;
use super::read::RangeReader;
use super::store::Store;
use crate::index::INDEX_ENDING;
use crate::source::ShardBytes;
use crate::stop::Stop;

/// A shard in a store, or a file beside one.
#[derive(Debug)]
pub(crate) struct RemoteObject {
    pub(super) store: Arc<Store>,
    pub(super) path: Path,
    pub(super) url: String,
    version: OnceLock<Version>,
    /// The index beside it, where a listing showed one.
    index: Option<Version>,
    /// The server was found to answer a range request with the whole object.
    pub(super) whole_only: AtomicBool,
}

/// Which of the objects that were ever at this place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) size: u64,
    /// Without quotes: listings of some stores lack them.
    pub(super) e_tag: Option<String>,
    /// Milliseconds since 1970; 0 where the server does not say.
    pub(super) last_modified: i64,
}

impl Version {
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        let e_tag = meta
            .e_tag
            .as_deref()
            .map(|tag| tag.trim_matches('"').to_string());
        Version {
            size: meta.size,
            e_tag: e_tag.filter(|tag| !tag.is_empty()),
            last_modified: meta.last_modified.timestamp_millis(),
        }
    }

    /// Whether an answer that claims to be of version `now` can be of this one. Listings know the
    /// time to the millisecond, answers to the second, and an ETag makes both unimportant.
    fn admits(&self, now: &Version) -> bool {
        let same_time = || {
            let unknown = self.last_modified == 0 || now.last_modified == 0;
            unknown || self.last_modified / 1000 == now.last_modified / 1000
        };
        self.size == now.size
            && match (&self.e_tag, &now.e_tag) {
                (Some(then), Some(now)) => then == now,
                _ => same_time(),
            }
    }

    /// What tells versions apart, for people and for the names in the cache.
    pub(super) fn describe(&self) -> String {
        match &self.e_tag {
            Some(tag) => format!("ETag {tag}, {} bytes", self.size),
            None if self.last_modified == 0 => format!("{} bytes", self.size),
            None => format!("{} bytes of time {}", self.size, self.last_modified / 1000),
        }
    }

    /// The ETag for an `If-Match`: weak ones never match there.
    fn strong_tag(&self) -> Option<String> {
        let tag = self.e_tag.as_ref().filter(|tag| !tag.starts_with("W/"))?;
        Some(format!("\"{tag}\""))
    }
}

/// By place.
impl PartialEq for RemoteObject {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

impl Eq for RemoteObject {}

impl RemoteObject {
    /// An object at `path`, of a version that is known already, or that the first use asks for.
    pub(super) fn new(
        store: Arc<Store>,
        path: Path,
        url: String,
        version: Option<Version>,
    ) -> Self {
        RemoteObject {
            store,
            path,
            url,
            version: version.map(OnceLock::from).unwrap_or_default(),
            index: None,
            whole_only: AtomicBool::new(false),
        }
    }

    /// The same with what is known of its index.
    pub(super) fn with_index(self, index: Option<Version>) -> Self {
        RemoteObject { index, ..self }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The object whose name has this ending more.
    pub(crate) fn sidecar(&self, ending: &str) -> RemoteObject {
        let path =
            Path::parse(format!("{}{ending}", self.path)).unwrap_or_else(|_| self.path.clone());
        let url = format!("{}{ending}", self.url);
        let known = self.index.clone().filter(|_| ending == INDEX_ENDING);
        RemoteObject::new(self.store.clone(), path, url, known)
    }

    pub(crate) fn size(self: &Arc<Self>, stop: Option<&Stop>) -> io::Result<u64> {
        Ok(self.known(stop)?.size)
    }

    /// Its version, from the store if nobody asked before.
    fn known(self: &Arc<Self>, stop: Option<&Stop>) -> io::Result<Version> {
        if let Some(version) = self.version.get() {
            return Ok(version.clone());
        }
        let object = self.clone();
        let asked = self.store.wait(stop, async move { object.ask().await })?;
        // Where two asked at a time, the first answer holds.
        Ok(self.version.get_or_init(|| asked).clone())
    }

    /// Asks the store for its version, and remembers that.
    pub(super) async fn resolve(&self) -> Result<(), Failure> {
        if self.version.get().is_none() {
            let version = self.ask().await?;
            let _ = self.version.set(version);
        }
        Ok(())
    }

    async fn ask(&self) -> Result<Version, Failure> {
        let head = || self.store.objects.head(&self.path);
        let failure = match self.store.retry(&self.url, head).await {
            Ok(meta) => return Ok(Version::of(&meta)),
            Err(failure) => failure,
        };
        // Web servers that only answer GET, or leave the length out elsewhere.
        if self.store.lister.is_none() {
            let first_byte = || {
                let range = Some(GetRange::Bounded(0..1));
                self.store.objects.get_opts(
                    &self.path,
                    GetOptions {
                        range,
                        ..GetOptions::default()
                    },
                )
            };
            match self.store.once(&self.url, first_byte()).await {
                Ok((result, _)) => return Ok(Version::of(&result.meta)),
                Err(Failure::NoRanges) => {
                    let whole = self.store.objects.get(&self.path);
                    if let Ok((result, _)) = self.store.once(&self.url, whole).await {
                        return Ok(Version::of(&result.meta));
                    }
                }
                Err(_) => {}
            }
        }
        Err(failure)
    }

    /// Starts a request for `range`, or for the whole object. The answer is of version `version`.
    pub(super) async fn get(
        &self,
        version: &Version,
        range: Option<Range<u64>>,
    ) -> Result<GetResult, Failure> {
        let options = GetOptions {
            range: range.map(GetRange::Bounded),
            if_match: version.strong_tag(),
            ..GetOptions::default()
        };
        let request = self.store.objects.get_opts(&self.path, options);
        let (result, exchange) = match self.store.once(&self.url, request).await {
            Err(Failure::Final(error)) if error.kind() != ErrorKind::PermissionDenied => {
                // 412, 416 or 404: see whether it is another object now.
                return Err(match self.ask().await {
                    Ok(now) if !version.admits(&now) => self.changed(version, &now),
                    _ => Failure::Final(error),
                });
            }
            result => result?,
        };
        let now = Version::of(&result.meta);
        if !version.admits(&now) {
            return Err(self.changed(version, &now));
        }
        let expected = result.range.end - result.range.start;
        match exchange.length {
            Some(length) if length != expected => Err(Failure::passing(format!(
                "the answer announces {length} bytes for a range of {expected}"
            ))),
            _ => Ok(result),
        }
    }

    fn changed(&self, then: &Version, now: &Version) -> Failure {
        let message = format!(
            "{}: shard changed since it was resolved: {}, now {}; start again with the new one, or \
             bring the old one back",
            self.url,
            then.describe(),
            now.describe()
        );
        Failure::Final(io::Error::new(ErrorKind::InvalidData, message))
    }

    pub(crate) fn open(self: &Arc<Self>, stop: &Stop) -> io::Result<ShardBytes> {
        stop.check()?;
        let version = self.known(Some(stop))?;
        let remote = |range| RangeReader::new(self.clone(), version.clone(), range, stop.clone());
        let Some(cache) = &self.store.cache else {
            return Ok(Box::new(remote(0..version.size)));
        };
        Ok(match cache.admit(&self.url, &version, stop)? {
            Admission::Hit(file) => Box::new(file),
            Admission::Fetch(entry) => Box::new(entry.keep(remote(0..version.size))),
            Admission::Pass => Box::new(remote(0..version.size)),
        })
    }

    pub(crate) fn open_range(
        self: &Arc<Self>,
        range: Range<u64>,
        stop: &Stop,
    ) -> io::Result<ShardBytes> {
        stop.check()?;
        let version = self.known(Some(stop))?;
        let range = range.start.min(version.size)..range.end.min(version.size);
        if let Some(cache) = &self.store.cache {
            if let Some(file) = cache.find(&self.url, &version, stop)? {
                return Ok(Box::new(file.range(range)?));
            }
        }
        Ok(Box::new(RangeReader::new(
            self.clone(),
            version,
            range,
            stop.clone(),
        )))
    }

    pub(crate) fn cache_bytes(&self) -> Option<u64> {
        self.store.cache.as_ref().map(|cache| cache.max_bytes())
    }

    /// Brings it into the cache, if there is one and room can be made.
    pub(crate) fn prefetch(self: &Arc<Self>, stop: &Stop) -> io::Result<()> {
        let version = self.known(Some(stop))?;
        if let Some(cache) = &self.store.cache {
            if let Admission::Fetch(entry) = cache.admit(&self.url, &version, stop)? {
                let bytes =
                    RangeReader::new(self.clone(), version.clone(), 0..version.size, stop.clone());
                let mut bytes = entry.keep(bytes);
                let mut buffer = vec![0; 256 << 10];
                while bytes.read(&mut buffer)? > 0 {}
            }
        }
        Ok(())
    }

    pub(super) fn sends_whole_only(&self) -> bool {
        self.whole_only.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        let version = |size, tag: &str, last_modified| Version {
            size,
            e_tag: (!tag.is_empty()).then(|| tag.to_string()),
            last_modified,
        };
        let check = |a: &Version, b: &Version, same| assert_eq!(a.admits(b), same, "{a:?} {b:?}");
        check(&version(5, "a", 1), &version(5, "a", 90_000), true);
        check(&version(5, "a", 1), &version(5, "b", 1), false);
        check(&version(5, "a", 1), &version(6, "a", 1), false);
        check(&version(5, "", 7_200), &version(5, "", 7_900), true);
        check(&version(5, "", 7_200), &version(5, "", 9_000), false);
        check(&version(5, "a", 7_000), &version(5, "", 0), true);
        assert_eq!(version(5, "a", 1).strong_tag().unwrap(), "\"a\"");
        assert_eq!(version(5, "W/\"a", 1).strong_tag(), None);
    }
}
