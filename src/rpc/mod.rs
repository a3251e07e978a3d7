//! presnap's JSON-RPC methods: one table, and what follows from it.
//!
//! - [`table`] lists the methods; [`schema`] has the words it is written in.
//! - [`decode()`] checks and types the parameters of a call ([`Params`]); [`RpcError`] is what a
//!   failed call answers.
//! - [`objects`] are the results.
//! - [`doc`] writes docs/rpc.md, the help of a method, and `scripts/presnap_rpc.py`.
//! - [`Client`] calls any method of a target over its socket. It alone does I/O.
//!
//! Nothing here but the handlers and the statistics touches SPDK, and nothing depends on a thread.

pub mod doc;
#[cfg(feature = "spdk")]
pub mod handlers;
pub mod objects;
pub mod schema;
pub mod table;

mod client;
mod convert;
mod decode;
mod error;
mod examples;
mod params;
#[cfg(feature = "spdk")]
mod statistics;

pub use client::{Client, ClientError};
pub use decode::decode;
pub use error::{Errno, METHOD_NOT_FOUND_CODE, RpcError};
pub use params::*;
pub use table::{METHODS, method};

use uuid::Uuid;

/// NQN under which a snapshot is exported unless the caller chooses one. The UUID keeps two
/// targets with equal names apart: hosts take equal NQNs for paths to the same subsystem.
pub fn default_nqn(volume: &str, snapshot: &str, uuid: Uuid) -> String {
    format!("nqn.2016-06.io.spdk:presnap:{volume}:{snapshot}:{uuid}")
}
