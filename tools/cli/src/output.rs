//! Lines for the user. A reader that has gone away, as in `qfdata … | head`, is no failure.
//! What a terminal would obey is escaped: names and headers of others may be in any line.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use qf_pipeline::printable::{Printable, PrintableLines};

use crate::journal;

static IS_QUIET: AtomicBool = AtomicBool::new(false);

/// Leaves [`remark`]s out from now on. Errors, warnings and results stay.
pub fn be_quiet() {
    IS_QUIET.store(true, Ordering::Relaxed);
}

/// Whether [`be_quiet`] was called.
pub fn is_quiet() -> bool {
    IS_QUIET.load(Ordering::Relaxed)
}

/// A line of results on stdout.
pub fn say(line: Arguments<'_>) -> anyhow::Result<()> {
    let line = line.to_string();
    journal::note(&line);
    match writeln!(io::stdout(), "{}", PrintableLines(&line)) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// Many lines of results on stdout, written together.
#[derive(Debug)]
pub struct Lines(io::BufWriter<io::Stdout>);

impl Lines {
    /// Nothing is written yet.
    pub fn new() -> Lines {
        Lines(io::BufWriter::with_capacity(64 << 10, io::stdout()))
    }

    /// Adds a line; `false` once nobody reads any more.
    ///
    /// # Errors
    /// That standard output cannot be written.
    pub fn say(&mut self, line: Arguments<'_>) -> anyhow::Result<bool> {
        let line = line.to_string();
        still_read(writeln!(self.0, "{}", PrintableLines(&line)))
    }

    /// Adds bytes as they are; `false` once nobody reads any more.
    ///
    /// # Errors
    /// That standard output cannot be written.
    pub fn raw(&mut self, bytes: &[u8]) -> anyhow::Result<bool> {
        still_read(self.0.write_all(bytes))
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// That standard output cannot be written.
    pub fn finish(mut self) -> anyhow::Result<()> {
        still_read(self.0.flush()).map(|_| ())
    }
}

impl Default for Lines {
    fn default() -> Self {
        Lines::new()
    }
}

fn still_read(written: io::Result<()>) -> anyhow::Result<bool> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write to standard output"),
    }
}

/// A line for another program on stdout, JSON say, as it is.
///
/// # Errors
/// That standard output cannot be written.
pub fn say_data(line: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// A line about the work on stderr, unless the user wants [quiet](be_quiet). There is no place to report
/// that it cannot be written.
pub fn remark(line: Arguments<'_>) {
    let line = line.to_string();
    journal::note(&line);
    if !is_quiet() {
        let _ = writeln!(io::stderr(), "{}", PrintableLines(&line));
    }
}

/// `error: …` on stderr, for what ends a program.
pub fn complain(error: Arguments<'_>) {
    let line = format!("error: {error}");
    journal::note(&line);
    let _ = writeln!(io::stderr(), "{}", PrintableLines(&line));
}

/// Sends the log to stderr, a line for each record, warnings and errors unless `RUST_LOG` says
/// otherwise.
pub fn start_log() {
    start_log_at("warn");
}

/// The same with another level where `RUST_LOG` says nothing.
pub fn start_log_at(level: &str) {
    let default_level = env_logger::Env::default().default_filter_or(level);
    env_logger::Builder::from_env(default_level)
        .format(|out, record| {
            let level = record.level();
            let style = out.default_level_style(level);
            let message = record.args().to_string();
            journal::note(&format!("[{level:<5}] {message}"));
            writeln!(out, "[{style}{level:<5}{style:#}] {}", Printable(&message))
        })
        .init();
}

/// A command did what it could, and some of its inputs could not be used: exit code 3. Those were named one
/// by one; this is the summary.
#[derive(Debug)]
pub struct InPart(pub String);

impl std::fmt::Display for InPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InPart {}
