//! `--metrics-addr`: the figures of a run, for Prometheus to collect.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use qf_cli::output::remark;
use qf_cli::serve::{Handler, Response, Server};
use qf_model::train::MetricsRecord;
use qf_pipeline::loader::LoaderMonitor;
use qftrain::args::MetricsAddress;

use super::prometheus::Figures;

/// The type of Prometheus' text format, version 0.0.4.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A server on a thread of its own. Dropping it ends it.
pub(crate) struct MetricsServer {
    figures: Figures,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Listens, and answers from here on.
    ///
    /// # Errors
    /// An address that is taken, or not of this machine.
    pub(crate) fn start(address: MetricsAddress) -> anyhow::Result<MetricsServer> {
        let server = Server::bind(address.0).context("--metrics-addr")?;
        let address = server.address();
        let (server, whom) = match address.ip().is_loopback() {
            true => (server, ""),
            // Collectors call a machine by its name.
            false => (
                server.for_any_host(),
                ", for everyone who reaches this machine",
            ),
        };
        remark(format_args!("metrics: http://{address}/metrics{whom}"));
        let figures = Figures::default();
        let answers = figures.clone();
        let handler: Handler = Arc::new(move |request| match request.path.as_str() {
            "/metrics" => Response {
                status: 200,
                content_type: TEXT_FORMAT,
                body: answers.page().into_bytes(),
            },
            _ => Response::plain(404, "the figures of the run are at /metrics"),
        });
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = is_over.clone();
        let thread = std::thread::Builder::new()
            .name("qf-metrics".into())
            .spawn(move || server.run(handler, &|| ends.load(Ordering::Relaxed)))
            .context("cannot start thread qf-metrics")?;
        Ok(MetricsServer {
            figures,
            is_over,
            thread: Some(thread),
        })
    }

    /// The run of so many steps begins; `loader` is asked whenever figures are.
    pub(crate) fn begin(&self, steps: u64, loader: LoaderMonitor) {
        self.figures.begin(steps, loader);
    }

    /// Takes over the figures of a line of metrics.jsonl.
    pub(super) fn record(&self, record: &MetricsRecord) {
        self.figures.record(record);
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic was printed where it happened.
            let _ = thread.join();
        }
    }
}
