//! What users ask for: stores, volumes and snapshots made, opened and deleted. On the app thread.

use std::time::Duration;

mod snapshots;
mod stores;
mod volumes;

pub use snapshots::{create_snapshot, delete_snapshot};
pub use stores::{create_store, delete_store, examine_store, load_store, unload_store};
pub use volumes::{attach_awaited, create_volume, delete_volume};

/// How long a call of the start-up configuration may take: SPDK's loader gives up after 10 s, and the
/// target with it. What takes longer goes on by itself.
const START_CALL_MAX: Duration = Duration::from_secs(8);

/// Pause between two looks at something that others have to end or bring.
const LOOK_PAUSE: Duration = Duration::from_millis(1);
