//! Settings of remote shards.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::stop::Stop;

/// Beginnings of the environment variables that set up a store.
const VARIABLES: [&str; 3] = ["AWS_", "AZURE_", "GOOGLE_"];

/// Name of the environment variable with the token for private web servers.
const BEARER_TOKEN: &str = "QF_HTTP_BEARER_TOKEN";

/// Longest wait for the answers that a run begins with: a server whose name is wrong should not take
/// as long as one that is down for a while.
pub(super) const START_LIMIT: Duration = Duration::from_secs(60);

/// How long a connection is kept that nobody uses.
pub(super) const POOL_IDLE: Duration = Duration::from_secs(60);

/// How remote shards are reached and read.
#[derive(Clone)]
pub struct RemoteOptions {
    /// Credentials, endpoints and the like, by the names of environment variables; others than
    /// `AWS_*`, `GOOGLE_*` and `AZURE_*` are passed over.
    pub env: Vec<(String, String)>,
    /// Range requests under way for one reader; default 4. More help where one connection is slow.
    pub parallel_requests: usize,
    /// Length of a range request in bytes; default 4 MiB.
    pub part_bytes: usize,
    /// Longest wait for a connection; default 10 s.
    pub connect_timeout: Duration,
    /// Sent to web servers that the user named, over https; default none.
    pub http_bearer_token: Option<String>,
    /// Longest silence, before or within an answer, until a request is made again; default 30 s.
    pub stall_timeout: Duration,
    /// Bytes a second that an answer has to bring over a stall timeout, lest the request is made
    /// again; default 1024.
    pub least_bytes_per_s: u32,
    /// How long a request may go without getting on, all its tries and pauses together; default
    /// 60 s. Before anything is read, at most 60 s.
    pub outage: Duration,
    /// How long a request waits before that is logged; default 10 s, at most half of `outage`.
    pub warn_after: Duration,
    /// The first pause, doubled at each further one; default 100 ms. Each pause is between half
    /// and all of that, by chance, lest many readers come back at once.
    pub first_pause: Duration,
    /// The longest pause, also where the server asks for a longer one; default 10 s.
    pub longest_pause: Duration,
    /// Keeps whole shards on this machine; default none.
    pub cache: Option<CacheOptions>,
    /// Ends resolving once it is set; default never.
    pub stop: Stop,
}

/// Where shards are kept on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// The folder; created where it is missing. Nothing else should be in it.
    pub dir: PathBuf,
    /// Greatest size of all files in it together, in bytes.
    pub max_bytes: u64,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        RemoteOptions {
            env: Vec::new(),
            parallel_requests: 4,
            part_bytes: 4 << 20,
            connect_timeout: Duration::from_secs(10),
            http_bearer_token: None,
            stall_timeout: Duration::from_secs(30),
            least_bytes_per_s: 1024,
            outage: Duration::from_secs(60),
            warn_after: Duration::from_secs(10),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(10),
            cache: None,
            stop: Stop::default(),
        }
    }
}

impl RemoteOptions {
    /// Default options with the settings of an environment, e.g. of `std::env::vars_os()`: those of
    /// the clouds, and `QF_HTTP_BEARER_TOKEN`. Variables that are not Unicode are passed over.
    pub fn from_vars(vars: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut options = RemoteOptions::default();
        for (name, value) in vars {
            let (Ok(name), Ok(value)) = (name.into_string(), value.into_string()) else {
                continue;
            };
            if name == BEARER_TOKEN {
                options.http_bearer_token = Some(value).filter(|token| !token.is_empty());
            } else if VARIABLES.iter().any(|start| name.starts_with(start)) {
                options.env.push((name, value));
            }
        }
        options
    }

    /// Zero requests or bytes would never get anywhere.
    pub(super) fn parallel(&self) -> usize {
        self.parallel_requests.max(1)
    }

    pub(super) fn part(&self) -> u64 {
        self.part_bytes.max(1) as u64
    }
}

/// Names the variables, and keeps their values, which may be secrets, to itself.
impl fmt::Debug for RemoteOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("RemoteOptions")
            .field("env", &names)
            .field("parallel_requests", &self.parallel_requests)
            .field("part_bytes", &self.part_bytes)
            .field("connect_timeout", &self.connect_timeout)
            .field("stall_timeout", &self.stall_timeout)
            .field("least_bytes_per_s", &self.least_bytes_per_s)
            .field("outage", &self.outage)
            .field("warn_after", &self.warn_after)
            .field("first_pause", &self.first_pause)
            .field("longest_pause", &self.longest_pause)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_filtered_and_not_shown() {
        let vars = [
            ("AWS_SECRET_ACCESS_KEY", "hush"),
            ("TOKEN", "no"),
            ("QF_HTTP_BEARER_TOKEN", "quiet"),
            ("HOME", "/"),
        ];
        let vars = vars.map(|(name, value)| (name.into(), value.into()));
        let options = RemoteOptions::from_vars(vars);
        assert_eq!(
            options.env,
            [("AWS_SECRET_ACCESS_KEY".into(), "hush".into())]
        );
        let shown = format!("{options:?}");
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY"));
        assert!(!shown.contains("hush") && !shown.contains("quiet"));
        assert_eq!(options.http_bearer_token.as_deref(), Some("quiet"));
    }
}
