//! Counters and latencies of one volume, on the app thread.

use hdrhistogram::Histogram;

use super::access::Commands;
use crate::engine::Counters;

/// Longest time that is told apart: an hour.
const LATENCY_US_MAX: u64 = 3_600_000_000;

/// Counters since they were last reset.
pub struct VolumeCounters {
    /// When counting began, milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// Cuts made.
    pub cuts: u64,
    /// Snapshots deleted.
    pub deleted: u64,
    /// Access records taken.
    pub records: u64,
    /// Access records lost.
    pub records_lost: u64,
    /// How long commands were parked, in microseconds.
    pub waits: Histogram<u64>,
    /// From the first command that asked for a chunk to be preserved to its release.
    pub preserves: Histogram<u64>,
    /// Foreground commands before counting began.
    pub commands_before: Commands,
    /// What the engine had counted before.
    pub engine_before: Counters,
}

fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 2)
        .expect("bounds and precision are constants that fit")
}

impl Default for VolumeCounters {
    fn default() -> Self {
        Self {
            since_unix_ms: unix_ms(),
            cuts: 0,
            deleted: 0,
            records: 0,
            records_lost: 0,
            waits: latencies(),
            preserves: latencies(),
            commands_before: Commands::default(),
            engine_before: Counters::default(),
        }
    }
}

impl VolumeCounters {
    /// A command was parked for this long.
    pub fn waited(&mut self, us: u64) {
        self.waits.saturating_record(us.max(1));
    }

    /// A chunk was preserved in this time.
    pub fn preserved(&mut self, us: u64) {
        self.preserves.saturating_record(us.max(1));
    }
}

/// Wall clock, milliseconds since the Unix epoch.
pub fn unix_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}
