//! Bounds of the work that one event may cause, and hash tables that are the same in each run.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};

use super::cleanup::CLEANUP_EVERY_US;
use super::machine::COPY_IN_FLIGHT_MAX;
use super::staging::STAGING_IN_FLIGHT_MAX;

/// A hash table without a random seed: the same events give the same effects in the same order, so
/// that a history of the simulator replays. Its keys are chunk and job numbers, not a stranger's
/// text that could be made to collide.
pub(super) type FixedHashMap<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// How much the engine does per event and holds at once.
///
/// The defaults are what a volume uses. The simulator makes them tiny, so that a volume of a few
/// chunks meets every bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Copies under way at once for a snapshot, staging ones from before the cut included.
    pub copies_in_flight_max: usize,
    /// Staging copies under way at once.
    pub staging_in_flight_max: usize,
    /// Pending chunks known at once: enough for the copies in flight to never run dry, small
    /// enough that memory does not grow with the volume.
    pub pending_max: usize,
    /// Chunks visited by the walk in one tick, at some hundred nanoseconds each.
    pub walk_chunks_per_tick: usize,
    /// Words of the dirty index (64 chunks each) looked at in one tick: at about a nanosecond
    /// each when they are zero, some microseconds.
    pub walk_words_per_tick: usize,
    /// Rows per catalog transaction: about 400 KiB of rows, some milliseconds of the catalog's
    /// thread.
    pub rows_per_transaction: usize,
    /// Chunks looked at for staging in one tick, so that it stays in the tens of microseconds.
    pub candidates_per_tick: usize,
    /// Words of the dirty index that one tick looks through for chunks to stage.
    pub sweep_words_per_tick: usize,
    /// Words of the dirty index that one tick looks through for staged copies to give up.
    pub cleanup_words_per_tick: usize,
    /// Time from one search for such copies to the next.
    pub cleanup_every_us: u64,
    /// Words of the dirty index that one tick looks through for chunks to open.
    pub open_words_per_tick: usize,
    /// Chunks that one tick opens, at up to a hundred nanoseconds each.
    pub open_chunks_per_tick: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            copies_in_flight_max: COPY_IN_FLIGHT_MAX,
            staging_in_flight_max: STAGING_IN_FLIGHT_MAX,
            pending_max: 1024,
            walk_chunks_per_tick: 512,
            walk_words_per_tick: 4096,
            rows_per_transaction: 16 * 1024,
            candidates_per_tick: 64,
            sweep_words_per_tick: 1024,
            cleanup_words_per_tick: 64,
            cleanup_every_us: CLEANUP_EVERY_US,
            open_words_per_tick: 1024,
            open_chunks_per_tick: 64,
        }
    }
}
