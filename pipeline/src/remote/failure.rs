//! What becomes of a request that failed.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::time::Duration;

use super::client::Exchange;
use crate::shard_spec::DisplayUrl;

/// Longest quotation from a server's answer, in characters.
const MAX_QUOTE: usize = 200;

/// Why a request brought nothing, or not all.
#[derive(Debug)]
pub(super) enum Failure {
    /// Asking again would not help.
    Final {
        /// What happened, with the URL.
        error: io::Error,
        /// Whether it is the server's answer.
        is_answer: bool,
    },
    /// The server sends whole objects only.
    NoRanges,
    /// It may pass: a clause such as `the server answers 503 Service Unavailable`.
    Transient {
        /// What happened.
        what: String,
        /// How long the server asks to be left alone.
        after: Option<Duration>,
        /// The status, where the server answered.
        status: Option<u16>,
    },
}

impl Failure {
    pub(super) fn passing(what: impl Into<String>) -> Self {
        Failure::Transient {
            what: what.into(),
            after: None,
            status: None,
        }
    }

    /// It will not pass, whatever the server would say.
    pub(super) fn last(kind: ErrorKind, message: String) -> Self {
        Failure::Final {
            error: io::Error::new(kind, message),
            is_answer: false,
        }
    }

    /// A redirect that is not followed, a server that does not prove who it is.
    pub(super) fn refused(name: &str, why: &str) -> Self {
        Failure::last(ErrorKind::PermissionDenied, format!("{name}: {why}"))
    }

    /// Sorts an error of a store, knowing what went over the wire.
    pub(super) fn of(error: &object_store::Error, exchange: &Exchange, name: &str) -> Self {
        use object_store::Error as E;
        if let Some(why) = &exchange.refusal {
            return Failure::refused(name, why);
        }
        let what = said(error, exchange);
        let hint = credentials_hint(name);
        match (error, exchange.status) {
            (_, None | Some(404)) if exchange.asked_machine => {
                let what = "no credentials are set, and this machine has no role";
                Failure::last(
                    ErrorKind::PermissionDenied,
                    format!("{name}: {what}; {hint}"),
                )
            }
            (E::NotSupported { .. }, Some(200)) => Failure::NoRanges,
            (E::Generic { .. }, Some(200)) if what.contains("non-partial") => Failure::NoRanges,
            (_, Some(status @ 300..=399)) => Failure::last(
                ErrorKind::Other,
                format!(
                    "{name}: the server answers {status}, a redirection to nowhere; set AWS_REGION \
                     to the bucket's region"
                ),
            ),
            (_, Some(status @ 400..)) => of_status(status, what, name, hint, exchange.retry_after),
            (E::NotFound { .. }, _) => of_status(404, what, name, hint, None),
            (E::PermissionDenied { .. } | E::Unauthenticated { .. }, _) => {
                of_status(403, what, name, hint, None)
            }
            (
                E::InvalidPath { .. }
                | E::UnknownConfigurationKey { .. }
                | E::NotImplemented { .. },
                _,
            ) => Failure::last(ErrorKind::InvalidInput, format!("{name}: {what}")),
            (_, None) if mentions_credentials(error) => Failure::last(
                ErrorKind::PermissionDenied,
                format!("{name}: {what}; {hint}"),
            ),
            _ => Failure::Transient {
                what,
                after: exchange.retry_after,
                status: exchange.status,
            },
        }
    }

    /// As an error for whoever reads, who cannot ask again.
    pub(super) fn into_error(self) -> io::Error {
        match self {
            Failure::Final { error, .. } => error,
            Failure::Transient { what, .. } => io::Error::other(what),
            Failure::NoRanges => io::Error::other("the server sends whole files only"),
        }
    }
}

/// An answer that is no success. `what` says it, `advice` is for those who may not read.
///
/// Only what a server under load or a gateway says may pass; a 501 or 405 does not.
pub(super) fn of_status(
    status: u16,
    what: String,
    name: &str,
    advice: &str,
    after: Option<Duration>,
) -> Failure {
    let answer = |kind, message: String| Failure::Final {
        error: io::Error::new(kind, message),
        is_answer: true,
    };
    match status {
        404 | 410 => {
            let advice = "check the name, and that it has not been removed";
            answer(ErrorKind::NotFound, format!("{name}: {what}; {advice}"))
        }
        401 | 403 => answer(
            ErrorKind::PermissionDenied,
            format!("{name}: {what}; {advice}"),
        ),
        408 | 425 | 429 | 500 | 502..=504 | 509 | 520..=530 | 598 | 599 => Failure::Transient {
            what,
            after,
            status: Some(status),
        },
        _ => answer(ErrorKind::Other, format!("{name}: {what}")),
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
    inmost(error)
}

/// The last cause of an error, on one short line without secrets of URLs.
pub fn inmost(error: &(dyn Error + 'static)) -> String {
    let mut inmost = error;
    while let Some(source) = inmost.source() {
        inmost = source;
    }
    one_line(&inmost.to_string())
}

fn one_line(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let quote: String = words
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_QUOTE)
        .collect();
    DisplayUrl::of(&quote).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_passing_answers_are_asked_for_again() {
        let sort = |status| of_status(status, "x".into(), "http://h/x", "log in", None);
        for status in [408, 425, 429, 500, 502, 503, 504, 522] {
            assert!(
                matches!(sort(status), Failure::Transient { .. }),
                "{status}"
            );
        }
        for (status, kind) in [
            (404, ErrorKind::NotFound),
            (410, ErrorKind::NotFound),
            (401, ErrorKind::PermissionDenied),
            (403, ErrorKind::PermissionDenied),
            (400, ErrorKind::Other),
            (405, ErrorKind::Other),
            (416, ErrorKind::Other),
            (451, ErrorKind::Other),
            (501, ErrorKind::Other),
            (505, ErrorKind::Other),
            (507, ErrorKind::Other),
            (511, ErrorKind::Other),
        ] {
            match sort(status) {
                Failure::Final { error, is_answer } => {
                    assert!(is_answer && error.kind() == kind, "{status}");
                }
                other => panic!("{status}: {other:?}"),
            }
        }
    }
}
