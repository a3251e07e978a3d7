//! Bindings of `shim/psc.h`, the one boundary between presnap and SPDK.
//!
//! SPDK's own structures appear only as opaque pointers; version differences end in the C shim.
//! `src/spdk` of the presnap crate wraps all of this; nothing else should use it.

#![allow(non_camel_case_types, clippy::all, clippy::pedantic, reason = "generated")]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
