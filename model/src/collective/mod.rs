//! The ranks of a data-parallel run: what the losses and a training step need from one another.
//!
//! ```text
//! RankConfig ──join──▶ ProcessGroup ──▶ Collective   gathers for the losses
//!  (address,            │    │      └─▶ Ranks        agreement, states, weights
//!   rank, world)        │    └────────▶ Reducer      gradients, averaged during backward
//!                       └─ watch: a thread that finds ranks which died
//! ```

mod c10d;
mod group;
mod rank;
mod ranks;
mod store;
mod watch;

pub(crate) use c10d::unreached;
pub use c10d::{carries_nccl, Gradients, Reducer, Reduction};
pub use group::ProcessGroup;
pub use rank::{RankConfig, RankTimeouts};
pub use ranks::{digest, Collective, Ranks, SingleProcess};
