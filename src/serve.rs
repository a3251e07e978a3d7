//! The target: starts SPDK with presnap's volumes, stores and methods in it.

use crate::cli::ServeOptions;

/// Runs the target until it is told to stop.
///
/// # Errors
///
/// Why it could not start, or did not stop cleanly, in one line.
pub fn run(_options: &ServeOptions) -> Result<(), String> {
    Err("the target is not built into this version yet".into())
}
