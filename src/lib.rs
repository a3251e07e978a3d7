//! presnap: an SPDK storage target whose snapshots are copied before they are asked for.
//!
//! Rooms and their one-way dependencies are listed in `docs/architecture.md`. The pure rooms
//! (`gate`, `engine`, `store`, `monitor`, `predict`, `replay`) do no I/O of their own and build
//! without SPDK (`--no-default-features`).

pub mod cli;
pub mod engine;
pub mod gate;
pub mod monitor;
pub mod perf;
pub mod predict;
pub mod replay;
pub mod rpc;
#[cfg(feature = "spdk")]
pub mod spdk;
pub mod store;
#[cfg(feature = "spdk")]
pub mod volume;
