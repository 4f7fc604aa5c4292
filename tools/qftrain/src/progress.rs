//! Live progress: a bar on a terminal, a line now and then elsewhere.

use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use qf_model::train::{MetricsRecord, StepRecord, ValidationRecord};

use qf_cli::output::remark;

/// Time between lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

pub(crate) struct Progress {
    bar: ProgressBar,
    started: Instant,
    first_step: u64,
    total_steps: u64,
    last_line: Option<Instant>,
}

impl Progress {
    /// From `first_step` steps done to `total_steps`.
    pub(crate) fn new(first_step: u64, total_steps: u64) -> Self {
        let bar = ProgressBar::new(total_steps);
        // The template is a constant; with the default one the bar only looks different.
        let bar = match ProgressStyle::with_template("{bar:20} {pos}/{len}  {msg}  ETA {eta}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        bar.set_position(first_step);
        bar.reset_eta();
        Progress {
            bar,
            started: Instant::now(),
            first_step,
            total_steps,
            last_line: None,
        }
    }

    /// Shows a line of metrics.jsonl. A skipped update is logged where it happens.
    pub(crate) fn show(&mut self, record: &MetricsRecord) {
        match record {
            MetricsRecord::Train(record) => self.show_step(record),
            MetricsRecord::Validation(record) => {
                let line = validation_line(record);
                self.bar.suspend(|| remark(format_args!("{line}")));
            }
            MetricsRecord::Skipped(_) => {}
        }
    }

    fn show_step(&mut self, record: &StepRecord) {
        let text = format!(
            "loss {:.3} (itc {:.3} itm {:.3} lm {:.3})  lr {:.2e}  {:.0} images/s  data wait {:.1} %",
            record.loss,
            record.loss_itc,
            record.loss_itm,
            record.loss_lm,
            record.lr,
            record.images_per_s,
            100.0 * record.data_wait_share
        );
        if !self.bar.is_hidden() {
            self.bar.set_position(record.step);
            self.bar.set_message(text);
            return;
        }
        let is_due = self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_INTERVAL);
        if is_due || record.step == self.total_steps {
            self.last_line = Some(Instant::now());
            let done = record.step.saturating_sub(self.first_step).max(1);
            let left = self.total_steps.saturating_sub(record.step);
            let eta = self.started.elapsed().mul_f64(left as f64 / done as f64);
            remark(format_args!(
                "step {}/{}  {text}  ETA {}",
                record.step,
                self.total_steps,
                HumanDuration(eta)
            ));
        }
    }

    pub(crate) fn finish(self) {
        self.bar.finish_and_clear();
    }
}

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

fn validation_line(record: &ValidationRecord) -> String {
    let losses = match (
        record.loss,
        record.loss_itc,
        record.loss_itm,
        record.loss_lm,
    ) {
        (Some(loss), Some(itc), Some(itm), Some(lm)) => {
            format!("loss {loss:.3} (itc {itc:.3} itm {itm:.3} lm {lm:.3})  ")
        }
        _ => String::new(),
    };
    let mut line = format!(
        "step {}: held-out {losses}TR@1 {:.1} IR@1 {:.1}",
        record.step, record.itc.text.r1, record.itc.image.r1
    );
    if let Some(itm) = &record.itm {
        line += &format!(
            ", re-ranked TR@1 {:.1} IR@1 {:.1}",
            itm.text.r1, itm.image.r1
        );
    }
    line + &format!(" of {} images in {:.1} s", record.images, record.secs)
}
