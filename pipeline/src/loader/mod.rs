//! Stages, queues and budgets: the only module that starts threads.
//!
//! ```text
//! data sets: order of positions ([`crate::order`]), from indices or from what the shards say
//!   │ mix: one data set after another, global steps and slots; which positions are this rank's
//! sequencer ── reader threads (io_threads): samples of planned positions, or whole shards
//!   │ bounded queue of positions, each with its pending result      ┌─ rayon pool (threads):
//!   ├────────────────────────────────────────────────────────────┤  decode, augment, tokenise
//! collator ── takes results in order, fills batches              └─
//!   │ bounded queue of batches
//! consumer
//! ```
//!
//! A result has its position in the order before any worker sees the sample, so the batches are the
//! same for any number of threads.

mod builder;
mod meters;
mod plan;
mod read;
mod run;
#[cfg(test)]
mod tests;
mod thread;

pub use builder::LoaderBuilder;
pub use meters::bottleneck::SettingNames;
pub use meters::stats::{LoaderReport, QueueReport, StageReport};
pub use meters::table::{queue_table, stage_table};
pub use run::listing::{Listing, OrderBatch};
pub use run::loader::{Loader, LoaderMonitor};
pub use run::samples::Samples;
pub use run::skips::{NamedOnce, SkipReports, SkippedSample, TakenReports};

pub use crate::resume::{Counters, LoaderState, OrderKey, SetKey, SetPosition, SlotRun, World};
pub use crate::source::{split_spec, DataSet};
