//! One job on many machines: `qfdata plan` cuts the rows of an input into parts, `qfdata shard --plan P
//! --part I` makes the shards of one on any machine, `qfdata status P` says which are complete, and
//! `qfdata finish P` checks and sums them up.
//!
//! A part is a run of its own under a prefix of its own, `PREFIX-00003`. So it goes on where it was
//! killed, like any run, and its statistics, which are written last, are its completion marker. They
//! carry the plan's id. Nothing is coordinated: what a part holds depends on the plan alone.

mod file;
pub(super) mod finish;
mod job;
pub(super) mod making;
pub(super) mod part;
pub(super) mod planning;
pub(super) mod status;
