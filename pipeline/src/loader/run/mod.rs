//! Running: threads, from positions of the order to batches.

pub(crate) mod collate;
pub(crate) mod listing;
pub(crate) mod loader;
pub(crate) mod open;
pub(crate) mod pending;
pub(crate) mod reorder_buffer;
pub(crate) mod samples;
pub(crate) mod sequence;
pub(crate) mod skips;
pub(crate) mod tracker;
pub(crate) mod work;
pub(crate) mod workers;
