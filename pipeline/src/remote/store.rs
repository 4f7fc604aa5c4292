//! One bucket, container or web server.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::StreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::list::{PaginatedListOptions, PaginatedListResult, PaginatedListStore};
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
};

use super::cache::Cache;
use super::client::{Connector, Exchange};
use super::failure::{inmost, Failure};
use super::patience::{Health, Patience};
use super::runtime::Runtime;
use super::version::{ObjectAddress, Version};
use super::web::Web;
use super::RemoteOptions;
use crate::stop::Stop;

/// How often a server's own error (500) is asked about again where nothing need be there.
const OPTIONAL_SERVER_ERRORS: u32 = 3;

pub(super) struct Store {
    /// `scheme://authority/`, in front of every key.
    pub(super) root: String,
    backend: Backend,
    pub(super) options: Arc<RemoteOptions>,
    pub(super) cache: Option<Arc<Cache>>,
    pub(super) runtime: Arc<Runtime>,
    pub(super) health: Arc<Health>,
}

enum Backend {
    Cloud {
        objects: Arc<dyn ObjectStore>,
        lister: Arc<dyn PaginatedListStore>,
    },
    Web(Web),
}

/// How much a request is worth.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Longest wait.
    pub(super) limit: Duration,
    /// Whether what is asked for need not be there.
    pub(super) is_optional: bool,
}

/// An answer that brings bytes.
pub(super) struct Answer {
    /// Of which version they are.
    pub(super) version: Version,
    /// How many there are, as announced.
    pub(super) length: Option<u64>,
    pub(super) body: Body,
}

/// Bytes of the `bytes` crate, by a name that `object_store` has for them.
pub(super) type Chunk = <PutPayload as IntoIterator>::Item;

/// The bytes of an answer.
pub(super) enum Body {
    Cloud(BoxStream<'static, object_store::Result<Chunk>>),
    Web(reqwest::Response),
}

impl Body {
    /// The next bytes; none at the end. Dropping the future loses none.
    ///
    /// # Errors
    /// Why the answer breaks off.
    pub(super) async fn chunk(&mut self) -> Result<Option<Chunk>, String> {
        match self {
            Body::Cloud(stream) => {
                let chunk = stream.next().await.transpose();
                chunk.map_err(|error| inmost(&error))
            }
            Body::Web(response) => response.chunk().await.map_err(|error| inmost(&error)),
        }
    }
}

/// Sets a builder up and builds it; `$env` are the settings of its cloud.
macro_rules! build {
    ($builder:ty, $url:expr, $options:expr, $env:expr) => {{
        let mut builder = <$builder>::new()
            .with_url($url)
            .with_client_options(client_options($options))
            .with_retry(no_retries())
            .with_http_connector(Connector::new($options));
        for (name, value) in $env {
            // Others of the same beginning belong to other programs.
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        let store = builder.build().map_err(|error| unusable($url, &error))?;
        let store = Arc::new(store);
        Backend::Cloud {
            objects: store.clone(),
            lister: store,
        }
    }};
}

impl Store {
    /// The store of `scheme://authority`.
    pub(super) fn new(
        scheme: &str,
        authority: &str,
        options: Arc<RemoteOptions>,
        cache: Option<Arc<Cache>>,
        runtime: Arc<Runtime>,
    ) -> io::Result<Store> {
        let base = format!("{scheme}://{authority}");
        let env = |prefix: &'static str| {
            let ours = options
                .env
                .iter()
                .filter(move |(name, _)| name.starts_with(prefix));
            ours.cloned().collect::<Vec<_>>()
        };
        let backend = match scheme {
            "s3" | "s3a" => build!(AmazonS3Builder, &base, &options, env("AWS_")),
            "gs" => build!(GoogleCloudStorageBuilder, &base, &options, env("GOOGLE_")),
            "az" | "azure" | "abfs" | "abfss" | "adl" => {
                build!(MicrosoftAzureBuilder, &base, &options, env("AZURE_"))
            }
            _ => Backend::Web(Web::new(&options).map_err(|error| {
                io::Error::other(format!("{base}: no HTTP client: {}", inmost(&error)))
            })?),
        };
        let root = format!("{base}/");
        Ok(Store {
            health: Health::of(&root),
            root,
            backend,
            options,
            cache,
            runtime,
        })
    }

    /// For what is asked before anything is read: a name that is wrong should not take long.
    pub(super) fn at_start(&self) -> Effort {
        Effort {
            limit: self.options.outage.min(super::options::START_LIMIT),
            is_optional: false,
        }
    }

    pub(super) fn patience(&self, name: &str, limit: Duration) -> Patience {
        Patience::new(self.health.clone(), name, limit, &self.options)
    }

    /// Makes a request until it succeeds, cannot succeed, or the time is used up.
    ///
    /// # Errors
    /// What `failure` of the request says, for the user to read.
    pub(super) async fn retry<T, F>(
        &self,
        name: &str,
        effort: Effort,
        mut request: impl FnMut() -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut patience = self.patience(name, effort.limit);
        loop {
            let failure = match self.once(&mut patience, request()).await {
                Ok(value) => {
                    patience.done();
                    return Ok(value);
                }
                Err(failure) => failure,
            };
            self.pause_after(failure, effort, &mut patience, name)
                .await?;
        }
    }

    /// Waits for a request, no longer than the stall timeout.
    pub(super) async fn once<T>(
        &self,
        patience: &mut Patience,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let before = patience.waited();
        match patience.wait(self.options.stall_timeout, request).await {
            Some(result) => result,
            None => {
                let seconds = (patience.waited() - before).as_secs_f64();
                let silence = || format!("no answer within {seconds:.1} s");
                let what = patience.earlier_failure().unwrap_or_else(silence);
                Err(Failure::passing(what))
            }
        }
    }

    /// After a request that failed: a pause, if it may be made again.
    ///
    /// # Errors
    /// The failure, if not.
    pub(super) async fn pause_after(
        &self,
        failure: Failure,
        effort: Effort,
        patience: &mut Patience,
        name: &str,
    ) -> Result<(), Failure> {
        let (what, after, status) = match failure {
            Failure::Transient {
                what,
                after,
                status,
            } => (what, after, status),
            failure => {
                self.health.answered();
                return Err(failure);
            }
        };
        let pause = patience.failed(&what, after);
        let is_used_up = effort.is_optional
            && status == Some(500)
            && patience.failures() >= OPTIONAL_SERVER_ERRORS;
        match pause {
            Some(pause) if !is_used_up => {
                log::debug!("{name}: {what}; asking again in {pause:?}");
                patience.pause(pause).await;
                Ok(())
            }
            _ => Err(Failure::Final {
                error: io::Error::other(format!("{name}: {}", patience.complaint(&what))),
                is_answer: is_used_up,
            }),
        }
    }

    /// What is known of an object without its content, asked for once.
    pub(super) async fn head(
        &self,
        address: &ObjectAddress,
        name: &str,
    ) -> Result<Version, Failure> {
        match (&self.backend, address) {
            (Backend::Cloud { objects, .. }, ObjectAddress::Key(path)) => {
                let (meta, _) = cloud(name, objects.head(path)).await?;
                Ok(Version::of(&meta))
            }
            (Backend::Web(web), ObjectAddress::Page(url)) => web.head(url, name).await,
            _ => Err(mismatch(name)),
        }
    }

    /// Asks once for the bytes of `range`, or for all.
    pub(super) async fn get(
        &self,
        address: &ObjectAddress,
        name: &str,
        range: Option<Range<u64>>,
        if_match: Option<String>,
    ) -> Result<Answer, Failure> {
        match (&self.backend, address) {
            (Backend::Cloud { objects, .. }, ObjectAddress::Key(path)) => {
                let options = GetOptions {
                    range: range.map(GetRange::Bounded),
                    if_match,
                    ..GetOptions::default()
                };
                let (result, exchange) = cloud(name, objects.get_opts(path, options)).await?;
                let expected = result.range.end - result.range.start;
                Ok(Answer {
                    version: Version::of(&result.meta),
                    length: exchange.length.or(Some(expected)),
                    body: Body::Cloud(result.into_stream()),
                })
            }
            (Backend::Web(web), ObjectAddress::Page(url)) => {
                let answer = web.get(url, name, range, if_match).await?;
                Ok(Answer {
                    version: answer.version,
                    length: answer.length,
                    body: Body::Web(answer.response),
                })
            }
            _ => Err(mismatch(name)),
        }
    }

    /// A page of the objects whose keys begin with `prefix`; those of web servers are not listed.
    pub(super) async fn list(
        &self,
        name: &str,
        prefix: Option<&str>,
        options: PaginatedListOptions,
    ) -> Result<PaginatedListResult, Failure> {
        match &self.backend {
            Backend::Cloud { lister, .. } => {
                let (page, _) = cloud(name, lister.list_paginated(prefix, options)).await?;
                Ok(page)
            }
            Backend::Web(_) => Err(Failure::last(
                ErrorKind::InvalidInput,
                format!("{name}: there is no listing"),
            )),
        }
    }

    /// Runs `future` from a thread that may wait.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        stop: &Stop,
        future: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> io::Result<T> {
        self.runtime
            .wait(stop, future)?
            .map_err(Failure::into_error)
    }
}

/// Makes a request of a store.
async fn cloud<T>(
    name: &str,
    request: impl Future<Output = object_store::Result<T>>,
) -> Result<(T, Exchange), Failure> {
    let (result, exchange) = Exchange::watch(request).await;
    match result {
        Ok(value) => Ok((value, exchange)),
        Err(error) => Err(Failure::of(&error, &exchange, name)),
    }
}

/// Not reached: objects are made for the store that has them.
fn mismatch(name: &str) -> Failure {
    let message = format!("{name}: not an object of its store; this is a bug");
    Failure::last(ErrorKind::InvalidInput, message)
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

fn unusable(base: &str, error: &object_store::Error) -> io::Error {
    let hint = super::failure::credentials_hint(base);
    let message = format!("{base}: {}; {hint}", crate::error::full_message(error));
    io::Error::new(ErrorKind::InvalidInput, message)
}

/// Requests take as long as they get on; [`Patience`] ends those that do not.
fn client_options(options: &RemoteOptions) -> ClientOptions {
    ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(options.connect_timeout)
        .with_pool_idle_timeout(super::options::POOL_IDLE)
}

/// Trying again is done here, where it is known which bytes have come.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}
