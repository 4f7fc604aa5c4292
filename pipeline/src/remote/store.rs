//! One bucket, container or web server.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::list::PaginatedListStore;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use super::cache::Cache;
use super::failure::{Failure, Tries};
use super::runtime::Runtime;
use super::RemoteOptions;
use crate::stop::Stop;

/// Where the clouds tell a machine which role it has; the setting below names another place.
const MACHINE_HOSTS: [&str; 3] = [
    "169.254.169.254",
    "metadata.google.internal",
    "169.254.170.2",
];

const MACHINE_SETTING: &str = "AWS_METADATA_ENDPOINT";

pub(super) struct Store {
    /// `scheme://authority/`, in front of every key.
    pub(super) root: String,
    pub(super) objects: Arc<dyn ObjectStore>,
    /// What lists objects; a web server does not.
    pub(super) lister: Option<Arc<dyn PaginatedListStore>>,
    pub(super) options: Arc<RemoteOptions>,
    pub(super) cache: Option<Arc<Cache>>,
    pub(super) runtime: Arc<Runtime>,
}

/// Sets a builder up and builds it; `$env` are the settings of its cloud.
macro_rules! build {
    ($builder:ty, $url:expr, $options:expr, $env:expr) => {{
        let mut builder = <$builder>::new()
            .with_url($url)
            .with_client_options(client_options($options))
            .with_retry(no_retries())
            .with_http_connector(Watching::new($options));
        for (name, value) in $env {
            // Others of the same beginning belong to other programs.
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                builder = builder.with_config(key, value);
            }
        }
        builder.build()
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
        let both = |result: Result<_, object_store::Error>| {
            result.map_err(|error| unusable(&base, &error))
        };
        let (objects, lister): (Arc<dyn ObjectStore>, Option<Arc<dyn PaginatedListStore>>) =
            match scheme {
                "s3" | "s3a" => {
                    let store = build!(AmazonS3Builder, &base, &options, env("AWS_"));
                    let store = Arc::new(store.map_err(|error| unusable(&base, &error))?);
                    (store.clone(), Some(store))
                }
                "gs" => {
                    let store = build!(GoogleCloudStorageBuilder, &base, &options, env("GOOGLE_"));
                    let store = Arc::new(store.map_err(|error| unusable(&base, &error))?);
                    (store.clone(), Some(store))
                }
                "az" | "azure" | "abfs" | "abfss" | "adl" => {
                    let store = build!(MicrosoftAzureBuilder, &base, &options, env("AZURE_"));
                    let store = Arc::new(store.map_err(|error| unusable(&base, &error))?);
                    (store.clone(), Some(store))
                }
                _ => {
                    let builder = HttpBuilder::new()
                        .with_url(&base)
                        .with_client_options(
                            client_options(&options).with_allow_http(scheme == "http"),
                        )
                        .with_retry(no_retries())
                        .with_http_connector(Watching::new(&options));
                    (Arc::new(both(builder.build())?), None)
                }
            };
        let root = format!("{base}/");
        Ok(Store {
            root,
            objects,
            lister,
            options,
            cache,
            runtime,
        })
    }

    /// Makes a request until it succeeds, cannot succeed, or the retries are used up.
    ///
    /// # Errors
    /// What `failure` of the request says, for the user to read.
    pub(super) async fn retry<T, F>(
        &self,
        url: &str,
        mut request: impl FnMut() -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let mut tries = Tries::new(&self.options);
        loop {
            let (what, after) = match self.once(url, request()).await {
                Ok((value, _)) => return Ok(value),
                Err(Failure::Passing { what, after }) => (what, after),
                Err(failure) => return Err(failure),
            };
            match tries.next(after) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => {
                    let message = format!(
                        "{url}: {what}, {} times in a row; {TRY_LATER}",
                        tries.made()
                    );
                    return Err(Failure::Final(io::Error::other(message)));
                }
            }
        }
    }

    /// Makes a request once, and waits no longer than the stall timeout for the answer.
    pub(super) async fn once<T>(
        &self,
        url: &str,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<(T, Exchange), Failure> {
        let timed = tokio::time::timeout(self.options.stall_timeout, request);
        let (result, exchange) = Exchange::watch(timed).await;
        match result {
            Ok(Ok(value)) => Ok((value, exchange)),
            Ok(Err(error)) => Err(Failure::of(&error, &exchange, url)),
            Err(_) => {
                let seconds = self.options.stall_timeout.as_secs_f64();
                Err(Failure::passing(format!("no answer within {seconds} s")))
            }
        }
    }

    /// As [`Store::retry`], from a thread that may wait.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        stop: Option<&Stop>,
        future: impl Future<Output = Result<T, Failure>> + Send + 'static,
    ) -> io::Result<T> {
        self.runtime
            .wait(stop, future)?
            .map_err(|failure| match failure {
                Failure::Final(error) => error,
                Failure::Passing { what, .. } => io::Error::other(what),
                Failure::NoRanges => io::Error::other("the server sends whole files only"),
            })
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store")
            .field("root", &self.root)
            .finish_non_exhaustive()
    }
}

/// What to do once the retries are used up.
pub(super) const TRY_LATER: &str = "check the network and the server, then run this again";

fn unusable(base: &str, error: &object_store::Error) -> io::Error {
    let hint = super::failure::credentials_hint(base);
    let message = format!("{base}: {}; {hint}", crate::error::full_message(error));
    io::Error::new(ErrorKind::InvalidInput, message)
}

/// Requests take as long as they get on; [`super::read`] ends those that do not.
fn client_options(options: &RemoteOptions) -> ClientOptions {
    ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(options.connect_timeout)
        .with_pool_idle_timeout(Duration::from_secs(60))
}

/// Trying again is done here, where it is known which bytes have come.
fn no_retries() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

/// What went over the wire for one request, as far as errors are sorted by it.
#[derive(Clone, Debug, Default)]
pub(super) struct Exchange {
    /// Status of the last answer; none when the connection failed after it.
    pub(super) status: Option<u16>,
    /// The status with its name.
    pub(super) reason: Option<String>,
    /// How long the server asks to be left alone.
    pub(super) retry_after: Option<Duration>,
    /// The Content-Length of the last answer.
    pub(super) length: Option<u64>,
    /// The machine was asked for credentials, for want of any in the settings, and had none.
    pub(super) asked_machine: bool,
}

tokio::task_local! {
    static EXCHANGE: RefCell<Exchange>;
}

impl Exchange {
    async fn watch<T>(request: impl Future<Output = T>) -> (T, Exchange) {
        let watched = async {
            let result = request.await;
            (result, EXCHANGE.with(|exchange| exchange.borrow().clone()))
        };
        EXCHANGE.scope(RefCell::default(), watched).await
    }
}

/// Makes clients that note every answer in [`EXCHANGE`].
#[derive(Debug)]
struct Watching {
    machine_hosts: Arc<[String]>,
}

impl Watching {
    fn new(options: &RemoteOptions) -> Self {
        let set = options
            .env
            .iter()
            .filter(|(name, _)| name == MACHINE_SETTING);
        let hosts = set.filter_map(|(_, url)| Some(Url::parse(url).ok()?.authority().to_string()));
        let known = MACHINE_HOSTS.iter().map(ToString::to_string);
        Watching {
            machine_hosts: known.chain(hosts).collect(),
        }
    }
}

impl HttpConnector for Watching {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        let machine_hosts = self.machine_hosts.clone();
        Ok(HttpClient::new(WatchedClient {
            client,
            machine_hosts,
        }))
    }
}

#[derive(Debug)]
struct WatchedClient {
    client: HttpClient,
    machine_hosts: Arc<[String]>,
}

#[async_trait]
impl HttpService for WatchedClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let authority = request.uri().authority().map(ToString::to_string);
        let machine = self
            .machine_hosts
            .iter()
            .any(|host| Some(host) == authority.as_ref());
        let result = self.client.execute(request).await;
        let mut exchange = Exchange::default();
        if let Ok(response) = &result {
            let header = |name: &str| {
                response
                    .headers()
                    .get(name)?
                    .to_str()
                    .ok()?
                    .trim()
                    .parse()
                    .ok()
            };
            exchange.status = Some(response.status().as_u16());
            exchange.reason = Some(response.status().to_string());
            exchange.retry_after = header("retry-after").map(Duration::from_secs);
            exchange.length = header("content-length");
        }
        exchange.asked_machine = machine && exchange.status != Some(200);
        // Requests for credentials may run outside a watched one.
        let _ = EXCHANGE.try_with(|shared| shared.replace(exchange));
        result
    }
}
