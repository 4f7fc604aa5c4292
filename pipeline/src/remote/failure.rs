//! What becomes of a request that failed, and the pauses before it is made again.

use std::collections::hash_map::RandomState;
use std::error::Error;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, ErrorKind};
use std::time::Duration;

use super::store::Exchange;
use super::RemoteOptions;

/// Longest quotation from a server's answer, in characters.
const MAX_QUOTE: usize = 200;

/// Why a request brought nothing, or not all.
#[derive(Debug)]
pub(super) enum Failure {
    /// Asking again would not help.
    Final(io::Error),
    /// The server sends whole objects only.
    NoRanges,
    /// It may pass: a clause such as `the server answers 503 Service Unavailable`.
    Passing {
        /// What happened.
        what: String,
        /// How long the server asks to be left alone.
        after: Option<Duration>,
    },
}

impl Failure {
    pub(super) fn passing(what: impl Into<String>) -> Self {
        let what = what.into();
        Failure::Passing { what, after: None }
    }

    /// Sorts an error of the store, knowing what went over the wire.
    pub(super) fn of(error: &object_store::Error, exchange: &Exchange, url: &str) -> Self {
        use object_store::Error as E;
        let what = said(error, exchange);
        let last = |kind, what: String| Failure::Final(io::Error::new(kind, what));
        match (error, exchange.status) {
            (E::NotFound { .. }, _) => {
                let advice = "check the name, and that it has not been removed";
                last(ErrorKind::NotFound, format!("{url}: {what}; {advice}"))
            }
            (E::PermissionDenied { .. } | E::Unauthenticated { .. }, _) | (_, Some(401 | 403)) => {
                let message = format!("{url}: {what}; {}", credentials_hint(url));
                last(ErrorKind::PermissionDenied, message)
            }
            (_, None | Some(404)) if exchange.asked_machine => {
                let hint = credentials_hint(url);
                let message = format!("{url}: no credentials are set, and this machine has no role; {hint}");
                last(ErrorKind::PermissionDenied, message)
            }
            (E::NotSupported { .. }, Some(200)) | (E::Generic { .. }, Some(200))
                if what.contains("non-partial") || matches!(error, E::NotSupported { .. }) =>
            {
                Failure::NoRanges
            }
            (_, Some(status @ 300..=399)) => last(
                ErrorKind::Other,
                format!("{url}: the server answers {status}, a redirection to nowhere; set AWS_REGION to the bucket's region"),
            ),
            (_, Some(status @ 400..=499)) if !matches!(status, 408 | 429) => {
                last(ErrorKind::Other, format!("{url}: {what}"))
            }
            (E::InvalidPath { .. } | E::UnknownConfigurationKey { .. } | E::NotImplemented { .. }, _) => {
                last(ErrorKind::InvalidInput, format!("{url}: {what}"))
            }
            (_, None) if mentions_credentials(error) => {
                let hint = credentials_hint(url);
                last(ErrorKind::PermissionDenied, format!("{url}: {what}; {hint}"))
            }
            _ => Failure::Passing { what, after: exchange.retry_after },
        }
    }
}

fn mentions_credentials(error: &object_store::Error) -> bool {
    let text = error.to_string().to_ascii_lowercase();
    text.contains("credential") || text.contains("invalid_grant")
}

/// The variables to set for a store of this scheme.
pub(super) fn credentials_hint(url: &str) -> &'static str {
    match url.split("://").next().unwrap_or_default() {
        "s3" | "s3a" => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN too for temporary \
             ones), or AWS_SKIP_SIGNATURE=true for a public bucket"
        }
        "gs" => {
            "set GOOGLE_APPLICATION_CREDENTIALS to a file of credentials, or \
             GOOGLE_SKIP_SIGNATURE=true for a public bucket"
        }
        "http" | "https" => "the server wants a login, which http shards do not have",
        _ => {
            "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or \
             AZURE_STORAGE_SAS_TOKEN), or AZURE_SKIP_SIGNATURE=true for a public container"
        }
    }
}

/// What the server, or the connection to it, says: one line without the wrapping of the libraries.
fn said(error: &object_store::Error, exchange: &Exchange) -> String {
    let text = error.to_string();
    if let (Some(status), Some(reason)) = (exchange.status, &exchange.reason) {
        if !(200..300).contains(&status) {
            let message = ["Message", "Code"].iter().find_map(|tag| {
                let (_, rest) = text.split_once(&format!("<{tag}>"))?;
                Some(rest.split_once("</")?.0)
            });
            return match message {
                Some(message) => format!("the server answers {reason} ({})", one_line(message)),
                None => format!("the server answers {reason}"),
            };
        }
    }
    let mut inmost: &dyn Error = error;
    while let Some(source) = inmost.source() {
        inmost = source;
    }
    one_line(&inmost.to_string())
}

fn one_line(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().take(MAX_QUOTE).collect()
}

/// How often, and when, a request is made again.
pub(super) struct Tries {
    made: u32,
    retries: u32,
    pause: Duration,
    longest: Duration,
}

impl Tries {
    pub(super) fn new(options: &RemoteOptions) -> Self {
        Tries {
            made: 0,
            retries: options.retries,
            pause: options.first_pause,
            longest: options.longest_pause,
        }
    }

    /// The pause before the next try; none when they are used up.
    pub(super) fn next(&mut self, after: Option<Duration>) -> Option<Duration> {
        self.made += 1;
        if self.made > self.retries {
            return None;
        }
        let pause = self.pause.min(self.longest);
        self.pause = pause.saturating_mul(2);
        let half = pause / 2;
        let jitter = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
        let pause = half + half.mul_f64(jitter);
        Some(pause.max(after.unwrap_or_default().min(self.longest)))
    }

    /// How many requests failed so far.
    pub(super) fn made(&self) -> u32 {
        self.made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_end() {
        let options = RemoteOptions {
            retries: 4,
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_millis(300),
            ..RemoteOptions::default()
        };
        let mut tries = Tries::new(&options);
        for (after, low, high) in [(None, 50, 100), (Some(1), 100, 200), (None, 150, 300)] {
            let pause = tries
                .next(after.map(Duration::from_millis))
                .unwrap()
                .as_millis();
            assert!((low..=high).contains(&pause), "{pause}");
        }
        // A server may ask for more, but not for ever.
        let asked = tries.next(Some(Duration::from_secs(3600)));
        assert_eq!(asked, Some(options.longest_pause));
        assert_eq!(tries.next(None), None);
        assert_eq!(tries.made(), 5);
    }
}
