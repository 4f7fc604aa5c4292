//! What `qftrain` does without libtorch: its command line, its settings and what they mean.
//!
//! The program `qftrain` answers help, mistakes, `config`, `completions` and `man` from here alone, within
//! milliseconds. For everything else it becomes `qftrain-torch`, which links libtorch and reads the same
//! command line.

pub mod args;
pub mod cli;
pub mod config_command;
pub mod library_environment;
pub mod libtorch;
mod reference;
pub mod resumption;
pub mod run_config;
pub mod settings;
