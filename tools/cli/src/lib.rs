//! What the command lines of `qfdata` and `qftrain` share: lines for the user, and the reading of arguments.

pub mod args;
pub mod output;
