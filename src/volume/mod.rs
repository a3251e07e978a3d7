//! The bdev module: volumes, their snapshots, the stores they use.
//!
//! `volume_bdev` and `snapshot_bdev` are the data paths, on every reactor. All else runs on the
//! app thread: `control` does what users ask for, `volume` drives an engine, `store_host` owns a
//! store's device and catalog thread, `world` knows what is open. `predictor` has a thread of its
//! own for policies that predict; `scoring` is what it does for one volume.

pub mod access;
pub mod control;
pub mod copier;
pub mod export;
pub mod failure;
pub mod hooks;
pub mod predictor;
pub mod scoring;
pub mod scrub;
pub mod snapshot_bdev;
pub mod snapshots;
pub mod stats;
pub mod store_device;
pub mod store_host;
pub mod tuning;
#[allow(clippy::module_inception, reason = "the room is named for its main object")]
pub mod volume;
pub mod volume_bdev;
pub mod world;

/// Name of the bdev module in SPDK.
pub const MODULE_NAME: &str = "presnap";
