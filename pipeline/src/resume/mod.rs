//! Where a run stands after a batch: positions of its data sets, batch slots, counters, and what the
//! order was drawn from.

mod counters;
mod slots;
mod state;
mod world;

pub use counters::Counters;
pub(crate) use slots::BatchSlots;
pub use slots::SlotRun;
pub use state::{LoaderState, OrderKey, SetKey, SetPosition};
pub use world::World;
