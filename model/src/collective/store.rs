//! What the ranks tell each other through the store, beside their collectives.

use std::time::{Duration, Instant};

use super::c10d::{C10dError, Store};

/// Under this key lies the reason why the run ends, from the first rank that knew one.
const FAILURE: &str = "failure";

/// The store with the names of its keys.
#[derive(Debug)]
pub(super) struct Board {
    pub(super) store: Store,
}

impl Board {
    /// A heartbeat.
    pub(super) fn beat(&self, rank: i64) -> Result<(), C10dError> {
        self.store.add(&format!("beat/{rank}"), 1).map(drop)
    }

    /// Heartbeats that a rank has sent.
    pub(super) fn beats(&self, rank: i64) -> Result<i64, C10dError> {
        self.store.add(&format!("beat/{rank}"), 0)
    }

    /// Leaves where this rank's data stand.
    pub(super) fn leave_word(&self, rank: i64, state: &[u8]) -> Result<(), C10dError> {
        self.store.set(&format!("word/{rank}"), state)
    }

    /// What a rank left last, if it did.
    pub(super) fn last_word(&self, rank: i64) -> Result<Option<Vec<u8>>, C10dError> {
        let key = format!("word/{rank}");
        match self.store.has(&key)? {
            true => self.store.get(&key, Duration::from_secs(1)).map(Some),
            false => Ok(None),
        }
    }

    /// Says why the run ends, unless another rank has.
    pub(super) fn put_failure(&self, cause: &str) -> Result<(), C10dError> {
        match self.store.add("failures", 1)? {
            1 => self.store.set(FAILURE, cause.as_bytes()),
            _ => Ok(()),
        }
    }

    /// Why the run ends, if a rank has said so.
    pub(super) fn failure(&self) -> Result<Option<String>, C10dError> {
        if !self.store.has(FAILURE)? {
            return Ok(None);
        }
        let cause = self.store.get(FAILURE, Duration::from_secs(1))?;
        Ok(Some(String::from_utf8_lossy(&cause).into_owned()))
    }

    /// Says that this rank needs the store no longer. Its host waits for the others to say so, `patience`
    /// at most: those that have died never do.
    pub(super) fn part(&self, world_size: i64, is_host: bool, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut left = self.store.add("left", 1);
        while is_host && left.is_ok_and(|left| left < world_size) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
            left = self.store.add("left", 0);
        }
    }
}

/// libtorch's messages go on with where it was thrown.
pub(super) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim()
}
