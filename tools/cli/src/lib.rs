//! What the command lines of `qfdata` and `qftrain` share: lines for the user, the reading of arguments, the
//! shell's completions and manual pages, pages to look at, a server for them.

pub mod args;
pub mod output;
pub mod page;
pub mod reference;
pub mod serve;
pub mod shell;
pub mod version;
