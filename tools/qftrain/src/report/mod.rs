//! `qftrain report`: runs as one page that needs nothing else.

mod charts;
mod images;
mod page;
mod run_data;
mod svg;

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::bail;
use qf_model::run_dir::RunDir;
use qftrain::args::ReportArgs;

use self::run_data::RunData;
use crate::session::write_file;
use qf_cli::output::say;

/// Runs that a page compares; more make no picture.
const MAX_RUNS: usize = 12;

pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    if args.runs.len() > MAX_RUNS {
        bail!(
            "{} runs are more than a page can compare; give at most {MAX_RUNS}",
            args.runs.len()
        );
    }
    let runs = args
        .runs
        .iter()
        .map(|path| RunData::read(&RunDir::new(path)));
    let runs = runs.collect::<anyhow::Result<Vec<RunData>>>()?;
    let out = match (&args.out, &args.runs[..]) {
        (Some(out), _) => out.clone(),
        (None, [run]) => RunDir::new(run).report(),
        (None, _) => PathBuf::from("report.html"),
    };
    write_file(&out, page::html(&runs).as_bytes())?;
    say(format_args!("report: {}", out.display()))
}

/// Writes the report of a run into its folder.
///
/// # Errors
/// That a file of the run cannot be read, or the page not be written.
pub(crate) fn write(run_dir: &RunDir) -> anyhow::Result<()> {
    let data = RunData::read(run_dir)?;
    write_file(&run_dir.report(), page::html(&[data]).as_bytes())
}

/// Keeps the report of a run fresh while it trains, from a thread of its own.
pub(crate) struct Refresh {
    run_dir: RunDir,
    running: Option<JoinHandle<Duration>>,
    /// When the last one was begun, and how long to wait for the next.
    last: Instant,
    interval: Duration,
}

/// Time between reports, at least.
const INTERVAL: Duration = Duration::from_secs(60);

/// A report takes this share of the time at most.
const SHARE: u32 = 50;

impl Refresh {
    pub(crate) fn new(run_dir: &RunDir) -> Refresh {
        Refresh {
            run_dir: run_dir.clone(),
            running: None,
            last: Instant::now(),
            interval: INTERVAL,
        }
    }

    /// Begins one if it is time.
    pub(crate) fn now_and_then(&mut self) {
        if self.last.elapsed() >= self.interval {
            self.now();
        }
    }

    /// Begins one, unless one is being written.
    pub(crate) fn now(&mut self) {
        if self
            .running
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
        {
            return;
        }
        self.wait();
        self.last = Instant::now();
        let run_dir = self.run_dir.clone();
        let work = move || {
            let started = Instant::now();
            if let Err(error) = write(&run_dir) {
                log::warn!("the report is not written: {error:#}");
            }
            started.elapsed()
        };
        match std::thread::Builder::new()
            .name("qf-report".into())
            .spawn(work)
        {
            Ok(thread) => self.running = Some(thread),
            Err(error) => log::warn!("the report is not written: {error}"),
        }
    }

    /// Waits for the one that is being written.
    pub(crate) fn wait(&mut self) {
        if let Some(Ok(took)) = self.running.take().map(JoinHandle::join) {
            self.interval = INTERVAL.max(took * SHARE);
        }
    }
}
