//! How far a command is: a bar on a terminal, a line now and then elsewhere.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use qf_cli::output::remark;

/// Time between lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Counts what a command has done.
pub(crate) struct Count {
    bar: ProgressBar,
    what: &'static str,
    started: Instant,
    last_line: Instant,
}

impl Count {
    /// Of `what`, e.g. `encoding images`; `total` where it is known.
    pub(crate) fn new(what: &'static str, total: Option<u64>) -> Self {
        let bar = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        };
        Count {
            bar: bar.with_message(what),
            what,
            started: Instant::now(),
            last_line: Instant::now(),
        }
    }

    /// Counts `more`.
    pub(crate) fn add(&mut self, more: u64) {
        self.bar.inc(more);
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            self.line();
        }
    }

    fn line(&self) {
        let Count { bar, what, .. } = self;
        let of = match bar.length() {
            Some(total) => format!(" of {total}"),
            None => String::new(),
        };
        let secs = self.started.elapsed().as_secs_f64();
        remark(format_args!(
            "{what}: {}{of} in {secs:.1} s",
            bar.position()
        ));
    }

    /// Shows how many there were.
    pub(crate) fn finish(self) {
        if self.bar.is_hidden() && self.bar.position() > 0 {
            self.line();
        }
        self.bar.finish_and_clear();
    }
}
