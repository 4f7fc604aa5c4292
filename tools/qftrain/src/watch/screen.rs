//! Progress: a bar on a terminal, a line now and then elsewhere and in train.log.

use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use qf_model::train::{StepRecord, ValidationRecord};

use super::smooth::Smooth;
use qf_cli::output::{is_quiet, remark};

/// Time between lines: a twentieth of the run so far, within these bounds.
const FIRST_LINES: Duration = Duration::from_secs(5);
const LATER_LINES: Duration = Duration::from_secs(60);

/// Time between changes of the bar, which nobody reads faster.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

pub(crate) struct Screen {
    bar: ProgressBar,
    started: Instant,
    first_step: u64,
    total_steps: u64,
    losses: [Smooth; 4],
    rate: Smooth,
    last_line: Option<Instant>,
    last_draw: Option<Instant>,
}

impl Screen {
    /// From `first_step` steps done to `total_steps`.
    pub(crate) fn new(first_step: u64, total_steps: u64) -> Self {
        let bar = match is_quiet() {
            true => ProgressBar::hidden(),
            false => ProgressBar::new(total_steps),
        };
        // `wide_msg` cuts off what the terminal has no room for. The template is a constant; with the
        // default one the bar only looks different.
        let bar = match ProgressStyle::with_template("{bar:20} {pos}/{len}  {wide_msg}") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        bar.set_position(first_step);
        Screen {
            bar,
            started: Instant::now(),
            first_step,
            total_steps,
            losses: Default::default(),
            rate: Smooth::default(),
            last_line: None,
            last_draw: None,
        }
    }

    /// Shows a logged step.
    pub(crate) fn step(&mut self, record: &StepRecord) {
        let values = [
            record.loss,
            record.loss_itc,
            record.loss_itm,
            record.loss_lm,
        ];
        for (mean, value) in self.losses.iter_mut().zip(values) {
            mean.add(value);
        }
        self.rate.add(record.images_per_s);
        let is_last = record.step == self.total_steps;
        let interval = self.line_interval();
        if is_due(&mut self.last_line, interval) || is_last {
            self.last_line = Some(Instant::now());
            let (eta, figures) = (self.eta(record), self.figures(record));
            let line = format!(
                "step {}/{}  {figures}  {eta}",
                record.step, self.total_steps
            );
            self.bar.suspend(|| remark(format_args!("{line}")));
        }
        if !self.bar.is_hidden() && is_due(&mut self.last_draw, BAR_INTERVAL) {
            self.bar.set_position(record.step);
            let message = format!("{}  {}", self.eta(record), self.figures(record));
            self.bar.set_message(message);
        }
    }

    /// Shows figures on held-out data.
    pub(crate) fn validation(&self, record: &ValidationRecord) {
        let line = validation_line(record);
        self.bar.suspend(|| remark(format_args!("{line}")));
    }

    /// Says something above the bar.
    pub(crate) fn above(&self, say: impl FnOnce()) {
        self.bar.suspend(say);
    }

    fn line_interval(&self) -> Duration {
        (self.started.elapsed() / 20).clamp(FIRST_LINES, LATER_LINES)
    }

    fn eta(&self, record: &StepRecord) -> String {
        let done = record.step.saturating_sub(self.first_step).max(1);
        let left = self.total_steps.saturating_sub(record.step);
        let eta = self.started.elapsed().mul_f64(left as f64 / done as f64);
        format!("ETA {:#}", HumanDuration(eta))
    }

    /// What matters most comes first.
    fn figures(&self, record: &StepRecord) -> String {
        let [loss, itc, itm, lm] = self.losses.map(|loss| loss.mean());
        let memory = match record.memory_bytes {
            Some(bytes) => format!("  {:.1} GB", bytes as f64 / 1e9),
            None => String::new(),
        };
        format!(
            "loss {loss:.3} (itc {itc:.3} itm {itm:.3} lm {lm:.3})  lr {:.2e}  {:.0} images/s  \
             data wait {:.1} %{memory}",
            record.lr,
            self.rate.mean(),
            100.0 * record.data_wait_share,
        )
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Whether so much time has gone since the last time it was due.
fn is_due(last: &mut Option<Instant>, interval: Duration) -> bool {
    let is_due = last.is_none_or(|last| last.elapsed() >= interval);
    if is_due {
        *last = Some(Instant::now());
    }
    is_due
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
