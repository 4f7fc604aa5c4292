//! Lines for the user. A reader that has gone away, as in `qfdata … | head`, is no failure.

use std::fmt::Arguments;
use std::io::{self, Write};

use anyhow::Context;

/// A line of results on stdout.
pub(crate) fn say(line: Arguments<'_>) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

/// A line about the work on stderr. There is no place to report that it cannot be written.
pub(crate) fn remark(line: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}
