//! SPDK bindings.
