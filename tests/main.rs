//! All tests of the workspace as one binary.

/// Finds the programs under test.
mod bin;
/// The network, the optimiser and the processors against numbers of the reference.
mod golden;
/// Shards exchanged with Python's `webdataset` and `datasets`.
mod interop;
/// `qfdata shard` as a user runs it.
mod shard_cli;
/// `qfdata synth` as a user runs it.
mod synth_cli;
