//! Opens an object: from the cache, from the store, or from the store into the cache.

use std::io::{self, Read};
use std::ops::Range;
use std::sync::Arc;

use super::bytes::ShardBytes;
use super::cache::{Admission, CacheKey};
use super::keep::Keeping;
use super::object::RemoteObject;
use super::read::RangeReader;
use super::version::Version;
use crate::stop::Stop;

impl RemoteObject {
    pub(crate) fn open(self: &Arc<Self>, stop: &Stop) -> io::Result<ShardBytes> {
        stop.check()?;
        let version = self.known(stop)?;
        let whole = || RangeReader::new(self.clone(), version.clone(), None, stop.clone());
        let Some(cache) = &self.store.cache else {
            return Ok(Box::new(whole()));
        };
        Ok(match cache.admit(&self.key(&version), stop)? {
            Admission::Hit(file) => Box::new(file),
            Admission::Fetch(entry) => Box::new(Keeping::new(*entry, whole())),
            Admission::Pass => Box::new(whole()),
        })
    }

    pub(crate) fn open_range(
        self: &Arc<Self>,
        range: Range<u64>,
        stop: &Stop,
    ) -> io::Result<ShardBytes> {
        stop.check()?;
        let version = self.known(stop)?;
        let range = match version.size {
            Some(size) => range.start.min(size)..range.end.min(size),
            None => range,
        };
        if let Some(cache) = &self.store.cache {
            if let Some(file) = cache.find(&self.key(&version), stop)? {
                return Ok(Box::new(file.range(range)?));
            }
        }
        let reader = RangeReader::new(self.clone(), version, Some(range), stop.clone());
        Ok(Box::new(reader))
    }

    pub(crate) fn cache_bytes(&self) -> Option<u64> {
        self.store.cache.as_ref().map(|cache| cache.max_bytes())
    }

    /// Brings it into the cache, if there is one and room can be made.
    pub(crate) fn prefetch(self: &Arc<Self>, stop: &Stop) -> io::Result<()> {
        let version = self.known(stop)?;
        if let Some(cache) = &self.store.cache {
            if let Admission::Fetch(entry) = cache.admit(&self.key(&version), stop)? {
                let bytes = RangeReader::new(self.clone(), version, None, stop.clone());
                let mut bytes = Keeping::new(*entry, bytes);
                let mut buffer = vec![0; 256 << 10];
                while bytes.read(&mut buffer)? > 0 {}
            }
        }
        Ok(())
    }

    fn key<'a>(&'a self, version: &'a Version) -> CacheKey<'a> {
        CacheKey {
            url: self.url(),
            name: self.name(),
            version,
        }
    }
}
