//! What the command lines of `qfdata` and `qftrain` share: arguments and their mistakes ([`args`]), lines for the
//! user ([`output`]), what `--version` says ([`version`]), completions and manual pages ([`shell`]), the page on
//! the command line ([`mod@reference`]), a file of what was said ([`journal`]), pages to look at ([`page`]) and a small
//! server for them ([`serve`]).
//!
//! A program of its own needs a `clap` definition and no more:
//!
//! ```
//! use clap::{CommandFactory, Parser};
//!
//! /// Counts things.
//! #[derive(Parser)]
//! #[command(name = "count")]
//! struct Cli {
//!     /// Where they are
//!     #[arg(long, value_name = "FOLDER")]
//!     folder: Option<std::path::PathBuf>,
//! }
//!
//! // Options that hold a path refuse URLs.
//! let command = qf_cli::args::refuse_urls(Cli::command());
//! assert!(command.try_get_matches_from(["count", "--folder", "s3://bucket"]).is_err());
//! let page = qf_cli::reference::markdown(Cli::command());
//! assert!(page.contains("| `--folder <FOLDER>` | Where they are |"));
//! ```

pub mod args;
pub mod journal;
pub mod output;
pub mod page;
pub mod reference;
pub mod serve;
pub mod shell;
pub mod version;
