//! Runs of the real gate, engine and catalog without a device: see [`sim`].
#![forbid(unsafe_code)]

pub mod sim;
