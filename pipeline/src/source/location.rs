//! One shard: where it is and how its bytes are read.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::remote::{RemoteObject, ShardBytes, Sidecar};
use crate::shard_spec::DisplayUrl;
use crate::stop::Stop;

/// One shard of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardLocation {
    /// The name used in messages and sample ids: the path or URL as given or matched, without what
    /// may be secret in a URL.
    pub name: Arc<str>,
    origin: Origin,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Origin {
    Local(PathBuf),
    Remote(Arc<RemoteObject>),
}

impl ShardLocation {
    /// A file.
    pub fn local(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        ShardLocation {
            name: Arc::from(path.to_string_lossy().as_ref()),
            origin: Origin::Local(path),
        }
    }

    /// An object of a store.
    pub(crate) fn remote(object: Arc<RemoteObject>) -> Self {
        ShardLocation {
            name: Arc::from(object.name()),
            origin: Origin::Remote(object),
        }
    }

    /// The file, if the shard is one on this machine.
    pub fn path(&self) -> Option<&Path> {
        match &self.origin {
            Origin::Local(path) => Some(path),
            Origin::Remote(_) => None,
        }
    }

    /// The last part of its name, without the query of a URL.
    pub fn base_name(&self) -> &str {
        let name = DisplayUrl::without_query(&self.name);
        name.rsplit('/').next().unwrap_or(name)
    }

    /// What tells it from other shards: not to be shown.
    pub(super) fn identity(&self) -> String {
        match &self.origin {
            Origin::Local(path) => {
                let path: PathBuf = path.components().collect();
                path.to_string_lossy().into_owned()
            }
            Origin::Remote(object) => object.url().to_string(),
        }
    }

    /// The file beside it whose name has this ending more.
    pub fn sidecar(&self, ending: &str) -> ShardLocation {
        match &self.origin {
            Origin::Local(path) => {
                let mut name = path.clone().into_os_string();
                name.push(ending);
                ShardLocation::local(name)
            }
            Origin::Remote(object) => ShardLocation::remote(object.sidecar(ending)),
        }
    }

    /// Its length in bytes; of a remote shard as it was when resolved, of its sidecar as it was when
    /// first used. None where a server does not say how long it is: such a shard can only be read from
    /// its beginning. Waits for a server no longer than until `stop` is set.
    ///
    /// # Errors
    /// Of kind `NotFound` where it is gone, else what the system or the server says; and once `stop`
    /// is set.
    pub fn size(&self, stop: &Stop) -> io::Result<Option<u64>> {
        stop.check()?;
        match &self.origin {
            Origin::Local(path) => Ok(Some(std::fs::metadata(path)?.len())),
            Origin::Remote(object) => object.size(stop),
        }
    }

    /// The first `count` bytes of the file beside it whose name has this ending more, or fewer if
    /// there are fewer.
    ///
    /// # Errors
    /// What the system says, or that the server does not answer; and once `stop` is set.
    pub(crate) fn sidecar_beginning(
        &self,
        ending: &str,
        count: u64,
        stop: &Stop,
    ) -> io::Result<Sidecar> {
        let sidecar = self.sidecar(ending);
        if let Origin::Remote(object) = &sidecar.origin {
            return object.first_bytes(count, stop);
        }
        let mut bytes = Vec::new();
        let read = sidecar
            .open_range(0..count, stop)
            .and_then(|mut file| file.read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(Sidecar::Bytes(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Sidecar::Absent),
            Err(error) => Err(error),
        }
    }

    /// Whether the store that it is in was given up: for as long as an outage may last, no request to
    /// it was answered.
    pub(crate) fn store_is_lost(&self) -> bool {
        match &self.origin {
            Origin::Local(_) => false,
            Origin::Remote(object) => object.store_is_lost(),
        }
    }

    /// All its bytes. Reads end with an error soon after `stop` is set, also those that wait for a
    /// server.
    ///
    /// # Errors
    /// Of kind `NotFound` where it is gone, else what the system or the server says. A remote shard
    /// may turn out to be gone, or another, only at the first read: that ends with the error.
    pub fn open(&self, stop: &Stop) -> io::Result<ShardBytes> {
        match &self.origin {
            Origin::Local(path) => Ok(ShardLocation::bytes_of(Arc::new(File::open(path)?), stop)),
            Origin::Remote(object) => object.open(stop),
        }
    }

    /// Those of a file that was opened before, from where it stands.
    pub(crate) fn bytes_of(file: Arc<File>, stop: &Stop) -> ShardBytes {
        let stop = stop.clone();
        Box::new(LocalFile { file, stop })
    }

    /// The bytes of `range`, or as many of them as there are.
    ///
    /// # Errors
    /// As [`ShardLocation::open`].
    pub fn open_range(&self, range: Range<u64>, stop: &Stop) -> io::Result<ShardBytes> {
        match &self.origin {
            Origin::Local(path) => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(range.start))?;
                let length = range.end.saturating_sub(range.start);
                let bytes = ShardLocation::bytes_of(Arc::new(file), stop);
                Ok(Box::new(bytes.take(length)))
            }
            Origin::Remote(object) => object.open_range(range, stop),
        }
    }

    /// Greatest size of the cache that the shard may be kept in, in bytes; none for a local one.
    pub fn cache_bytes(&self) -> Option<u64> {
        match &self.origin {
            Origin::Local(_) => None,
            Origin::Remote(object) => object.cache_bytes(),
        }
    }

    /// Brings a remote shard into the cache, if there is one, room can be made, and nobody else is
    /// at it. Reads it to the end; a local shard is left as it is.
    ///
    /// # Errors
    /// As [`ShardLocation::open`], and those of its reads.
    pub fn prefetch(&self, stop: &Stop) -> io::Result<()> {
        match &self.origin {
            Origin::Local(_) => Ok(()),
            Origin::Remote(object) => object.prefetch(stop),
        }
    }
}

struct LocalFile {
    file: Arc<File>,
    stop: Stop,
}

impl Read for LocalFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stop.check()?;
        (&*self.file).read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_sidecars_and_stops() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.tar");
        std::fs::write(&path, b"0123456789").unwrap();
        let (shard, stop) = (ShardLocation::local(&path), Stop::default());
        assert_eq!(shard.size(&stop).unwrap(), Some(10));
        assert_eq!((shard.base_name(), shard.path()), ("a.tar", Some(&*path)));
        let read = |range: Range<u64>| {
            let mut bytes = String::new();
            let mut reader = shard.open_range(range, &stop).unwrap();
            reader.read_to_string(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(
            [read(0..3), read(8..20), read(20..30)],
            ["012", "89", ""].map(String::from)
        );
        assert_eq!(shard.sidecar(".x").base_name(), "a.tar.x");
        let missing = shard.sidecar(".x").open(&stop).err().unwrap();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let mut reader = shard.open(&stop).unwrap();
        reader.read_exact(&mut [0; 4]).unwrap();
        stop.set();
        assert!(reader.read(&mut [0; 4]).is_err());
    }
}
