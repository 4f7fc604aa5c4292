//! Which sample when: pure functions of (seed, epoch, data), no I/O and no threads.
//!
//! An epoch's order is defined in two steps. [`epoch_shards`] permutes the shards; the samples of the
//! shards, one shard after the other, are then taken as they come, or permuted within [`Blocks`] of a
//! bounded number of samples, or, where all counts are known, all together by a [`Permutation`].
//! Nothing here looks at threads, ranks or time, so a seed gives one order on any machine, and each
//! position of it can be found without those before it.

mod blocks;
mod draw;
mod epoch;
mod mixture;
mod permutation;
mod shards;
mod spec;

pub use blocks::Blocks;
pub use epoch::EpochOrder;
pub use mixture::Mixture;
pub use permutation::Permutation;
pub use shards::epoch_shards;
pub use spec::{OrderSpec, ShuffleMode};
