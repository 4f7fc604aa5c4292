//! One object: what is known of it, and its bytes.

use std::fmt;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::failure::Failure;
use super::keys::path_of;
use super::store::{Answer, Body, Effort, Store};
use super::version::{ObjectAddress, Version};
use crate::shard_spec::{DisplayUrl, INDEX_ENDING};
use crate::stop::Stop;

/// A shard in a store, or a file beside one.
pub(crate) struct RemoteObject {
    pub(super) store: Arc<Store>,
    pub(super) address: ObjectAddress,
    /// As it was written, secrets included.
    url: String,
    /// As it may be shown.
    pub(super) name: String,
    version: OnceLock<Version>,
    /// The index beside it.
    index: OnceLock<Arc<RemoteObject>>,
    /// Need not be there.
    is_sidecar: bool,
    /// The server was found to answer a range request with the whole object.
    pub(super) whole_only: AtomicBool,
}

/// What a store has where a file beside a shard may be.
pub(crate) enum Sidecar {
    /// Its first bytes.
    Bytes(Vec<u8>),
    /// Nothing, or nothing that this user may read: many stores do not tell these apart.
    Absent,
    /// Neither bytes nor a plain no: what the server says.
    Refused(String),
}

/// By its name: its URL may hold secrets.
impl fmt::Debug for RemoteObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteObject").field(&self.name).finish()
    }
}

/// By address.
impl PartialEq for RemoteObject {
    fn eq(&self, other: &Self) -> bool {
        self.url == other.url
    }
}

impl Eq for RemoteObject {}

impl RemoteObject {
    /// An object of a version that is known already, or that the first use asks for.
    pub(super) fn new(
        store: Arc<Store>,
        address: ObjectAddress,
        url: String,
        version: Option<Version>,
    ) -> Self {
        RemoteObject {
            store,
            address,
            name: DisplayUrl::of(&url).to_string(),
            url,
            version: version.map(OnceLock::from).unwrap_or_default(),
            index: OnceLock::new(),
            is_sidecar: false,
            whole_only: AtomicBool::new(false),
        }
    }

    /// The same with what a listing said of its index.
    pub(super) fn with_index(self, version: Option<Version>) -> Self {
        if let Some(version) = version {
            let index = self.make_sidecar(INDEX_ENDING, Some(version));
            let _ = self.index.set(Arc::new(index));
        }
        self
    }

    /// As it was written: tells it from others, and is not to be shown.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Its URL as it may be shown.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The object whose name has this ending more.
    pub(crate) fn sidecar(&self, ending: &str) -> Arc<RemoteObject> {
        let make = || Arc::new(self.make_sidecar(ending, None));
        match ending {
            INDEX_ENDING => self.index.get_or_init(make).clone(),
            _ => make(),
        }
    }

    fn make_sidecar(&self, ending: &str, version: Option<Version>) -> RemoteObject {
        let (address, url) = match &self.address {
            ObjectAddress::Key(path) => {
                let sidecar = path_of(&format!("{path}{ending}"));
                let address = ObjectAddress::Key(sidecar.unwrap_or_else(|_| path.clone()));
                (address, format!("{}{ending}", self.url))
            }
            ObjectAddress::Page(page) => {
                let mut page = page.clone();
                page.set_path(&format!("{}{ending}", page.path()));
                let url = page.to_string();
                (ObjectAddress::Page(page), url)
            }
        };
        RemoteObject {
            is_sidecar: true,
            ..RemoteObject::new(self.store.clone(), address, url, version)
        }
    }

    fn effort(&self) -> Effort {
        Effort {
            limit: self.store.options.outage,
            is_optional: self.is_sidecar,
        }
    }

    /// In bytes; none where the server does not say.
    pub(crate) fn size(self: &Arc<Self>, stop: &Stop) -> io::Result<Option<u64>> {
        Ok(self.known(stop)?.size)
    }

    /// Its version, from the store if nobody asked before.
    pub(super) fn known(self: &Arc<Self>, stop: &Stop) -> io::Result<Version> {
        if let Some(version) = self.version.get() {
            return Ok(version.clone());
        }
        let object = self.clone();
        let effort = self.effort();
        let asked = self
            .store
            .wait(stop, async move { object.ask(effort).await })?;
        // Where two asked at a time, the first answer holds.
        Ok(self.version.get_or_init(|| asked).clone())
    }

    /// Asks the store for its version, and remembers that.
    pub(super) async fn resolve(&self) -> Result<(), Failure> {
        if self.version.get().is_none() {
            let version = self.ask(self.store.at_start()).await?;
            let _ = self.version.set(version);
        }
        Ok(())
    }

    async fn ask(&self, effort: Effort) -> Result<Version, Failure> {
        let request = || self.ask_once();
        self.store.retry(&self.name, effort, request).await
    }

    async fn ask_once(&self) -> Result<Version, Failure> {
        let head = self.store.head(&self.address, &self.name).await;
        match (&self.address, &head) {
            (ObjectAddress::Key(_), _) | (_, Err(Failure::Transient { .. })) => return head,
            (_, Ok(version)) if version.size.is_some_and(|size| size > 0) => return head,
            _ => {}
        }
        // Web servers that answer only GET, or say the length only there, or nowhere.
        let get = |range| self.store.get(&self.address, &self.name, range, None);
        let answer = match get(Some(0..1)).await {
            Err(Failure::NoRanges) => get(None).await.inspect(|_| self.note_whole_only()),
            answer => answer,
        };
        match (answer, head) {
            (Ok(answer), _) => {
                if answer.version.size.is_none() {
                    self.note_whole_only();
                }
                Ok(answer.version)
            }
            // Nothing to give a range of.
            (Err(Failure::Final { .. }), Ok(head)) if head.size == Some(0) => Ok(head),
            (Err(failure), _) => Err(failure),
        }
    }

    /// Makes one request for `range`, or for the whole object. The answer is of version `version`.
    pub(super) async fn get(
        &self,
        version: &Version,
        range: Option<Range<u64>>,
    ) -> Result<Body, Failure> {
        let tag = version.strong_tag();
        let expected = match &range {
            Some(range) => Some(range.end - range.start),
            None => version.size,
        };
        let Answer {
            version: now,
            length,
            body,
        } = match self.store.get(&self.address, &self.name, range, tag).await {
            Err(Failure::Final { error, is_answer })
                if error.kind() != ErrorKind::PermissionDenied =>
            {
                // 412, 416 or 404: see whether it is another object now.
                return Err(match self.ask_once().await {
                    Ok(now) if !version.admits(&now) => self.changed(version, &now),
                    _ => Failure::Final { error, is_answer },
                });
            }
            answer => answer?,
        };
        if !version.admits(&now) {
            return Err(self.changed(version, &now));
        }
        match (length, expected) {
            (Some(length), Some(expected)) if length != expected => Err(Failure::passing(format!(
                "the answer announces {length} bytes for a range of {expected}"
            ))),
            _ => Ok(body),
        }
    }

    fn changed(&self, then: &Version, now: &Version) -> Failure {
        let message = format!(
            "{}: shard changed since it was resolved: {}, now {}; start again with the new one, or \
             bring the old one back",
            self.name,
            then.describe(),
            now.describe()
        );
        Failure::last(ErrorKind::InvalidData, message)
    }

    /// Its first `count` bytes, or fewer if there are fewer: of a file that need not be there.
    ///
    /// # Errors
    /// When the store does not answer, and once `stop` is set.
    pub(crate) fn first_bytes(self: &Arc<Self>, count: u64, stop: &Stop) -> io::Result<Sidecar> {
        stop.check()?;
        let object = self.clone();
        let runtime = &self.store.runtime;
        let read = runtime.wait(stop, async move { object.read_first(count).await })?;
        match read {
            Ok(bytes) => Ok(Sidecar::Bytes(bytes)),
            Err(Failure::Final {
                error,
                is_answer: true,
            }) => Ok(match error.kind() {
                ErrorKind::NotFound | ErrorKind::PermissionDenied => {
                    log::debug!("no sidecar: {error}");
                    Sidecar::Absent
                }
                _ => Sidecar::Refused(error.to_string()),
            }),
            Err(failure) => Err(failure.into_error()),
        }
    }

    async fn read_first(&self, count: u64) -> Result<Vec<u8>, Failure> {
        let effort = self.effort();
        let mut patience = self.store.patience(&self.name, effort.limit);
        loop {
            let request = self.read_first_once(count);
            let failure = match self.store.once(&mut patience, request).await {
                Ok(bytes) => {
                    patience.done();
                    return Ok(bytes);
                }
                Err(Failure::NoRanges) => {
                    self.note_whole_only();
                    continue;
                }
                Err(failure) => failure,
            };
            self.store
                .pause_after(failure, effort, &mut patience, &self.name)
                .await?;
        }
    }

    async fn read_first_once(&self, count: u64) -> Result<Vec<u8>, Failure> {
        let range = (!self.sends_whole_only()).then_some(0..count);
        let answer = self
            .store
            .get(&self.address, &self.name, range, None)
            .await?;
        let mut body = answer.body;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        while bytes.len() < count {
            match body.chunk().await.map_err(Failure::passing)? {
                Some(chunk) => {
                    bytes.extend_from_slice(&chunk[..chunk.len().min(count - bytes.len())])
                }
                None => break,
            }
        }
        let _ = self.version.set(answer.version);
        Ok(bytes)
    }

    /// Whether its store was given up: no request was answered for longer than an outage may last.
    pub(crate) fn store_is_lost(&self) -> bool {
        self.store.health.is_lost()
    }

    pub(super) fn sends_whole_only(&self) -> bool {
        self.whole_only.load(Ordering::Relaxed)
    }

    pub(super) fn note_whole_only(&self) {
        self.whole_only.store(true, Ordering::Relaxed);
    }
}
