//! What an engine counts.

/// Counters since the engine was made; bytes are of the master's data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Chunks staged for the first time since their last cut.
    pub staged_copies: u64,
    /// Staged chunks refreshed.
    pub refreshed_copies: u64,
    /// Copies that a command made outdated while they were being made.
    pub outdated_copies: u64,
    /// Staged chunks that snapshots adopted.
    pub adopted_copies: u64,
    /// Staged copies given up.
    pub dropped_copies: u64,
    /// Staged copies given up since others were worth more.
    pub evicted_copies: u64,
    /// Staged copies given up since nothing in them was right any more.
    pub cleaned_copies: u64,
    /// Copies that ended in an error.
    pub failed_copies: u64,
    /// Chunks not staged because the staging limit or the store was full.
    pub staging_refused: u64,
    /// Bytes of first copies of staged chunks.
    pub staged_bytes: u64,
    /// Bytes of refreshes of staged chunks.
    pub refreshed_bytes: u64,
    /// Bytes copied after cuts in the background.
    pub copied_bytes: u64,
    /// Bytes copied after cuts because a foreground command waited.
    pub preserved_bytes: u64,
    /// Bytes of adopted chunks.
    pub adopted_bytes: u64,
    /// Times a foreground command asked for a chunk to be preserved.
    pub parked: u64,
    /// Snapshots completed.
    pub snapshots_complete: u64,
    /// Snapshots failed.
    pub snapshots_failed: u64,
}

impl Counters {
    /// What came since `earlier`.
    #[must_use]
    pub fn since(self, earlier: &Counters) -> Self {
        Self {
            staged_copies: self.staged_copies - earlier.staged_copies,
            refreshed_copies: self.refreshed_copies - earlier.refreshed_copies,
            outdated_copies: self.outdated_copies - earlier.outdated_copies,
            adopted_copies: self.adopted_copies - earlier.adopted_copies,
            dropped_copies: self.dropped_copies - earlier.dropped_copies,
            evicted_copies: self.evicted_copies - earlier.evicted_copies,
            cleaned_copies: self.cleaned_copies - earlier.cleaned_copies,
            failed_copies: self.failed_copies - earlier.failed_copies,
            staging_refused: self.staging_refused - earlier.staging_refused,
            staged_bytes: self.staged_bytes - earlier.staged_bytes,
            refreshed_bytes: self.refreshed_bytes - earlier.refreshed_bytes,
            copied_bytes: self.copied_bytes - earlier.copied_bytes,
            preserved_bytes: self.preserved_bytes - earlier.preserved_bytes,
            adopted_bytes: self.adopted_bytes - earlier.adopted_bytes,
            parked: self.parked - earlier.parked,
            snapshots_complete: self.snapshots_complete - earlier.snapshots_complete,
            snapshots_failed: self.snapshots_failed - earlier.snapshots_failed,
        }
    }
}
