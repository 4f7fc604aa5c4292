//! Shards in an object store. What is put there is visible once it is whole: a small object by one
//! request, a larger one in parts that its last request makes an object.

use std::future::Future;
use std::path::Path as LocalPath;
use std::sync::Arc;

use anyhow::{anyhow, Context};
use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};
use qf_pipeline::error::full_message;
use qf_pipeline::remote::inmost;
use qf_pipeline::source::DisplayUrl;
use tokio::runtime::Runtime;
use url::Url;

/// Length of a part; a store takes 10,000 of an object.
const PART_BYTES: usize = 16 << 20;

/// Parts on their way at a time.
const PARALLEL_PARTS: usize = 4;

/// Beginnings of the environment variables that set up a store.
const VARIABLES: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];

/// A folder of a store.
pub(super) struct Store {
    url: String,
    objects: Arc<dyn ObjectStore>,
    folder: Path,
    runtime: Runtime,
}

impl Store {
    /// By `s3://bucket/folder` and the like; credentials and endpoints are those of the environment.
    ///
    /// # Errors
    /// A URL that is none of a store; settings that do not fit.
    pub(super) fn open(url: &str) -> anyhow::Result<Store> {
        let shown = DisplayUrl::of(url);
        let parsed = Url::parse(url).with_context(|| format!("--out {shown}"))?;
        qf_pipeline::remote::install_tls();
        let settings = std::env::vars_os().filter_map(|(name, value)| {
            let (name, value) = (name.into_string().ok()?, value.into_string().ok()?);
            let is_ours = VARIABLES.iter().any(|start| name.starts_with(start));
            is_ours.then(|| (name.to_ascii_lowercase(), value))
        });
        let (objects, folder) = object_store::parse_url_opts(&parsed, settings)
            .map_err(|error| anyhow!("--out {shown}: {}", full_message(&error)))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("qf-store")
            .enable_all()
            .build()
            .context("cannot start threads")?;
        Ok(Store {
            url: url.trim_end_matches('/').to_owned(),
            objects: objects.into(),
            folder,
            runtime,
        })
    }

    /// As messages name an object.
    pub(super) fn shown(&self, name: &str) -> String {
        DisplayUrl::of(&format!("{}/{name}", self.url)).to_string()
    }

    fn path(&self, name: &str) -> Path {
        self.folder.clone().join(name)
    }

    fn wait<T>(
        &self,
        name: &str,
        what: &str,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> anyhow::Result<T> {
        self.runtime.block_on(request).map_err(|error| {
            let (text, shown) = (full_message(&error), self.shown(name));
            let remedy = match &error {
                object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. } => {
                    "check the credentials, and that they may write there"
                }
                // Where a machine's role is asked for.
                _ if text.contains("token request") || text.contains("169.254.169.254") => {
                    "there are no credentials in the environment, and this machine has no role"
                }
                // A bucket that is not there is of no kind of its own.
                _ if text.contains("404") => "check the name of the bucket",
                _ => "the same command goes on where this one stopped",
            };
            anyhow!("cannot {what} {shown}: {}; {remedy}", inmost(&error))
        })
    }

    /// Names of the objects that begin so, in no order.
    pub(super) fn list(&self, beginning: &str) -> anyhow::Result<Vec<String>> {
        let folder = match self.folder.as_ref().is_empty() {
            true => None,
            false => Some(self.folder.clone()),
        };
        let listing = async {
            let mut names = Vec::new();
            let mut objects = self.objects.list(folder.as_ref());
            while let Some(object) = objects.next().await.transpose()? {
                let is_here = object.location.prefix_matches(&self.folder)
                    && object.location.parts_count() == self.folder.parts_count() + 1;
                let name = object.location.filename().unwrap_or_default();
                if is_here && name.starts_with(beginning) {
                    names.push(name.to_owned());
                }
            }
            Ok(names)
        };
        self.wait(beginning, "list", listing)
    }

    /// The length of an object, if it is there.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        let path = self.path(name);
        let head = self.wait(name, "read", self.objects.head(&path));
        head.ok().map(|meta| meta.size)
    }

    /// A small object, if it is there.
    pub(super) fn get(&self, name: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let path = self.path(name);
        let content = async {
            match self.objects.get(&path).await {
                Ok(result) => Ok(Some(result.bytes().await?.to_vec())),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.wait(name, "read", content)
    }

    /// Writes a small object.
    pub(super) fn put(&self, name: &str, content: Vec<u8>) -> anyhow::Result<()> {
        let path = self.path(name);
        let put = self.objects.put(&path, PutPayload::from(content));
        self.wait(name, "write", put).map(drop)
    }

    /// Writes a file as an object, which is not there before all of it is.
    pub(super) fn put_file(&self, name: &str, file: &LocalPath) -> anyhow::Result<()> {
        use std::io::Read;
        let what = || format!("cannot read {}", file.display());
        let mut source = std::fs::File::open(file).with_context(what)?;
        let bytes = source.metadata().with_context(what)?.len();
        if bytes <= PART_BYTES as u64 {
            let mut content = Vec::new();
            source.read_to_end(&mut content).with_context(what)?;
            return self.put(name, content);
        }
        let path = self.path(name);
        let upload = self.wait(name, "write", self.objects.put_multipart(&path))?;
        let mut upload = WriteMultipart::new_with_chunk_size(upload, PART_BYTES);
        let mut buffer = vec![0; PART_BYTES];
        let sent = loop {
            let count = match source.read(&mut buffer).with_context(what) {
                Ok(0) => break Ok(()),
                Ok(count) => count,
                Err(error) => break Err(error),
            };
            let room = async {
                upload.wait_for_capacity(PARALLEL_PARTS).await?;
                upload.write(&buffer[..count]);
                Ok(())
            };
            if let Err(error) = self.wait(name, "write", room) {
                break Err(error);
            }
        };
        match sent {
            Ok(()) => self.wait(name, "write", upload.finish()).map(drop),
            Err(error) => {
                // The parts that are there are of no use; what fails here is the store's to clean up.
                let _ = self.runtime.block_on(upload.abort());
                Err(error)
            }
        }
    }

    /// Removes an object; one that is not there is no error.
    pub(super) fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        let removed = async {
            match self.objects.delete(&path).await {
                Err(object_store::Error::NotFound { .. }) => Ok(()),
                result => result,
            }
        };
        self.wait(name, "remove", removed)
    }
}
