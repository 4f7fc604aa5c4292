//! A run in Prometheus' text format, version 0.0.4.
//!
//! Names follow its guide (<https://prometheus.io/docs/practices/naming/>): base units, `_total` on counters, a
//! label only where values of it add up.

use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use qf_cli::version::COMMIT;
use qf_model::eval::RecallPair;
use qf_model::train::{MetricsRecord, StepRecord, ValidationRecord};
use qf_pipeline::loader::{LoaderMonitor, LoaderReport, StageReport};
use qf_pipeline::process::{cpu_time, rss_bytes};

/// The newest figures, shared with the server that gives them out.
#[derive(Clone, Default)]
pub(crate) struct Figures(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// Steps of the whole run.
    planned: Option<u64>,
    step: Option<StepRecord>,
    validation: Option<ValidationRecord>,
    /// Updates that were left out since the start.
    updates_skipped: u64,
    loader: Option<LoaderMonitor>,
}

impl Figures {
    /// The run begins: `loader` is asked whenever figures are.
    pub(super) fn begin(&self, steps: u64, loader: LoaderMonitor) {
        let mut state = self.lock();
        state.planned = Some(steps);
        state.loader = Some(loader);
    }

    /// Takes over the figures of a line of metrics.jsonl.
    pub(super) fn record(&self, record: &MetricsRecord) {
        let mut state = self.lock();
        match record {
            MetricsRecord::Train(step) => state.step = Some(step.clone()),
            MetricsRecord::Validation(validation) => state.validation = Some(validation.clone()),
            MetricsRecord::Skipped(_) => state.updates_skipped += 1,
        }
    }

    /// The page that is collected.
    pub(super) fn page(&self) -> String {
        let state = self.lock();
        let mut page = Page::default();
        write_process(&mut page);
        if let Some(planned) = state.planned {
            page.gauge(
                "qformer_planned_steps",
                "Optimiser steps of the whole run",
                planned as f64,
            );
        }
        if let Some(step) = &state.step {
            write_step(&mut page, step);
        }
        page.counter(
            "qformer_skipped_updates_total",
            "Steps since the start whose update was left out: a loss or gradient was not finite",
            state.updates_skipped as f64,
        );
        if let Some(validation) = &state.validation {
            write_validation(&mut page, validation);
        }
        let loader = state.loader.clone();
        drop(state);
        if let Some(loader) = loader {
            write_loader(&mut page, &loader.report());
        }
        page.0
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every state is whole: values are replaced one by one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_process(page: &mut Page) {
    let build = [("version", env!("CARGO_PKG_VERSION")), ("commit", COMMIT)];
    page.family("qformer_build_info", "gauge", "The program that trains");
    page.sample("qformer_build_info", &build, 1.0);
    if let Some(bytes) = rss_bytes() {
        let help = "Resident memory of rank 0";
        page.gauge("process_resident_memory_bytes", help, bytes as f64);
    }
    if let Some(time) = cpu_time() {
        let help = "CPU time of rank 0, user and system";
        page.counter("process_cpu_seconds_total", help, time.as_secs_f64());
    }
}

/// The last step that was logged.
fn write_step(page: &mut Page, step: &StepRecord) {
    page.counter(
        "qformer_steps_total",
        "Optimiser steps done",
        step.step as f64,
    );
    page.gauge(
        "qformer_epoch",
        "Epoch of the last batch, from 0",
        step.epoch as f64,
    );
    for (name, help, value) in [
        ("qformer_loss", "Sum of the three losses", step.loss),
        ("qformer_itc_loss", "Contrastive loss", step.loss_itc),
        ("qformer_itm_loss", "Matching loss", step.loss_itm),
        ("qformer_lm_loss", "Language-model loss", step.loss_lm),
        (
            "qformer_gradient_norm",
            "Norm of all gradients together, before clipping",
            step.grad_norm,
        ),
        ("qformer_learning_rate", "Learning rate", step.lr),
        (
            "qformer_images_per_second",
            "Images per second over the last steps, of all ranks",
            step.images_per_s,
        ),
        (
            "qformer_data_wait_ratio",
            "Share of the time spent waiting for data",
            step.data_wait_share,
        ),
    ] {
        page.gauge(name, help, value);
    }
    if let Some(temperature) = step.temperature {
        page.gauge(
            "qformer_temperature",
            "What similarities are divided by",
            temperature,
        );
    }
    if let Some(bytes) = step.memory_bytes {
        let help = "On a GPU bytes that tensors hold, else resident memory; of rank 0";
        page.gauge("qformer_memory_bytes", help, bytes as f64);
    }
    let read = step.samples_read as f64;
    page.counter(
        "qformer_samples_read_total",
        "Samples read, of all ranks",
        read,
    );
    let name = "qformer_samples_skipped_total";
    page.family(
        name,
        "counter",
        "Samples left out, of all ranks: bad ones, and those of filters",
    );
    for (reason, count) in &step.skipped_by_reason {
        page.sample(name, &[("reason", reason)], *count as f64);
    }
}

/// The last validation.
fn write_validation(page: &mut Page, validation: &ValidationRecord) {
    for (name, help, value) in [
        (
            "qformer_validation_loss",
            "Sum of the losses on held-out data",
            validation.loss,
        ),
        (
            "qformer_validation_itc_loss",
            "Contrastive loss on held-out data",
            validation.loss_itc,
        ),
        (
            "qformer_validation_itm_loss",
            "Matching loss on held-out data",
            validation.loss_itm,
        ),
        (
            "qformer_validation_lm_loss",
            "Language-model loss on held-out data",
            validation.loss_lm,
        ),
    ] {
        if let Some(value) = value {
            page.gauge(name, help, value);
        }
    }
    let name = "qformer_validation_recall_ratio";
    page.family(
        name,
        "gauge",
        "Held-out queries whose match is among the first k",
    );
    let mut pair = |by: &str, pair: &RecallPair| {
        for (found, recall) in [("text", &pair.text), ("image", &pair.image)] {
            for (k, percent) in [("1", recall.r1), ("5", recall.r5), ("10", recall.r10)] {
                page.sample(
                    name,
                    &[("by", by), ("found", found), ("k", k)],
                    percent / 100.0,
                );
            }
        }
    };
    pair("itc", &validation.itc);
    if let Some(itm) = &validation.itm {
        pair("itm", itm);
    }
}

/// The loader of rank 0, as it is now.
fn write_loader(page: &mut Page, report: &LoaderReport) {
    let mut stages = |name: &str, kind: &str, help: &str, value: &dyn Fn(&StageReport) -> f64| {
        page.family(name, kind, help);
        for stage in &report.stages {
            page.sample(name, &[("stage", &stage.name)], value(stage));
        }
    };
    let name = "qformer_loader_items_total";
    stages(name, "counter", "Items through a stage", &|s| {
        s.items as f64
    });
    let name = "qformer_loader_bytes_total";
    stages(name, "counter", "Bytes through a stage", &|s| {
        s.bytes as f64
    });
    let name = "qformer_loader_busy_seconds_total";
    stages(
        name,
        "counter",
        "Time that a stage's threads worked",
        &|s| s.busy_secs,
    );
    let name = "qformer_loader_threads";
    stages(name, "gauge", "Threads of a stage", &|s| s.threads as f64);
    let name = "qformer_loader_queue_items";
    page.family(
        name,
        "summary",
        "Items found in a queue whenever one is taken: sum over count is its mean occupancy",
    );
    for queue in &report.queues {
        let taken = queue.items as f64;
        let labels = [("queue", queue.name.as_str())];
        page.sample(
            &format!("{name}_sum"),
            &labels,
            (queue.mean_items * taken).round(),
        );
        page.sample(&format!("{name}_count"), &labels, taken);
    }
    let name = "qformer_loader_queue_capacity_items";
    page.family(
        name,
        "gauge",
        "Items that a queue can hold, where items bound it",
    );
    for queue in &report.queues {
        if let Some(capacity) = queue.capacity_items {
            page.sample(name, &[("queue", &queue.name)], capacity as f64);
        }
    }
    let name = "qformer_loader_queue_wait_seconds_total";
    page.family(name, "counter", "Time spent waiting at a queue: by its producer as it was full, by its consumer as it was empty");
    for queue in &report.queues {
        for (state, secs) in [
            ("full", queue.full_wait_secs),
            ("empty", queue.empty_wait_secs),
        ] {
            page.sample(name, &[("queue", &queue.name), ("state", state)], secs);
        }
    }
}

/// Families of metrics, one after the other.
#[derive(Debug, Default)]
struct Page(String);

impl Page {
    /// Begins a family; its samples follow.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Formatting into a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}.\n# TYPE {name} {kind}\n");
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    /// A sample of the family that was begun last.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let open = if index == 0 { '{' } else { ',' };
            let text = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.0, "{open}{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = match value {
            value if value.is_nan() => writeln!(self.0, " NaN"),
            value if value.is_infinite() => {
                writeln!(self.0, " {}Inf", if value > 0.0 { '+' } else { '-' })
            }
            value => writeln!(self.0, " {value}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::alerts::tests::record;
    use super::*;

    #[test]
    fn a_page_has_each_family_once_and_the_figures_of_the_last_step() {
        let figures = Figures::default();
        figures.record(&MetricsRecord::Train(record(1, 5.0)));
        let mut last = record(2, f64::NAN);
        last.skipped_by_reason = [("broken_image".to_owned(), 3)].into();
        last.grad_norm = f64::INFINITY;
        figures.record(&MetricsRecord::Train(last));
        let page = figures.page();
        for line in [
            "# TYPE qformer_loss gauge",
            "qformer_loss NaN",
            "qformer_gradient_norm +Inf",
            "qformer_steps_total 2",
            "qformer_samples_read_total 64",
            "qformer_samples_skipped_total{reason=\"broken_image\"} 3",
            "qformer_skipped_updates_total 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        let types = page.lines().filter(|line| line.starts_with("# TYPE"));
        let types: Vec<&str> = types.collect();
        assert_eq!(types.len(), types.iter().collect::<BTreeSet<_>>().len());
        assert!(page.ends_with('\n'));
    }

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.sample("x", &[("a", "b\"c\\d\ne"), ("f", "g")], 1.5);
        assert_eq!(page.0, "x{a=\"b\\\"c\\\\d\\ne\",f=\"g\"} 1.5\n");
    }
}
