//! Warnings that come by the thousand: the first of each kind whole, then a summary now and then.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::{Duration, Instant};

/// Warnings of a kind that are shown whole.
const SHOWN: u64 = 10;

/// Time between summaries of a kind.
const INTERVAL: Duration = Duration::from_secs(60);

/// Logs warnings, of each kind the first ten as they are. What follows goes to the log's level `info`,
/// and is summed up in a warning once a minute and at the end, with the last of them.
///
/// Nothing but lines is saved: whoever warns counts as well.
#[derive(Debug, Default)]
pub struct Warnings {
    kinds: BTreeMap<&'static str, Kind>,
}

#[derive(Debug)]
struct Kind {
    total: u64,
    /// Since the last line of the kind.
    untold: u64,
    last: String,
    told: Instant,
}

/// What a warning becomes.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Whole,
    /// The last one that is shown whole.
    LastWhole,
    None,
    Summary,
}

impl Warnings {
    /// A warning of this kind, named as its counter is.
    pub fn warn(&mut self, kind: &'static str, message: fmt::Arguments<'_>) {
        let now = Instant::now();
        match self.record(kind, &message, now) {
            Line::Whole => log::warn!("{message}"),
            Line::LastWhole => log::warn!(
                "{message}; more of this kind ({kind}) are summed up once a minute, RUST_LOG=info \
                 shows each"
            ),
            Line::None => log::info!("{message}"),
            Line::Summary => {
                log::info!("{message}");
                self.sum_up(kind, now);
            }
        }
    }

    fn record(&mut self, kind: &'static str, message: &dyn Display, now: Instant) -> Line {
        let kind = self.kinds.entry(kind).or_insert_with(|| Kind {
            total: 0,
            untold: 0,
            last: String::new(),
            told: now,
        });
        kind.total += 1;
        if kind.total <= SHOWN {
            kind.told = now;
            return match kind.total == SHOWN {
                true => Line::LastWhole,
                false => Line::Whole,
            };
        }
        kind.untold += 1;
        kind.last.clear();
        // Writing to a string does not fail.
        let _ = fmt::Write::write_fmt(&mut kind.last, format_args!("{message}"));
        match now.saturating_duration_since(kind.told) >= INTERVAL {
            true => Line::Summary,
            false => Line::None,
        }
    }

    fn sum_up(&mut self, name: &'static str, now: Instant) {
        if let Some(kind) = self.kinds.get_mut(name).filter(|kind| kind.untold > 0) {
            log::warn!("{}", kind.summary(name));
            kind.untold = 0;
            kind.told = now;
        }
    }
}

impl Kind {
    fn summary(&self, name: &str) -> String {
        let Kind {
            total,
            untold,
            last,
            ..
        } = self;
        format!("{name}: {untold} more, {total} in all; the last: {last}")
    }
}

impl Drop for Warnings {
    fn drop(&mut self) {
        let now = Instant::now();
        let names: Vec<_> = self.kinds.keys().copied().collect();
        for name in names {
            self.sum_up(name, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_shown_and_the_rest_summed_up() {
        let mut warnings = Warnings::default();
        let start = Instant::now();
        let mut shown = 0;
        let mut summaries = Vec::new();
        for second in 0..1000u64 {
            let now = start + Duration::from_secs(second);
            let message = format!("sample {second}");
            match warnings.record("broken_image", &message, now) {
                Line::Whole | Line::LastWhole => shown += 1,
                Line::None => {}
                Line::Summary => {
                    summaries.push(warnings.kinds["broken_image"].summary("broken_image"));
                    warnings.sum_up("broken_image", now);
                }
            }
        }
        assert_eq!(shown, 10);
        assert_eq!(summaries.len(), 16); // every 60 of 990 seconds
        assert_eq!(
            summaries[1],
            "broken_image: 60 more, 130 in all; the last: sample 129"
        );
        // Another kind begins anew.
        assert_eq!(warnings.record("no_caption", &"x", start), Line::Whole);
        let left = &warnings.kinds["broken_image"];
        assert_eq!((left.total, left.untold), (1000, 30));
    }
}
