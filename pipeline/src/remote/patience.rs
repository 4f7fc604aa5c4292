//! How long a request may go without getting on, when that is said, and when it is given up.

use std::collections::hash_map::RandomState;
use std::collections::HashMap;
use std::future::Future;
use std::hash::{BuildHasher, Hasher};
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use super::RemoteOptions;

/// What to do once the time is used up.
const TRY_LATER: &str = "check the network and the server, then run this again";

/// The health of each store that is in use, by its URL: several data sets may be in one.
static STORES: LazyLock<Mutex<HashMap<String, Weak<Health>>>> = LazyLock::new(Mutex::default);

/// What all requests of this process to one store have in common: one line in the log when it stops
/// answering, and one when it answers again, however many readers wait for it.
#[derive(Debug)]
pub(super) struct Health {
    /// `scheme://authority/`, for messages.
    store: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Requests that have waited for long.
    waiting: u32,
    /// When the first of them began to wait.
    since: Instant,
    last_answer: Instant,
    /// A request was given up, and nothing has answered since it began.
    is_lost: bool,
}

impl Health {
    /// That of the store with this URL.
    pub(super) fn of(store: &str) -> Arc<Health> {
        let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
        stores.retain(|_, health| health.strong_count() > 0);
        if let Some(health) = stores.get(store).and_then(Weak::upgrade) {
            return health;
        }
        let now = Instant::now();
        let health = Arc::new(Health {
            store: store.to_string(),
            state: Mutex::new(State {
                waiting: 0,
                since: now,
                last_answer: now,
                is_lost: false,
            }),
        });
        stores.insert(store.to_string(), Arc::downgrade(&health));
        health
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The store does answer, whatever it says.
    pub(super) fn answered(&self) {
        let mut state = self.lock();
        state.last_answer = Instant::now();
        state.is_lost = false;
    }

    /// Whether a request was given up and no other was answered since that one began.
    pub(super) fn is_lost(&self) -> bool {
        self.lock().is_lost
    }

    fn given_up(&self, since: Instant) {
        let mut state = self.lock();
        state.is_lost |= state.last_answer <= since;
    }

    /// Counts a request that waits; the first one is logged.
    fn report(self: &Arc<Self>, since: Instant, message: impl FnOnce() -> String) -> Report {
        let mut state = self.lock();
        state.waiting += 1;
        if state.waiting == 1 {
            state.since = since;
            drop(state);
            log::warn!("{}", message());
        }
        Report(self.clone())
    }
}

/// A request that has waited for long.
struct Report(Arc<Health>);

impl Report {
    /// It got on.
    fn over(self) {
        let state = self.0.lock();
        if state.waiting == 1 {
            let seconds = state.since.elapsed().as_secs_f64();
            log::warn!("{}: going on after {seconds:.1} s", self.0.store);
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.waiting = state.waiting.saturating_sub(1);
    }
}

/// One request, made again as often as it takes.
///
/// Counted is the time that it waits: for an answer, for bytes and in the pauses between tries, but
/// not while nobody takes what has come. Bytes begin a new count once there are as many as
/// [`RemoteOptions::least_bytes_per_s`] gives in [`RemoteOptions::stall_timeout`].
pub(super) struct Patience {
    health: Arc<Health>,
    /// What is asked for, as it may be shown.
    name: String,
    limit: Duration,
    warn_after: Duration,
    least_bytes_per_s: f64,
    progress_bytes: u64,
    first_pause: Duration,
    longest_pause: Duration,
    /// Of the present count.
    since: Instant,
    waited: Duration,
    got: u64,
    warn_at: Duration,
    failures: u32,
    last_failure: String,
    pause: Duration,
    report: Option<Report>,
}

impl Patience {
    /// Waits no longer than `limit`.
    pub(super) fn new(
        health: Arc<Health>,
        name: &str,
        limit: Duration,
        options: &RemoteOptions,
    ) -> Self {
        let least = f64::from(options.least_bytes_per_s);
        let warn_after = options.warn_after.min(limit / 2);
        Patience {
            health,
            name: name.to_string(),
            limit,
            warn_after,
            least_bytes_per_s: least,
            progress_bytes: ((least * options.stall_timeout.as_secs_f64()) as u64).max(1),
            first_pause: options.first_pause,
            longest_pause: options.longest_pause,
            since: Instant::now(),
            waited: Duration::ZERO,
            got: 0,
            warn_at: warn_after,
            failures: 0,
            last_failure: String::new(),
            pause: options.first_pause,
            report: None,
        }
    }

    /// Waits for `future`, at most so long; none if that was not long enough.
    pub(super) async fn wait<T>(
        &mut self,
        at_most: Duration,
        future: impl Future<Output = T>,
    ) -> Option<T> {
        let limit = at_most.min(self.limit.saturating_sub(self.waited));
        let start = Instant::now();
        let mut future = pin!(future);
        loop {
            let left = limit.saturating_sub(start.elapsed());
            let to_warning = match self.report {
                None => self.warn_at.saturating_sub(self.waited + start.elapsed()),
                Some(_) => Duration::MAX,
            };
            match tokio::time::timeout(left.min(to_warning), &mut future).await {
                Ok(value) => {
                    self.waited += start.elapsed();
                    return Some(value);
                }
                Err(_) if to_warning < left => self.warn(self.waited + start.elapsed()),
                Err(_) => {
                    self.waited += start.elapsed();
                    return None;
                }
            }
        }
    }

    /// A pause before the next try.
    pub(super) async fn pause(&mut self, pause: Duration) {
        self.wait(pause, std::future::pending::<()>()).await;
    }

    fn warn(&mut self, waited: Duration) {
        if self.got as f64 >= self.least_bytes_per_s * waited.as_secs_f64() && self.got > 0 {
            // Slow, but fast enough.
            self.warn_at = waited + self.warn_after;
            return;
        }
        let message = || {
            let what = match self.last_failure.as_str() {
                "" if self.got == 0 => "no answer".to_string(),
                "" => format!("only {} bytes", self.got),
                failure => failure.to_string(),
            };
            let (waited, limit) = (waited.as_secs_f64(), self.limit.as_secs_f64());
            format!(
                "{}: {what} for {waited:.1} s; trying on for up to {limit:.0} s",
                self.name
            )
        };
        self.report = Some(self.health.report(self.since, message));
    }

    /// So many new bytes came.
    pub(super) fn got(&mut self, bytes: usize) {
        self.got += bytes as u64;
        if self.got >= self.progress_bytes {
            self.begin_again();
        }
    }

    /// What came in the time since [`Patience::waited`] said this was no news, and no standstill.
    pub(super) fn forgive(&mut self, waited: Duration) {
        self.waited = self.waited.min(waited);
    }

    /// How long it has waited so far.
    pub(super) fn waited(&self) -> Duration {
        self.waited
    }

    /// Why the last try failed, if the time was used up within the present one.
    pub(super) fn earlier_failure(&self) -> Option<String> {
        let is_used_up = self.waited >= self.limit;
        (is_used_up && self.failures > 0).then(|| self.last_failure.clone())
    }

    /// The request is through.
    pub(super) fn done(&mut self) {
        self.begin_again();
    }

    fn begin_again(&mut self) {
        self.health.answered();
        self.since = Instant::now();
        self.waited = Duration::ZERO;
        self.got = 0;
        self.warn_at = self.warn_after;
        self.failures = 0;
        self.last_failure.clear();
        self.pause = self.first_pause;
        if let Some(report) = self.report.take() {
            report.over();
        }
    }

    /// A try failed: the pause before the next one; none when the time is used up. `after` is how long
    /// the server asks to be left alone.
    pub(super) fn failed(&mut self, what: &str, after: Option<Duration>) -> Option<Duration> {
        self.failures += 1;
        self.last_failure = what.to_string();
        let left = self.limit.saturating_sub(self.waited);
        if left.is_zero() {
            self.health.given_up(self.since);
            return None;
        }
        let pause = self.pause.min(self.longest_pause);
        self.pause = pause.saturating_mul(2);
        let half = pause / 2;
        let jitter = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
        let pause = half + half.mul_f64(jitter);
        let asked = after.unwrap_or_default().min(self.longest_pause);
        Some(pause.max(asked).min(left))
    }

    /// How many tries of the present count failed.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// What is said when it is given up: `what` was the last failure.
    pub(super) fn complaint(&self, what: &str) -> String {
        let times = match self.failures {
            1 => "1 request".to_string(),
            failures => format!("{failures} requests"),
        };
        let seconds = self.waited.as_secs_f64();
        format!("{what}; {times} in {seconds:.1} s brought nothing; {TRY_LATER}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience(store: &str, limit: u64) -> Patience {
        let options = RemoteOptions {
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_millis(300),
            least_bytes_per_s: 100,
            stall_timeout: Duration::from_secs(1),
            ..RemoteOptions::default()
        };
        Patience::new(
            Health::of(store),
            "s3://b/x",
            Duration::from_secs(limit),
            &options,
        )
    }

    #[test]
    fn pauses_double_and_end_with_the_time() {
        let mut patience = patience("s3://pauses/", 60);
        for (after, low, high) in [(None, 50, 100), (Some(1), 100, 200), (None, 150, 300)] {
            let after = after.map(Duration::from_millis);
            let pause = patience.failed("503", after).unwrap().as_millis();
            assert!((low..=high).contains(&pause), "{pause}");
        }
        // A server may ask for more, but not for ever.
        let asked = patience.failed("503", Some(Duration::from_secs(3600)));
        assert_eq!(asked, Some(Duration::from_millis(300)));
        patience.waited = Duration::from_millis(59_900);
        assert!(patience.failed("503", None).unwrap() <= Duration::from_millis(100));
        patience.waited = Duration::from_secs(60);
        assert_eq!(patience.failed("503", None), None);
        assert!(patience.health.is_lost());
        let message = patience.complaint("503");
        assert!(message.contains("6 requests in 60.0 s"), "{message}");
        patience.done();
        assert!(!patience.health.is_lost());
    }

    #[test]
    fn only_enough_bytes_begin_a_new_count() {
        let mut patience = patience("s3://bytes/", 60);
        patience.waited = Duration::from_secs(5);
        patience.got(99);
        assert_eq!(patience.waited(), Duration::from_secs(5));
        patience.got(1);
        assert_eq!(patience.waited(), Duration::ZERO);
    }

    #[test]
    fn a_store_that_answers_others_is_not_lost() {
        let mut waits = patience("s3://others/", 1);
        std::thread::sleep(Duration::from_millis(5));
        waits.health.answered();
        waits.waited = Duration::from_secs(1);
        assert_eq!(waits.failed("reset", None), None);
        assert!(!waits.health.is_lost());
    }
}
