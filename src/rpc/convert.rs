//! From the engine's records to result objects.

use super::objects::{
    ChunkCounts, Consistency, Export, Progress, Snapshot, SnapshotState, SnapshotTimes, rfc3339,
};
use crate::engine::records;

impl From<records::SnapshotState> for SnapshotState {
    fn from(state: records::SnapshotState) -> Self {
        match state {
            records::SnapshotState::Completing => Self::Completing,
            records::SnapshotState::Complete => Self::Complete,
            records::SnapshotState::Failed => Self::Failed,
        }
    }
}

impl From<records::ChunkCounts> for ChunkCounts {
    fn from(counts: records::ChunkCounts) -> Self {
        let records::ChunkCounts { total, required, adopted, copied, preserved, zero } = counts;
        Self { total, required, adopted, copied, preserved, zero }
    }
}

impl From<records::SnapshotTimes> for SnapshotTimes {
    fn from(times: records::SnapshotTimes) -> Self {
        let records::SnapshotTimes { cut_us, consistent_us, complete_us } = times;
        Self { cut_us, consistent_us, complete_us }
    }
}

impl Snapshot {
    /// The object for a record: `volume` is the volume's name, `since_request_ms` how long ago
    /// the request arrived (for the time left, while completing).
    pub fn from_record(
        record: &records::SnapshotRecord,
        volume: &str,
        export: Option<Export>,
        since_request_ms: u64,
    ) -> Self {
        let completing = record.state == records::SnapshotState::Completing;
        Self {
            name: record.name.clone(),
            uuid: record.uuid,
            volume: volume.to_owned(),
            operation_number: record.operation_number.0,
            created_at: rfc3339(record.created_at_unix_ms),
            state: record.state.into(),
            reason: record.reason.clone(),
            consistency: Consistency::Crash,
            chunks: record.chunks.into(),
            times: record.times.into(),
            bytes_used: record.bytes_used,
            exported: export.is_some(),
            export,
            progress: completing.then(|| Progress::of(&record.chunks.into(), since_request_ms)),
        }
    }
}

impl Progress {
    /// How far a snapshot with these counts is, `since_request_ms` after its request.
    pub fn of(chunks: &ChunkCounts, since_request_ms: u64) -> Self {
        let done = chunks.adopted + chunks.copied + chunks.preserved + chunks.zero;
        let done = done.min(chunks.required);
        // Adopted chunks cost no time, so they say nothing of the rate.
        let worked = done.saturating_sub(chunks.adopted);
        let left = chunks.required - done;
        let percent = (u128::from(done) * 100).checked_div(u128::from(chunks.required));
        let left_ms = (u128::from(since_request_ms) * u128::from(left))
            .checked_div(u128::from(worked))
            .map(|ms| u64::try_from(ms).unwrap_or(u64::MAX));
        Self { percent: percent.unwrap_or(0) as u8, left_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::records::{SnapshotRecord, SnapshotSeq, VolumeId};
    use crate::gate::OperationNumber;

    fn record(state: records::SnapshotState) -> SnapshotRecord {
        SnapshotRecord {
            volume: VolumeId(1),
            seq: SnapshotSeq(2),
            name: "monday".into(),
            uuid: uuid::Uuid::from_u128(7),
            operation_number: OperationNumber(99),
            created_at_unix_ms: 1_767_225_600_125,
            state,
            reason: None,
            chunks: records::ChunkCounts {
                total: 1000,
                required: 200,
                adopted: 100,
                copied: 20,
                preserved: 5,
                zero: 0,
            },
            times: records::SnapshotTimes { cut_us: 1, consistent_us: 2, complete_us: 0 },
            bytes_used: 4096,
        }
    }

    #[test]
    fn records_become_objects() {
        let record = record(records::SnapshotState::Completing);
        let snapshot = Snapshot::from_record(&record, "vol0", None, 500);
        assert_eq!(snapshot.created_at, "2026-01-01T00:00:00.125Z");
        assert_eq!((snapshot.operation_number, snapshot.exported), (99, false));
        assert_eq!(snapshot.progress, Some(Progress { percent: 62, left_ms: Some(1500) }));
        let export = Some(Export::example());
        let complete = SnapshotRecord { state: records::SnapshotState::Complete, ..record };
        let snapshot = Snapshot::from_record(&complete, "vol0", export, 500);
        assert_eq!((snapshot.state, snapshot.exported), (SnapshotState::Complete, true));
        assert_eq!(snapshot.progress, None);
    }

    #[test]
    fn progress_has_no_rate_before_the_first_copy() {
        let mut chunks =
            ChunkCounts { total: 10, required: 0, adopted: 0, copied: 0, preserved: 0, zero: 0 };
        assert_eq!(Progress::of(&chunks, 9), Progress { percent: 0, left_ms: None });
        chunks.required = 10;
        chunks.adopted = 9;
        assert_eq!(Progress::of(&chunks, 9), Progress { percent: 90, left_ms: None });
        chunks.zero = 1;
        assert_eq!(Progress::of(&chunks, 9), Progress { percent: 100, left_ms: Some(0) });
    }
}
