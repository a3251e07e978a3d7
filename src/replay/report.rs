//! What a replay showed.

use serde::Serialize;

/// One snapshot.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SnapshotReport {
    /// When it was asked for, in microseconds of trace time.
    pub at_us: u64,
    /// Chunks that it required.
    pub required: u64,
    /// Of these, taken over from valid staged copies.
    pub adopted: u64,
    /// Bytes that were left to copy after the cut.
    pub left_bytes: u64,
    /// From the request to complete, in microseconds; 0 if it failed.
    pub complete_us: u64,
    /// Why it failed.
    pub failed: Option<String>,
}

/// Copies that were left to make after the cuts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Required chunks of which nothing was right.
    pub whole_chunks: u64,
    /// Their bytes.
    pub whole_bytes: u64,
    /// Required chunks of which only some blocks were missing.
    pub partial_chunks: u64,
    /// Bytes of those blocks.
    pub partial_bytes: u64,
    /// Contiguous pieces of all these: commands that a device sees, each once to read and once to
    /// write.
    pub commands: u64,
}

impl Left {
    fn add(&mut self, other: Self) {
        self.whole_chunks += other.whole_chunks;
        self.whole_bytes += other.whole_bytes;
        self.partial_chunks += other.partial_chunks;
        self.partial_bytes += other.partial_bytes;
        self.commands += other.commands;
    }
}

/// Copies that were made ahead of snapshots, up to the last cut.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Staging {
    /// Copies of whole chunks without a staged copy.
    pub first_copies: u64,
    /// Refreshes of outdated ones.
    pub refreshes: u64,
    /// Contiguous pieces of all these.
    pub commands: u64,
    /// Bytes of all these.
    pub bytes: u64,
    /// Bytes that were no use to any snapshot: written again before the cut, or given up.
    pub wasted_bytes: u64,
    /// Copies given up to make room.
    pub dropped: u64,
    /// Chunks not staged for want of room.
    pub refused: u64,
    /// Most staged copies at once.
    pub chunks_max: u64,
}

impl Staging {
    fn add(&mut self, other: Self) {
        self.first_copies += other.first_copies;
        self.refreshes += other.refreshes;
        self.commands += other.commands;
        self.bytes += other.bytes;
        self.wasted_bytes += other.wasted_bytes;
        self.dropped += other.dropped;
        self.refused += other.refused;
        self.chunks_max = self.chunks_max.max(other.chunks_max);
    }
}

/// Foreground commands that had to wait for a chunk to be preserved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parked {
    /// Commands.
    pub commands: u64,
    /// Microseconds that they waited, summed up.
    pub wait_us: u64,
    /// The longest wait.
    pub wait_us_max: u64,
}

/// One policy on one trace.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// File of the trace, without its folder.
    pub trace: String,
    /// The policy, with its setting.
    pub policy: String,
    /// When snapshots were taken.
    pub schedule: String,
    /// Whether the predictor was told the time of the next snapshot.
    pub schedule_known: bool,
    /// Bytes of a chunk.
    pub chunk_bytes: u64,
    /// Limit on staged copies, in chunks.
    pub staging_chunks_max: Option<u64>,
    /// Limit on background copying.
    pub copy_bytes_per_s_max: Option<u64>,
    /// Trace time replayed.
    pub span_us: u64,
    /// Modifying commands.
    pub modifications: u64,
    /// Bytes that they modified.
    pub modified_bytes: u64,
    /// Chunks that snapshots required.
    pub required: u64,
    /// Bytes of these.
    pub required_bytes: u64,
    /// Required chunks taken over from valid staged copies.
    pub adopted: u64,
    /// Copies left to make.
    pub left: Left,
    /// Copies made ahead.
    pub staging: Staging,
    /// Foreground commands that waited.
    pub parked: Parked,
    /// Mean time from request to complete, in microseconds.
    pub complete_us_mean: u64,
    /// Longest time from request to complete, in microseconds.
    pub complete_us_max: u64,
    /// Snapshots that failed.
    pub failed: u64,
    /// Time of the predictor's steps, all together, in real microseconds.
    pub predictor_us: u64,
    /// Every snapshot.
    pub snapshots: Vec<SnapshotReport>,
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl Report {
    /// Takes in another replay of the same trace under the same policy: sums, the mean and the
    /// greatest of times, and all snapshots.
    pub fn add(&mut self, other: &Self) {
        let complete = |report: &Self| report.snapshots.len() as u64 - report.failed;
        let (own, others) = (complete(self), complete(other));
        let complete_us = self.complete_us_mean * own + other.complete_us_mean * others;
        self.complete_us_mean = complete_us / (own + others).max(1);
        self.complete_us_max = self.complete_us_max.max(other.complete_us_max);
        self.span_us += other.span_us;
        self.modifications += other.modifications;
        self.modified_bytes += other.modified_bytes;
        self.required += other.required;
        self.required_bytes += other.required_bytes;
        self.adopted += other.adopted;
        self.left.add(other.left);
        self.staging.add(other.staging);
        self.parked.commands += other.parked.commands;
        self.parked.wait_us += other.parked.wait_us;
        self.parked.wait_us_max = self.parked.wait_us_max.max(other.parked.wait_us_max);
        self.failed += other.failed;
        self.predictor_us += other.predictor_us;
        self.snapshots.extend_from_slice(&other.snapshots);
    }

    /// Commands that a device saw for copies made ahead, each once to read and once to write, per
    /// required chunk.
    pub fn commands_per_required(&self) -> f64 {
        share(self.staging.commands, self.required)
    }

    /// Bytes copied ahead per byte modified.
    pub fn staged_per_modified(&self) -> f64 {
        share(self.staging.bytes, self.modified_bytes)
    }

    /// Share of required chunks that were adopted.
    pub fn adopted_share(&self) -> f64 {
        share(self.adopted, self.required)
    }

    /// Share of required bytes that were right at the cut: adopted, or already right but for some
    /// blocks.
    pub fn right_share(&self) -> f64 {
        let left = self.left.whole_bytes + self.left.partial_bytes;
        share(self.required_bytes.saturating_sub(left), self.required_bytes)
    }

    /// Copies made ahead, per required chunk.
    pub fn copies_per_required(&self) -> f64 {
        share(self.staging.first_copies + self.staging.refreshes, self.required)
    }

    /// Bytes copied ahead per required byte: whole chunks' worth per required chunk.
    pub fn bytes_per_required(&self) -> f64 {
        share(self.staging.bytes, self.required_bytes)
    }

    /// Bytes copied in vain per byte modified.
    pub fn wasted_per_modified(&self) -> f64 {
        share(self.staging.wasted_bytes, self.modified_bytes)
    }
}
