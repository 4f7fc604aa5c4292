//! Pieces of an event's line.

use std::io::Write;

/// Appends text.
pub(super) fn push(line: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to memory cannot fail.
    let _ = line.write_fmt(text);
}

/// Appends a JSON string.
pub(super) fn write_str(line: &mut Vec<u8>, text: &str) {
    // Neither can this.
    let _ = serde_json::to_writer(line, text);
}

/// A value that an event carries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arg<'a> {
    /// Text.
    Str(&'a str),
    /// A count.
    U64(u64),
    /// A number; written as `null` where it is not finite.
    F64(f64),
    /// Yes or no.
    Bool(bool),
}

impl<'a> From<&'a str> for Arg<'a> {
    fn from(text: &'a str) -> Self {
        Arg::Str(text)
    }
}

impl From<u64> for Arg<'_> {
    fn from(count: u64) -> Self {
        Arg::U64(count)
    }
}

impl From<f64> for Arg<'_> {
    fn from(number: f64) -> Self {
        Arg::F64(number)
    }
}

impl From<bool> for Arg<'_> {
    fn from(flag: bool) -> Self {
        Arg::Bool(flag)
    }
}

/// What an event carries beside its name, by name.
pub type Args<'a> = &'a [(&'a str, Arg<'a>)];

/// `,"NAME":µs` to the nanosecond: spans that nest in ns nest in the file.
pub(super) fn write_time(line: &mut Vec<u8>, name: &str, ns: u64) {
    push(
        line,
        format_args!(",\"{name}\":{}.{:03}", ns / 1000, ns % 1000),
    );
}

pub(super) fn write_args(line: &mut Vec<u8>, args: &[Args<'_>]) {
    let mut separator = ",\"args\":{";
    for (name, value) in args.iter().copied().flatten() {
        line.extend_from_slice(separator.as_bytes());
        separator = ",";
        write_str(line, name);
        line.push(b':');
        match value {
            Arg::Str(text) => write_str(line, text),
            Arg::U64(count) => push(line, format_args!("{count}")),
            Arg::F64(number) if number.is_finite() => push(line, format_args!("{number}")),
            Arg::F64(_) => line.extend_from_slice(b"null"),
            Arg::Bool(flag) => push(line, format_args!("{flag}")),
        }
    }
    if separator == "," {
        line.push(b'}');
    }
}
