//! The real target, as users run it: `presnap serve` as a child process, driven over JSON-RPC and
//! NVMe/TCP. `harness` starts and stops things, `agent` is the initiator.
//!
//! Needs root, 4 GiB of memory that can become hugepages (the harness reserves and gives back what
//! it uses), and what `scripts/setup.sh` builds. Tests run one at a time, in whatever way they are
//! started: each holds a lock while it runs.
#![cfg(feature = "spdk")]

mod agent;
mod config;
mod control;
mod export;
mod harness;
mod harness_works;
mod initiator;
mod layers;
mod removal;
