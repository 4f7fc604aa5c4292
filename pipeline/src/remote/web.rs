//! Plain web servers, by the URLs that the user wrote.
//!
//! Unlike a store's key, such a URL may have a query (a signature, say), and its server may know
//! neither lengths nor ranges.

use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use reqwest::header::{self, HeaderMap};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};

use super::client::{refusal, web_client};
use super::failure::{of_status, Failure};
use super::version::Version;
use super::RemoteOptions;

#[derive(Debug)]
pub(super) struct Web {
    client: Client,
    /// Sent to servers that the user named, over https.
    bearer_token: Option<String>,
}

/// A successful answer to a GET.
pub(super) struct WebAnswer {
    pub(super) version: Version,
    /// Length of the body as announced.
    pub(super) length: Option<u64>,
    pub(super) response: Response,
}

impl Web {
    pub(super) fn new(options: &RemoteOptions) -> Result<Web, reqwest::Error> {
        Ok(Web {
            client: web_client(options)?,
            bearer_token: options.http_bearer_token.clone(),
        })
    }

    fn request(&self, method: Method, url: &Url) -> RequestBuilder {
        let request = self.client.request(method, url.clone());
        let request = request.header(header::ACCEPT_ENCODING, "identity");
        match &self.bearer_token {
            Some(token) if keeps_secrets(url) => request.bearer_auth(token),
            _ => request,
        }
    }

    /// What is known without the content: of its size often nothing.
    pub(super) async fn head(&self, url: &Url, name: &str) -> Result<Version, Failure> {
        let response = self
            .send(self.request(Method::HEAD, url), url, name)
            .await?;
        let length = number(response.headers(), header::CONTENT_LENGTH);
        Ok(version(response.headers(), length))
    }

    /// Asks for `range`, or all of it.
    ///
    /// # Errors
    /// [`Failure::NoRanges`] where the whole comes instead of a range.
    pub(super) async fn get(
        &self,
        url: &Url,
        name: &str,
        range: Option<Range<u64>>,
        if_match: Option<String>,
    ) -> Result<WebAnswer, Failure> {
        let mut request = self.request(Method::GET, url);
        if let Some(range) = &range {
            let last = range.end.saturating_sub(1);
            request = request.header(header::RANGE, format!("bytes={}-{last}", range.start));
        }
        if let Some(tag) = if_match {
            request = request.header(header::IF_MATCH, tag);
        }
        let response = self.send(request, url, name).await?;
        let length = number(response.headers(), header::CONTENT_LENGTH);
        let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
        let size = match range {
            Some(_) if !is_part => return Err(Failure::NoRanges),
            Some(range) => size_of_part(response.headers(), &range)?,
            None if is_part => {
                return Err(Failure::passing(
                    "the server sends a part without being asked",
                ))
            }
            None => length,
        };
        Ok(WebAnswer {
            version: version(response.headers(), size),
            length,
            response,
        })
    }

    async fn send(
        &self,
        request: RequestBuilder,
        url: &Url,
        name: &str,
    ) -> Result<Response, Failure> {
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Err(failed(&error, name)),
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let after = number(response.headers(), header::RETRY_AFTER).map(Duration::from_secs);
        let has_token = self.bearer_token.is_some() && keeps_secrets(url);
        let advice = match has_token {
            true => "the bearer token of QF_HTTP_BEARER_TOKEN is not accepted",
            false if self.bearer_token.is_some() => {
                "the bearer token of QF_HTTP_BEARER_TOKEN is sent over https alone"
            }
            false => "set QF_HTTP_BEARER_TOKEN, or use a signed URL that has not expired",
        };
        let what = format!("the server answers {status}");
        Err(of_status(status.as_u16(), what, name, advice, after))
    }
}

/// Whether nobody between here and the server can read what is sent.
fn keeps_secrets(url: &Url) -> bool {
    let is_this_machine = || match url.host_str() {
        Some("localhost") => true,
        Some(host) => host
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    };
    url.scheme() == "https" || is_this_machine()
}

/// A request that brought no answer.
fn failed(error: &reqwest::Error, name: &str) -> Failure {
    if let Some(why) = refusal(error) {
        return Failure::refused(name, &why);
    }
    Failure::passing(super::failure::inmost(error))
}

fn number(headers: &HeaderMap, name: header::HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

fn version(headers: &HeaderMap, size: Option<u64>) -> Version {
    let text = |name| Some(headers.get(name)?.to_str().ok()?.trim().to_string());
    Version {
        size,
        e_tag: text(header::ETAG)
            .map(|tag| tag.trim_matches('"').to_string())
            .filter(|tag| !tag.is_empty()),
        last_modified: text(header::LAST_MODIFIED),
    }
}

/// The size of the whole by the `Content-Range` of a part, which has to be the one asked for; none
/// where the server does not know it.
fn size_of_part(headers: &HeaderMap, asked: &Range<u64>) -> Result<Option<u64>, Failure> {
    let text = headers.get(header::CONTENT_RANGE);
    let text = text.and_then(|text| text.to_str().ok()).unwrap_or_default();
    let parsed = || {
        let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let size: Option<u64> = match size {
            "*" => None,
            size => Some(size.parse().ok()?),
        };
        Some((first, last.checked_add(1)?, size))
    };
    let (start, end, size) = parsed().ok_or_else(|| {
        let quoted: String = text.chars().take(100).collect();
        Failure::passing(format!(
            "the server sends a part with the range `{}`",
            quoted.escape_debug()
        ))
    })?;
    let expected = asked.end.min(size.unwrap_or(asked.end));
    if start != asked.start || end != expected {
        return Err(Failure::passing(format!(
            "the server sends bytes {start} to {end} instead of {} to {expected}",
            asked.start
        )));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_asked_for() {
        let size = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, text.parse().unwrap());
            size_of_part(&headers, &(10..20)).map_err(|failure| format!("{failure:?}"))
        };
        assert_eq!(size("bytes 10-19/100"), Ok(Some(100)));
        assert_eq!(size("bytes 10-19/*"), Ok(None));
        assert_eq!(size("bytes 10-14/15"), Ok(Some(15)));
        for wrong in [
            "",
            "bytes 10-14/*",
            "bytes 11-20/100",
            "bytes 10-18446744073709551615/*",
            "bytes */100",
            "10-19/100",
        ] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn secrets_go_over_https_or_to_this_machine() {
        for (url, keeps) in [
            ("https://h/x", true),
            ("http://h/x", false),
            ("http://127.0.0.1:8000/x", true),
            ("http://[::1]/x", true),
            ("http://localhost/x", true),
            ("http://localhost.evil.org/x", false),
        ] {
            assert_eq!(keeps_secrets(&Url::parse(url).unwrap()), keeps, "{url}");
        }
    }
}
