//! HTTP clients: which redirects they follow, and what an exchange over them was.

use std::cell::RefCell;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};
use object_store::{ClientConfigKey, ClientOptions};
use reqwest::redirect::{Action, Attempt, Policy};
use reqwest::Url;

use super::keys::mask_page;
use super::RemoteOptions;

/// Redirects in a row that are followed.
const MAX_REDIRECTS: usize = 10;

/// A page of a listing has at most 1,000 (Azure: 5,000) keys of at most 1 KiB.
const MAX_PAGE_BYTES: usize = 64 << 20;

/// Where the clouds tell a machine which role it has; the setting below names another place.
const MACHINE_HOSTS: [&str; 3] = [
    "169.254.169.254",
    "metadata.google.internal",
    "169.254.170.2",
];

const MACHINE_SETTING: &str = "AWS_METADATA_ENDPOINT";

const FORBIDDEN_HTTP: &str =
    "the address of its store begins with http://; use https, or allow http by \
                              AWS_ALLOW_HTTP=true (gs: GOOGLE_ALLOW_HTTP, az: AZURE_ALLOW_HTTP)";

/// Why a redirect is not followed: a clause such as `redirects in a loop`.
#[derive(Debug)]
struct RefusedRedirect(String);

impl fmt::Display for RefusedRedirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for RefusedRedirect {}

/// Why a connection must not be used, if that is among the causes of an error: a redirect, or a
/// certificate that does not prove who the server is.
pub(super) fn refusal(error: &(dyn Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(RefusedRedirect(why)) = error.downcast_ref() {
            return Some(why.clone());
        }
        // An input/output error passes over what it was made of.
        let inner: Option<&(dyn Error + 'static)> = error
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .map(|inner| inner as _);
        let tls = inner.unwrap_or(error).downcast_ref();
        if let Some(rustls::Error::InvalidCertificate(_)) = tls {
            return Some(
                "the server's certificate is not signed by anyone that this machine trusts, or is \
                 for another name; check the address, or name a file of certificates in \
                 SSL_CERT_FILE"
                    .to_string(),
            );
        }
        cause = inner.or_else(|| error.source());
    }
    None
}

/// Scheme, host and port.
fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

fn endless(attempt: &Attempt<'_>) -> Option<&'static str> {
    if attempt.previous().contains(attempt.url()) {
        return Some("the server redirects in a loop");
    }
    (attempt.previous().len() > MAX_REDIRECTS).then_some("the server redirects more than 10 times")
}

/// A plain web server may redirect anywhere but from https to http. (What is sent along to another
/// origin is seen to by reqwest, which takes Authorization out, and by [`web_client`].)
fn follow_on_the_web(attempt: Attempt<'_>) -> Action {
    if let Some(why) = endless(&attempt) {
        return attempt.error(RefusedRedirect(why.into()));
    }
    let is_https = |url: &Url| url.scheme() == "https";
    if attempt.previous().iter().any(is_https) && !is_https(attempt.url()) {
        let to = origin(attempt.url());
        let why = format!("the server redirects from https to {to}, which is not followed");
        return attempt.error(RefusedRedirect(why));
    }
    attempt.follow()
}

/// The server of a store may redirect within itself: requests carry credentials in several headers.
fn follow_within_the_origin(attempt: Attempt<'_>) -> Action {
    if let Some(why) = endless(&attempt) {
        return attempt.error(RefusedRedirect(why.into()));
    }
    match attempt.previous().first() {
        Some(first) if origin(first) == origin(attempt.url()) => attempt.follow(),
        _ => {
            let why = format!(
                "the store redirects to {}, which is not followed, as requests carry credentials; \
                 set its region or endpoint to the one that has the data",
                origin(attempt.url())
            );
            attempt.error(RefusedRedirect(why))
        }
    }
}

/// The client for plain web servers.
pub(super) fn web_client(options: &RemoteOptions) -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .user_agent(concat!("qf-pipeline/", env!("CARGO_PKG_VERSION")))
        .redirect(Policy::custom(follow_on_the_web))
        // It would tell the next server the query of the last one, which may be a signature.
        .referer(false)
        .http1_only()
        .connect_timeout(options.connect_timeout)
        .pool_idle_timeout(super::options::POOL_IDLE)
        .build()
}

/// Makes clients for stores, which note every answer in [`EXCHANGE`].
#[derive(Debug)]
pub(super) struct Connector {
    machine_hosts: Arc<[String]>,
}

impl Connector {
    pub(super) fn new(options: &RemoteOptions) -> Self {
        let set = options
            .env
            .iter()
            .filter(|(name, _)| name == MACHINE_SETTING);
        let hosts = set.filter_map(|(_, url)| Some(Url::parse(url).ok()?.authority().to_string()));
        let known = MACHINE_HOSTS.iter().map(ToString::to_string);
        Connector {
            machine_hosts: known.chain(hosts).collect(),
        }
    }
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = store_client(options).map_err(|source| object_store::Error::Generic {
            store: "HTTP",
            source,
        })?;
        Ok(HttpClient::new(WatchedClient {
            client,
            allows_http: is_set(options, ClientConfigKey::AllowHttp),
            machine_hosts: self.machine_hosts.clone(),
        }))
    }
}

fn is_set(options: &ClientOptions, key: ClientConfigKey) -> bool {
    let value = options.get_config_value(&key);
    value.is_some_and(|text| matches!(text.as_str(), "true" | "1"))
}

/// The client that these options describe. (That of `object_store` itself follows redirects to any
/// origin, and takes `x-amz-security-token` along.)
fn store_client(options: &ClientOptions) -> Result<reqwest::Client, Box<dyn Error + Send + Sync>> {
    use ClientConfigKey as Key;
    let value = |key: Key| options.get_config_value(&key);
    let is_set = |key: Key| is_set(options, key);
    let mut builder = reqwest::Client::builder()
        .redirect(Policy::custom(follow_within_the_origin))
        .referer(false)
        .https_only(!is_set(Key::AllowHttp))
        .danger_accept_invalid_certs(is_set(Key::AllowInvalidCertificates));
    builder = match value(Key::UserAgent) {
        Some(agent) => builder.user_agent(agent),
        None => builder.user_agent(concat!("qf-pipeline/", env!("CARGO_PKG_VERSION"))),
    };
    if let Some(url) = value(Key::ProxyUrl) {
        let mut proxy = reqwest::Proxy::all(url).map_err(reqwest::Error::without_url)?;
        if let Some(excludes) = value(Key::ProxyExcludes) {
            proxy = proxy.no_proxy(reqwest::NoProxy::from_string(&excludes));
        }
        builder = builder.proxy(proxy);
        if let Some(pem) = value(Key::ProxyCaCertificate) {
            let certificate = reqwest::Certificate::from_pem(pem.as_bytes())?;
            builder = builder.tls_certs_merge([certificate]);
        }
    }
    if is_set(Key::NoSystemCertificates) {
        builder = builder.tls_certs_only([]);
    }
    if is_set(Key::Http2Only) {
        builder = builder.http2_prior_knowledge();
    } else if is_set(Key::Http1Only) {
        builder = builder.http1_only();
    }
    for (key, set) in [
        (
            Key::ConnectTimeout,
            reqwest::ClientBuilder::connect_timeout as fn(_, _) -> _,
        ),
        (Key::ReadTimeout, reqwest::ClientBuilder::read_timeout),
        (Key::Timeout, reqwest::ClientBuilder::timeout),
        (Key::PoolIdleTimeout, |builder, time: Duration| {
            builder.pool_idle_timeout(time)
        }),
    ] {
        if let Some(text) = value(key) {
            builder = set(builder, duration(&text)?);
        }
    }
    Ok(builder.build()?)
}

/// As `1m 30s` or `250ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time; write it as 10s or 1m 30s");
    let mut total = Duration::ZERO;
    for part in text.split_whitespace() {
        let unit = part
            .find(|c: char| c.is_ascii_alphabetic())
            .unwrap_or(part.len());
        let (number, unit) = part.split_at(unit);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        total += match unit {
            "ns" => Duration::from_nanos(number),
            "us" => Duration::from_micros(number),
            "ms" => Duration::from_millis(number),
            "s" | "sec" | "second" | "seconds" => Duration::from_secs(number),
            "m" | "min" | "minute" | "minutes" => Duration::from_secs(number.saturating_mul(60)),
            "h" | "hour" | "hours" => Duration::from_secs(number.saturating_mul(3600)),
            _ => return Err(wrong()),
        };
    }
    Ok(total)
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
    /// Why the connection must not be used.
    pub(super) refusal: Option<String>,
}

tokio::task_local! {
    static EXCHANGE: RefCell<Exchange>;
}

impl Exchange {
    /// Makes a request of a store, and says what went over the wire.
    pub(super) async fn watch<T>(request: impl Future<Output = T>) -> (T, Exchange) {
        let watched = async {
            let result = request.await;
            (result, EXCHANGE.with(|exchange| exchange.borrow().clone()))
        };
        EXCHANGE.scope(RefCell::default(), watched).await
    }
}

#[derive(Debug)]
struct WatchedClient {
    client: reqwest::Client,
    allows_http: bool,
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
        let forbidden = !self.allows_http && request.uri().scheme_str() == Some("http");
        let query = request.uri().query().unwrap_or_default();
        let is_listing = query
            .split('&')
            .any(|pair| pair == "list-type=2" || pair == "comp=list");
        let result = self.client.call(request).await;
        let mut exchange = Exchange::default();
        match &result {
            Ok(response) => {
                let header = |name: &str| {
                    let text = response.headers().get(name)?.to_str().ok()?;
                    text.trim().parse().ok()
                };
                exchange.status = Some(response.status().as_u16());
                exchange.reason = Some(response.status().to_string());
                exchange.retry_after = header("retry-after").map(Duration::from_secs);
                exchange.length = header("content-length");
            }
            Err(_) if forbidden => exchange.refusal = Some(FORBIDDEN_HTTP.into()),
            Err(error) => exchange.refusal = refusal(error),
        }
        exchange.asked_machine = machine && exchange.status != Some(200);
        // Requests for credentials may run outside a watched one.
        let _ = EXCHANGE.try_with(|shared| shared.replace(exchange));
        match result {
            Ok(response) if is_listing && response.status().is_success() => masked(response).await,
            result => result,
        }
    }
}

/// A page of a listing with its keys masked.
async fn masked(response: HttpResponse) -> Result<HttpResponse, HttpError> {
    let (mut parts, body) = response.into_parts();
    let mut page = Vec::new();
    let mut chunks = body.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        page.extend_from_slice(&chunk?);
        if page.len() > MAX_PAGE_BYTES {
            let error = std::io::Error::other("a page of the listing is longer than 64 MiB");
            return Err(HttpError::new(HttpErrorKind::Decode, error));
        }
    }
    let page = match String::from_utf8(page) {
        Ok(page) => mask_page(&page).into_bytes(),
        Err(error) => error.into_bytes(),
    };
    parts.headers.remove("content-length");
    Ok(HttpResponse::from_parts(parts, page.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(duration("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for wrong in ["10", "s", "1y", "-1s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
