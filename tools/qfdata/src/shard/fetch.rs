//! Downloads: many requests at a time, few to any one host, and none to where they must not go.
//!
//! What is refused: addresses of this machine and of private networks, after the name was looked up,
//! for the first request and for each redirect; bodies beyond a size; images whose server says, by
//! `X-Robots-Tag`, that they are not for training. A request carries no credentials, cookies or referrer:
//! the user and password of a URL go to that URL's host alone.

mod address;
mod robots;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use reqwest::header::{HeaderMap, ACCEPT, LOCATION, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

use super::args::DownloadArgs;
use super::row::SkipCause;
use address::{PublicOnly, RefusedAddress};

/// Redirects in a row that are followed.
const MAX_REDIRECTS: usize = 10;

/// Longest pause that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The first pause before a request is made again, doubled at each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Threads that requests run on.
const WORKER_THREADS: usize = 2;

/// Threads that host names are looked up on.
const LOOKUP_THREADS: usize = 32;

/// Why there is no image.
pub(super) type Failure = (SkipCause, String);

/// Downloads images.
pub(super) struct Fetcher {
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    args: DownloadArgs,
    all: Semaphore,
    hosts: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// A try that failed.
struct Failed {
    failure: Failure,
    /// Whether the next may succeed, and how long the server asks to wait.
    again: Option<Option<Duration>>,
}

impl Failed {
    fn finally(cause: SkipCause, message: impl Into<String>) -> Failed {
        Failed {
            failure: (cause, message.into()),
            again: None,
        }
    }

    fn in_passing(cause: SkipCause, message: impl Into<String>) -> Failed {
        Failed {
            failure: (cause, message.into()),
            again: Some(None),
        }
    }
}

impl Fetcher {
    pub(super) fn new(args: &DownloadArgs) -> anyhow::Result<Fetcher> {
        qf_pipeline::remote::install_tls();
        let token = args.user_agent_token.as_deref();
        let token = token.map_or(String::new(), |token| format!(" (compatible; {token})"));
        let mut client = Client::builder()
            .user_agent(format!("qfdata/{}{token}", env!("CARGO_PKG_VERSION")))
            // Followed here, where each is looked at.
            .redirect(Policy::none())
            .referer(false)
            .no_proxy()
            .http1_only()
            .connect_timeout(Duration::from_secs(10).min(seconds(args.timeout)))
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(usize::from(args.per_host));
        if !args.allow_private_addresses {
            client = client.dns_resolver(Arc::new(PublicOnly));
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKER_THREADS)
            .max_blocking_threads(LOOKUP_THREADS)
            .thread_name("qf-fetch")
            .enable_all()
            .build()
            .context("cannot start threads")?;
        Ok(Fetcher {
            shared: Arc::new(Shared {
                client: client.build().context("no HTTP client")?,
                args: args.clone(),
                all: Semaphore::new(usize::from(args.parallel_downloads)),
                hosts: Mutex::default(),
            }),
            runtime: Some(runtime),
        })
    }

    /// Requests at a time.
    pub(super) fn parallel(&self) -> usize {
        usize::from(self.shared.args.parallel_downloads)
    }

    /// Downloads `url`, when its turn comes, and hands it to `then`.
    pub(super) fn start(
        &self,
        url: Arc<str>,
        then: impl FnOnce(Result<Vec<u8>, Failure>) + Send + 'static,
    ) {
        let shared = self.shared.clone();
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move { then(shared.fetch(&url).await) });
        }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn seconds(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds))
}

impl Shared {
    async fn fetch(&self, url: &str) -> Result<Vec<u8>, Failure> {
        let url = Url::parse(url.trim())
            .map_err(|error| (SkipCause::BadUrl, format!("not a URL: {error}")))?;
        let host = self.host(&url);
        let closed = |_| (SkipCause::NoConnection, "stopped".to_owned());
        let mut pause = FIRST_PAUSE;
        let mut tries = 0;
        loop {
            let failed = {
                // The host first: who waits for a slow one keeps nobody else waiting.
                let _of_host = host.acquire().await.map_err(closed)?;
                let _of_all = self.all.acquire().await.map_err(closed)?;
                match tokio::time::timeout(seconds(self.args.timeout), self.once(&url)).await {
                    Ok(Ok(bytes)) => return Ok(bytes),
                    Ok(Err(failed)) => failed,
                    Err(_) => Failed::in_passing(
                        SkipCause::TimedOut,
                        format!("not there after {} s (--timeout)", self.args.timeout),
                    ),
                }
            };
            let Some(after) = failed.again.filter(|_| tries < self.args.retries) else {
                let (cause, message) = failed.failure;
                let message = match tries {
                    0 => message,
                    _ => format!("{message}; tried {} times", tries + 1),
                };
                return Err((cause, message));
            };
            tries += 1;
            tokio::time::sleep(after.unwrap_or(pause).min(LONGEST_PAUSE)).await;
            pause *= 2;
        }
    }

    fn host(&self, url: &Url) -> Arc<Semaphore> {
        let host = url.host_str().unwrap_or_default().to_owned();
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody waits for are forgotten, lest a long list of hosts stays.
        if hosts.len() > 10_000 {
            hosts.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        }
        let new = || Arc::new(Semaphore::new(usize::from(self.args.per_host)));
        hosts.entry(host).or_insert_with(new).clone()
    }

    /// One try, redirects included.
    async fn once(&self, url: &Url) -> Result<Vec<u8>, Failed> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.ask(&url).await?;
            if !response.status().is_redirection() {
                return self.body(response).await;
            }
            let to = response.headers().get(LOCATION);
            let to = to.and_then(|to| to.to_str().ok());
            let to = to
                .and_then(|to| url.join(to).ok())
                .ok_or_else(|| Failed::finally(SkipCause::BadRedirect, "a redirect to nowhere"))?;
            if url.scheme() == "https" && to.scheme() != "https" {
                let message = "a redirect from https to http, which is not followed";
                return Err(Failed::finally(SkipCause::BadRedirect, message));
            }
            url = to;
        }
        let message = format!("more than {MAX_REDIRECTS} redirects");
        Err(Failed::finally(SkipCause::BadRedirect, message))
    }

    async fn ask(&self, url: &Url) -> Result<Response, Failed> {
        if !matches!(url.scheme(), "http" | "https") {
            let message = format!("{}: is not downloaded", url.scheme());
            return Err(Failed::finally(SkipCause::BadUrl, message));
        }
        if !self.args.allow_private_addresses {
            // Names are looked at when they are looked up; an address has none.
            if let Some(message) = address::refuse_literal(url) {
                return Err(Failed::finally(SkipCause::PrivateAddress, message));
            }
        }
        let request = self.client.get(url.clone());
        let request = request.header(ACCEPT, "image/*,*/*;q=0.5");
        let response = request.send().await.map_err(|error| failed(&error))?;
        let status = response.status();
        if status.is_success()
            || (status.is_redirection() && response.headers().contains_key(LOCATION))
        {
            return Ok(response);
        }
        let again = matches!(status.as_u16(), 408 | 425 | 429) || status.is_server_error();
        Err(Failed {
            failure: (
                SkipCause::HttpStatus,
                format!("the server answers {status}"),
            ),
            again: again.then(|| retry_after(response.headers())),
        })
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, Failed> {
        let tag = response.headers().get_all("x-robots-tag");
        let tags = tag.iter().filter_map(|tag| tag.to_str().ok());
        let token = self.args.user_agent_token.as_deref();
        if !self.args.ignore_opt_out {
            if let Some(directive) = robots::opts_out(tags, token) {
                let message = format!("its server says X-Robots-Tag: {directive}");
                return Err(Failed::finally(SkipCause::OptedOut, message));
            }
        }
        if response.status() == StatusCode::NO_CONTENT {
            return Err(Failed::finally(
                SkipCause::HttpStatus,
                "the server answers without content",
            ));
        }
        let most = self.args.max_download;
        let too_large = || {
            Failed::finally(
                SkipCause::DownloadTooLarge,
                format!("over {most} bytes (--max-download)"),
            )
        };
        let announced = response.content_length();
        if announced.is_some_and(|length| length > most) {
            return Err(too_large());
        }
        let capacity = announced.unwrap_or(0).min(1 << 20);
        let mut bytes = Vec::with_capacity(usize::try_from(capacity).unwrap_or(0));
        while let Some(chunk) = response.chunk().await.map_err(|error| failed(&error))? {
            if (bytes.len() + chunk.len()) as u64 > most {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }
}

/// Seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = address::http_date(text)?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

/// A request that brought no answer, or half of one.
fn failed(error: &reqwest::Error) -> Failed {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut inmost = error.to_string();
    let mut is_lookup = false;
    while let Some(error) = cause {
        if let Some(RefusedAddress(message)) = error.downcast_ref() {
            return Failed::finally(SkipCause::PrivateAddress, message.clone());
        }
        inmost = error.to_string();
        is_lookup |= inmost.contains("dns error") || inmost.contains("failed to lookup");
        cause = error.source();
    }
    if is_lookup {
        return Failed::finally(SkipCause::NoHost, inmost);
    }
    if error.is_timeout() {
        return Failed::in_passing(SkipCause::TimedOut, "no connection in time");
    }
    if error.is_builder() {
        return Failed::finally(SkipCause::BadUrl, inmost);
    }
    Failed::in_passing(SkipCause::NoConnection, inmost)
}
