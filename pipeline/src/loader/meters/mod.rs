//! Meters and reports: what the stages did, and where time went.

pub(crate) mod bottleneck;
pub(crate) mod queue;
pub(crate) mod stats;
pub(crate) mod table;
