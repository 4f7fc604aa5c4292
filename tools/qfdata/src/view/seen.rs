//! What was seen of a data set.

use std::collections::BTreeMap;

use crate::inspect::doubles::Double;
use crate::inspect::Facts;
use crate::stats::Tally;

/// What the page is made of.
pub(super) struct Seen {
    pub(super) shards: usize,
    pub(super) unreadable_shards: u64,
    pub(super) tally: Tally,
    /// Findings by code.
    pub(super) findings: BTreeMap<&'static str, u64>,
    /// In stored order.
    pub(super) sheet: Vec<Facts>,
    pub(super) near: Vec<Double>,
}
