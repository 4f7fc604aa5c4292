//! Lines for the user. A reader that has gone away, as in `qfdata … | head`, is no failure.
//! What a terminal would obey is escaped: names and headers of others may be in any line.

use std::fmt::Arguments;
use std::io::{self, Write};

use anyhow::Context;
use qf_pipeline::printable::{Printable, PrintableLines};

/// A line of results on stdout.
pub fn say(line: Arguments<'_>) -> anyhow::Result<()> {
    let line = line.to_string();
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

/// A line about the work on stderr. There is no place to report that it cannot be written.
pub fn remark(line: Arguments<'_>) {
    let line = line.to_string();
    let _ = writeln!(io::stderr(), "{}", PrintableLines(&line));
}

/// Sends the log to stderr, a line for each record, warnings and errors unless `RUST_LOG` says
/// otherwise.
pub fn start_log() {
    let default_level = env_logger::Env::default().default_filter_or("warn");
    env_logger::Builder::from_env(default_level)
        .format(|out, record| {
            let level = record.level();
            let style = out.default_level_style(level);
            let message = record.args().to_string();
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
