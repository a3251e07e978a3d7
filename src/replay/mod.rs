//! Runs of the real gate, engine and store without a device: [`sim`] looks for faults, [`run`]
//! replays a [`trace`] in virtual time to see what a policy is worth.
#![forbid(unsafe_code)]
#![allow(clippy::cast_precision_loss, reason = "shares and means are for people to read")]

pub mod accesses;
mod companion;
mod devices;
mod foreground;
mod glue;
pub mod policies;
mod random;
mod report;
pub mod run;
mod schedule;
mod scorer;
pub mod sim;
#[cfg(test)]
mod tests;
pub mod trace;
#[cfg(feature = "lstm")]
pub mod training;
pub mod workload;

pub use companion::Companion;
pub use devices::DeviceSpeed;
pub use policies::PolicySpec;
pub use report::{Left, Parked, Report, SnapshotReport, Staging};
pub use run::{Policy, Progress, ReplayError, ReplayOptions, replay, replay_all};
pub use schedule::Schedule;
pub use scorer::ScoredPolicy;

use std::path::PathBuf;

/// Where real traces are kept during development, if they are: `PRESNAP_TRACES`, or beside the
/// project. They are not part of it.
pub fn traces_folder() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/traces");
    let folder = std::env::var_os("PRESNAP_TRACES").map_or_else(|| beside.into(), PathBuf::from);
    folder.is_dir().then_some(folder)
}
