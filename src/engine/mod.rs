//! Snapshots of a volume as a state machine: events in, effects out, no I/O of its own.
//!
//! Start with [`Engine::apply`]; [`events`] lists what goes in and comes out, [`records`] what is
//! made durable. `docs/architecture.md` tells the life of a snapshot.
#![forbid(unsafe_code)]

mod chain;
mod cleanup;
pub mod controller;
mod copying;
mod counters;
pub mod crc;
pub mod events;
mod limits;
mod machine;
mod pacer;
mod policy;
pub mod records;
mod scores;
mod snapshot;
mod space;
mod staging;
mod stop;
#[cfg(test)]
mod tests;
mod threshold;

pub use chain::{Chain, ChainError, CreatePlan};
pub use counters::Counters;
pub use limits::Limits;
pub use machine::{
    COPY_IN_FLIGHT_MAX, Content, Engine, Purpose, Settings, SlotSpace, Staged, StagedChunk,
};
pub use pacer::{Foreground, Pace};
pub use policy::{Policy, PolicyKind};
pub use scores::Score;
pub use space::{HeldSlots, Shortage};
pub use staging::{STAGING_ERRORS_MAX, STAGING_IN_FLIGHT_MAX};
