//! Runs of the real gate, engine and catalog without a device: [`sim`] for faults, [`trace`] and
//! what replays it for policies.
#![forbid(unsafe_code)]

pub mod sim;
pub mod trace;

use std::path::PathBuf;

/// Where real traces are kept during development, if they are: `PRESNAP_TRACES`, or beside the
/// project. They are not part of it.
pub fn traces_folder() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/traces");
    let folder = std::env::var_os("PRESNAP_TRACES").map_or_else(|| beside.into(), PathBuf::from);
    folder.is_dir().then_some(folder)
}
